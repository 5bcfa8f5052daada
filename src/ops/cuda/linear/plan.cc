#include "ops/cuda/linear/plan.h"

namespace m2::ops::cuda {
namespace {

// What the busiest of `workers` does, over the mean.
double imbalance(int64_t tiles, int64_t workers) {
  const int64_t most = (tiles + workers - 1) / workers;
  return static_cast<double>(most * workers) / static_cast<double>(tiles);
}

// More tokens than this are prefill: activations are quantised.
constexpr int64_t kStreamTokens = 64;

int64_t scales_offset(int64_t tokens, int64_t columns) {
  return (tokens * columns + 255) / 256 * 256;
}

}  // namespace

int64_t linear_workspace_bytes(int64_t tokens, int64_t columns) {
  return scales_offset(tokens, columns) + tokens * ((columns + 127) / 128) * 4;
}

LinearPlan plan_linear(const LinearShape& shape) {
  LinearPlan plan;
  const bool f8 = shape.weight == DType::f8_e4m3;
  const bool streams = shape.compute_major >= 8 && shape.x == DType::bf16 &&
                       (f8 || shape.weight == DType::bf16) && shape.columns % 64 == 0 &&
                       shape.aligned && (!f8 || shape.whole_chunks);
  if (!streams) return plan;
  plan.form = LinearForm::stream;
  if (f8 && shape.compute_major >= 9 && shape.tokens <= 8 && shape.rows_follow &&
      shape.columns <= 6144 && shape.rows > 0) {
    plan.form = LinearForm::ring;
    const int64_t tiles = (shape.rows + 15) / 16;
    const bool halves = imbalance(2 * tiles, shape.multiprocessors) + 0.05 <
                        imbalance(tiles, shape.multiprocessors);
    // Two tiles of the widest rows have to fit, one read while the other comes.
    plan.tile_rows = halves || shape.columns > 4096 ? 8 : 16;
  }
  if (f8 && shape.compute_major == 9 && shape.tokens > kStreamTokens && shape.whole_blocks &&
      shape.rows_follow && shape.rows > 0 &&
      shape.workspace_bytes >= linear_workspace_bytes(shape.tokens, shape.columns)) {
    plan.form = LinearForm::tiles;
    plan.scales_at = scales_offset(shape.tokens, shape.columns);
  }
  plan.token_tiles = shape.tokens <= 8 ? 1 : shape.tokens <= 16 ? 2 : 4;
  return plan;
}

std::string describe(const LinearPlan& plan) {
  switch (plan.form) {
    case LinearForm::any:
      return "any";
    case LinearForm::stream:
      return "stream, " + std::to_string(8 * plan.token_tiles) + " tokens";
    case LinearForm::ring:
      return "ring, tiles of " + std::to_string(plan.tile_rows) + " rows";
    case LinearForm::tiles:
      return "tiles";
  }
  return "?";
}

}  // namespace m2::ops::cuda
