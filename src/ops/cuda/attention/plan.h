#pragma once

#include <cstdint>
#include <string>

#include "tensor/dtype.h"

// How paged_attention() runs on a GPU: a pure function of shapes, printable and tested without one.
namespace m2::ops::cuda {

struct AttentionShape {
  int64_t tokens = 0, sequences = 0;
  int64_t max_context = 0;  // block_tables' columns times the block size
  int q_heads = 0, kv_heads = 0, head_dim = 0, block_size = 0;
  DType q = DType::bf16, cache = DType::bf16;
  bool aligned = true;  // q's rows and the cache begin at multiples of 16 bytes
  int compute_major = 9;
  int64_t workspace_bytes = 0;
};

struct AttentionPlan {
  bool matrix_units = false;  // otherwise one block a token and head, any shape and dtype
  bool decode = false;        // run the kernel for sequences of one token in this step
  bool prefill = false;       // run the kernel for sequences of several
  bool tiles = false;         // which is the one with wgmma
  int splits = 1;             // most parts a decoded token's context is cut into
};

// A decoded token's context is cut by its own length alone, so that its result does not depend on
// the batch: parts of at least 16 pages of 16, at most kMaxSplits of them.
constexpr int kPage = 16;
constexpr int kMaxSplits = 32;
#ifdef __CUDACC__
__host__ __device__
#endif
    constexpr int
    pages_per_split(int pages) {
  const int even = (pages + kMaxSplits - 1) / kMaxSplits;
  const int rounded = (even + 3) / 4 * 4;
  return rounded < 16 ? 16 : rounded;
}

AttentionPlan plan_attention(const AttentionShape& shape);
// Workspace (Exec) with which decode may split: sums, maxima and totals of every part. With less,
// each context is read by one block a KV head, which is right but slow for few sequences.
int64_t attention_workspace_bytes(int64_t sequences, int64_t max_context, int q_heads,
                                  int head_dim);
std::string describe(const AttentionPlan& plan);

}  // namespace m2::ops::cuda
