#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "load/checkpoint.h"
#include "model/config.h"
#include "model/weight_table.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "parallel/topology.h"
#include "tensor/buffer.h"

namespace m2::model {

// One layer's weights as the forward reads them: views into Weights::buffer.
struct Layer {
  Tensor input_norm;               // bf16 [H]
  std::array<ops::Linear, 3> qkv;  // q [q_heads*D, H], k and v [kv_heads*D, H]; rows consecutive
  Tensor q_norm, k_norm;           // bf16 [q_heads*D], [kv_heads*D]: this rank's slices
  ops::Linear o;                   // [H, q_heads*D]
  Tensor post_attention_norm;      // bf16 [H]
  Tensor gate;                     // f32 [E, H]
  Tensor routing_bias;             // f32 [E]
  float k_scale = 1, v_scale = 1;  // of K and V in an FP8 cache (model/kv_scales.h)
  ops::Experts experts;
};

// The weights of one rank, in the dtypes of the checkpoint (norms BF16 or F32, router always F32).
struct Weights {
  Buffer buffer;
  Tensor embedding;                      // [V of this rank, H]
  int64_t first_id = 0;                  // first vocabulary row of this rank
  std::vector<int64_t> vocabulary_rows;  // of each tensor rank
  std::vector<Layer> layers;
  Tensor norm;       // [H]
  ops::Linear head;  // [V of this rank, H]
};

// Bytes of Weights::buffer for weights of these dtypes; nothing is allocated.
// Precondition: check_topology() passed.
int64_t weight_bytes(const ModelConfig& config, const parallel::Topology& topology,
                     const StoredTypes& types);

// Called now and then while loading, from the loading thread: bytes done and in all.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

// Reads this rank's share of a checkpoint into memory of `device`. Refuses, naming file and tensor,
// whatever is missing, of another shape or dtype, or damaged; all that the files' headers can tell
// is checked before memory is taken. Ranks read no more than what they hold, of matrices split by
// columns too (load/slices.h).
Result<Weights> load_weights(const ModelConfig& config, const load::Checkpoint& checkpoint,
                             const parallel::Topology& topology, Device device,
                             const LoadProgress& progress);

// Random weights of the config's shapes and dtypes (FP8 blocks if the config is quantised), for
// measuring without a checkpoint (--load-format dummy). Scaled so that activations keep their size
// from layer to layer and tokens choose experts about evenly. An element depends on the seed and
// its place in the whole model alone: ranks hold slices of one and the same model.
Result<Weights> dummy_weights(const ModelConfig& config, const parallel::Topology& topology,
                              Device device, uint64_t seed);

// Gives all FP8 matrices scales that are powers of two (ops/requantise.h).
void requantise(const Exec& exec, Weights& weights);

}  // namespace m2::model
