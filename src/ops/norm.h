#pragma once

#include "ops/quantised.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// Root-mean-square norm of each row (model.md 6): out = weight * x / sqrt(mean(x^2) + eps), the
// mean in FP32 over the row, one rounding at the end.
//   x, out  f32 | bf16 [T, H], the same dtype; out may be x
//   weight  bf16 | f32 [H]
//   quantised  out again, if not empty
void rms_norm(const Exec& exec, Tensor x, Tensor weight, float eps, Tensor out,
              const Quantised& quantised = {});

// residual += delta, then out = rms_norm(residual). The sum is kept in the residual's dtype and the
// norm is taken of that kept value, so that it equals the two steps done one after the other.
//   residual, delta, out  f32 | bf16 [T, H], the same dtype; out may be delta
void add_rms_norm(const Exec& exec, Tensor residual, Tensor delta, Tensor weight, float eps,
                  Tensor out, const Quantised& quantised = {});

}  // namespace m2::ops
