#pragma once

#include "ops/cuda/linear/sm90_flow.cuh"

namespace m2::ops::cuda {

// kFlowUnderWay of a pair's stages: o of one GPU has stages of 12 KB, ranks' q, k and v of 8.
template <int kHalf>
constexpr int kPairUnderWay = kHalf > 6 ? 3 : 2;

// sm90_linear_flow for up to 16 tokens and matrices of few rows and many columns, to the same
// bytes: a cluster of two blocks has a tile, each block half of K. Tiles narrow enough to give
// every multiprocessor one would leave most of the 64 rows of an instruction empty, and their
// products take longer than their bytes. The first block hands its sums to the second, which has
// kept its own stretches' products and takes them up in order. kHalf: stages of 256 columns in half
// of K.
template <int kN, int kHalf>
__global__ void __launch_bounds__(kFlowThreads, 1)
    sm90_linear_flow_pair(const __grid_constant__ LinearArgs args,
                          const __grid_constant__ LinearFlowMaps maps, const FlowShared shape) {
  constexpr int kStretches = 2;
  extern __shared__ uint8_t flow_memory[];
  __shared__ FlowBarriers barriers;
  __shared__ uint64_t handed;
  __shared__ __align__(16) float sums[kFlowConsumers][kN / 8][4];
  const uint32_t start = (shared_address(flow_memory) + 1023) & ~1023u;
  uint8_t* memory = flow_memory + (start - shared_address(flow_memory));
  auto* token_scales = reinterpret_cast<float*>(memory + shape.token_scales_at);
  auto* weight_scales = reinterpret_cast<float*>(memory + shape.weight_scales_at);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int tokens = static_cast<int>(args.x.rows), second = static_cast<int>(blockIdx.x % 2);
  const int stretches = 2 * kHalf * kStretches, first_step = second * kHalf;
  const LinearFlowPlace place = flow_place(args, shape.rows, static_cast<int>(blockIdx.x / 2));
  const int first_row = place.row, weight_box = shape.rows * kTileStep;
  const LinearPart& part = args.part[place.part];
  if (threadIdx.x == 0) {
    prefetch_map(&maps.weight[place.part]);
    barrier_init(&handed, 1);
  }
  barriers.init(shape.stages);
  if (threadIdx.x == 0 && second) barrier_expect(&handed, sizeof(sums));
  meet_cluster();  // the other block's barrier is there

  if (warp == kFlowConsumers / kWarp) {
    if (lane != 0) return;
    const auto ask = [&](int i, int slot) {
      barrier_expect(&barriers.full[slot], shape.stage_bytes());
      copy_weights(start + slot * shape.stage_bytes(), weight_box, &maps.weight[place.part], true,
                   first_step + i, first_row, &barriers.full[slot]);
    };
    // Weights alone, so nothing in front is waited for.
    FlowSlot at, coming;
    for (int i = 0; i < kHalf; ++i) {
      if (i >= kPairUnderWay<kHalf>) {
        barrier_wait(&barriers.full[coming.slot], coming.round & 1);
        coming.next(shape.stages);
      }
      if (at.round > 0) barrier_wait(&barriers.empty[at.slot], (at.round - 1) & 1);
      ask(i, at.slot);
      at.next(shape.stages);
    }
    return;
  }
  if (warp == kFlowConsumers / kWarp + 1) {
    const int most = (part.first_row + part.rows - 1) / 128;
    const int first = (part.first_row + first_row) / 128;
    const float* upper = part.scale + first * part.scale_stride + part.first_column / 128;
    const float* lower =
        part.scale + min(first + 1, most) * part.scale_stride + part.first_column / 128;
    auto* to = reinterpret_cast<float2*>(weight_scales);
    for (int s = lane; s < stretches; s += kWarp) to[s] = {__ldg(upper + s), __ldg(lower + s)};
    barrier_arrive(&barriers.scales_full[0]);
    return;
  }

  // What follows a rank's product is small, and takes as long to start as this does to compute.
  if (kHalf <= 6 && tokens < 16) let_next_start();
  wait_for_previous();
  let_next_start();
  load_tokens<kN>(args, first_step, kHalf, memory + shape.resident_at, token_scales);
  consumers_meet();
  const int g = lane / 4, t = lane % 4, row = warp * 16 + g;
  // Eight rows never cross a scale block.
  const int within = (part.first_row + first_row) % 128 + warp * 16;
  const int upper = within >= 128, lower = within + 8 >= 128;
  barrier_wait(&barriers.scales_full[0], 0);
  float d[kHalf][kStretches][kN / 2];
  float total[kN / 2] = {};
  FlowSlot at;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    barrier_wait(&barriers.full[at.slot], at.round & 1);
    stage_products<kN, kStretches>(start + at.slot * shape.stage_bytes(), weight_box,
                                   start + shape.resident_at + i * (2 * kN * kTileStep), d[i]);
    barrier_arrive(&barriers.empty[at.slot]);
    at.next(shape.stages);
  }
  if (second) {
    barrier_wait(&handed, 0);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) total[i] = sums[threadIdx.x][i / 4][i % 4];
  }
#pragma unroll
  for (int i = 0; i < kHalf; ++i)
#pragma unroll
    for (int s = 0; s < kStretches; ++s)
      take_products<kN>(d[i][s], (first_step + i) * kStretches + s, token_scales, weight_scales,
                        upper, lower, total);
  if (!second) {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
      hand_to(sums[threadIdx.x][j], reinterpret_cast<float(&)[4]>(total[4 * j]), &handed, 1);
    return;
  }
#pragma unroll
  for (int j = 0; j < kN / 8; ++j)
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int token = 8 * j + 2 * t + r % 2, in_tile = row + r / 2 * 8;
      if (token < tokens && in_tile < shape.rows && first_row + in_tile < part.rows)
        store_number(args.out.data, args.out.dtype,
                     token * args.out.stride + part.out_begin + first_row + in_tile,
                     total[4 * j + r]);
    }
}

}  // namespace m2::ops::cuda
