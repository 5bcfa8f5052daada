#pragma once

#include <vector>

#include "model/config.h"
#include "model/exchange.h"
#include "model/weights.h"
#include "ops/batch_layout.h"
#include "ops/qk_norm_rope.h"
#include "ops/quantised.h"
#include "parallel/comm.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"

namespace m2::model {

constexpr int64_t kBlockSize = 16;  // tokens of a KV block

// The largest step the scratch is sized for.
struct StepLimits {
  int64_t tokens = 0;      // T
  int64_t sequences = 0;   // S
  int64_t logit_rows = 0;  // R of one slice of logits
  int64_t blocks_per_sequence = 0;
  int64_t padded_rows = 0;    // rows of the largest recorded graph, 0 without
  int64_t most_logprobs = 0;  // top logprobs of a row
  int64_t engines = 1;        // that share experts: their steps' tokens meet
};

// Intermediate results of a step, sized once for StepLimits; the forward uses the first T rows.
// A is the device's activation dtype: f32 on the CPU, bf16 on GPUs.
struct Scratch {
  Tensor residual;  // A [T, H]
  Tensor hidden;    // A [T, H] the normed input of a block
  Tensor delta;     // A [T + 8, H] what a block adds to the residual; Comm::introduce()d
  Tensor qkv;       // A [T, q + 2 kv]
  Tensor attended;  // A [T, q]
  // hidden and attended again, for products with FP8 weights; empty where the device wants none.
  ops::Quantised quantised_hidden, quantised_attended;
  Tensor qk_sums;         // f32 [T, 2]
  Tensor angles;          // f32 [T, rotary_dim]
  Tensor expert_ids;      // i32 [T, top]
  Tensor expert_weights;  // f32 [T, top]
  Tensor experts;         // u8 [experts_scratch_bytes]
  Tensor last;            // A [R, H] the rows whose logits are wanted
  Tensor logits;          // f32 [R, V of this rank]
  Tensor all_logits;      // f32 [R, V] on the first of several tensor ranks
  Tensor workspace;       // u8, for Exec::workspace
};

// Places the scratch; with a dry arena only counts its bytes.
Scratch place_scratch(Arena& arena, const ModelConfig& config, const Weights& weights,
                      const StepLimits& limits, Device device);

// Everything a forward reads, besides the step's layout. Owns nothing.
struct ForwardContext {
  Exec exec;
  parallel::Comm& comm;
  const ModelConfig& config;
  const Weights& weights;
  const std::vector<ops::KvCache>& kv;  // one per layer
  const Scratch& scratch;
  ops::HeadShape heads;          // of this rank
  Exchange* exchange = nullptr;  // where engines share experts
};

// Runs the layers (model.md 6) and leaves the normed last hidden states of the T tokens in
// scratch.hidden.
void forward(const ForwardContext& context, const ops::BatchLayout& layout);

// Logits of the step's logit rows [first, first + count) (count <= R) after forward(): f32 [count,
// V] on the first tensor rank, empty on the others.
Tensor logits(const ForwardContext& context, const ops::BatchLayout& layout, int64_t first,
              int64_t count);

}  // namespace m2::model
