#pragma once

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// The rows of an activation once more, as FP8: x[t, k] = float(values[t, k]) * scales[t, k / 128],
// the scale being the largest magnitude of its 128 columns / 448 (model.md 7), or the power of two
// above that (Exec::scales). On devices that
// multiply FP8 weights with quantised inputs, the operation that makes an activation also makes
// this, so that the products need not; given empty, they quantise for themselves, to the same
// bytes.
struct Quantised {
  Tensor values;  // f8_e4m3 [T, K], dense
  Tensor scales;  // f32 [T, ceil(K / 128)], dense

  bool empty() const { return values.empty(); }
  Quantised rows(int64_t first, int64_t count) const {
    return empty() ? *this : Quantised{values.rows(first, count), scales.rows(first, count)};
  }
};

// Whether products with FP8 weights want their inputs so.
bool wants_quantised(Device device);

// Fills `to` from x, f32 | bf16 [T, K] (GPU: bf16, K a multiple of 4). For each 128 columns of a
// row
//   scale = max(largest |x|, 1e-10) / 448; with exec.scales e8m0 max(scale, 1e-10), rounded up to a
//           power of two (vLLM's per_token_group_quant_fp8 under use_ue8m0)
//   value = x * (1 / scale), to the nearest e4m3, ties to even; NaN stays NaN.
void quantise(const Exec& exec, Tensor x, const Quantised& to);

// Stops the process unless `quantised` is empty or fits x.
void check_quantised(const Quantised& quantised, const Tensor& x);

}  // namespace m2::ops
