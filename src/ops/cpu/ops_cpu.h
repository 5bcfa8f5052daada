#pragma once

// The CPU bodies, one per operation, with the operations' own signatures and contracts. Shapes and
// dtypes are checked before. Internal to this room.

#include <span>

#include "ops/attention.h"
#include "ops/embed.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/qk_norm_rope.h"
#include "ops/route.h"
#include "ops/unpack_step.h"

namespace m2::ops::cpu {

void paged_attention(const Exec& exec, Tensor q, const KvCache& cache, const BatchLayout& layout,
                     const HeadShape& heads, Tensor out);
void embed(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out);
void gather_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out);
void sum_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out);
int64_t experts_scratch_bytes(const Experts& experts, int64_t tokens, int64_t top);
void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out);
int64_t linear_workspace_bytes(int64_t tokens, int64_t columns);
void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out);
void quantise(const Exec& exec, Tensor x, const Quantised& to);
void requantise(const Exec& exec, const Linear& weight);
void rms_norm(const Exec& exec, Tensor x, Tensor weight, float eps, Tensor out);
void add_rms_norm(const Exec& exec, Tensor residual, Tensor delta, Tensor weight, float eps,
                  Tensor out);
void rope_angles(const Exec& exec, Tensor positions, float theta, Tensor out);
void qk_sum_squares(const Exec& exec, Tensor qkv, const HeadShape& heads, Tensor sums);
void qk_norm_rope_store(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm, Tensor k_norm,
                        int64_t full_q, int64_t full_k, float eps, Tensor angles, Tensor slots,
                        const HeadShape& heads, const KvCache& cache);
void route(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor slots, Tensor ids,
           Tensor weights);
void unpack_step(const Exec& exec, const StepSizes& sizes, Tensor packed, Tensor previous,
                 int64_t padded, const BatchLayout& to, Tensor sample_rows);

}  // namespace m2::ops::cpu
