#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "load/checkpoint.h"
#include "model/config.h"
#include "parallel/topology.h"
#include "tensor/dtype.h"

// The one table of weights: name, kind (which dtypes), and the axes, each of which knows its size
// and how ranks share it. Loader, rank slicer, memory plan and `m2 inspect` read this table.

namespace m2::model {

// Edge of a square of FP8 weights that share a scale (model.md 7).
constexpr int64_t kScaleBlock = 128;

// What an axis counts: its size comes from the config, its split over ranks from the topology.
enum class Axis : uint8_t {
  none,        // a vector's missing second axis; size 1
  vocabulary,  // rows of embedding and head: tensor ranks, as even as can be
  hidden,      // never split
  q_width,     // q channels: tensor ranks, by whole heads
  kv_width,    // k and v channels: by whole heads; a head is on several ranks if there are more
               // ranks than heads
  inner,       // an expert's inner channels: all ranks, unless experts are held whole
  experts,     // rows of the router, which every rank has whole
};

enum class WeightKind : uint8_t {
  table,   // embedding: BF16, F16 or F32, kept
  norm,    // BF16 or F32, kept; F16 becomes F32
  router,  // BF16, F16 or F32, always F32 in memory
  matrix,  // FP8 with one F32 scale for each 128x128 block (NAME_scale_inv); or BF16, F16, F32,
           // kept
};

enum class Scope : uint8_t { model, layer, expert };

enum class WeightId : uint8_t {
  embedding,
  norm,
  head,
  input_norm,
  q,
  k,
  v,
  q_norm,
  k_norm,
  o,
  post_attention_norm,
  gate,
  routing_bias,
  w1,
  w2,
  w3,
};
constexpr size_t kWeightIds = 16;

struct WeightSpec {
  WeightId id;
  Scope scope;
  std::string_view name;  // after the scope's prefix, see weight_name()
  WeightKind kind;
  Axis rows;
  Axis columns;  // none for a vector
};

// One line for each weight, indexed by WeightId.
std::span<const WeightSpec> weight_table();
inline const WeightSpec& spec_of(WeightId id) {
  return weight_table()[static_cast<size_t>(id)];
}

// "model.layers.3.block_sparse_moe.experts.7.w1.weight". Numbers a scope lacks are ignored.
std::string weight_name(const WeightSpec& spec, int64_t layer, int64_t expert);
// Of the block scales that belong to a matrix.
std::string scale_name(const WeightSpec& spec, int64_t layer, int64_t expert);

int64_t axis_size(Axis axis, const ModelConfig& config);
// The rank's part of an axis. Precondition: check_topology() passed.
parallel::Range axis_share(Axis axis, const ModelConfig& config,
                           const parallel::Topology& topology);
// The experts a rank holds: first, first + step, ...; all of them unless whole ones are shared out.
struct ExpertShare {
  int64_t first;
  int64_t count;
  int64_t step = 1;
  bool operator==(const ExpertShare&) const = default;
};
ExpertShare expert_share(const ModelConfig& config, const parallel::Topology& topology);
// The rank, of those that share the experts, that holds a whole expert.
// Precondition: topology.expert_parallel.
int64_t owner_of_expert(int64_t expert, const ModelConfig& config,
                        const parallel::Topology& topology);
// Fails, saying what must divide what, if the model cannot be split like this.
Result<void> check_topology(const ModelConfig& config, const parallel::Topology& topology);

// The 128-blocks that a range of weights touches.
constexpr parallel::Range blocks_of(parallel::Range range) {
  const int64_t begin = range.begin / kScaleBlock;
  const int64_t end = (range.begin + range.count + kScaleBlock - 1) / kScaleBlock;
  return {begin, range.count == 0 ? 0 : end - begin};
}

// The dtype each weight has in memory. All experts of a layer agree; so do w1 and w3, and q, k, v.
class StoredTypes {
 public:
  // As released: FP8 matrices if the config is quantised, else BF16; F32 router; BF16 the rest.
  explicit StoredTypes(const ModelConfig& config);

  DType of(WeightId id, int64_t layer) const { return types_[index(id, layer)]; }
  void set(WeightId id, int64_t layer, DType dtype) { types_[index(id, layer)] = dtype; }

 private:
  static size_t index(WeightId id, int64_t layer) {
    return static_cast<size_t>(layer) * kWeightIds + static_cast<size_t>(id);
  }
  std::vector<DType> types_;  // a model-wide weight counts as layer 0
};

// Looks up every weight of the table in the checkpoint and checks its shape and dtype and those of
// its scales; nothing but headers is read. Returns the dtypes that memory will hold. The error
// names file and tensor. Tensors that the table does not list (MTP layers, rotary inv_freq, layers
// beyond num_hidden_layers) are not looked at.
Result<StoredTypes> check_weights(const ModelConfig& config, const load::Checkpoint& checkpoint);

// For `m2 inspect weights`: one line for each tensor of the model (name, shape, dtype, split,
// bytes, file), then totals, among them the tensors of the checkpoint that the model does not use.
// Fails like check_weights() and check_topology().
Result<std::string> describe_weights(const ModelConfig& config, const load::Checkpoint& checkpoint,
                                     const parallel::Topology& topology);

// Calls visit(spec, layer, expert) for each weight of the model: those outside the layers, then
// layer by layer, at last expert by expert. layer or expert is 0 where the scope has none. Stops at
// the first error and returns it.
template <class Visit>
Result<void> for_each_weight(const ModelConfig& config, Visit&& visit) {
  const auto visit_scope = [&](Scope scope, int64_t layer, int64_t expert) -> Result<void> {
    for (const WeightSpec& spec : weight_table())
      if (spec.scope == scope) M2_TRY_VOID(visit(spec, layer, expert));
    return {};
  };
  M2_TRY_VOID(visit_scope(Scope::model, 0, 0));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    M2_TRY_VOID(visit_scope(Scope::layer, layer, 0));
    for (int64_t expert = 0; expert < config.num_experts; ++expert)
      M2_TRY_VOID(visit_scope(Scope::expert, layer, expert));
  }
  return {};
}

}  // namespace m2::model
