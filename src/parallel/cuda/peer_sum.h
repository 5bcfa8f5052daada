#pragma once

#include <cstdint>

#include "ops/cuda/kernels.h"
#include "ops/unsummed_experts.h"
#include "tensor/dtype.h"

// What nvcc compiles for parallel/peers.cc: plain pointers and sizes.
namespace m2::parallel::cuda {

constexpr int kMostPeers = 8;
constexpr int kSumBlocks = 64;   // of a launch; those of words may have fewer, or a row each
constexpr int kRowBlocks = 128;  // most of launch_peer_row_norm()
constexpr int kWordRows = 128;   // most of launch_small_peer_sum_norm() and _qk()
constexpr int kMostPlaces = 3;   // that a rank tells the others of, of one call

// Sixteen bytes under way: numbers, or half as many with flags (peer_words.cuh).
struct alignas(16) PeerWord {
  uint32_t part[4];
};
constexpr int64_t kSmallSumBytes = 768 << 10;  // kWordRows of 3072 bf16
constexpr int64_t kSmallSumWords = kSmallSumBytes / sizeof(PeerWord);
constexpr int64_t kBroadcastBytes = kSmallSumBytes / 2;

// A rank's memory that all ranks reach. All but the slots are zeros at first.
struct PeerMemory {
  void* slots = nullptr;         // two of PeerSum::slot_bytes, for every other sum
  uint32_t* arrivals = nullptr;  // [kRowBlocks, kMostPeers] the round each peer's block has come to
  // [kRowBlocks + kWordRows] meetings so far and, behind them, small sums; of the rank itself
  uint32_t* rounds = nullptr;
  void** places = nullptr;    // [kRowBlocks, kMostPeers, kMostPlaces] where each peer's x lies
  PeerWord* words = nullptr;  // [2, kMostPeers, kSmallSumWords] from each peer, for every other
                              // small sum
};
constexpr int64_t kArrivalBytes = int64_t{4} * kRowBlocks * kMostPeers;
constexpr int64_t kRoundBytes = int64_t{4} * (kRowBlocks + kWordRows);
constexpr int64_t kPlaceBytes = int64_t{8} * kRowBlocks * kMostPeers * kMostPlaces;
constexpr int64_t kWordBytes = int64_t{sizeof(PeerWord)} * 2 * kMostPeers * kSmallSumWords;

struct PeerSum {
  PeerMemory peers[kMostPeers];
  int ranks = 0;
  int rank = 0;
  int64_t slot_bytes = 0;  // a multiple of 16
  // A word of host memory: not 0 ends the wait for peers. What is then written has no meaning.
  const uint32_t* given_up = nullptr;
  DType dtype = DType::f32;  // or bf16
  const void* x = nullptr;   // [count]
  int64_t count = 0;
  void* out = nullptr;  // the sum of all ranks' x, FP32 in ascending order of rank, rounded once
};

// Sums on every rank: out [count], may be x. All ranks launch the same, with the same count. A
// cudaStream_t; can be captured. Three ways to the same bytes:
// every rank reads all of everyone's numbers, of which a slot holds all;
void launch_peer_sum(void* stream, const PeerSum& sum);
// each sums a share for all, read and written where it lies: for many numbers. x is out, in memory
// that all ranks reach;
void launch_shared_peer_sum(void* stream, const PeerSum& sum);
// numbers are sent and not fetched: at most kSmallSumBytes of them.
void launch_small_peer_sum(void* stream, const PeerSum& sum);

// out = the root's x, travelling as a small sum does, at most kBroadcastBytes; the bits of f32 may
// be anything.
void launch_peer_broadcast(void* stream, const PeerSum& numbers, int root);

// On the root, out = the ranks' parts side by side: sum.x [rows, columns[rank]], sum.out [rows, sum
// of columns], f32. All columns are multiples of 4, and a slot holds every part.
struct PeerColumns {
  PeerSum sum;
  int root = 0;
  int64_t rows = 0;
  int64_t columns[kMostPeers] = {};
};
void launch_peer_columns(void* stream, const PeerColumns& parts);

// A small sum that goes on into a norm (ops/norm.h, add_rms_norm): residual += sum, out = its norm.
// bf16 all of them, rows dense and aligned to 16 bytes, columns a multiple of 8; at most
// kSumNormColumns of them and kWordRows rows. sum.out is not written. The bytes are those of the
// two operations one after the other.
constexpr int64_t kSumNormColumns = 3072;
struct PeerSumNorm {
  PeerSum sum;
  int64_t columns = 0;
  void* residual = nullptr;
  const void* weight = nullptr;  // [columns]
  float eps = 0;
  void* out = nullptr;
  // out once more in FP8 (ops/quantised.h), columns then a multiple of 128; or null.
  uint8_t* quantised = nullptr;
  float* quantised_scales = nullptr;
  bool powers = false;
};
void launch_small_peer_sum_norm(void* stream, const PeerSumNorm& work);

// The same of what this rank's experts have left, at least one token's: sum.x is not read.
struct PeerExpertsNorm {
  PeerSumNorm norm;
  ops::UnsummedExperts experts;
};
void launch_small_peer_experts_norm(void* stream, const PeerExpertsNorm& work);

// The same for many rows, of which each rank norms a share for all: rows [first, first + count) are
// this rank's, and of residual no others are read or written. sum.x has everyone's numbers of them,
// [ranks, count, columns], which the ranks have brought. Every rank gets all rows of quantised; and
// of out, if it wants it whole, else its own: they lie in memory that all ranks reach. Columns are
// a multiple of 128; any number of rows.
struct PeerRowNorm {
  PeerSumNorm norm;
  DType weight_dtype = DType::bf16;  // or f32
  int first = 0;
  int count = 0;
  bool whole_out = false;  // of this rank
};
void launch_peer_row_norm(void* stream, const PeerRowNorm& work);

// Every rank's rows [first[r], first[r] + count[r]) of each tensor come to all ranks, to the same
// place. Rows are multiples of 16 bytes, and so is where they lie; a slot holds a rank's rows of
// all tensors, each in its share of it (1 / kMostGathered).
constexpr int kMostGathered = 2;
struct PeerRows {
  PeerSum sum;  // of it the ranks and their memory
  void* data[kMostGathered] = {};
  int64_t row_bytes[kMostGathered] = {};
  int tensors = 0;
  int64_t first[kMostPeers] = {};
  int64_t count[kMostPeers] = {};
};
void launch_peer_rows(void* stream, const PeerRows& rows);

// A small sum on its way into the norm of q and k: qk.qkv's sums of squares, whose sum over ranks
// comes into no memory (sum.x is not read and qk.sums neither). The bytes are those of
// launch_qk_sum_squares, launch_small_peer_sum and launch_qk_norm_rope. Whether it can: even
// numbers of q heads, at most 32 heads of q, k and v, at most kWordRows rows, and as
// qk_whole_fits().
struct PeerQkNorm {
  PeerSum sum;
  ops::cuda::QkNormRope qk;
};
bool small_peer_sum_qk_fits(const ops::cuda::QkNormRope& args);
void launch_small_peer_sum_qk(void* stream, const PeerQkNorm& work);

// Each rank its share of the sum: elements [begin[r], begin[r] + count[r]) of x are rank r's, and
// out [count[rank]]. Of each share at most slot_bytes / 16 / ranks * 16 bytes.
struct PeerShares {
  PeerSum sum;
  int64_t begin[kMostPeers] = {};
  int64_t count[kMostPeers] = {};
};
void launch_scattered_peer_sum(void* stream, const PeerShares& shares);

}  // namespace m2::parallel::cuda
