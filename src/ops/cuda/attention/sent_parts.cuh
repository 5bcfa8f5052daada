#pragma once

#include "ops/cuda/attention/sm80_decode.cuh"
#include "ops/cuda/coded_words.cuh"

namespace m2::ops::cuda {

// Parts of contexts on their way from who makes them to who joins them, as ranks send each other
// numbers (coded_words.cuh): no fence, no count. Who joins puts zeros back. A row has one q head's
// share of a part, four dims a word, and then largest logit and sum of weights, twice, since a
// sector written by halves is read first. Only for who is alone on the GPU (Exec::alone).
constexpr int kSentRows = 3 << 10, kSentWords = kDim / 4 + 2;
__device__ uint4 sent_parts[kSentRows * kSentWords];

__device__ __forceinline__ void send_part_word(uint4* to, float a, float b, float c, float d) {
  const auto coded = [](float number) { return under_way(__float_as_uint(number)); };
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(coded(a)),
               "r"(coded(b)), "r"(coded(c)), "r"(coded(d))
               : "memory");
#endif
}
__device__ __forceinline__ uint4 look_at_part(const uint4* from) {
  uint4 word = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(from)
               : "memory");
#endif
  return word;
}
__device__ __forceinline__ bool has_come(const uint4& word) {
  return least_of(word) != 0;
}

// What join_few_sent() knows of a head's parts, at most 32, the lane's one.
struct SentTotals {
  static constexpr int kAhead = 8;  // parts under one largest logit
  float sum, top, factor;

  // total: the lane's part's.
  __device__ __forceinline__ SentTotals(const uint4& total, bool there) {
    const int lane = threadIdx.x % kWarp;
    const float of_part = there ? __uint_as_float(~total.x) : -INFINITY;
    sum = there ? __uint_as_float(~total.y) : 0.0f;
    top = fmaxf(of_part, -INFINITY);  // of what is no number too
#pragma unroll
    for (int offset = 1; offset < kAhead; offset *= 2)
      top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
#pragma unroll
    for (int offset = kAhead; offset < kWarp; offset *= 2) {
      const float before = __shfl_up_sync(~0u, top, offset);
      if (lane >= offset) top = fmaxf(top, before);
    }
    factor = exp2f(of_part - top);
  }
};

// Joins the parts of a head, at most kParts, that are sent to rows from `first` on, to the bytes of
// join_parts(). By a warp. All are asked for at once, for few wait.
template <int kParts>
__device__ __forceinline__ void join_few_sent(const AttentionArgs& args, int64_t token, int q_head,
                                              int first, int parts) {
  constexpr int kAhead = SentTotals::kAhead;
  static_assert(kParts % kAhead == 0 && kParts <= kWarp);
  const int lane = threadIdx.x % kWarp;
  const uint4 none = {~0u, ~0u, ~0u, ~0u};
  uint4* const rows = sent_parts + int64_t{1} * first * kSentWords;
  uint4* const own_total = rows + lane * kSentWords + kDim / 4;
  uint4 word[kParts], total = none;
  bool there;
  do {
    if (lane < parts) total = look_at_part(own_total);
    there = has_come(total);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      word[i] = i < parts ? look_at_part(rows + i * kSentWords + lane) : none;
      there &= has_come(word[i]);
    }
  } while (!__all_sync(~0u, there));
  if (lane < parts) own_total[0] = own_total[1] = {};
#pragma unroll
  for (int i = 0; i < kParts; ++i)
    if (i < parts) rows[i * kSentWords + lane] = {};
  const SentTotals totals(total, lane < parts);
  float largest = -INFINITY, sum = 0.0f, value[4] = {};
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    if (i % kAhead == 0) {
      if (i >= parts) break;
      const float here = __shfl_sync(~0u, totals.top, i), before = exp2f(largest - here);
      largest = here;
      sum *= before;
#pragma unroll
      for (float& number : value) number *= before;
    }
    const float weight = __shfl_sync(~0u, totals.factor, i);
    sum = fmaf(__shfl_sync(~0u, totals.sum, i), weight, sum);
    value[0] = fmaf(__uint_as_float(~word[i].x), weight, value[0]);
    value[1] = fmaf(__uint_as_float(~word[i].y), weight, value[1]);
    value[2] = fmaf(__uint_as_float(~word[i].z), weight, value[2]);
    value[3] = fmaf(__uint_as_float(~word[i].w), weight, value[3]);
  }
#pragma unroll
  for (float& number : value) number *= args.cache.v_scale / sum;
  store_dims(args, token, q_head, lane * 4, value);
}

}  // namespace m2::ops::cuda
