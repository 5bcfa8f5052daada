#pragma once

#include "ops/cuda/linear/launch.h"
#include "ops/cuda/linear/sm90_tiles.cuh"
#include "ops/cuda/tiles.cuh"

namespace m2::ops::cuda {

// A tile has 64 tokens, which stand on the side of 64, and kN or twice kN weight rows, as few as
// give every multiprocessor one: what a multiprocessor takes in, some 57 GB/s, is what a large tile
// of a small matrix waits for. A stage has three stretches of K, whose products are under way at
// once and are added up one after another as in tiles.
constexpr int kNarrowTokens = 64, kNarrowBatch = 3, kNarrowThreads = 128 + kWarp;
constexpr int kNarrowColumns = kNarrowBatch * kTileStep;
constexpr int kNarrowMaxStages = 8;
constexpr int kNarrowTokenBytes = kNarrowTokens * kTileStep;
constexpr int kNarrowShared = 226 * 1024;  // beside the barriers

template <int kN, int kHalves>
constexpr int kNarrowStageBytes = (kNarrowTokens + kN * kHalves) * kNarrowColumns;

// Floats behind the ring: of each stretch a scale of each token, in other banks, and of each half.
inline int narrow_scales(int stretches, int halves) {
  return stretches * (kNarrowTokens + 1 + halves);
}

// Few to some hundred tokens, K a multiple of 384, with the bytes of sm90_linear_tiles. One warp
// asks: for weights before the kernels in front have ended. The grid is [tiles of rows of all
// parts, tiles of tokens]. Bytes: N K + T K, of which a block takes in (64 + its rows) K. FLOPs:
// 2 T N K. Bound: what a multiprocessor takes in, and L2.
template <int kN, int kHalves>
__global__ void __launch_bounds__(kNarrowThreads, 1)
    sm90_linear_narrow(const __grid_constant__ LinearArgs args,
                       const __grid_constant__ LinearMaps maps,
                       const __grid_constant__ RowOwners owners, int stages) {
  constexpr int kRows = kN * kHalves, kStage = kNarrowStageBytes<kN, kHalves>;
  extern __shared__ uint8_t tile_memory[];
  __shared__ uint64_t full[kNarrowMaxStages], empty[kNarrowMaxStages];
  const uint32_t base = (shared_address(tile_memory) + 1023) & ~1023u;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int columns = static_cast<int>(args.x.columns);
  const int stretches = columns / kTileStep, steps = columns / kNarrowColumns;
  int part = 0, tile = blockIdx.x;
  while (tile * kRows >= args.part[part].rows) tile -= (args.part[part++].rows + kRows - 1) / kRows;
  const LinearPart& at = args.part[part];
  const int row = tile * kRows, first_token = blockIdx.y * kNarrowTokens;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 4);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();

  if (warp == 4) {
    if (lane != 0) return;
    const auto ask_weights = [&](int step, int slot) {
      barrier_expect(&full[slot], kStage);
      tensor_copy_3d(base + slot * kStage + kNarrowBatch * kNarrowTokenBytes, &maps.weight[part], 0,
                     row, step * kNarrowBatch, &full[slot]);
    };
    const auto ask_tokens = [&](int step, int slot) {
      tensor_copy_3d(base + slot * kStage, &maps.x, 0, first_token, step * kNarrowBatch,
                     &full[slot]);
    };
    const int early = min(steps, stages);
    for (int step = 0; step < early; ++step) ask_weights(step, step);
    wait_for_previous();
    let_next_start();
    for (int step = 0; step < early; ++step) ask_tokens(step, step);
    int slot = 0, round = 0;
    for (int step = stages; step < steps; ++step) {
      barrier_wait(&empty[slot], round & 1);
      ask_weights(step, slot);
      ask_tokens(step, slot);
      if (++slot == stages) {
        slot = 0;
        ++round;
      }
    }
    return;
  }

  auto* const of_tokens = reinterpret_cast<float*>(
      tile_memory + (base - shared_address(tile_memory)) + stages * kStage);
  float* const of_halves = of_tokens + stretches * (kNarrowTokens + 1);
  for (int i = threadIdx.x; i < kHalves * stretches; i += 128) {
    const int half = i / stretches, stretch = i % stretches;
    const int block = (at.first_row + min(row + half * kN, at.rows - 1)) / 128;
    of_halves[i] = at.scale[block * at.scale_stride + at.first_column / 128 + stretch];
  }
  wait_for_previous();
  let_next_start();
  const int there = min(kNarrowTokens, static_cast<int>(args.x.rows) - first_token) * stretches;
  const float* const from = args.x_scales + static_cast<int64_t>(first_token) * stretches;
  for (int i = threadIdx.x; i < kNarrowTokens * stretches; i += 128)
    of_tokens[i % stretches * (kNarrowTokens + 1) + i / stretches] = i < there ? from[i] : 0.0f;
  asm volatile("bar.sync 1, 128;" ::: "memory");

  const int token = warp * 16 + lane / 4;  // and token + 8
  const uint32_t low = alike(operand_low(base));
  float total[kHalves][kN / 2] = {};
  uint32_t slot = 0, parity = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    barrier_wait(&full[slot], parity);
    const uint32_t tokens_low = low + slot * (kStage / 16);
    const uint32_t weights_low = tokens_low + kNarrowBatch * kNarrowTokenBytes / 16;
    float upper[kNarrowBatch], lower[kNarrowBatch];  // scales of both tokens
#pragma unroll
    for (int b = 0; b < kNarrowBatch; ++b) {
      const float* scales = of_tokens + (step * kNarrowBatch + b) * (kNarrowTokens + 1) + token;
      upper[b] = scales[0];
      lower[b] = scales[8];
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float d[kNarrowBatch][kN / 2];
      wgmma_begin();
#pragma unroll
      for (int b = 0; b < kNarrowBatch; ++b) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wgmma_64xNx32<kN>(
              d[b], operand_from(tokens_low + b * (kNarrowTokenBytes / 16) + 2 * k),
              operand_from(weights_low + (b * kRows + half * kN) * (kTileStep / 16) + 2 * k),
              k > 0);
        wgmma_commit();
      }
      const auto add = [&](int b) {
        const float w = of_halves[half * stretches + step * kNarrowBatch + b];
        const float w0 = upper[b] * w, w1 = lower[b] * w;
        float(&sum)[kN / 2] = total[half];
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
          sum[4 * j] = fmaf(d[b][4 * j], w0, sum[4 * j]);
          sum[4 * j + 1] = fmaf(d[b][4 * j + 1], w0, sum[4 * j + 1]);
          sum[4 * j + 2] = fmaf(d[b][4 * j + 2], w1, sum[4 * j + 2]);
          sum[4 * j + 3] = fmaf(d[b][4 * j + 3], w1, sum[4 * j + 3]);
        }
      };
      static_assert(kNarrowBatch == 3);
      wgmma_wait<2>(d[0]);
      add(0);
      wgmma_wait<1>(d[1]);
      add(1);
      wgmma_wait_for_all();
      if (half == kHalves - 1 && lane == 0) barrier_arrive(&empty[slot]);
      pin(d[2]);
      add(2);
    }
    if (++slot == static_cast<uint32_t>(stages)) {
      slot = 0;
      parity ^= 1;
    }
  }

#pragma unroll
  for (int eight = 0; eight < 2; ++eight) {
    const int64_t to_token = int64_t{first_token} + token + eight * 8;
    if (to_token >= args.x.rows) continue;
    void* const to = output_row(args.out, owners, to_token);
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const int c = row + half * kN + 8 * j + lane % 4 * 2, column = at.out_begin + c;
        const float first = total[half][4 * j + 2 * eight],
                    second = total[half][4 * j + 2 * eight + 1];
        if (args.paired_stores && c + 1 < at.rows) {
          *reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(to) + column) =
              __floats2bfloat162_rn(first, second);
        } else {
          if (c < at.rows) store_number(to, args.out.dtype, column, first);
          if (c + 1 < at.rows) store_number(to, args.out.dtype, column + 1, second);
        }
      }
  }
}

}  // namespace m2::ops::cuda
