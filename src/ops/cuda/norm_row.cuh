#pragma once

#include <type_traits>

#include "ops/cuda/device.cuh"

// A row's norm, 8 columns a thread: what the norms and the experts' last step share.
namespace m2::ops::cuda {

constexpr int kNormThreads = 384;  // a row of 3072 is 8 numbers a thread

// 8 numbers of a row as one access (bf16) or two (f32).
template <class T>
struct alignas(16) Pack8 {
  T values[8];
};

// pack_bf16()'s two numbers.
__device__ __forceinline__ float2 floats_of(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// The norm's weights of 8 columns.
__device__ __forceinline__ void load_weights(const void* weight, DType dtype, int64_t column,
                                             float (&by)[8]) {
  if (dtype == DType::bf16 && reinterpret_cast<uintptr_t>(weight) % 16 == 0) {
    const auto pack = *reinterpret_cast<const Pack8<__nv_bfloat16>*>(
        static_cast<const __nv_bfloat16*>(weight) + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) by[i] = to_float(pack.values[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) by[i] = load_number(weight, dtype, column + i);
}

// Adds 8 numbers, rounded, to what the residual has; the sum of the squares of what comes of it.
__device__ __forceinline__ float add_to_residual(Pack8<__nv_bfloat16>& kept,
                                                 const float (&numbers)[8]) {
  // By twos: a conversion of one number goes through the unit for transcendental functions.
  auto* pairs = reinterpret_cast<uint32_t*>(kept.values);
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float2 delta = floats_of(pack_bf16(numbers[2 * c], numbers[2 * c + 1]));
    const float2 before = floats_of(pairs[c]);
    pairs[c] = pack_bf16(before.x + delta.x, before.y + delta.y);
    const float2 value = floats_of(pairs[c]);
    squares = fmaf(value.x, value.x, squares);
    squares = fmaf(value.y, value.y, squares);
  }
  return squares;
}

// 8 columns of a row, normed.
template <class T>
__device__ __forceinline__ Pack8<T> normed(const Pack8<T>& kept, const float (&by)[8],
                                           float factor) {
  Pack8<T> pack;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float2 value = floats_of(reinterpret_cast<const uint32_t*>(kept.values)[c]);
      reinterpret_cast<uint32_t*>(pack.values)[c] =
          pack_bf16(value.x * factor * by[2 * c], value.y * factor * by[2 * c + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      pack.values[i] = from_float<T>(to_float(kept.values[i]) * factor * by[i]);
  }
  return pack;
}

// 8 columns in FP8, and the scale of the 128 that half a warp has, which all call this.
struct PackF8 {
  uint2 values;
  float scale;
};
template <class T>
__device__ __forceinline__ PackF8 in_f8(const Pack8<T>& pack, bool powers) {
  float value[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] = to_float(pack.values[i]);
  float most = fmaxf(largest_of(value[0], value[1], value[2], value[3]),
                     largest_of(value[4], value[5], value[6], value[7]));
#pragma unroll
  for (int offset = 8; offset; offset /= 2)
    most = fmaxf(most, __shfl_xor_sync(0xffffu << (threadIdx.x & 16), most, offset));
  const float scale = f8_scale(most, powers), inverse = 1.0f / scale;
  return {{to_f8(value[0], value[1], value[2], value[3], inverse),
           to_f8(value[4], value[5], value[6], value[7], inverse)},
          scale};
}

// Writes pack p of a row, normed, and quantised if wanted.
template <class T>
__device__ __forceinline__ void store_normed(const Pack8<T>& kept, const float (&by)[8],
                                             float factor, T* to, int64_t p, int64_t row,
                                             int64_t columns, const QuantisedRows& quantised) {
  const Pack8<T> pack = normed(kept, by, factor);
  reinterpret_cast<Pack8<T>*>(to)[p] = pack;
  if (!quantised.values) return;
  const PackF8 small = in_f8(pack, quantised.powers);
  reinterpret_cast<uint2*>(quantised.values + row * columns)[p] = small.values;
  if (threadIdx.x % 16 == 0) quantised.scales[row * (columns / 128) + p / 16] = small.scale;
}

}  // namespace m2::ops::cuda
