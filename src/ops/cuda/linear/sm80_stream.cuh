#pragma once

#include "ops/cuda/linear/launch.h"
#include "ops/cuda/stream.cuh"

namespace m2::ops::cuda {

// out[t, n] = sum_k x[t, k] W[n, k] for kTiles * 8 tokens a block, weights f8_e4m3 with block
// scales or bf16. One block a tile of 16 rows, all of K in flight at once; the blocks
// of a tile's token groups are neighbours, so that its weights come from memory once. Bytes: N K
// weight bytes
// (+ x from L2, T K 2 a block), FLOPs: 2 T N K. Bound: bandwidth of memory.
template <bool kF8, int kTiles>
__global__ void __launch_bounds__(kStreamThreads, kTiles == 4 ? 2 : 3)
    sm80_linear_stream(LinearArgs args, const __grid_constant__ RowOwners owners) {
  __shared__ WarpTotals<kTiles> totals;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, group = lane / 4;

  int index = 0;
#pragma unroll
  for (int i = 1; i < LinearArgs::kMaxParts; ++i)
    if (i < args.parts && static_cast<int>(blockIdx.y) >= args.part[i].tile_begin) index = i;
  const LinearPart part = args.part[index];
  const int first_row = (blockIdx.y - part.tile_begin) * kStreamRows;

  // Rows past the end read the last one again; their sums are dropped.
  const int upper = min(first_row + group, part.rows - 1);
  const int lower = min(first_row + group + 8, part.rows - 1);
  constexpr int kBytes = kF8 ? 1 : 2;
  StreamRows rows;
  const auto* weight = static_cast<const uint8_t*>(part.weight) + lane_weight_offset<kF8>();
  rows.upper = weight + upper * part.weight_stride * kBytes;
  rows.lower = weight + lower * part.weight_stride * kBytes;
  rows.upper_scale = part.scale + (part.first_row + upper) / 128 * part.scale_stride;
  rows.lower_scale = part.scale + (part.first_row + lower) / 128 * part.scale_stride;
  rows.first_column = part.first_column;

  const int first_token = blockIdx.x * kTiles * 8;
  const uint8_t* tokens[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int64_t token = first_token + n * 8 + group;
    tokens[n] = token < args.x.rows ? static_cast<const uint8_t*>(args.x.data) +
                                          token * args.x.stride * 2 + lane_token_offset<kF8>()
                                    : nullptr;
  }

  float total[kTiles][4] = {};
  const int chunks = static_cast<int>(args.x.columns) / kStreamChunk;
  stream_chunks<kF8, kTiles, kF8 ? 3 : 2>(rows, tokens, share_begin(chunks, warp),
                                          share_begin(chunks, warp + 1), total, [] {
                                            wait_for_previous();
                                            let_next_start();
                                          });
  totals.put(total);
  __syncthreads();
  for (int i = threadIdx.x; i < kTiles * 128; i += kStreamThreads) {
    // Neighbouring threads take neighbouring rows of one token.
    const int tile = i / 128, token_in_tile = i % 128 / 16, row_in_tile = i % 16;
    const int r = row_in_tile / 8 * 2 + token_in_tile % 2;
    const int owner = row_in_tile % 8 * 4 + token_in_tile / 2;
    const int64_t token = first_token + tile * 8 + token_in_tile;
    const int row = first_row + row_in_tile;
    if (token < args.x.rows && row < part.rows)
      store_number(output_row(args.out, owners, token), args.out.dtype, part.out_begin + row,
                   totals.sum(tile, r, owner));
  }
}

}  // namespace m2::ops::cuda
