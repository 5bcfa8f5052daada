#pragma once

#include "ops/cuda/device.cuh"
#include "parallel/cuda/peer_sum.h"

// Numbers as ranks send them to each other.
namespace m2::parallel::cuda {

using namespace ops::cuda;

// 16 bytes of numbers, or 8.
template <class T, int kBytes = 16>
struct alignas(kBytes) Group {
  static constexpr int kSize = kBytes / sizeof(T);
  T number[kSize];
};

template <class Numbers>
__device__ bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(Numbers) == 0;
}

// The first `count` numbers, at most a group; past them anything.
template <class Numbers, class T>
__device__ Numbers load_group(const T* from, int64_t count) {
  if (count >= Numbers::kSize && aligned<Numbers>(from))
    return *reinterpret_cast<const Numbers*>(from);
  Numbers out = {};
  for (int i = 0; i < Numbers::kSize && i < count; ++i) out.number[i] = from[i];
  return out;
}

// Numbers [begin, end) of a group.
template <class Numbers, class T>
__device__ void store_group(const Numbers& from, T* to, int64_t begin, int64_t end) {
  if (begin <= 0 && end >= Numbers::kSize && aligned<Numbers>(to)) {
    *reinterpret_cast<Numbers*>(to) = from;
    return;
  }
  for (int i = 0; i < Numbers::kSize; ++i)
    if (i >= begin && i < end) to[i] = from.number[i];
}

// Of all ranks' numbers, in ascending order of rank.
template <class T, class Numbers, int kMost>
__device__ Numbers total_of(const Numbers (&parts)[kMost], int ranks) {
  Numbers out;
#pragma unroll
  for (int i = 0; i < Numbers::kSize; ++i) {
    float total = to_float(parts[0].number[i]);
#pragma unroll
    for (int r = 1; r < kMost; ++r)
      if (r < ranks) total += to_float(parts[r].number[i]);
    out.number[i] = from_float<T>(total);
  }
  return out;
}

__device__ inline void tell(uint32_t* word, uint32_t round) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(round) : "memory");
}
__device__ inline uint32_t hear(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

__device__ inline void send(PeerWord* to, uint2 numbers) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %3, %2, %3};" ::"l"(to), "r"(numbers.x),
               "r"(numbers.y), "r"(1u)
               : "memory");
}

// Waits until the word is there, and clears it for the small sum after the next.
__device__ inline uint2 receive(PeerWord* from, const uint32_t* given_up) {
  constexpr int kLooks = 4096;
  PeerWord word;
  for (int looks = 1;; ++looks) {
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(word.first), "=r"(word.first_there), "=r"(word.second),
                   "=r"(word.second_there)
                 : "l"(from)
                 : "memory");
    if (word.first_there != 0 && word.second_there != 0) break;
    if (looks % kLooks == 0 && hear(given_up) != 0) break;
  }
  *from = {};
  return {word.first, word.second};
}

// The words of one small sum.
struct Words {
  const PeerSum& sum;
  int64_t half;  // of the memory for words, in words

  // Every thread of the block calls it once, after wait_for_previous().
  __device__ explicit Words(const PeerSum& of) : sum(of) {
    uint32_t* const rounds = sum.peers[sum.rank].rounds + kSumBlocks + blockIdx.x;
    const uint32_t round = *rounds;
    __syncthreads();
    if (threadIdx.x == 0) *rounds = round + 1;
    half = round % 2 * kMostPeers * kSmallSumWords;
  }
  __device__ PeerWord* place(int of, int from, int64_t word) const {
    return sum.peers[of].words + half + from * kSmallSumWords + word;
  }
  __device__ void send_to_all(int64_t word, uint2 numbers) const {
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r)
      if (r < sum.ranks && r != sum.rank) send(place(r, sum.rank, word), numbers);
  }
  // This rank's numbers in, all ranks' out.
  template <class T>
  __device__ void receive_all(int64_t word, const Group<T, 8>& own,
                              Group<T, 8> (&parts)[kMostPeers]) const {
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r)
      if (r < sum.ranks) {
        parts[r] = own;
        if (r == sum.rank) continue;
        const uint2 numbers = receive(place(sum.rank, r, word), sum.given_up);
        parts[r] = reinterpret_cast<const Group<T, 8>&>(numbers);
      }
  }
  template <class T>
  __device__ Group<T, 8> sum_of_all(int64_t word, const Group<T, 8>& own) const {
    Group<T, 8> parts[kMostPeers];
    receive_all(word, own, parts);
    return total_of<T>(parts, sum.ranks);
  }
};

}  // namespace m2::parallel::cuda
