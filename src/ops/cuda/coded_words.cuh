#pragma once

#include "ops/cuda/device.cuh"

// Words of summands alone, as ranks send them to each other: 16 bytes of bf16 or f32, of which each
// four say by not being zeros that they are there. What travels are complements; all ones, a NaN,
// travels as another one, and a sum has the same bytes with any.
namespace m2::ops::cuda {

__device__ __forceinline__ uint32_t under_way(uint32_t bits) {
  constexpr uint32_t kOther = 0x7fff7fff;
  return ~(bits == ~0u ? kOther : bits);
}
__device__ __forceinline__ uint4 under_way(uint4 bits) {
  return {under_way(bits.x), under_way(bits.y), under_way(bits.z), under_way(bits.w)};
}
__device__ __forceinline__ uint32_t least_of(const uint4& word) {
  return min(min(word.x, word.y), min(word.z, word.w));
}
// The numbers of a word that came.
__device__ __forceinline__ void read_word(const uint4& word, float (&to)[4]) {
  to[0] = __uint_as_float(~word.x);
  to[1] = __uint_as_float(~word.y);
  to[2] = __uint_as_float(~word.z);
  to[3] = __uint_as_float(~word.w);
}
__device__ __forceinline__ void read_word(const uint4& word, float (&to)[8]) {
  const uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(pairs[i] * 0xffff0000u + 0xffff0000u);  // ~pair << 16, at once
    to[2 * i + 1] = __uint_as_float(~pairs[i] & 0xffff0000u);
  }
}

}  // namespace m2::ops::cuda
