#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace m2::model {

// config.json of a MiniMax-M2 checkpoint (model.md 1): sizes of the graph. Immutable after reading.
// Every size is bounded so that no product of them that a program forms (elements and bytes of all
// weights, of a KV cache for the longest sequence) overflows int64_t.
struct ModelConfig {
  int64_t hidden_size = 0;        // H
  int64_t intermediate_size = 0;  // I, of one expert
  int64_t num_layers = 0;
  int64_t num_heads = 0;  // q heads
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;    // D
  int64_t rotary_dim = 0;  // even, at most D
  double rope_theta = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0;
  int64_t num_experts = 0;  // E
  int64_t num_experts_per_token = 0;
  int64_t vocab_size = 0;              // rows of embedding and head
  bool fp8_blocks = false;             // quantization_config: fp8 with 128x128 blocks
  std::vector<int64_t> eos_token_ids;  // of generation_config.json, else config.json's

  int64_t q_width() const { return num_heads * head_dim; }
  int64_t kv_width() const { return num_kv_heads * head_dim; }
};

// Sampling defaults of generation_config.json; fields that are absent or null stay unset.
struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k, max_new_tokens;
  std::vector<int64_t> eos_token_ids;
};
// `json` may be null (no such file): then nothing is set.
Result<GenerationDefaults> read_generation_config(const Json& json);

// Reads config.json's fields. Unknown fields are ignored; a missing structural field, or a value
// the graph does not model (scoring_func other than sigmoid, a shared expert, rope scaling, a
// sliding window, ...), is an error that names it. Accepts both spellings of the rotary fields:
// rope_theta and rotary_dim, or rope_parameters {rope_theta, partial_rotary_factor}.
// End tokens: generation's if it has any, else config.json's, else the family's 200020.
Result<ModelConfig> read_config(const Json& json, const GenerationDefaults& generation = {});

// Merges --hf-overrides into config.json's fields (objects are merged, other values replaced).
void apply_overrides(Json& config, const Json& overrides);

}  // namespace m2::model
