#pragma once

#include "ops/cuda/experts/lists.cuh"
#include "ops/cuda/stream.cuh"

namespace m2::ops::cuda {

constexpr int kUpRows = 8;  // rows of w1 in a tile; the other 8 are the same rows of w3

// inner[p, i] = silu(w1_i x) * (w3_i x) for the pairs p of one expert, 8 values of i a block. A
// tile of 16 rows is 8 of w1 over 8 of w3, so that gate and up of one value meet in one thread.
// Bytes: 2 I H weights an expert (+ x from L2), FLOPs: 4 I H a pair. Bound: bandwidth of memory.
template <bool kF8, int kTiles>
__global__ void __launch_bounds__(kStreamThreads, kTiles == 4 ? 2 : 3)
    sm80_experts_up(ExpertsArgs args) {
  __shared__ WarpTotals<kTiles> totals;
  wait_for_previous();
  let_next_start();
  const Unit unit = unit_of(args, blockIdx.y);
  if (unit.count == 0) return;
  const int warp = threadIdx.x / kWarp, group = threadIdx.x % kWarp / 4;
  const int first = blockIdx.x * kUpRows;
  const int row = min(first + group, args.inner - 1);

  constexpr int kBytes = kF8 ? 1 : 2;
  StreamRows rows;
  const int64_t w1_row = static_cast<int64_t>(unit.expert) * 2 * args.inner + row;
  rows.upper = static_cast<const uint8_t*>(args.w13) + w1_row * args.hidden * kBytes +
               lane_weight_offset<kF8>();
  rows.lower = rows.upper + static_cast<int64_t>(args.inner) * args.hidden * kBytes;
  const int64_t scale_row = static_cast<int64_t>(unit.expert) * args.inner_blocks +
                            (args.first_inner + row) / 128 - args.scale_row;
  rows.upper_scale = args.w1_scale + scale_row * args.hidden_blocks;
  rows.lower_scale = args.w3_scale + scale_row * args.hidden_blocks;
  rows.first_column = 0;

  const int chunks = args.hidden / kStreamChunk;
  auto* inner = static_cast<__nv_bfloat16*>(args.inner_values);
  for (int base = 0; base < unit.count; base += kTiles * 8) {
    const uint8_t* tokens[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int at = base + n * 8 + group;
      tokens[n] = nullptr;
      if (at < unit.count)
        tokens[n] = static_cast<const uint8_t*>(args.x.data) +
                    pair_at(args, unit.begin + at) / args.top * args.x.stride * 2 +
                    lane_token_offset<kF8>();
    }
    float total[kTiles][4] = {};
    stream_chunks<kF8, kTiles, kF8 ? 3 : 2>(rows, tokens, share_begin(chunks, warp),
                                            share_begin(chunks, warp + 1), total, [] {});
    if (base) __syncthreads();
    totals.put(total);
    __syncthreads();
    for (int i = threadIdx.x; i < kTiles * 64; i += kStreamThreads) {
      const int tile = i / 64, token = i % 64 / 8, value = i % 8;
      const int owner = value * 4 + token / 2;
      const int at = base + tile * 8 + token;
      if (at < unit.count && first + value < args.inner) {
        const float gate = totals.sum(tile, token % 2, owner);
        const float up = totals.sum(tile, 2 + token % 2, owner);
        inner[static_cast<int64_t>(unit.begin + at) * args.inner + first + value] =
            __float2bfloat16_rn(silu(gate) * up);
      }
    }
  }
}

// A lane's view of rows first .. first + 15 of one expert's w2.
template <bool kF8>
__device__ __forceinline__ StreamRows down_rows(const ExpertsArgs& args, int expert, int first) {
  const int group = threadIdx.x % kWarp / 4;
  const int upper = min(first + group, args.hidden - 1);
  const int lower = min(first + group + 8, args.hidden - 1);
  constexpr int kBytes = kF8 ? 1 : 2;
  const auto* weight = static_cast<const uint8_t*>(args.w2) +
                       static_cast<int64_t>(expert) * args.hidden * args.inner * kBytes +
                       lane_weight_offset<kF8>();
  StreamRows rows;
  rows.upper = weight + static_cast<int64_t>(upper) * args.inner * kBytes;
  rows.lower = weight + static_cast<int64_t>(lower) * args.inner * kBytes;
  const float* scale =
      args.w2_scale + static_cast<int64_t>(expert) * args.hidden_blocks * args.inner_blocks;
  rows.upper_scale = scale + upper / 128 * args.inner_blocks;
  rows.lower_scale = scale + lower / 128 * args.inner_blocks;
  rows.first_column = args.first_inner - args.scale_row * 128;
  return rows;
}

template <bool kF8>
__device__ __forceinline__ const uint8_t* inner_row(const ExpertsArgs& args, int position) {
  return static_cast<const uint8_t*>(args.inner_values) +
         static_cast<int64_t>(position) * args.inner * 2 + lane_token_offset<kF8>();
}

// results[p, n] = sum_i w2[n, i] inner[p, i] for the pairs p of one expert, 16 rows n a block. The
// weights are on their way before the kernel waits for the values.
// Bytes: H I weights an expert, FLOPs: 2 H I a pair. Bound: bandwidth of memory.
template <bool kF8, int kTiles>
__global__ void __launch_bounds__(kStreamThreads, kTiles == 4 ? 2 : 3)
    sm80_experts_down(ExpertsArgs args) {
  __shared__ WarpTotals<kTiles> totals;
  const Unit unit = unit_of(args, blockIdx.y);
  if (unit.count == 0) {
    wait_for_previous();
    let_next_start();
    return;
  }
  const int warp = threadIdx.x / kWarp, group = threadIdx.x % kWarp / 4;
  const int first = blockIdx.x * kStreamRows;
  const StreamRows rows = down_rows<kF8>(args, unit.expert, first);
  const int chunks = args.inner / kStreamChunk;
  for (int base = 0; base < unit.count; base += kTiles * 8) {
    const uint8_t* tokens[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int at = base + n * 8 + group;
      tokens[n] = at < unit.count ? inner_row<kF8>(args, unit.begin + at) : nullptr;
    }
    float total[kTiles][4] = {};
    stream_chunks<kF8, kTiles, kF8 ? 3 : 2>(rows, tokens, share_begin(chunks, warp),
                                            share_begin(chunks, warp + 1), total, [] {
                                              wait_for_previous();
                                              let_next_start();
                                            });
    if (base) __syncthreads();
    totals.put(total);
    __syncthreads();
    for (int i = threadIdx.x; i < kTiles * 128; i += kStreamThreads) {
      const int tile = i / 128, token = i % 128 / 16, row = i % 16;
      const int at = base + tile * 8 + token;
      if (at < unit.count && first + row < args.hidden)
        args.results[static_cast<int64_t>(pair_at(args, unit.begin + at)) * args.hidden + first +
                     row] = totals.sum(tile, row / 8 * 2 + token % 2, row % 8 * 4 + token / 2);
    }
  }
}

}  // namespace m2::ops::cuda
