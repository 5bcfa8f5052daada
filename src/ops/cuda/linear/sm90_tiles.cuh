#pragma once

#include "ops/cuda/linear/launch.h"
#include "ops/cuda/tiles.cuh"

namespace m2::ops::cuda {

struct LinearMaps {
  CUtensorMap x;
  CUtensorMap weight[LinearArgs::kMaxParts];
};

// Some warps a row. Bytes: T K 3. Bound: bandwidth.
__global__ void __launch_bounds__(256) quantise_rows(Matrix x, QuantisedRows to) {
  wait_for_previous();
  let_next_start();
  const int columns = static_cast<int>(x.columns), warps = quantise_warps(columns);
  const int64_t item = blockIdx.x * int64_t{8} + threadIdx.x / kWarp, row = item / warps;
  if (row >= x.rows) return;
  quantise_stretches(static_cast<const __nv_bfloat16*>(x.data) + row * x.stride, columns,
                     static_cast<int>(item % warps) * kQuantiseAhead, to.powers,
                     to.values + row * columns, to.scales + row * ((columns + 127) / 128));
}

// Tiles of all parts, one part after another; within a part the token tiles of 128 rows follow one
// another, so that the rows are read from memory once.
struct LinearTiles {
  const LinearArgs& args;
  const LinearMaps& maps;
  const CUtensorMap* tokens;
  const CUtensorMap* weights;
  int tiles = 0, columns = 0;
  int token_tiles = 0;
  int part = 0, first_tile = 0;

  // The part a tile lies in. Tiles come in ascending order, so this only moves on.
  __device__ __forceinline__ void go_to(int tile) {
    while (tile - first_tile >= (args.part[part].rows + 127) / 128 * token_tiles) {
      first_tile += (args.part[part].rows + 127) / 128 * token_tiles;
      ++part;
    }
    weights = &maps.weight[part];
  }
  __device__ __forceinline__ TilePlace place(int tile) {
    go_to(tile);
    const int token = (tile - first_tile) % token_tiles * kTileTokens;
    const int row = (tile - first_tile) / token_tiles * kTileWeights;
    return {token, min(kTileTokens, static_cast<int>(args.x.rows) - token), row, row + 64};
  }
  __device__ __forceinline__ void factors(int, const TilePlace& place, int stretch, int row,
                                          float& row0, float& row1, float& upper,
                                          float& lower) const {
    const int last = place.tokens - 1, stride = (columns + 127) / 128;
    const float* scales = args.x_scales + static_cast<int64_t>(place.token) * stride + stretch;
    row0 = scales[min(row, last) * stride];
    row1 = scales[min(row + 8, last) * stride];
    const LinearPart& at = args.part[part];
    const float* weight_scales = at.scale + at.first_column / 128 + stretch;
    const int most = (at.first_row + at.rows - 1) / 128;
    upper = __ldg(weight_scales + (at.first_row + place.upper_row) / 128 * at.scale_stride);
    lower =
        __ldg(weight_scales + min((at.first_row + place.lower_row) / 128, most) * at.scale_stride);
  }
  __device__ __forceinline__ void store(int, const TilePlace& place, int row,
                                        const float (&total)[64]) const {
    const LinearPart& at = args.part[part];
    const int column = place.upper_row + threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= place.tokens) continue;
      const int64_t to = (place.token + row + half * 8) * args.out.stride + at.out_begin;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int c = column + 8 * j;
        const float first = total[4 * j + 2 * half], second = total[4 * j + 2 * half + 1];
        if (args.paired_stores && c + 1 < at.rows) {
          *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(args.out.data) + to + c) =
              __floats2bfloat162_rn(first, second);
        } else {
          if (c < at.rows) store_number(args.out.data, args.out.dtype, to + c, first);
          if (c + 1 < at.rows) store_number(args.out.data, args.out.dtype, to + c + 1, second);
        }
      }
    }
  }
};

// Bytes: N K + T (K + 2 N), FLOPs: 2 T N K on the FP8 tensor cores. Bound: tensor cores from about
// 350 tokens on.
__global__ void __launch_bounds__(kTileThreads, 1)
    sm90_linear_tiles(const __grid_constant__ LinearArgs args,
                      const __grid_constant__ LinearMaps maps) {
  wait_for_previous();
  let_next_start();
  LinearTiles work{args, maps, &maps.x, &maps.weight[0]};
  work.columns = static_cast<int>(args.x.columns);
  work.token_tiles = (static_cast<int>(args.x.rows) + kTileTokens - 1) / kTileTokens;
  for (int i = 0; i < args.parts; ++i)
    work.tiles += (args.part[i].rows + 127) / 128 * work.token_tiles;
  run_tiles<1>(work);
}

}  // namespace m2::ops::cuda
