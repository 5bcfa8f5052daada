#include "ops/cuda/linear/plan.h"

namespace m2::ops::cuda {

LinearPlan plan_linear(const LinearShape& shape) {
  LinearPlan plan;
  const bool f8 = shape.weight == DType::f8_e4m3;
  const bool streams = shape.compute_major >= 8 && shape.x == DType::bf16 &&
                       (f8 || shape.weight == DType::bf16) && shape.columns % 64 == 0 &&
                       shape.aligned && (!f8 || shape.whole_chunks);
  if (!streams) return plan;
  plan.form = LinearForm::stream;
  plan.token_tiles = shape.tokens <= 8 ? 1 : shape.tokens <= 16 ? 2 : 4;
  return plan;
}

std::string describe(const LinearPlan& plan) {
  switch (plan.form) {
    case LinearForm::any: return "any";
    case LinearForm::stream: return "stream, " + std::to_string(8 * plan.token_tiles) + " tokens";
    case LinearForm::tiles: return "tiles";
  }
  return "?";
}

}  // namespace m2::ops::cuda
