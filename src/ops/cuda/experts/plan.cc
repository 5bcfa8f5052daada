#include "ops/cuda/experts/plan.h"

#include <algorithm>

namespace m2::ops::cuda {
namespace {

// Offsets that follow one another at 256-byte borders.
class Layout {
 public:
  int64_t place(int64_t bytes) {
    const int64_t begin = used_;
    used_ += (bytes + 255) / 256 * 256;
    return begin;
  }
  int64_t bytes() const { return used_; }

 private:
  int64_t used_ = 0;
};

constexpr int64_t kAnyBatch = 64;
constexpr int64_t kStreamBatch = 256;
constexpr int64_t kTilesBatch = 8192;
constexpr int64_t kRingHidden = 3072, kRingInner = 1536;  // what the ring's registers hold
constexpr int64_t kFlowHidden = 8192,
                  kFlowInner = 4096;  // what the flow form's shared memory holds

// Pairs up to which the flow form is faster than prefill's tiles, which the more of their time wait
// the narrower an expert's slice is. By tokens of an expert when the choice is even. (Which of the
// two runs changes no byte.)
int64_t most_flow_pairs(const ExpertsShape& shape) {
  const int64_t mean = shape.inner >= 1024 ? 8 : shape.inner > 256 ? 13 : 16;
  return std::min<int64_t>(mean * shape.experts, kFlowPairs);
}
// The same from which on groups have 16 columns and not 8: then few experts' weights are read
// twice.
int64_t least_wide_pairs(const ExpertsShape& shape) {
  return (shape.inner >= 1024 ? 2 : 4) * shape.experts;
}

// Inner columns up to which prefill's first half reads each token where it is, once for every 128
// of them. That costs it instructions; to write tokens in the order of the experts before takes as
// long whatever the columns.
constexpr int64_t kGatherInner = 768;

constexpr int64_t kFewTop = 32;  // lanes of a warp, which choose for one token
// A row's steps have to be fewer than two rounds of the ring (nine stages of 256 columns where both
// are as wide as this), or a team of consumers could take a stage's barrier for that of two rounds
// before.
constexpr int64_t kFewWidth = 3072;

// Columns of an instruction that takes the tokens without lists, or 0.
int64_t few_columns(const ExpertsShape& shape) {
  const int64_t columns = shape.tokens <= 8 ? 8 : kFewTokens;
  const bool fits = shape.tokens <= columns && shape.top <= kFewTop &&
                    shape.tokens * shape.top <= columns * kFewChoices &&
                    shape.hidden <= kFewWidth && shape.inner <= kFewWidth;
  return fits ? columns : 0;
}

// Where activations are quantised, for few tokens and for many.
bool can_quantise(const ExpertsShape& shape) {
  return shape.compute_major == 9 && shape.weight == DType::f8_e4m3 && shape.hidden % 128 == 0;
}

bool can_stream(const ExpertsShape& shape) {
  const bool f8 = shape.weight == DType::f8_e4m3;
  return shape.compute_major >= 8 && shape.x == DType::bf16 &&
         (f8 || shape.weight == DType::bf16) && shape.hidden % 64 == 0 && shape.inner % 64 == 0 &&
         shape.aligned && (!f8 || shape.whole_chunks);
}

}  // namespace

ExpertsPlan plan_experts(const ExpertsShape& shape) {
  ExpertsPlan plan;
  const bool stream = can_stream(shape);
  plan.form = stream ? ExpertsForm::stream : ExpertsForm::any;
  plan.batch = std::min(shape.tokens, stream ? kStreamBatch : kAnyBatch);
  // Tokens of an expert when the choice is even; a fuller one is read again from the cache.
  const int64_t mean = plan.batch * shape.top / std::max<int64_t>(shape.experts, 1);
  plan.token_tiles = mean <= 4 ? 1 : mean <= 10 ? 2 : 4;
  if (stream && shape.weight == DType::f8_e4m3 && shape.compute_major >= 9 && mean <= 4 &&
      shape.hidden <= kRingHidden && shape.inner <= kRingInner)
    plan.form = ExpertsForm::ring;

  if (stream && can_quantise(shape)) {
    const int64_t pairs = shape.tokens * shape.top;
    const bool flow =
        pairs <= most_flow_pairs(shape) && shape.hidden <= kFlowHidden && shape.inner <= kFlowInner;
    plan.form = flow ? ExpertsForm::flow : ExpertsForm::tiles;
    plan.batch = std::min(shape.tokens, kTilesBatch);
    plan.fused = shape.alone;
    const int64_t columns = flow ? few_columns(shape) : 0;
    plan.few = columns > 0;
    plan.group_pairs = !flow ? 0 : plan.few ? columns : pairs < least_wide_pairs(shape) ? 8 : 16;
    plan.inner_stretch = shape.whole_blocks ? 128 : 64;
    plan.gathers = !flow && shape.inner <= kGatherInner;
  }
  const bool tiles = plan.form == ExpertsForm::tiles, flow = plan.form == ExpertsForm::flow;

  const int64_t pairs = plan.batch * shape.top;
  Layout layout;
  // First, so that it lies at the same place whatever the step.
  plan.next_tile = layout.place(shape.compute_major == 9 ? 4 : 0);
  plan.done = layout.place(shape.compute_major == 9 ? 4 * (kMostExperts + kFlowPairs / 8 + 1) : 0);
  plan.posted = layout.place(shape.compute_major == 9 ? 16 + 4 * kFewPairs * shape.inner : 0);
  plan.offsets = layout.place(4 * (shape.experts + 1));
  plan.active = layout.place(4 * (shape.experts + 1));
  const int64_t full_groups = plan.group_pairs > 0 ? pairs / plan.group_pairs + 1 : 0;
  plan.groups = layout.place(4 * (4 + 4 * (shape.experts + full_groups)));
  plan.order = layout.place(4 * pairs);
  plan.position = layout.place(tiles ? 4 * pairs : 0);
  plan.inner = layout.place(tiles ? 0 : (stream ? 2 : 4) * pairs * shape.inner);
  plan.results = layout.place((tiles || flow ? 2 : 4) * pairs * shape.hidden);
  if (tiles || flow) {
    const int64_t rows = plan.gathers ? plan.batch : pairs;
    plan.x_f8 = layout.place(rows * shape.hidden);
    plan.x_scales = layout.place(4 * rows * (shape.hidden / 128));
  }
  if (tiles) {
    plan.inner_f8 = layout.place(pairs * shape.inner);
    plan.inner_scales = layout.place(4 * pairs * (shape.inner / plan.inner_stretch));
  }
  plan.scratch_bytes = layout.bytes();
  return plan;
}

int64_t experts_scratch_bytes(ExpertsShape shape) {
  int64_t bytes = plan_experts(shape).scratch_bytes;
  // The largest step of the flow form may need more than the smallest of tiles.
  shape.tokens = std::min(shape.tokens, most_flow_pairs(shape) / std::max<int64_t>(shape.top, 1));
  return std::max(bytes, plan_experts(shape).scratch_bytes);
}

std::string describe(const ExpertsPlan& plan) {
  const std::string batch = ", batch " + std::to_string(plan.batch);
  switch (plan.form) {
    case ExpertsForm::any:
      return "any" + batch;
    case ExpertsForm::stream:
      return "stream, " + std::to_string(8 * plan.token_tiles) + " tokens" + batch;
    case ExpertsForm::ring:
      return "ring" + batch;
    case ExpertsForm::tiles:
      return "tiles" + batch;
    case ExpertsForm::flow:
      return (plan.few ? "flow without lists, " : "flow, groups of ") +
             std::to_string(plan.group_pairs) + (plan.few ? " columns" : "") + batch;
  }
  return "?";
}

}  // namespace m2::ops::cuda
