#pragma once

#include "ops/cuda/attention/plan.h"
#include "ops/cuda/kernels.h"

namespace m2::ops::cuda {

struct AttentionArgs {
  Matrix q, out;
  Heads heads;
  Cache cache;
  const int32_t* query_starts;  // [S + 1]
  const int32_t* context_lens;  // [S]
  const int32_t* block_tables;  // [S, max_blocks]
  int64_t table_stride;
  int sequences;
  float scale;       // head_dim^-0.5
  float* workspace;  // decode's parts: [S, q_heads, splits, head_dim], then [S, q_heads, splits, 2]
  int splits;
  bool join;                // decode's blocks join the parts themselves
  bool by_parts = false;    // the grid is [parts, S, kv_heads] instead of [S, parts, kv_heads]
  QuantisedRows quantised;  // `out` once more; the forms on the matrix units alone write it
};

void launch_attention(void* stream, const AttentionPlan& plan, const AttentionArgs& args);
// Sequences of several tokens on compute capability 9.0. In sm90_prefill.cu.
void launch_prefill_tiles(void* stream, const AttentionPlan& plan, const AttentionArgs& args);

}  // namespace m2::ops::cuda
