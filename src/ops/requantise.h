#pragma once

#include "ops/linear.h"
#include "tensor/exec.h"

namespace m2::ops {

// Gives an f8_e4m3 matrix scales that are powers of two, in place, as vLLM does for DeepGEMM where
// VLLM_USE_DEEP_GEMM_E8M0 is set (requant_weight_ue8m0_inplace). For each block of 128x128 with
// scale s:
//   t = max(largest |code| * s, 1e-4) / 448, rounded up to a power of two, is its new scale
//   code' = code * s / t, in FP32, to the nearest e4m3, ties to even.
// Of a block that the slice has in part the part decides. Each weight is rounded a second time, by
// up to 1/16 of itself. Other dtypes stay as they are. CPU and GPU write the same bytes.
void requantise(const Exec& exec, const Linear& weight);

}  // namespace m2::ops
