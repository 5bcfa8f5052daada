#pragma once

#include "ops/cuda/kernels.h"
#include "ops/decode_peers.h"

namespace m2::ops::cuda {

// What experts() of one token have left unsummed: their results in the order of `ids`, what they
// weigh, and the norm of their sum with the residual.
struct ExpertsLeft {
  const void* results = nullptr;  // bf16 [top, 3072]; null: nothing
  const int32_t* ids = nullptr;   // negative: not there
  const float* weights = nullptr;
  int top = 0;
  const void* norm = nullptr;  // bf16 [3072]
  // What the experts count in (ExpertsArgs), for the next call: zero, zero, one more.
  int32_t *next_tile = nullptr, *done = nullptr;
  uint32_t* posted = nullptr;
};

// The shape that the kernel knows: the M2 family's. A tensor rank has as many of the KV heads as
// there are ranks less, and the q heads that go with them.
struct AttendShape {
  static constexpr int kHidden = 3072, kQHeads = 48, kKvHeads = 8, kHeadDim = 128;
  static constexpr int kRotary = 64;    // dims of a head that turn
  static constexpr int kExperts = 256;  // that the router chooses among
  static constexpr int kBlock = 16;     // positions of the cache's blocks
};

// What stands in DecodePeers::memory: each rank writes its own into that of all, itself too.
struct alignas(8) RankSquares {
  float sum;        // of the squares of eight neighbours of q or k
  uint32_t launch;  // whose they are, from 1 on
};
struct RankWords {
  static constexpr int kSquares = 896;  // of all ranks
  alignas(16) uint32_t launches;        // of the rank itself that have ended
  // [ranks, eights of q, then of k]
  alignas(16) RankSquares squares[kSquares];
  // o's outputs of every other launch and each rank, eight columns as four pairs of bf16: their
  // complements, so that zeros mean that nothing has come.
  alignas(16) uint32_t sums[2][DecodePeers::kMost][AttendShape::kHidden / 8][4];
  // The same of what experts have made; who hears it clears it.
  alignas(16) uint32_t experts[2][DecodePeers::kMost][AttendShape::kHidden / 8][4];
};
static_assert(sizeof(RankWords) <= DecodePeers::kBytes);

// The attention half of a layer for one decoded token as one kernel: what linear (q, k and v),
// qk_norm_rope_store_whole, paged_attention, linear (o), add_rms_norm and the products of route do
// one after another, to the same bytes. Of a tensor rank: linear, the norm of q and k over all
// ranks (Comm::all_reduce_qk_norm), paged_attention, linear, Comm::all_reduce_norm and route's
// products.
struct AttendAndRoute {
  const uint8_t* x_f8;    // [3072], quantised
  const float* x_scales;  // [24]
  ExpertsLeft before;     // or, if there are some: x is the norm of the residual and their sum;
                          // none of ranks
  const uint8_t* qkv;     // f8_e4m3 [8192, 3072], q, k and v one after another, or a rank's rows
  const float* qkv_scale[3];
  int64_t qkv_scale_stride[3];
  const uint8_t* o;  // f8_e4m3 [3072, 6144], or a rank's columns
  const float* o_scale;
  int64_t o_scale_stride;
  const void* q_norm;  // bf16
  const void* k_norm;
  float eps;
  const float* angles;   // [64]
  const int32_t* slots;  // [1]
  Cache cache;
  const int32_t* query_starts;  // [2]
  const int32_t* context_lens;  // [1]
  const int32_t* block_tables;  // [1, ...]
  float scale;                  // head_dim^-0.5
  void* residual;               // bf16 [3072]
  const void* norm;             // bf16 [3072], of the sum of residual and o's output
  void* hidden;                 // bf16 [3072]
  QuantisedRows quantised;      // hidden once more
  const float* gate;            // [256, 3072]
  const float* bias;            // [256] of the router
  ExpertScore* scores;          // [256], out
  DecodePeers peers;            // of a rank
  float full_q, full_k;         // of a rank: q's and k's widths over all ranks
};

// Every block waits for others, so all of them have to run at once: on a GPU of Hopper's kind with
// at least as many multiprocessors, and nobody else on it.
constexpr int kAttendBlocks = 128;
// By a GPU with so many KV heads: all of them, or those of one of 2, 4 or 8 ranks.
void launch_attend_and_route(void* stream, int kv_heads, const AttendAndRoute& args);
constexpr bool attends_at_once(int64_t kv_heads) {
  return kv_heads == AttendShape::kKvHeads || kv_heads == 4 || kv_heads == 2 || kv_heads == 1;
}

// What a rank's experts of one token have left unsummed: summed, and over all ranks, added to the
// residual, and the norm of that. Behind launch_attend_and_route() of the same ranks.
struct RankExperts {
  ExpertsLeft left;
  void* residual;  // bf16 [3072]
  float eps;
  void* hidden;             // bf16 [3072]
  QuantisedRows quantised;  // hidden once more, or null
  DecodePeers peers;
};
void launch_rank_experts(void* stream, const RankExperts& args);

}  // namespace m2::ops::cuda
