#pragma once

#include "ops/cuda/kernels.h"

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

// The one shape that the kernel knows: the M2 family's on one GPU.
struct AttendShape {
  static constexpr int kHidden = 3072, kQHeads = 48, kKvHeads = 8, kHeadDim = 128;
  static constexpr int kRotary = 64;    // dims of a head that turn
  static constexpr int kExperts = 256;  // that the router chooses among
  static constexpr int kBlock = 16;     // positions of the cache's blocks
};

// The attention half of a layer for one decoded token as one kernel: what linear (q, k and v),
// qk_norm_rope_store_whole, paged_attention, linear (o), add_rms_norm and the products of route do
// one after another, to the same bytes.
struct AttendAndRoute {
  const uint8_t* x_f8;    // [3072], quantised
  const float* x_scales;  // [24]
  ExpertsLeft before;     // or, if there are some: x is the norm of the residual and their sum
  const uint8_t* qkv;     // f8_e4m3 [8192, 3072], q, k and v one after another
  const float* qkv_scale[3];
  int64_t qkv_scale_stride[3];
  const uint8_t* o;  // f8_e4m3 [3072, 6144]
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
};

// Every block waits for others, so all of them have to run at once: on a GPU of Hopper's kind with
// at least as many multiprocessors, and nobody else on it.
constexpr int kAttendBlocks = 128;
void launch_attend_and_route(void* stream, const AttendAndRoute& args);

}  // namespace m2::ops::cuda
