#pragma once

#include "ops/cuda/hopper.cuh"
#include "ops/cuda/norm_row.cuh"
#include "ops/cuda/qk_row.cuh"

// A row's norm by a cluster of blocks, which together have the threads of rms_norm_kernel
// (ops/cuda/norm.cu), to the same bytes: 8 columns a thread.
namespace m2::ops::cuda {

// What warps of a row have, met in every block of its cluster.
template <int kParts>
class RowSum {
 public:
  static constexpr int kWarps = kNormThreads / kWarp;
  struct Shared {
    alignas(16) float of_warp[kWarps];
    uint64_t met;
  };
  // By all threads of all blocks. No fence of memory: that would wait for what is on its way to
  // other GPUs.
  __device__ explicit RowSum(Shared& shared) : shared_(shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kParts > 1) {
      if (threadIdx.x == 0) {
        barrier_init(&shared.met, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      }
      __syncwarp();
      if (threadIdx.x == 0) barrier_expect(&shared.met, sizeof(shared.of_warp));
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
#endif
  }
  // The sum of every thread's `value` in the order of block_sum() of kNormThreads threads, of which
  // this one is `thread`.
  __device__ float operator()(float value, int thread) const {
    const int lane = thread % kWarp, warp = thread / kWarp;
    value = warp_sum(value);
    if constexpr (kParts > 1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      if (lane < kParts)
        asm volatile(
            "{\n"
            ".reg .b32 there, barrier;\n"
            "mapa.shared::cluster.u32 there, %0, %2;\n"
            "mapa.shared::cluster.u32 barrier, %1, %2;\n"
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], %3, [barrier];\n"
            "}\n" ::"r"(shared_address(shared_.of_warp + warp)),
            "r"(shared_address(&shared_.met)), "r"(lane), "f"(value)
            : "memory");
#endif
      barrier_wait(&shared_.met, 0);
    } else {
      if (lane == 0) shared_.of_warp[warp] = value;
      __syncthreads();
    }
    // As warp_sum() of 12 numbers and zeros.
    static_assert(kWarps == 12);
    float4 of[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) of[i] = reinterpret_cast<const float4*>(shared_.of_warp)[i];
    return ((of[0].x + of[2].x + of[1].x) + (of[0].z + of[2].z + of[1].z)) +
           ((of[0].y + of[2].y + of[1].y) + (of[0].w + of[2].w + of[1].w));
  }

 private:
  Shared& shared_;
};

// Eight bf16 and eight more, rounded.
__device__ __forceinline__ uint4 sum_of_eight(const uint4& a, const uint4& b) {
  float value[8], by[8];
  as_floats(a, value);
  as_floats(b, by);
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] += by[i];
  return as_bf16(value);
}

// Where a norm goes; quantised too, or null.
struct NormedTo {
  uint4* out;
  uint8_t* quantised;
  float* scales;
  bool powers;
};
// The norm of a row, of which the thread has `kept` (if it `has` columns; else zeros), as
// store_normed() does (ops/cuda/norm_row.cuh), by whole warps. `pack`: the thread's eight among all
// rows'.
template <int kParts>
__device__ __forceinline__ void norm_eight(const NormedTo& to, const RowSum<kParts>& row_sum,
                                           const uint4& kept, const uint4& weights, float eps,
                                           int columns, int thread, unsigned pack, bool has) {
  float value[8], by[8], squares = 0.0f;
  as_floats(kept, value);
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = fmaf(value[i], value[i], squares);
  const float mean = row_sum(squares, thread) / static_cast<float>(columns);
  const float factor = 1.0f / sqrtf(mean + eps);
  as_floats(weights, by);
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] = value[i] * factor * by[i];
  const uint4 normed = as_bf16(value);
  if (has) to.out[pack] = normed;
  if (!to.quantised) return;
  as_floats(normed, value);
  float most = fmaxf(largest_of(value[0], value[1], value[2], value[3]),
                     largest_of(value[4], value[5], value[6], value[7]));
#pragma unroll
  for (int offset = 8; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float scale = f8_scale(most, to.powers), inverse = 1.0f / scale;
  if (!has) return;
  reinterpret_cast<uint2*>(to.quantised)[pack] = {
      to_f8(value[0], value[1], value[2], value[3], inverse),
      to_f8(value[4], value[5], value[6], value[7], inverse)};
  if (thread % 16 == 0) to.scales[pack / 16] = scale;
}

}  // namespace m2::ops::cuda
