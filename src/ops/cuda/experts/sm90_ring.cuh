#pragma once

#include "ops/cuda/experts/lists.cuh"
#include "ops/cuda/ring.cuh"

namespace m2::ops::cuda {

// Tiles of one group after another; kUp: 8 rows of w1 over the same 8 of w3, else 32 rows of w2.
template <bool kUp>
struct ExpertsRingWork {
  static constexpr int kRows = kUp ? 16 : 32;
  static constexpr int kStores = kUp ? 64 : 256;
  const ExpertsArgs& args;
  Groups groups;
  int tiles;  // of a group
  int current = -1;
  Group group = {};
  int64_t pair = 0;

  __device__ __forceinline__ void go_to(int index) {
    if (index / tiles == current) return;
    current = index / tiles;
    group = groups.at(current);
  }
  __device__ __forceinline__ RingTile tile(int index) {
    go_to(index);
    RingTile tile;
    const int64_t columns = kUp ? args.hidden : args.inner;
    const int rows = kUp ? args.inner : args.hidden;
    if constexpr (kUp) {
      const int row = index % tiles * 8;
      tile.upper = static_cast<const uint8_t*>(args.w13) +
                   (static_cast<int64_t>(group.expert) * 2 * rows + row) * columns;
      tile.lower = tile.upper + rows * columns;
      tile.upper_rows = tile.lower_rows = min(8, rows - row);
    } else {
      const int row = index % tiles * 32;
      tile.upper = static_cast<const uint8_t*>(args.w2) +
                   (static_cast<int64_t>(group.expert) * rows + row) * columns;
      tile.upper_rows = min(16, rows - row);
      if (row + 16 < rows) {
        tile.lower = tile.upper + 16 * columns;
        tile.lower_rows = min(16, rows - row - 16);
      }
    }
    return tile;
  }
  // While the first half ends and the second starts, memory would idle: the block's first tiles of
  // the second half are brought into L2 meanwhile.
  __device__ __forceinline__ void all_asked() const {
    if constexpr (kUp) {
      constexpr int kTiles = 2;
      const int down_tiles = (args.hidden + 31) / 32, all = groups.count() * down_tiles;
      const int begin = ring_begin(all, blockIdx.x);
      const int end = min(begin + kTiles, ring_begin(all, blockIdx.x + 1));
      for (int index = begin; index < end; ++index) {
        const int row = index % down_tiles * 32;
        const int64_t expert = groups.at(index / down_tiles).expert;
        prefetch_to_l2(
            static_cast<const uint8_t*>(args.w2) + (expert * args.hidden + row) * args.inner,
            min(32, args.hidden - row) * args.inner);
      }
    }
  }
  __device__ __forceinline__ void scales(int index, const float*& upper, const float*& lower,
                                         int& first_column) const {
    // Asked for one tile ahead, so the group may be the next.
    const Group of = index / tiles == current ? group : groups.at(index / tiles);
    if constexpr (kUp) {
      const int g = threadIdx.x % kWarp / 4;
      const int row = min(index % tiles * 8 + g, args.inner - 1);
      const int64_t at = (static_cast<int64_t>(of.expert) * args.inner_blocks +
                          (args.first_inner + row) / 128 - args.scale_row) *
                         args.hidden_blocks;
      upper = args.w1_scale + at;
      lower = args.w3_scale + at;
      first_column = 0;
    } else {
      // 32 rows that begin at a multiple of 32 share their blocks.
      upper = args.w2_scale +
              (static_cast<int64_t>(of.expert) * args.hidden_blocks + index % tiles * 32 / 128) *
                  args.inner_blocks;
      lower = upper;
      first_column = args.first_inner - args.scale_row * 128;
    }
  }
  __device__ __forceinline__ bool new_tokens(int index) const { return index / tiles != current; }
  __device__ __forceinline__ const uint8_t* token(int index) {
    go_to(index);
    const int g = threadIdx.x % kWarp / 4;
    // The pair whose results this warp stores: see store(), where token is the warp's number.
    if (!kUp && static_cast<int>(threadIdx.x) / kWarp < group.count)
      pair = pair_at(args, group.begin + static_cast<int>(threadIdx.x) / kWarp);
    if (g >= group.count) return nullptr;
    const int position = group.begin + g;
    const auto* row = kUp ? static_cast<const uint8_t*>(args.x.data) +
                                pair_at(args, position) / args.top * args.x.stride * 2
                          : static_cast<const uint8_t*>(args.inner_values) +
                                static_cast<int64_t>(position) * args.inner * 2;
    return row + lane_token_offset<true>();
  }
  template <class Sum>
  __device__ __forceinline__ void store(int index, int i, Sum sum) {
    go_to(index);
    constexpr int kTileRows = kUp ? 8 : 32;
    const int token = i / kTileRows, row_in_tile = i % kTileRows;
    const int row = index % tiles * kTileRows + row_in_tile;
    if (token >= group.count || row >= (kUp ? args.inner : args.hidden)) return;
    const int64_t position = group.begin + token;
    const int owner = row_in_tile % 8 * 4 + token / 2;
    if constexpr (kUp) {
      const float gate = sum(token % 2, owner), up = sum(2 + token % 2, owner);
      static_cast<__nv_bfloat16*>(args.inner_values)[position * args.inner + row] =
          __float2bfloat16_rn(silu(gate) * up);
    } else {
      args.results[pair * args.hidden + row] = sum(row_in_tile / 8 * 2 + token % 2, owner);
    }
  }
};

// The two halves of experts() (see sm80_stream.cuh for what they compute), f8_e4m3 weights. The
// first has to wait for the groups; the second knows them and asks for its weights at once.
// Bytes: 2 I H, then H I weights a group, FLOPs: 4 I H, then 2 I H a pair. Bound: bandwidth.
template <bool kUp, int kChunks>
__global__ void __launch_bounds__(kRingThreads, 1)
    sm90_experts_ring(const __grid_constant__ ExpertsArgs args, int slots) {
  if (kUp) wait_for_previous();
  ExpertsRingWork<kUp> work{args, {args}};
  work.groups.find();
  const int columns = kUp ? args.hidden : args.inner;
  work.tiles = kUp ? (args.inner + 7) / 8 : (args.hidden + 31) / 32;
  const int all = work.groups.count() * work.tiles;
  run_ring<kChunks>(work, ring_begin(all, blockIdx.x), ring_begin(all, blockIdx.x + 1),
                    columns / kStreamChunk, slots);
}

}  // namespace m2::ops::cuda
