#pragma once

#include "ops/cuda/linear/launch.h"
#include "ops/cuda/tiles.cuh"

namespace m2::ops::cuda {

struct LinearMaps {
  CUtensorMap x, all_x;                       // boxes of 64 and of 128 rows
  CUtensorMap weight[LinearArgs::kMaxParts];  // of 64
  CUtensorMap half[LinearArgs::kMaxParts];    // of 128
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

// What tiles of both number formats share: a thread's 64 sums of 128 weight rows from `begin` on,
// those that exist, to the output. They are those of the place's tokens `row` and row + 8.
struct LinearStore {
  const LinearArgs& args;
  const RowOwners& owners;

  template <class Place>
  __device__ __forceinline__ void store_rows_from(const Place& place, int begin, int row,
                                                  const float (&total)[64]) const {
    const LinearPart& at = args.part[place.matrix];
    const int column = begin + threadIdx.x % 4 * 2;
    auto* whole = static_cast<__nv_bfloat16*>(args.out.data) + at.out_begin + begin;
    if (args.paired_stores && begin + 128 <= at.rows && args.out.stride % 8 == 0 &&
        reinterpret_cast<uintptr_t>(whole) % 16 == 0) {
      const int lane = threadIdx.x % kWarp, from = place.token + row - lane / 4 + lane / 8;
      const int left = place.tokens - row + lane / 4 - lane / 8;
      __nv_bfloat16* to[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[i] = 4 * i < left
                    ? static_cast<__nv_bfloat16*>(output_row(args.out, owners, from + 4 * i)) +
                          at.out_begin + begin
                    : nullptr;
      store_rows(total, [&](int i, int chunk, const uint4& eight) {
        store_if(to[i] != nullptr, to[i] + chunk * 8, eight);
      });
      return;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= place.tokens) continue;
      void* const to = output_row(args.out, owners, place.token + row + half * 8);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const int c = column + 8 * j, at_column = at.out_begin + c;
        const float first = total[4 * j + 2 * half], second = total[4 * j + 2 * half + 1];
        if (args.paired_stores && c + 1 < at.rows) {
          *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(to) + at_column) =
              __floats2bfloat162_rn(first, second);
        } else {
          if (c < at.rows) store_number(to, args.out.dtype, at_column, first);
          if (c + 1 < at.rows) store_number(to, args.out.dtype, at_column + 1, second);
        }
      }
    }
  }
};

// Tiles of all parts, one part after another; within a part the token tiles of 128 rows follow one
// another, so that the rows are read from memory once.
struct LinearTiles : WholeHalves, LinearStore {
  static constexpr bool kQueued = false, kTurnsFew = false;
  const LinearMaps& maps;
  const CUtensorMap *tokens, *all_tokens, *weights;
  int token_tiles;  // with one that may be missing, where blocks go in pairs
  int tile_halves;
  int* next = nullptr;
  int tiles = 0, columns = 0;
  int part = 0, first_tile = 0;

  __device__ __forceinline__ int tiles_of(int i) const {
    const int rows = tile_halves * 128;
    return (args.part[i].rows + rows - 1) / rows * token_tiles;
  }
  // The part a tile lies in. Tiles come in ascending order, so this only moves on.
  __device__ __forceinline__ void go_to(int tile) {
    while (tile - first_tile >= tiles_of(part)) first_tile += tiles_of(part++);
    weights = &maps.weight[part];
    whole_half = &maps.half[part];
  }
  __device__ __forceinline__ TilePlace place(int tile) {
    go_to(tile);
    const int token = (tile - first_tile) % token_tiles * kTileTokens;
    const int row = (tile - first_tile) / token_tiles * tile_halves * 128;
    return {token,    max(0, min(kTileTokens, static_cast<int>(args.x.rows) - token)), row,
            row + 64, min(tile_halves, (args.part[part].rows - row + 127) / 128),      row / 128,
            part};
  }
  __device__ __forceinline__ int stretches() const { return (columns + 127) / 128; }
  __device__ __forceinline__ int weight_scale(int stretch) const { return stretch; }
  __device__ __forceinline__ const float* token_scales(const TilePlace& place, int i) const {
    return args.x_scales +
           static_cast<int64_t>(min(place.token + i, static_cast<int>(args.x.rows) - 1)) *
               stretches();
  }
  __device__ __forceinline__ const float* weight_scales(const TilePlace& place, int half,
                                                        bool lower) const {
    const LinearPart& at = args.part[place.matrix];
    const int row = min(place.upper_row + half * 128 + (lower ? 64 : 0), at.rows - 1);
    return at.scale + at.first_column / 128 +
           static_cast<int64_t>((at.first_row + row) / 128) * at.scale_stride;
  }
  template <int kHalves>
  __device__ __forceinline__ void store(const TilePlace& place, int first, int halves, int row,
                                        const float (&total)[kHalves][64], int, int) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
      if (half < halves) store_half(place, first + half, row, total[half]);
  }
  __device__ __forceinline__ void store_half(const TilePlace& place, int which, int row,
                                             const float (&total)[64]) const {
    store_rows_from(place, place.upper_row + which * 128, row, total);
  }
};

// Bytes: N K + T (K + 2 N), FLOPs: 2 T N K on the FP8 tensor cores. Bound: tensor cores from about
// 350 tokens on.
template <int kHalves, TileShare kShare>
__global__ void __launch_bounds__(kTileThreads, 1)
    sm90_linear_tiles(const __grid_constant__ LinearArgs args,
                      const __grid_constant__ LinearMaps maps,
                      const __grid_constant__ RowOwners owners) {
  wait_for_previous();
  let_next_start();
  constexpr int kBlocks = kShare == TileShare::weights ? 2 : 1;
  const int per_cluster = kBlocks * kTileTokens;
  const int token_tiles = (static_cast<int>(args.x.rows) + per_cluster - 1) / per_cluster * kBlocks;
  LinearTiles work{{{}, &maps.half[0]}, {args, owners},  maps,        &maps.x,
                   &maps.all_x,         &maps.weight[0], token_tiles, kHalves};
  work.columns = static_cast<int>(args.x.columns);
  for (int i = 0; i < args.parts; ++i) work.tiles += work.tiles_of(i);
  run_tiles<kHalves, 1, kShare>(work);
}

}  // namespace m2::ops::cuda
