#pragma once

#include "ops/cuda/attend_words.cuh"

// Steps of a layer's attention half that the kernel of one token and the kernel of two take alike.
// Their chains of pages and the joining of parts are alike, too, and stand in each: as functions of
// their own they come out as other machine code (2026-11-28), which nobody has timed.
namespace m2::ops::cuda {

// The consumers' sum over their block, as block_sum() has it. scratch: [kConsumers / kWarp].
__device__ __forceinline__ float consumers_sum(float value, float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  meet();
  return warp_sum(lane < kConsumers / kWarp ? scratch[lane] : 0.0f);
}

// A thread's eight columns of a row: the residual with o's output, and what its norm takes.
struct RowNorm {
  Pack8<__nv_bfloat16> kept;
  float factor, by[8];

  // delta, norm: o's output and the norm's weights, pairs of bf16. residual: the row before.
  // scratch: [kConsumers / kWarp]. rows: where the row comes to lie for the router.
  __device__ __forceinline__ RowNorm(const uint32_t (&delta)[4], uint4 norm, float eps,
                                     const uint8_t* residual, float* scratch, uint8_t* rows)
      : kept(reinterpret_cast<const Pack8<__nv_bfloat16>*>(residual)[own_thread()]) {
    float squares = 0.0f;
    auto* pairs = reinterpret_cast<uint32_t*>(kept.values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 more = floats_of(delta[i]), before = floats_of(pairs[i]);
      pairs[i] = pack_bf16(before.x + more.x, before.y + more.y);
      const float2 value = floats_of(pairs[i]);
      squares = fmaf(value.x, value.x, squares);
      squares = fmaf(value.y, value.y, squares);
    }
    const float mean = consumers_sum(squares, scratch) / static_cast<float>(kHidden);
    factor = 1.0f / sqrtf(mean + eps);
    const uint32_t norm_words[4] = {norm.x, norm.y, norm.z, norm.w};
    float normed[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 two = floats_of(norm_words[i / 2]);
      by[i] = i % 2 ? two.y : two.x;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 of = floats_of(pairs[i]);
      const float2 two =
          floats_of(pack_bf16(of.x * factor * by[2 * i], of.y * factor * by[2 * i + 1]));
      normed[2 * i] = two.x;
      normed[2 * i + 1] = two.y;
    }
    const int thread = own_thread();
    auto* to = reinterpret_cast<float4*>(rows + thread / kWarp * kGateStretch) + thread % kWarp * 2;
    to[0] = {normed[0], normed[1], normed[2], normed[3]};
    to[1] = {normed[4], normed[5], normed[6], normed[7]};
  }
};

// A stretch's product of a row and an expert's gate, in order.
__device__ __forceinline__ float stretch_product(const float4* x, const float4* gate) {
  float sum = 0.0f;
#pragma unroll 8
  for (int c = 0; c < kRouteStretch / 4; ++c) {
    const float4 a = x[c], b = gate[c];
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
    sum = fmaf(a.z, b.z, sum);
    sum = fmaf(a.w, b.w, sum);
  }
  return sum;
}

}  // namespace m2::ops::cuda
