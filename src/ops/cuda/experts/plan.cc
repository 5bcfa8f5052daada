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

// Steps of that many tokens and more are prefill: activations are quantised.
constexpr int64_t kTilesTokens = 129;

bool can_tile(const ExpertsShape& shape) {
  return shape.compute_major == 9 && shape.weight == DType::f8_e4m3 &&
         shape.tokens >= kTilesTokens && shape.hidden % 128 == 0;
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

  if (stream && can_tile(shape)) {
    plan.form = ExpertsForm::tiles;
    plan.batch = std::min(shape.tokens, kTilesBatch);
    plan.group_pairs = 128;
  }
  const bool tiles = plan.form == ExpertsForm::tiles;

  const int64_t pairs = plan.batch * shape.top;
  Layout layout;
  plan.offsets = layout.place(4 * (shape.experts + 1));
  plan.active = layout.place(4 * (shape.experts + 1));
  plan.groups = layout.place(4 * (4 + 4 * (shape.experts + pairs / plan.group_pairs + 1)));
  plan.order = layout.place(4 * pairs);
  plan.inner = layout.place(tiles ? 0 : (stream ? 2 : 4) * pairs * shape.inner);
  plan.results = layout.place((tiles ? 2 : 4) * pairs * shape.hidden);
  if (tiles) {
    plan.x_f8 = layout.place(pairs * shape.hidden);
    plan.x_scales = layout.place(4 * pairs * (shape.hidden / 128));
    plan.inner_f8 = layout.place(pairs * shape.inner);
    plan.inner_scales = layout.place(4 * pairs * (shape.inner / 64));
  }
  plan.scratch_bytes = layout.bytes();
  return plan;
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
  }
  return "?";
}

}  // namespace m2::ops::cuda
