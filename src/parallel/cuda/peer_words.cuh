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

// Looks at a word once; whether it is there.
__device__ inline bool look(const PeerWord* at, PeerWord& word) {
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.first), "=r"(word.first_there), "=r"(word.second),
                 "=r"(word.second_there)
               : "l"(at)
               : "memory");
  return word.first_there != 0 && word.second_there != 0;
}

// Looks until `there` says so, or the wait has been given up.
template <class There>
__device__ void wait_until(const uint32_t* given_up, There there) {
  constexpr int kLooks = 4096;
  for (int looks = 1; !there(); ++looks)
    if (looks % kLooks == 0 && hear(given_up) != 0) return;
}

// Waits until the word is there, and clears it for the small sum after the next.
__device__ inline uint2 receive(PeerWord* from, const uint32_t* given_up) {
  PeerWord word;
  wait_until(given_up, [&] { return look(from, word); });
  *from = {};
  return {word.first, word.second};
}

// The words of one small sum.
struct Words {
  const PeerSum& sum;
  int64_t half;  // of the memory for words, in words

  // Every thread calls it once, after wait_for_previous(). Of kSumBlocks accounts each block keeps
  // its own, and its share of those that the grid has no block for: it has kSumBlocks threads.
  __device__ explicit Words(const PeerSum& of) : sum(of) {
    uint32_t* const rounds = sum.peers[sum.rank].rounds + kSumBlocks;
    const uint32_t round = rounds[blockIdx.x];
    __syncthreads();
    const uint32_t account = blockIdx.x + threadIdx.x * gridDim.x;
    if (account < kSumBlocks) rounds[account] = round + 1;
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
  // This rank's numbers in, the numbers of all ranks, kMost at most, out. Their words are looked at
  // together: one after another they would take a memory's latency each, though they be there.
  template <class T, int kMost>
  __device__ void receive_all(int64_t word, const Group<T, 8>& own,
                              Group<T, 8> (&parts)[kMost]) const {
    PeerWord seen[kMost];
    const auto each_other = [&](auto work) {
#pragma unroll
      for (int r = 0; r < kMost; ++r)
        if (r < sum.ranks && r != sum.rank) work(place(sum.rank, r, word), seen[r]);
    };
    wait_until(sum.given_up, [&] {
      bool there = true;
      each_other([](PeerWord* at, PeerWord& word) { look(at, word); });
      each_other([&](PeerWord*, const PeerWord& word) {
        there &= word.first_there != 0 && word.second_there != 0;
      });
      return there;
    });
    each_other([](PeerWord* at, const PeerWord&) { *at = {}; });
#pragma unroll
    for (int r = 0; r < kMost; ++r) {
      const uint2 numbers = {seen[r].first, seen[r].second};
      parts[r] = r == sum.rank ? own : reinterpret_cast<const Group<T, 8>&>(numbers);
    }
  }
  template <class T, int kMost = kMostPeers>
  __device__ Group<T, 8> sum_of_all(int64_t word, const Group<T, 8>& own) const {
    Group<T, 8> parts[kMost];
    receive_all(word, own, parts);
    return total_of<T>(parts, sum.ranks);
  }
};

}  // namespace m2::parallel::cuda
