#pragma once

#include <type_traits>

#include "ops/cuda/coded_words.cuh"
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

// Words with flags: eight bytes of any bits.
__device__ inline void send(PeerWord* to, uint2 numbers) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %3, %2, %3};" ::"l"(to), "r"(numbers.x),
               "r"(numbers.y), "r"(1u)
               : "memory");
}

// Looks at 16 bytes of words once.
__device__ inline uint4 look(const PeerWord* at) {
  uint4 word;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(at)
               : "memory");
  return word;
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
  uint4 word;
  wait_until(given_up, [&] {
    word = look(from);
    return word.y != 0 && word.w != 0;
  });
  *from = {};
  return {word.x, word.z};
}

// Words of summands alone (ops/cuda/coded_words.cuh).
__device__ inline void send_coded(PeerWord* to, uint4 word) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x),
               "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ inline void clear_word(PeerWord* at) {
  asm volatile("st.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(at), "r"(0) : "memory");
}
// The words of one small sum. A word is zeros but from when a peer has sent it until it has been
// received, so kernels may use the same words in different ways and numbers.
struct Words {
  const PeerSum& sum;
  uint32_t* rounds;
  uint32_t round = 0;
  int64_t half = 0;  // of the memory for words, in words

  __device__ explicit Words(const PeerSum& of)
      : sum(of), rounds(sum.peers[sum.rank].rounds + kRowBlocks) {}
  // After wait_for_previous(). Several blocks may share an account.
  __device__ void begin(unsigned account) {
    round = rounds[account];
    half = round % 2 * kMostPeers * kSmallSumWords;
  }
  // The round is over in this account and, of kWordRows, in its share of those that no block reads
  // of `read`. By a whole first warp, when all threads that send have read it.
  __device__ void count(unsigned account, unsigned read) const {
    const uint32_t next = __shfl_sync(~0u, round, 0) + 1;
    for (unsigned i = account + threadIdx.x * read; i < kWordRows; i += kWarp * read)
      rounds[i] = next;
  }
  __device__ PeerWord* place(int of, int from, int64_t word) const {
    return sum.peers[of].words + half + from * kSmallSumWords + word;
  }
};

// Words of summands, `kRanks` of them.
template <int kRanks>
struct Summands : Words {
  PeerWord *to[kRanks], *from;  // not all ranks to the same one at once

  // Before wait_for_previous(), and ready by then.
  __device__ explicit Summands(const PeerSum& of) : Words(of) {
#pragma unroll
    for (int i = 1; i < kRanks; ++i) {
      const int rank = sum.rank + i;
      to[i] = place(rank < kRanks ? rank : rank - kRanks, sum.rank, 0);
      asm volatile("" : "+l"(to[i]));
    }
    from = place(sum.rank, 0, 0);
    asm volatile("" : "+l"(from));
  }
  __device__ void send_to_all(int64_t word, uint4 coded) const {
#pragma unroll
    for (int i = 1; i < kRanks; ++i) send_coded(to[i] + (half + word), coded);
  }
  // This rank's numbers in, as they travel, the sum of those of all ranks out. Their words are
  // looked at together: one after another they would take a memory's latency each, though they be
  // there.
  template <class T>
  __device__ Group<T> sum_of_all(int64_t word, uint4 coded) const {
    PeerWord* const at = from + (half + word);
    uint4 seen[kRanks];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) seen[r] = coded;
    wait_until(sum.given_up, [&] {
#pragma unroll
      for (int r = 0; r < kRanks; ++r)
        if (r != sum.rank) seen[r] = look(at + r * kSmallSumWords);
      uint32_t least = least_of(seen[0]);
#pragma unroll
      for (int r = 1; r < kRanks; ++r) least = min(least, least_of(seen[r]));
      return least != 0;
    });
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (r != sum.rank) clear_word(at + r * kSmallSumWords);
    float total[Group<T>::kSize], part[Group<T>::kSize];
    read_word(seen[0], total);
#pragma unroll
    for (int r = 1; r < kRanks; ++r) {
      read_word(seen[r], part);
#pragma unroll
      for (int i = 0; i < Group<T>::kSize; ++i) total[i] += part[i];
    }
    Group<T> out;
#pragma unroll
    for (int i = 0; i < Group<T>::kSize; ++i) out.number[i] = from_float<T>(total[i]);
    return out;
  }
};

// Calls work(std::integral_constant<int, ranks>()), for kernels that know how many ranks there are.
template <int kRanks = 1, class Work>
void with_ranks(int ranks, Work&& work) {
  if constexpr (kRanks < kMostPeers) {
    if (ranks != kRanks) return with_ranks<kRanks + 1>(ranks, work);
  }
  work(std::integral_constant<int, kRanks>());
}

}  // namespace m2::parallel::cuda
