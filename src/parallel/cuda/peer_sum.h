#pragma once

#include <cstdint>

#include "tensor/dtype.h"

// What nvcc compiles for parallel/peers.cc: plain pointers and sizes.
namespace m2::parallel::cuda {

constexpr int kMostPeers = 8;
constexpr int kSumBlocks = 64;  // of every launch, since each block keeps account of its rounds

// A rank's memory that all ranks reach. Arrivals and rounds are zeros at first.
struct PeerMemory {
  void* slots = nullptr;         // two of PeerSum::slot_bytes, for every other sum
  uint32_t* arrivals = nullptr;  // [kSumBlocks, kMostPeers] the round each peer's block has come to
  uint32_t* rounds = nullptr;    // [kSumBlocks] sums so far; of the rank itself
};
constexpr int64_t kArrivalBytes = int64_t{4} * kSumBlocks * kMostPeers;
constexpr int64_t kRoundBytes = int64_t{4} * kSumBlocks;

struct PeerSum {
  PeerMemory peers[kMostPeers];
  int ranks = 0;
  int rank = 0;
  int64_t slot_bytes = 0;  // a multiple of 16
  // A word of host memory: not 0 ends the wait for peers. What is then written has no meaning.
  const uint32_t* given_up = nullptr;
  DType dtype = DType::f32;  // or bf16
  const void* x = nullptr;   // [count] that fit into a slot
  int64_t count = 0;
  // [length] = elements [first, first + length) of the sum of all ranks' x, FP32 in ascending order
  // of rank and rounded once. May be those elements of x itself.
  void* out = nullptr;
  int64_t first = 0;
  int64_t length = 0;
};

// Every rank launches it, with the same count. A cudaStream_t; can be captured.
void launch_peer_sum(void* stream, const PeerSum& sum);

}  // namespace m2::parallel::cuda
