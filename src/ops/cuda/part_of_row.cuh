#pragma once

#include "ops/cuda/norm_row.cuh"

// What operations on rows share in steps of many of them.
namespace m2::ops::cuda {

// 8 numbers and 8 more, rounded; the sum of the squares of 8, from the first on.
__device__ __forceinline__ uint4 sum_of_packs(const uint4& a, const uint4& b) {
  const auto add = [](uint32_t one, uint32_t other) {
    const float2 x = floats_of(one), y = floats_of(other);
    return pack_bf16(x.x + y.x, x.y + y.y);
  };
  return {add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w)};
}
__device__ __forceinline__ float squares_of(const uint4& pack) {
  const uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
  float squares = 0.0f;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const float2 value = floats_of(words[c]);
    squares = fmaf(value.x, value.x, squares);
    squares = fmaf(value.y, value.y, squares);
  }
  return squares;
}

// A row of kPartedColumns bf16 numbers by fewer threads than it has packs of eight: more rows are
// under way, and most of a sum stays in a thread. Thread t has the packs first + i * kStep, i from
// 0 to kPacks, and sums are those of kNormThreads threads with a pack each (block_sum()): of the 32
// packs of one of their warps it has those that meet first in warp_sum().
constexpr int kPartedColumns = 8 * kNormThreads;
template <int kPacks>
struct PartOfRow {
  static constexpr int kEach = kWarp / kPacks;  // threads that share a warp's packs
  static constexpr int kThreads = kNormThreads / kPacks;
  static constexpr int kStep = kEach;
  static_assert(kPacks == 2 || kPacks == 4);

  int first = static_cast<int>(threadIdx.x) / kEach * kWarp + static_cast<int>(threadIdx.x) % kEach;

  // The row's sum of what each pack adds. `of_warp`: of as many floats as kNormThreads threads have
  // warps, which nobody reads any more. By all threads.
  static __device__ __forceinline__ float sum(const float (&squares)[kPacks], float* of_warp) {
    float all = 0.0f;
    if constexpr (kPacks == 4)
      all = (squares[0] + squares[2]) + (squares[1] + squares[3]);
    else
      all = squares[0] + squares[1];
#pragma unroll
    for (int offset = kEach / 2; offset; offset /= 2) all += __shfl_xor_sync(~0u, all, offset);
    if (threadIdx.x % kEach == 0) of_warp[threadIdx.x / kEach] = all;
    __syncthreads();
    // As warp_sum() of 12 numbers and zeros.
    static_assert(kNormThreads / kWarp == 12);
    float4 of[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) of[i] = reinterpret_cast<const float4*>(of_warp)[i];
    return ((of[0].x + of[2].x + of[1].x) + (of[0].z + of[2].z + of[1].z)) +
           ((of[0].y + of[2].y + of[1].y) + (of[0].w + of[2].w + of[1].w));
  }

  // Writes the row's packs, normed, as store_normed() does.
  __device__ __forceinline__ void store(const uint4 (&kept)[kPacks], const uint4* weight,
                                        float factor, __nv_bfloat16* to, int64_t row,
                                        const QuantisedRows& quantised) const {
    uint4 out[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const uint4 weights = weight[first + i * kStep];
      float by[8];
#pragma unroll
      for (int c = 0; c < 8; ++c)
        by[c] = to_float(reinterpret_cast<const Pack8<__nv_bfloat16>&>(weights).values[c]);
      const Pack8<__nv_bfloat16> pack =
          normed(reinterpret_cast<const Pack8<__nv_bfloat16>&>(kept[i]), by, factor);
      out[i] = reinterpret_cast<const uint4&>(pack);
      reinterpret_cast<uint4*>(to)[first + i * kStep] = out[i];
    }
    if (!quantised.values) return;
      // 128 columns are half of a warp's packs.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr int kOfHalf = kPacks / 2;
      float most = 0.0f;
#pragma unroll
      for (int i = 0; i < kOfHalf; ++i) {
        float2 value[4];
        floats_of(out[half * kOfHalf + i], value);
#pragma unroll
        for (int c = 0; c < 4; ++c) most = fmaxf(most, fmaxf(fabsf(value[c].x), fabsf(value[c].y)));
      }
#pragma unroll
      for (int offset = kEach / 2; offset; offset /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
      const float scale = f8_scale(most, quantised.powers), inverse = 1.0f / scale;
#pragma unroll
      for (int i = 0; i < kOfHalf; ++i) {
        const int at = half * kOfHalf + i;
        float2 value[4];
        floats_of(out[at], value);
        reinterpret_cast<uint2*>(quantised.values + row * kPartedColumns)[first + at * kStep] = {
            to_f8(value[0].x, value[0].y, value[1].x, value[1].y, inverse),
            to_f8(value[2].x, value[2].y, value[3].x, value[3].y, inverse)};
      }
      if (threadIdx.x % kEach == 0)
        quantised.scales[row * (kPartedColumns / 128) + threadIdx.x / kEach * 2 + half] = scale;
    }
  }

 private:
  static __device__ __forceinline__ void floats_of(const uint4& pack, float2 (&value)[4]) {
    const uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
    for (int c = 0; c < 4; ++c) value[c] = cuda::floats_of(words[c]);
  }
};
// Whether a step's rows, of which forms for few rows have one or two on a multiprocessor, are many.
inline bool many_rows(int64_t rows) {
  return rows > multiprocessors();
}
// A row a block, `threads` of them. Loads of many rows want L1: without a wish a kernel has the
// split of a multiprocessor's memory that tiles in front of it left, and 28 KB.
inline LaunchShape rows_shape(int64_t rows, int threads) {
  LaunchShape shape{dim3(static_cast<unsigned>(rows)), dim3(static_cast<unsigned>(threads))};
  shape.through_l1 = true;
  shape.shared_percent = 14;
  return shape;
}

}  // namespace m2::ops::cuda
