#pragma once

#include "ops/cuda/attention/launch.h"
#include "ops/cuda/device.cuh"

// What attention's kernels share.
namespace m2::ops::cuda {

constexpr int kDim = 128;
constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ uint32_t word(const uint4& value, int i) {
  return i == 0 ? value.x : i == 1 ? value.y : i == 2 ? value.z : value.w;
}

// Four e4m3 numbers as f16, exactly; NaN stays NaN.
__device__ __forceinline__ void widen_to_halves(uint32_t four, uint32_t& low, uint32_t& high) {
  const auto convert = [](uint32_t pair) {
    const __half2_raw halves =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
    return static_cast<uint32_t>(halves.x) | static_cast<uint32_t>(halves.y) << 16;
  };
  low = convert(four & 0xffff);
  high = convert(four >> 16);
}

}  // namespace m2::ops::cuda
