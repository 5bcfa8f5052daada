#pragma once

#include "ops/cuda/flow.cuh"
#include "ops/cuda/linear/launch.h"

namespace m2::ops::cuda {

struct LinearFlowMaps {
  CUtensorMap x;                              // boxes of kN tokens
  CUtensorMap weight[LinearArgs::kMaxParts];  // boxes of the tile's rows
};

// Which rows a tile has.
struct LinearFlowPlace {
  int part, row;
};
__device__ __forceinline__ LinearFlowPlace flow_place(const LinearArgs& args, int tile_rows,
                                                      int tile) {
  int part = 0;
  while (part + 1 < args.parts) {
    const int tiles = (args.part[part].rows + tile_rows - 1) / tile_rows;
    if (tile < tiles) break;
    tile -= tiles;
    ++part;
  }
  return {part, tile * tile_rows};
}

// The block's tokens as wgmma wants them, of steps [first_step, first_step + steps) boxes of
// [kN, 128] from `to` on, with zeros past the last column; and all their scales. By the
// consumers, kThreads. kAhead, kPieces: what a thread asks for together, of scales and of 16 bytes.
template <int kN, int kThreads = kFlowConsumers, int kAhead = 4, int kPieces = 12>
__device__ __forceinline__ void load_tokens(const LinearArgs& args, int first_step, int steps,
                                            uint8_t* to, float* scales) {
  const int tokens = static_cast<int>(args.x.rows), columns = static_cast<int>(args.x.columns);
  const int stretches = (columns + kTileStep - 1) / kTileStep;
  const auto scale_at = [&](int i) { return i < tokens * stretches ? args.x_scales[i] : 0.0f; };
  float scale[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) scale[i] = scale_at(threadIdx.x + i * kThreads);
  const int pieces = steps * (kFlowColumns / 16);  // of 16 bytes
  for (int first = threadIdx.x; first < tokens * pieces; first += kPieces * kThreads) {
    uint4 value[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int item = first + i * kThreads, token = item / pieces, piece = item % pieces;
      const int column = first_step * kFlowColumns + piece * 16;
      value[i] = token < tokens && column < columns
                     ? load_written(args.x_f8 + int64_t{1} * token * columns + column)
                     : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int item = first + i * kThreads, token = item / pieces, piece = item % pieces;
      if (token < tokens)
        *reinterpret_cast<uint4*>(to + piece / 8 * (kN * kTileStep) + token * kTileStep +
                                  ((piece % 8) ^ (token & 7)) * 16) = value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kAhead; ++i) {
    const int item = threadIdx.x + i * kThreads;
    if (item < kN * stretches) scales[item % stretches * kN + item / stretches] = scale[i];
  }
  for (int item = threadIdx.x + kAhead * kThreads; item < kN * stretches; item += kThreads)
    scales[item % stretches * kN + item / stretches] = scale_at(item);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Stages of weights under way, at most, where tokens stay: what the block's neighbours read, and
// its own tokens, come behind them. Three keep memory busy; the ring holds more while tokens are
// waited for.
constexpr int kFlowUnderWay = 3;

// Up to kN tokens, quantised, times f8_e4m3 weights. Few tokens stay in shared memory, loaded by
// the consumers: copies asked for behind the weights' would come after them. Bytes: N K, and kN K
// from L2 for each block, or for each tile where the tokens are many.
// FLOPs: 2 kN N K on the FP8 tensor cores. Bound: bandwidth of memory.
template <int kN>
__global__ void __launch_bounds__(kFlowThreads, 1)
    sm90_linear_flow(const __grid_constant__ LinearArgs args,
                     const __grid_constant__ LinearFlowMaps maps, const FlowShared shape,
                     int tiles) {
  extern __shared__ uint8_t flow_memory[];
  __shared__ FlowBarriers barriers;
  const uint32_t start = (shared_address(flow_memory) + 1023) & ~1023u;
  uint8_t* memory = flow_memory + (start - shared_address(flow_memory));
  auto* token_scales = reinterpret_cast<float*>(memory + shape.token_scales_at);
  auto* weight_scales = reinterpret_cast<float*>(memory + shape.weight_scales_at);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int columns = static_cast<int>(args.x.columns), tokens = static_cast<int>(args.x.rows);
  const int stretches = (columns + kTileStep - 1) / kTileStep;
  const int steps = (columns + kFlowColumns - 1) / kFlowColumns;
  const int begin = flow_begin(tiles, blockIdx.x), end = flow_begin(tiles, blockIdx.x + 1);
  const int weight_box = shape.rows * kTileStep;
  constexpr bool kResident = flow_resident(kN);
  if (threadIdx.x < args.parts) prefetch_map(&maps.weight[threadIdx.x]);
  if (threadIdx.x == kWarp) prefetch_map(&maps.x);
  barriers.init(shape.stages);

  if (warp == kFlowConsumers / kWarp) {
    if (lane != 0) return;
    const bool joined = columns % kTileStep == 0;
    // Weights are asked for before the kernels in front have ended; their tokens follow then.
    int tile = begin, step = 0;
    LinearFlowPlace place = flow_place(args, shape.rows, begin);
    const auto ask_weights = [&](int slot) {
      barrier_expect(&barriers.full[slot], shape.stage_bytes());
      copy_weights(start + slot * shape.stage_bytes(), weight_box, &maps.weight[place.part], joined,
                   step, place.row, &barriers.full[slot]);
      if (++step < steps) return;
      step = 0;
      ++tile;
      place = flow_place(args, shape.rows, tile);
    };
    const auto ask_tokens = [&](int of_step, int slot) {
      if constexpr (!kResident)
        copy_boxes(start + slot * shape.stage_bytes() + 2 * weight_box, kN * kTileStep, &maps.x,
                   joined, of_step, 0, &barriers.full[slot]);
    };
    const int under_way = kResident ? min(shape.stages, kFlowUnderWay) : shape.stages;
    const int all = (end - begin) * steps, ahead = min(under_way, all);
    for (int i = 0; i < ahead; ++i) ask_weights(i);
    wait_for_previous();
    let_next_start();
    for (int i = 0, of_step = 0; i < ahead; ++i) {
      ask_tokens(of_step, i);
      if (++of_step == steps) of_step = 0;
    }
    FlowSlot at{ahead % shape.stages, ahead / shape.stages}, coming;
    for (int i = ahead; i < all; ++i) {
      if (kResident) {
        barrier_wait(&barriers.full[coming.slot], coming.round & 1);
        coming.next(shape.stages);
      }
      if (at.round > 0) barrier_wait(&barriers.empty[at.slot], (at.round - 1) & 1);
      const int of_step = step;
      ask_weights(at.slot);
      ask_tokens(of_step, at.slot);
      at.next(shape.stages);
    }
    return;
  }

  if (warp == kFlowConsumers / kWarp + 1) {
    for (int tile = begin; tile < end; ++tile) {
      const int buffer = (tile - begin) % 2, round = (tile - begin) / 2;
      if (round > 0) barrier_wait(&barriers.scales_empty[buffer], (round - 1) & 1);
      const LinearFlowPlace place = flow_place(args, shape.rows, tile);
      const LinearPart& part = args.part[place.part];
      const int most = (part.first_row + part.rows - 1) / 128;
      const int first = (part.first_row + place.row) / 128;
      const float* upper = part.scale + first * part.scale_stride + part.first_column / 128;
      const float* lower =
          part.scale + min(first + 1, most) * part.scale_stride + part.first_column / 128;
      auto* to = reinterpret_cast<float2*>(weight_scales + buffer * 2 * stretches);
      for (int s = lane; s < stretches; s += kWarp) to[s] = {__ldg(upper + s), __ldg(lower + s)};
      barrier_arrive(&barriers.scales_full[buffer]);
    }
    return;
  }

  wait_for_previous();
  let_next_start();
  if constexpr (kResident) {
    load_tokens<kN>(args, 0, steps, memory + shape.resident_at, token_scales);
  } else {
#pragma unroll 8
    for (int i = threadIdx.x; i < kN * stretches; i += kFlowConsumers) {
      const int token = i / stretches, stretch = i % stretches;
      token_scales[stretch * kN + token] = token < tokens ? args.x_scales[i] : 0.0f;
    }
  }
  consumers_meet();
  const int g = lane / 4, t = lane % 4, row = warp * 16 + g;
  FlowSlot at;
  for (int tile = begin; tile < end; ++tile) {
    const int buffer = (tile - begin) % 2, round = (tile - begin) / 2;
    const LinearFlowPlace place = flow_place(args, shape.rows, tile);
    const LinearPart& part = args.part[place.part];
    // Eight rows never cross a scale block.
    const int within = (part.first_row + place.row) % 128 + warp * 16;
    const int upper = within >= 128, lower = within + 8 >= 128;
    barrier_wait(&barriers.scales_full[buffer], round & 1);
    float total[kN / 2] = {};
    for (int step = 0; step < steps; ++step) {
      barrier_wait(&barriers.full[at.slot], at.round & 1);
      const uint32_t stage = start + at.slot * shape.stage_bytes();
      const uint32_t of_step = kResident ? start + shape.resident_at + step * (2 * kN * kTileStep)
                                         : stage + 2 * weight_box;
      multiply_stage<kN, 2>(stage, weight_box, of_step, 2 * step, stretches, token_scales,
                            weight_scales + buffer * 2 * stretches, upper, lower, total);
      barrier_arrive(&barriers.empty[at.slot]);
      at.next(shape.stages);
    }
    barrier_arrive(&barriers.scales_empty[buffer]);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int token = 8 * j + 2 * t + r % 2, in_tile = row + r / 2 * 8;
        if (token < tokens && in_tile < shape.rows && place.row + in_tile < part.rows)
          store_number(args.out.data, args.out.dtype,
                       token * args.out.stride + part.out_begin + place.row + in_tile,
                       total[4 * j + r]);
      }
  }
}

}  // namespace m2::ops::cuda
