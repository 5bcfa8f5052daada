#pragma once

#include "ops/cuda/attend_and_route.h"
#include "ops/cuda/attention/pages.cuh"
#include "ops/cuda/attention/plan.h"
#include "ops/cuda/flow.cuh"
#include "ops/cuda/norm_row.cuh"

// What the kernels for the attention half of a layer of one token, and of a few, have in common:
// the shape that they know, and the words in which their blocks tell each other numbers.
namespace m2::ops::cuda {

constexpr int kHidden = AttendShape::kHidden, kRotary = AttendShape::kRotary;
constexpr int kGroup = AttendShape::kQHeads / AttendShape::kKvHeads;
constexpr int kRouted = AttendShape::kExperts;
static_assert(AttendShape::kHeadDim == kDim && AttendShape::kBlock == kPage);
constexpr int kConsumers = kNormThreads;  // three warpgroups; a row of hidden is 8 columns a thread
constexpr int kWarpgroups = kConsumers / 128;
constexpr int kThreads = kConsumers + kWarp;
constexpr int kBlockORows = kHidden / kAttendBlocks;      // 24, a block's share
constexpr int kBlockExperts = kRouted / kAttendBlocks;    // 2
constexpr int kStretches = kHidden / kTileStep;           // 24 of q, k and v
constexpr int kRouteStretches = kHidden / kRouteStretch;  // 12
// Stretches of a row of the gate, and of what it is multiplied with, begin in different banks.
constexpr int kGateStretch = kRouteStretch * 4 + 16;
constexpr int kGateLoad = kBlockExperts * kHidden * 4;
constexpr int kGateBytes = kBlockExperts * kRouteStretches * kGateStretch;
constexpr int kPageSlot = 8192;
constexpr int kChainGroups = 3, kGroupSlots = 4, kPageSlots = kChainGroups * kGroupSlots;
constexpr int kChainWarps = 4;  // of a group

// The thread's place in the block, as a number that is not negative, for all that the compiler can
// see: so divisions by powers of two are shifts, with which a launch is 290 instructions shorter.
__device__ __forceinline__ int own_thread() {
  static_assert(kThreads <= 512);
  return static_cast<int>(threadIdx.x % 512);
}

// A word of an exchange: data, and the launch that wrote it.
constexpr int kChainWords = kDim / 2 + 1;  // uint4 of two words: values, then largest and sum

// How many launches have finished: the same for all threads of a launch, which ask for it early.
__device__ __forceinline__ unsigned launches_before(const unsigned* finished) {
  unsigned before = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(before) : "l"(finished) : "memory");
#endif
  return before;
}
// What a launch writes into words, and that L2 shall keep them: between two launches more weights
// pass through it than it holds, and a word that has to be fetched from memory first comes late.
struct Launch {
  uint32_t number;
  uint64_t keep;
  uint32_t of_ranks = 0;  // among those of the ranks
};
__device__ __forceinline__ void put(uint2* to, uint32_t data, const Launch& launch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.gpu.global.L2::cache_hint.v2.u32 [%0], {%1, %2}, %3;" ::"l"(to),
               "r"(data), "r"(launch.number), "l"(launch.keep)
               : "memory");
#endif
}
__device__ __forceinline__ void put(uint4* to, float a, float b, const Launch& launch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.gpu.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %2}, %4;" ::"l"(to),
               "r"(__float_as_uint(a)), "r"(launch.number), "r"(__float_as_uint(b)),
               "l"(launch.keep)
               : "memory");
#endif
}
__device__ __forceinline__ uint2 look(const uint2* at, const Launch& launch) {
  uint2 word = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.gpu.global.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
               : "=r"(word.x), "=r"(word.y)
               : "l"(at), "l"(launch.keep)
               : "memory");
#endif
  return word;
}
__device__ __forceinline__ uint4 look(const uint4* at, const Launch& launch) {
  uint4 words = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.gpu.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(at), "l"(launch.keep)
               : "memory");
#endif
  return words;
}
__device__ __forceinline__ bool has(const uint2& word, const Launch& launch) {
  return word.y == launch.number;
}
__device__ __forceinline__ bool has(const uint4& words, const Launch& launch) {
  return words.y == launch.number && words.w == launch.number;
}
// Reads kCount words, all at once, and those that are not this launch's again until they are.
template <int kCount, class Word, class At>
__device__ __forceinline__ void await(Word (&words)[kCount], const Launch& launch, At at) {
  bool missing = false;
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i] = look(at(i), launch);
#pragma unroll
  for (int i = 0; i < kCount; ++i) missing |= !has(words[i], launch);
  while (missing) [[unlikely]] {
      missing = false;
#pragma unroll
      for (int i = 0; i < kCount; ++i) words[i] = look(at(i), launch);
#pragma unroll
      for (int i = 0; i < kCount; ++i) missing |= !has(words[i], launch);
    }
}

// The same where they will have to wait.
template <int kCount, class Word, class At>
__device__ __forceinline__ void await_late(Word (&words)[kCount], const Launch& launch, At at) {
  for (;; __nanosleep(20)) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) words[i] = look(at(i), launch);
    bool missing = false;
#pragma unroll
    for (int i = 0; i < kCount; ++i) missing |= !has(words[i], launch);
    if (!missing) return;
  }
}

// Before that, of a thread's own: waits for one word, so that those who wait ask L2 for little.
template <class Word>
__device__ __forceinline__ void wait_for_word(const Word* at, const Launch& launch) {
  while (!has(look(at, launch), launch)) __nanosleep(20);
}

__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}
__device__ __forceinline__ void fence_for_products() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

struct AttendMaps {
  CUtensorMap qkv;  // boxes of 64 rows
  CUtensorMap o;    // boxes of 24 rows, eight times 128 columns
};

// The warps of a group alone.
__device__ __forceinline__ void group_meets(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(3 + group), "n"(kChainWarps * kWarp) : "memory");
}

template <class Page>
constexpr bool kWide = Page::kBytes == kPage* kDim * 2;  // BF16
// The pair of dims whose sums are word `word` of a chain's words.
template <class Page>
__device__ __forceinline__ int pair_of_word(unsigned word) {
  const unsigned half = word / kWarp, warp = word / 8 % kChainWarps, g = word % 8;
  return kWide<Page> ? half * (kDim / 4) + g * 4 + warp : g * 8 + 2 * warp + half;
}

}  // namespace m2::ops::cuda
