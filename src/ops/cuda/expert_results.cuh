#pragma once

#include "ops/cuda/qk_row.cuh"
#include "ops/unsummed_experts.h"

namespace m2::ops::cuda {

// A thread's eight columns of the results of a token's experts, asked for at once, with what they
// weigh; and their sum, in the order of combine_pairs. All aligned to 16 bytes.
struct ExpertColumns {
  static constexpr int kTop = UnsummedExperts::kTop;
  uint4 result[kTop], ids[kTop / 4], weights[kTop / 4];

  // `results`: of the token, from the thread's columns on; `stride` packs of eight from one
  // expert's to the next one's.
  __device__ __forceinline__ ExpertColumns(const uint4* results, unsigned stride, const int32_t* id,
                                           const float* weight) {
#pragma unroll
    for (int i = 0; i < kTop; ++i) result[i] = load_written(results + i * stride);
#pragma unroll
    for (int i = 0; i < kTop / 4; ++i) {
      ids[i] = load_written(id + 4 * i);
      weights[i] = load_written(weight + 4 * i);
    }
  }
  // Of those held here; a padding token has chosen none.
  __device__ __forceinline__ uint4 sum(int first_expert, int experts) const {
    const uint32_t id[kTop] = {ids[0].x, ids[0].y, ids[0].z, ids[0].w,
                               ids[1].x, ids[1].y, ids[1].z, ids[1].w};
    const uint32_t weight[kTop] = {weights[0].x, weights[0].y, weights[0].z, weights[0].w,
                                   weights[1].x, weights[1].y, weights[1].z, weights[1].w};
    float sum[8] = {}, value[8];
#pragma unroll
    for (int i = 0; i < kTop; ++i) {
      const int expert = static_cast<int>(id[i]) - first_expert;
      if (expert < 0 || expert >= experts) continue;
      as_floats(result[i], value);
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[c] = fmaf(__uint_as_float(weight[i]), value[c], sum[c]);
    }
    return as_bf16(sum);
  }
};

}  // namespace m2::ops::cuda
