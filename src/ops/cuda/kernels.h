#pragma once

#include <cstdint>

#include "ops/row_owners.h"
#include "ops/sample_row.h"
#include "tensor/dtype.h"

// What nvcc compiles, as bodies.cc calls it: plain pointers and sizes, no tensors. (nvcc cannot
// read <thread> and fmt's checked format strings as C++20, so the walls stand here.)
// `stream` is a cudaStream_t everywhere. All launches are asynchronous and can be captured.
namespace m2::ops::cuda {

// A matrix in device memory: row r begins at data + r * stride elements.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;
};

// A matrix of activations once more, as FP8 (ops/quantised.h); null where it is not wanted.
struct QuantisedRows {
  uint8_t* values = nullptr;
  float* scales = nullptr;
  bool powers = false;  // scales are rounded up to powers of two
};

struct Heads {
  int q, kv, dim, rotary;
};

// The paged cache of one layer: bf16 | f8_e4m3 [blocks, kv_heads, block_size, dim].
struct Cache {
  void* k = nullptr;
  void* v = nullptr;
  int block_size = 0;
  int64_t blocks = 0;
  DType dtype = DType::bf16;
  float k_scale = 1, v_scale = 1;  // of f8_e4m3
};

// Ends the process with the CUDA error's name. In bodies.cc.
[[noreturn]] void cuda_failed(const char* what, const char* error);

// Sees to it that a kernel has on the current device what its launch needs; costs a look into a
// table from the second launch on.
struct LaunchNeeds {
  int shared_bytes = 0;       // of dynamic shared memory, where that is more than the usual 48 KB
  bool through_l1 = false;    // the split of a multiprocessor's memory
  bool wide_cluster = false;  // of more than eight blocks
};
void prepare_kernel(const void* kernel, const LaunchNeeds& needs);

void launch_embed(void* stream, const int32_t* ids, Matrix table, int64_t first_id, Matrix out);
void launch_embed_and_angles(void* stream, const int32_t* ids, Matrix table, int64_t first_id,
                             Matrix out, const int32_t* positions, int rotary, float theta,
                             float* angles);
void launch_gather_rows(void* stream, Matrix x, const int32_t* rows, Matrix out);
// rows [out.rows, most]
void launch_sum_rows(void* stream, Matrix x, const int32_t* rows, int most, Matrix out);

// residual and delta empty: plain norm of x. Otherwise residual += delta, norm of the residual.
void launch_rms_norm(void* stream, Matrix x, Matrix delta, const void* weight, DType weight_dtype,
                     float eps, Matrix out, QuantisedRows quantised);

// What may follow an operation's output as part of it: residual += output, out = norm(residual).
struct NormAfter {
  Matrix residual;  // no data: nothing follows
  const void* weight = nullptr;
  DType weight_dtype = DType::f32;
  float eps = 0;
  Matrix out;
  QuantisedRows quantised;
};

// bf16 rows of a multiple of 4 columns.
void launch_quantise(void* stream, Matrix x, QuantisedRows to);

// ops/requantise.h, of bytes of e4m3.
struct Requantise {
  uint8_t* weight;
  int64_t stride;
  int rows, columns;
  int first_row, first_column;  // in the matrix that the scales cover
  float* scale;
  int64_t scale_stride;
};
void launch_requantise(void* stream, const Requantise& args);

void launch_rope_angles(void* stream, const int32_t* positions, int64_t tokens, int rotary,
                        float theta, float* out);
void launch_qk_sum_squares(void* stream, Matrix qkv, Heads heads, float* sums);

struct QkNormRope {
  Matrix qkv;
  const float* sums;
  const void* q_norm;
  const void* k_norm;
  DType q_norm_dtype, k_norm_dtype;
  int64_t full_q, full_k;
  float eps;
  const float* angles;
  const int32_t* slots;
  Heads heads;
  Cache cache;
};
void launch_qk_norm_rope(void* stream, const QkNormRope& args);
// The sums too, which args.sums is not read for. qk_whole_fits() says whether it can.
bool qk_whole_fits(const QkNormRope& args);
void launch_qk_whole(void* stream, const QkNormRope& args);

struct Route {
  Matrix x;
  const float* gate;  // [experts, hidden]
  const float* bias;
  int experts;
  int top;
  const int32_t* slots;  // or null
  float* scores;         // route_scratch() bytes to work in, or null: slower, and other sums
  int32_t* ids;          // null: the experts choose, from what is left in `scores`
  float* weights;
  // The kernel behind reads nothing that a kernel writes before its own wait.
  bool next_reads_late = false;
};
// Logits are summed in stretches of so many columns; from so many tokens on as one product.
constexpr int kRouteStretch = 256;
constexpr int64_t kRouteProductTokens = 512;
constexpr int64_t route_scratch(int64_t tokens, int64_t hidden, int64_t experts) {
  const int64_t stretches = (hidden + kRouteStretch - 1) / kRouteStretch;
  return tokens * experts * 4 * (tokens < kRouteProductTokens ? stretches : 1);
}
void launch_route(void* stream, const Route& args);

// What route leaves for experts() of the same single token, which choose for themselves: parts of
// the logits [stretches, experts] to be added up first to last, or, of kChoiceExperts experts, what
// is made of them (route_choice.cuh). Then as Route has it.
struct ExpertScore {
  uint32_t key;
  float score;
};
struct RouteChoice {
  const float* parts = nullptr;
  int stretches = 0, experts = 0;
  const float* bias = nullptr;
  const int32_t* slots = nullptr;
  const ExpertScore* scores = nullptr;  // of tokens that pad the batch all keys are 0
  // Otherwise ids and weights are there.
  constexpr bool any() const { return parts || scores; }
};
constexpr int kChoiceExperts = 256;  // most of them
bool route_leaves_choice(const Route& args);

struct UnpackStep {
  int tokens, sequences, width, rows, padded;
  const int32_t* packed;
  const int32_t* previous;  // SampledRow of the step before
  int32_t *token_ids, *positions, *slots, *query_starts, *context_lens, *block_tables, *logit_rows;
  int64_t table_stride;
  int32_t* sample_rows;  // or null
};
void launch_unpack_step(void* stream, const UnpackStep& args);

struct Sample {
  const float* logits;
  int64_t stride;
  int rows, id_limit;
  const SampleRow* row;
  const LogitEdit* edits;
  const uint32_t* masks;
  uint8_t* scratch;
  SampledRow* out;
  int32_t* top_ids;
  float* top_logprobs;
  int most;  // columns of top_ids
};
int64_t sample_scratch(int64_t rows, int64_t vocab);
void launch_sample(void* stream, const Sample& args);

// What the device can do: reads of all of `memory` by `blocks` blocks a multiprocessor; matrix
// products on operands that are there (bf16, on Hopper by wgmma, and there also e4m3), whose
// operations are returned. `sink`: one float that is as good as never written.
void launch_read(void* stream, const void* memory, int64_t bytes, int blocks, float* sink);
int64_t launch_multiply(void* stream, bool fp8, int steps, float* sink);

}  // namespace m2::ops::cuda
