#pragma once

#include "ops/cuda/linear/launch.h"
#include "ops/cuda/ring.cuh"

namespace m2::ops::cuda {

// Tiles of kTileRows rows of all parts, one after another.
template <int kTileRows>
struct LinearRingWork {
  static constexpr int kRows = kTileRows;
  static constexpr int kStores = kTileRows * 8;
  const LinearArgs& args;

  struct Place {
    const LinearPart& part;
    int row;
  };
  // Tiles of 16 rows are counted in the parts; two of 8 make one.
  __device__ __forceinline__ Place place(int index) const {
    const int tile = kTileRows == 16 ? index : index / 2;
    int at = 0;
#pragma unroll
    for (int i = 1; i < LinearArgs::kMaxParts; ++i)
      if (i < args.parts && tile >= args.part[i].tile_begin) at = i;
    const int row = (tile - args.part[at].tile_begin) * 16;
    return {args.part[at], kTileRows == 16 ? row : row + index % 2 * 8};
  }
  __device__ __forceinline__ RingTile tile(int index) const {
    const Place at = place(index);
    const auto* weight = static_cast<const uint8_t*>(at.part.weight);
    // A tile past the end (half of a ragged last one) reads the last row and is dropped.
    const int row = min(at.row, at.part.rows - 1);
    RingTile tile;
    tile.upper = weight + row * at.part.weight_stride;
    tile.upper_rows = min(8, at.part.rows - row);
    if (kTileRows == 16 && row + 8 < at.part.rows) {
      tile.lower = weight + (row + 8) * at.part.weight_stride;
      tile.lower_rows = min(8, at.part.rows - row - 8);
    }
    return tile;
  }
  __device__ __forceinline__ void scales(int index, const float*& upper, const float*& lower,
                                         int& first_column) const {
    const Place at = place(index);
    const int group = threadIdx.x % kWarp / 4, last = at.part.rows - 1;
    upper = at.part.scale +
            (at.part.first_row + min(at.row + group, last)) / 128 * at.part.scale_stride;
    lower = at.part.scale +
            (at.part.first_row + min(at.row + group + 8, last)) / 128 * at.part.scale_stride;
    first_column = at.part.first_column;
  }
  __device__ __forceinline__ void all_asked() const {}
  __device__ __forceinline__ bool new_tokens(int) const {
    return false;
  }
  __device__ __forceinline__ const uint8_t* token(int) const {
    const int group = threadIdx.x % kWarp / 4;
    return group < args.x.rows ? static_cast<const uint8_t*>(args.x.data) +
                                     group * args.x.stride * 2 + lane_token_offset<true>()
                               : nullptr;
  }
  template <class Sum>
  __device__ __forceinline__ void store(int index, int i, Sum sum) const {
    const int token = i / kTileRows, row = i % kTileRows;
    const Place at = place(index);
    if (token < args.x.rows && at.row + row < at.part.rows)
      store_number(args.out.data, args.out.dtype,
                   token * args.out.stride + at.part.out_begin + at.row + row,
                   sum(row / 8 * 2 + token % 2, row % 8 * 4 + token / 2));
  }
};

// Up to 8 tokens, f8_e4m3 weights whose rows follow one another in memory.
// Bytes: N K, FLOPs: 2 T N K. Bound: bandwidth of memory.
template <int kTileRows, int kChunks>
__global__ void __launch_bounds__(kRingThreads, 1)
    sm90_linear_ring(const __grid_constant__ LinearArgs args, int tiles, int slots) {
  LinearRingWork<kTileRows> work{args};
  run_ring<kChunks>(work, ring_begin(tiles, blockIdx.x), ring_begin(tiles, blockIdx.x + 1),
                    static_cast<int>(args.x.columns) / kStreamChunk, slots);
}

}  // namespace m2::ops::cuda
