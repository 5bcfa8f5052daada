#pragma once

#include "ops/cuda/device.cuh"

// Matrix instructions of compute capability 8.0 and newer, and FP8 weights widened for them.
namespace m2::ops::cuda {

// d += a * b, a 16x16 (rows), b 16x8 (columns), bf16 with FP32 sums. With g = lane / 4, t = lane %
// 4 a holds (g; 2t, 2t+1), (g+8; the same), (g; 2t+8, 2t+9), (g+8; the same), b holds (2t, 2t+1;
// g), (2t+8, 2t+9; g), and d holds (g; 2t, 2t+1), (g+8; 2t, 2t+1).
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // plans ask for compute capability 8.0
#endif
}

// The same for f16.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // plans ask for compute capability 8.0
#endif
}

// Four e4m3 numbers as bf16: bytes 0 and 2, bytes 1 and 3; each 2^120 too small. Sign, exponent and
// mantissa are moved to their places, which is exact for subnormals too; the codes 0x7f and 0xff
// (NaN) come out as +-480 * 2^-120.
__device__ __forceinline__ void widen_f8(uint32_t word, uint32_t& even, uint32_t& odd) {
  constexpr uint32_t kSigns = 0x80008000u, kRest = 0x07f007f0u;
  even = ((word << 4) & kRest) | ((word << 8) & kSigns);
  odd = ((word >> 4) & kRest) | (word & kSigns);
}

// The missing 2^120 is put back in two halves that both stay within range: 2^60 on the activations
// (bf16, exact below 2^67) and 2^60 on the block's scale.
constexpr float kF8Half = 1152921504606846976.0f;  // 2^60

__device__ __forceinline__ uint32_t times_f8_half(uint32_t pair) {
  const uint32_t factor = 0x5d805d80u;  // 2^60 twice
  const __nv_bfloat162 product = __hmul2(reinterpret_cast<const __nv_bfloat162&>(pair),
                                         reinterpret_cast<const __nv_bfloat162&>(factor));
  return reinterpret_cast<const uint32_t&>(product);
}

}  // namespace m2::ops::cuda
