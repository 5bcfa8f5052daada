#pragma once

#include "ops/cuda/attend_and_route.h"
#include "ops/cuda/coded_words.cuh"
#include "ops/cuda/hopper.cuh"

// What tensor ranks write into each other's memory (RankWords), and look at in their own. `keep`:
// keep_policy(), since a word that has to be fetched from memory first comes late.
namespace m2::ops::cuda {

__device__ __forceinline__ RankWords* words_of(const DecodePeers& peers, int rank) {
  return static_cast<RankWords*>(peers.memory[rank]);
}

__device__ __forceinline__ void tell_squares(RankSquares* to, float sum, uint32_t launch,
                                             uint64_t keep) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const uint64_t word = uint64_t{launch} << 32 | __float_as_uint(sum);
  asm volatile("st.relaxed.sys.global.L2::cache_hint.u64 [%0], %1, %2;" ::"l"(to), "l"(word),
               "l"(keep)
               : "memory");
#endif
}
__device__ __forceinline__ RankSquares look_at_squares(const RankSquares* at, uint64_t keep) {
  uint64_t word = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.sys.global.L2::cache_hint.u64 %0, [%1], %2;"
               : "=l"(word)
               : "l"(at), "l"(keep)
               : "memory");
#endif
  return {__uint_as_float(static_cast<uint32_t>(word)), static_cast<uint32_t>(word >> 32)};
}

// Coded words (coded_words.cuh).
__device__ __forceinline__ void tell_words(uint4* to, const uint4& word, uint64_t keep) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.sys.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(to),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w), "l"(keep)
               : "memory");
#endif
}
__device__ __forceinline__ uint4 look_at_words(const uint4* at, uint64_t keep) {
  uint4 word = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.sys.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(at), "l"(keep)
               : "memory");
#endif
  return word;
}

// Whether peers are waited for no more. What is then computed has no meaning.
__device__ __forceinline__ bool given_up(const DecodePeers& peers) {
  uint32_t word = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(peers.given_up) : "memory");
#endif
  return word != 0;
}
constexpr int kLooksAtPeers = 4096;  // for one at the host

// Eight columns of every rank, which stand `kRow` words from one rank's to the next's, added up
// rank after rank. kOwn: this rank's are `own`; otherwise they come as its peers' do, and are
// waited for in any case. All are looked at together: one after another they would take a memory's
// latency each.
template <int kMost, int kRow, bool kOwn>
__device__ __forceinline__ uint4 sum_of_ranks(const DecodePeers& peers, const uint4* from,
                                              const uint4& own, uint64_t keep) {
  uint4 word[kMost];
  uint32_t missing;
  int looks = 0;
#pragma unroll 1
  do {
    missing = 0;
    if (peers.ranks == kMost) {
      // Without conditions, or those behind the first three would be asked for one by one.
#pragma unroll
      for (int r = 0; r < kMost; ++r) word[r] = look_at_words(from + r * kRow, keep);
    } else {
#pragma unroll
      for (int r = 0; r < kMost; ++r) {
        word[r] = own;
        if (r < peers.ranks && (!kOwn || r != peers.rank))
          word[r] = look_at_words(from + r * kRow, keep);
      }
    }
#pragma unroll
    for (int r = 0; r < kMost; ++r)
      if (r < peers.ranks && least_of(word[r]) == 0) missing |= 1u << r;
    if (kOwn) missing &= ~(1u << peers.rank);
    if (++looks % kLooksAtPeers == 0 && given_up(peers)) missing &= 1u << peers.rank;
  } while (missing != 0);
  float total[8], part[8];
#pragma unroll
  for (int r = 0; r < kMost; ++r) {
    const bool here = kOwn && r == peers.rank;
    const uint4 of_rank = {here ? own.x : word[r].x, here ? own.y : word[r].y,
                           here ? own.z : word[r].z, here ? own.w : word[r].w};
    read_word(of_rank, r == 0 ? total : part);
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (r > 0 && r < peers.ranks) total[i] += part[i];
  }
  return {pack_bf16(total[0], total[1]), pack_bf16(total[2], total[3]),
          pack_bf16(total[4], total[5]), pack_bf16(total[6], total[7])};
}

}  // namespace m2::ops::cuda
