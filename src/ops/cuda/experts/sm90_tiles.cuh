#pragma once

#include "ops/cuda/experts/lists.cuh"
#include "ops/cuda/tiles.cuh"

namespace m2::ops::cuda {

// The tensor maps of one call. Rows of all experts stand one after another.
struct ExpertsMaps {
  CUtensorMap x, w13, inner, w2;
};

// Each pair's token, quantised, in the order of `order`, so that an expert's tokens are
// consecutive. Bytes: P H read (from L2), P H written. Bound: bandwidth.
__global__ void __launch_bounds__(256) sm90_experts_quantise(ExpertsArgs args) {
  wait_for_previous();
  let_next_start();
  const int warps = quantise_warps(args.hidden);
  const int item = blockIdx.x * 8 + threadIdx.x / kWarp, position = item / warps;
  const bool one = args.x.rows == 1;
  if (position >= (one ? args.top : args.offsets[args.experts])) return;
  const int64_t token = one ? 0 : args.order[position] / args.top;
  quantise_stretches(static_cast<const __nv_bfloat16*>(args.x.data) + token * args.x.stride,
                     args.hidden, item % warps * kQuantiseAhead, args.powers,
                     args.x_f8 + static_cast<int64_t>(position) * args.hidden,
                     args.x_scales + static_cast<int64_t>(position) * (args.hidden / 128));
}

// inner = silu(w1 x) * (w3 x), quantised again for every 64 of its columns. A tile is 128 tokens of
// one expert by 64 rows of w1 and the same 64 of w3, so that gate and up meet in one thread.
struct ExpertsUpTiles {
  const ExpertsArgs& args;
  const CUtensorMap* tokens;
  const CUtensorMap* weights;
  int tiles = 0, columns = 0;

  __device__ __forceinline__ int per_group() const { return args.inner / 64; }
  __device__ __forceinline__ int expert(int tile) const {
    return args.groups[4 + 4 * (tile / per_group())];
  }
  __device__ __forceinline__ TilePlace place(int tile) const {
    const int4 group = *reinterpret_cast<const int4*>(args.groups + 4 + 4 * (tile / per_group()));
    const int row = group.x * 2 * args.inner + tile % per_group() * 64;
    return {group.y, group.z, row, row + args.inner};
  }
  __device__ __forceinline__ void factors(int tile, const TilePlace& place, int stretch, int row,
                                          float& row0, float& row1, float& upper,
                                          float& lower) const {
    const int last = place.tokens - 1, stride = args.hidden / 128;
    const float* scales = args.x_scales + static_cast<int64_t>(place.token) * stride + stretch;
    row0 = scales[min(row, last) * stride];
    row1 = scales[min(row + 8, last) * stride];
    const int expert = place.upper_row / (2 * args.inner);
    const int block = (args.first_inner + tile % per_group() * 64) / 128 - args.scale_row;
    const int64_t at =
        (static_cast<int64_t>(expert) * args.inner_blocks + block) * args.hidden_blocks + stretch;
    upper = __ldg(args.w1_scale + at);
    lower = __ldg(args.w3_scale + at);
  }
  __device__ __forceinline__ void store(int tile, const TilePlace& place, int row,
                                        const float (&total)[64]) const {
    const int t = threadIdx.x % 4, column = tile % per_group() * 64;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float value[16], most = 0.0f;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int at = i / 2 * 4 + half * 2 + i % 2;
        value[i] = to_float(__float2bfloat16_rn(silu(total[at]) * total[at + 32]));
        most = fmaxf(most, fabsf(value[i]));
      }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      if (row + half * 8 >= place.tokens) continue;
      const float scale = f8_scale(most, args.powers), inverse = 1.0f / scale;
      const int64_t position = place.token + row + half * 8;
      uint8_t* to = args.inner_f8 + position * args.inner + column + 2 * t;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const __nv_fp8x2_e4m3 pair(float2{value[2 * j] * inverse, value[2 * j + 1] * inverse});
        *reinterpret_cast<uint16_t*>(to + 8 * j) = pair.__x;
      }
      if (t == 0) args.inner_scales[position * (args.inner / 64) + column / 64] = scale;
    }
  }
};

// result = w2 inner, for 128 tokens of one expert by 128 rows, as bf16.
struct ExpertsDownTiles {
  const ExpertsArgs& args;
  const CUtensorMap* tokens;
  const CUtensorMap* weights;
  int tiles = 0, columns = 0;

  __device__ __forceinline__ int per_group() const { return (args.hidden + 127) / 128; }
  __device__ __forceinline__ TilePlace place(int tile) const {
    const int4 group = *reinterpret_cast<const int4*>(args.groups + 4 + 4 * (tile / per_group()));
    const int row = group.x * args.hidden + tile % per_group() * 128;
    return {group.y, group.z, row, row + 64};
  }
  __device__ __forceinline__ void factors(int tile, const TilePlace& place, int stretch, int row,
                                          float& row0, float& row1, float& upper,
                                          float& lower) const {
    row0 = row1 = upper = lower = 0.0f;
    const int last = place.tokens - 1, stride = args.inner / 64;
    if (stretch >= stride) return;  // past the end of a ragged last step, where all is zero
    const float* scales = args.inner_scales + static_cast<int64_t>(place.token) * stride + stretch;
    row0 = scales[min(row, last) * stride];
    row1 = scales[min(row + 8, last) * stride];
    const int expert = place.upper_row / args.hidden;
    const int block = (args.first_inner + stretch * 64) / 128 - args.scale_row;
    const int64_t at = (static_cast<int64_t>(expert) * args.hidden_blocks + tile % per_group()) *
                           args.inner_blocks +
                       block;
    upper = lower = __ldg(args.w2_scale + at);
  }
  __device__ __forceinline__ void store(int tile, const TilePlace& place, int row,
                                        const float (&total)[64]) const {
    const int column = tile % per_group() * 128 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= place.tokens) continue;
      const int64_t pair = args.order[place.token + row + half * 8];
      __nv_bfloat16* to = reinterpret_cast<__nv_bfloat16*>(args.results) + pair * args.hidden;
#pragma unroll
      for (int j = 0; j < 16; ++j)
        if (column + 8 * j < args.hidden)
          *reinterpret_cast<__nv_bfloat162*>(to + column + 8 * j) =
              __floats2bfloat162_rn(total[4 * j + 2 * half], total[4 * j + 2 * half + 1]);
    }
  }
};

// Bytes: 3 I H weights an expert, read once if its tiles run together; FLOPs: 6 I H a pair on the
// FP8 tensor cores. Bound: memory below about 350 pairs an expert, tensor cores above.
template <bool kUp>
__global__ void __launch_bounds__(kTileThreads, 1)
    sm90_experts_tiles(const __grid_constant__ ExpertsArgs args,
                       const __grid_constant__ ExpertsMaps maps) {
  wait_for_previous();
  let_next_start();
  if constexpr (kUp) {
    ExpertsUpTiles work{args, &maps.x, &maps.w13};
    work.columns = args.hidden;
    work.tiles = args.groups[0] * work.per_group();
    run_tiles<1>(work);
  } else {
    ExpertsDownTiles work{args, &maps.inner, &maps.w2};
    work.columns = args.inner;
    work.tiles = args.groups[0] * work.per_group();
    run_tiles<2>(work);
  }
}

}  // namespace m2::ops::cuda
