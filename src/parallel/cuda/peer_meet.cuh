#pragma once

#include "parallel/cuda/peer_words.cuh"

// How blocks of all ranks meet, and what they then find of each other.
namespace m2::parallel::cuda {

// What a peer, or another thread, wrote.
template <class Numbers>
__device__ Numbers fetch(const Numbers* from) {
  const uint4 bytes = load_written(from);
  return reinterpret_cast<const Numbers&>(bytes);
}

// Returns when this block of every rank has come to the round: what they wrote before is then there
// to read. A later round is as good; the difference is signed, for rounds come around. False if the
// wait has been given up.
__device__ inline bool meet(const PeerSum& sum, uint32_t round) {
  constexpr int kLooks = 4096;  // at peers, for one at the host
  int gone = 0;
  __syncthreads();
  if (threadIdx.x < sum.ranks) {
    const int64_t own = static_cast<int64_t>(blockIdx.x) * kMostPeers;
    tell(sum.peers[threadIdx.x].arrivals + own + sum.rank, round);
    const uint32_t* peer = sum.peers[sum.rank].arrivals + own + threadIdx.x;
    for (int looks = 1; gone == 0 && static_cast<int32_t>(hear(peer) - round) < 0; ++looks)
      if (looks % kLooks == 0 && hear(sum.given_up) != 0) gone = 1;
  }
  return __syncthreads_or(gone) == 0;
}

// Where a thread stands in sums through slots: group g of 16 bytes is always the same thread's, so
// a block needs only the same block of its peers.
struct Place {
  int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  uint32_t* rounds;
  uint32_t round;
  int64_t slot;  // in groups

  __device__ explicit Place(const PeerSum& sum)
      : rounds(sum.peers[sum.rank].rounds + blockIdx.x),
        round(*rounds + 1),
        slot(round % 2 * (sum.slot_bytes / 16)) {}
  template <class T>
  __device__ Group<T>* slot_of(const PeerSum& sum, int rank) const {
    return static_cast<Group<T>*>(sum.peers[rank].slots) + slot;
  }
};

// meet(), which tells each rank where the others' memory of this call lies. What is there is for
// all to read and write until the next meet(). False if the wait has been given up: who has not
// come has told nothing.
template <int kPlaces>
__device__ bool meet_at(const PeerSum& sum, uint32_t round, void* const (&own)[kPlaces],
                        void* (&places)[kPlaces][kMostPeers]) {
  static_assert(kPlaces <= kMostPlaces);
  const auto told = [&](int of, int by) {  // on rank `of`, by rank `by`
    return sum.peers[of].places +
           (static_cast<int64_t>(blockIdx.x) * kMostPeers + by) * kMostPlaces;
  };
  const int peer = threadIdx.x;
  if (peer < sum.ranks)
#pragma unroll
    for (int i = 0; i < kPlaces; ++i)
      static_cast<void* volatile*>(told(peer, sum.rank))[i] = own[i];
  if (!meet(sum, round)) return false;
  if (peer < sum.ranks)
#pragma unroll
    for (int i = 0; i < kPlaces; ++i)
      places[i][peer] = static_cast<void* const volatile*>(told(sum.rank, peer))[i];
  __syncthreads();
  return true;
}

}  // namespace m2::parallel::cuda
