#pragma once

#include "ops/cuda/flow.cuh"
#include "ops/cuda/linear/launch.h"
#include "ops/cuda/linear/sm90_flow.cuh"
#include "ops/cuda/wgmma16.cuh"

// BF16 products of up to 64 tokens on Hopper's tensor cores: 64 weight rows and 8 to 64 tokens make
// one instruction, as in sm90_flow.cuh, and shared memory is kept full of both by tensor copies. A
// block has one to three warpgroups, 64 weight rows each, over the same tokens: these come from L2
// again for every tile, and with 64 of them would otherwise be half of all that a multiprocessor
// takes in. Results depend on K alone: 64 columns are summed by the tensor cores, then added in
// FP32.
namespace m2::ops::cuda {

constexpr int kFlow16Columns = kFlowColumns / 2;  // of K a stage: two boxes of 64

// Shared memory, in bytes from a 1024-byte border: stages, then what the last operand spans beyond.
struct Flow16Shared {
  int rows;  // of a stage's weights; a multiple of 8, up to 64 a warpgroup
  int stages;
  int bytes;  // of all, and the border
};
inline Flow16Shared flow16_shared(int rows, int tokens) {
  constexpr int kMost = 221 * 1024;  // flow_shared() says why not all
  const int beyond = rows < kFlowRows ? (kFlowRows - rows) * kTileStep : 0;
  const int stage = (rows + tokens) * kFlowColumns;
  Flow16Shared shared = {rows, (kMost - beyond) / stage, 0};
  if (shared.stages > kFlowMaxStages) shared.stages = kFlowMaxStages;
  shared.bytes = shared.stages * stage + beyond + 1024;
  return shared;
}

// kGroups warpgroups. Bytes: N K 2, and kN K 2 from L2 for each tile. FLOPs: 2 T N K on the BF16
// tensor cores. Bound: bandwidth of memory.
template <int kN, int kGroups>
__global__ void __launch_bounds__(kGroups * 128 + kWarp, 1)
    sm90_linear_flow16(const __grid_constant__ LinearArgs args,
                       const __grid_constant__ LinearFlowMaps maps, const Flow16Shared shape,
                       int tiles) {
  constexpr int kConsumers = kGroups * 128;
  extern __shared__ uint8_t flow_memory[];
  __shared__ uint64_t full[kFlowMaxStages], empty[kFlowMaxStages];
  const uint32_t start = (shared_address(flow_memory) + 1023) & ~1023u;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int columns = static_cast<int>(args.x.columns), tokens = static_cast<int>(args.x.rows);
  const int steps = (columns + kFlow16Columns - 1) / kFlow16Columns;
  const int begin = flow_begin(tiles, blockIdx.x), end = flow_begin(tiles, blockIdx.x + 1);
  const int weight_box = shape.rows * kTileStep, stage_bytes = (shape.rows + kN) * kFlowColumns;
  if (threadIdx.x < args.parts) prefetch_map(&maps.weight[threadIdx.x]);
  if (threadIdx.x == kWarp) prefetch_map(&maps.x);
  if (threadIdx.x < shape.stages) {
    barrier_init(&full[threadIdx.x], 1);
    barrier_init(&empty[threadIdx.x], kConsumers);
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  __syncthreads();

  if (warp == kConsumers / kWarp) {
    if (lane != 0) return;
    // Weights are asked for before the kernels in front have ended; their tokens follow then.
    int tile = begin, step = 0;
    LinearFlowPlace at = flow_place(args, shape.rows, tile);
    const auto advance = [&] {
      if (++step < steps) return;
      step = 0;
      at = flow_place(args, shape.rows, ++tile);
    };
    const auto ask_weights = [&](int slot) {
      barrier_expect(&full[slot], stage_bytes);
      const uint32_t to = start + slot * stage_bytes;
      const CUtensorMap* map = &maps.weight[at.part];
      // Behind 64 tokens' results, which fill L2, weights that go first from it come late.
      if (kN < 64)
        copy_weights(to, weight_box, map, true, step, at.row, &full[slot]);
      else
        copy_boxes(to, weight_box, map, true, step, at.row, &full[slot]);
    };
    const auto ask_tokens = [&](int slot) {
      copy_boxes(start + slot * stage_bytes + 2 * weight_box, kN * kTileStep, &maps.x, true, step,
                 0, &full[slot]);
    };
    const int all = (end - begin) * steps, ahead = min(shape.stages, all);
    for (int i = 0; i < ahead; ++i) {
      ask_weights(i);
      advance();
    }
    wait_for_previous();
    let_next_start();
    tile = begin, step = 0;
    at = flow_place(args, shape.rows, tile);
    for (int i = 0; i < ahead; ++i) {
      ask_tokens(i);
      advance();
    }
    FlowSlot slot{0, 1};
    for (int i = ahead; i < all; ++i) {
      barrier_wait(&empty[slot.slot], (slot.round - 1) & 1);
      ask_weights(slot.slot);
      ask_tokens(slot.slot);
      advance();
      slot.next(shape.stages);
    }
    return;
  }

  wait_for_previous();
  let_next_start();
  const int g = lane / 4, t = lane % 4, row = warp * 16 + g;
  const int half = warp / 4 * kFlowRows * kTileStep;  // where the warpgroup's rows begin in a box
  FlowSlot slot;
  for (int tile = begin; tile < end; ++tile) {
    const LinearFlowPlace at = flow_place(args, shape.rows, tile);
    const LinearPart& part = args.part[at.part];
    float total[kN / 2] = {};
    for (int step = 0; step < steps; ++step) {
      barrier_wait(&full[slot.slot], slot.round & 1);
      const uint32_t weights = start + slot.slot * stage_bytes + half;
      const uint32_t x = start + slot.slot * stage_bytes + 2 * weight_box;
      float d[2][kN / 2];
      wgmma_begin();
#pragma unroll
      for (int box = 0; box < 2; ++box)
#pragma unroll
        for (int k = 0; k < 4; ++k)
          wgmma_64xNx16<kN>(d[box], operand(weights + box * weight_box + k * 32),
                            operand(x + box * (kN * kTileStep) + k * 32), k > 0);
      wgmma_finish();
      barrier_arrive(&empty[slot.slot]);
      slot.next(shape.stages);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) total[i] = total[i] + d[0][i] + d[1][i];
    }
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int token = 8 * j + 2 * t + r % 2, in_tile = row + r / 2 * 8;
        if (token < tokens && in_tile < shape.rows && at.row + in_tile < part.rows)
          store_number(args.out.data, args.out.dtype,
                       token * args.out.stride + part.out_begin + at.row + in_tile,
                       total[4 * j + r]);
      }
  }
}

}  // namespace m2::ops::cuda
