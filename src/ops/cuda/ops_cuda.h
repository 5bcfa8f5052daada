#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/batch_layout.h"
#include "ops/ceilings.h"
#include "ops/decode_layer.h"
#include "ops/embed.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/qk_norm_rope.h"
#include "ops/quantised.h"
#include "ops/route.h"
#include "ops/sample.h"
#include "ops/unpack_step.h"

// The CUDA bodies of the operations, one function per operation with the operation's own signature
// and contract (shapes already checked by the caller). Every tensor lies in the memory of
// exec.device; nothing is allocated and nothing waits, so all of them may be captured in a graph.
// Builds without CUDA link bodies that end the process with a clear message (stub.cc).
namespace m2::ops::cuda {

void embed(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out);
void embed_and_angles(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out,
                      Tensor positions, float theta, Tensor angles);
void gather_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out);
void sum_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out);
bool wants_quantised();
void quantise(const Exec& exec, Tensor x, const Quantised& to);
void requantise(const Exec& exec, const Linear& weight);
void rms_norm(const Exec& exec, Tensor x, Tensor weight, float eps, Tensor out,
              const Quantised& quantised = {});
void add_rms_norm(const Exec& exec, Tensor residual, Tensor delta, Tensor weight, float eps,
                  Tensor out, const Quantised& quantised = {});
void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out,
            const Quantised& quantised = {}, const RowOwners& owners = {});
bool linear_reads_quantised(const Exec& exec, const Tensor& x, std::span<const Linear> weights);
void rope_angles(const Exec& exec, Tensor positions, float theta, Tensor out);
void qk_sum_squares(const Exec& exec, Tensor qkv, const HeadShape& heads, Tensor sums);
void qk_norm_rope_store(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm, Tensor k_norm,
                        int64_t full_q, int64_t full_k, float eps, Tensor angles, Tensor slots,
                        const HeadShape& heads, const KvCache& cache);
void qk_norm_rope_store_whole(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm,
                              Tensor k_norm, float eps, Tensor angles, Tensor slots,
                              const HeadShape& heads, const KvCache& cache);
void paged_attention(const Exec& exec, Tensor q, const KvCache& cache, const BatchLayout& layout,
                     const HeadShape& heads, Tensor out, const Quantised& quantised = {});
int64_t attention_workspace_bytes(int64_t sequences, int64_t max_context, const HeadShape& heads);
int64_t linear_workspace_bytes(int64_t tokens, int64_t columns);
int64_t route_workspace_bytes(int64_t tokens, int64_t hidden, int64_t experts);
void route(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor slots, Tensor ids,
           Tensor weights);
int64_t experts_scratch_bytes(const Experts& experts, int64_t tokens, int64_t top);
void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out, const Quantised& quantised = {},
             const AddNorm* after = nullptr, const RowOwners& owners = {});
bool experts_read_quantised(const Exec& exec, const Tensor& x, const Experts& experts, int64_t top);
void route_experts(const Exec& exec, Tensor x, const Routing& routing, const Experts& experts,
                   Tensor ids, Tensor weights, Tensor scratch, Tensor out,
                   const Quantised& quantised, const AddNorm* after,
                   UnsummedExperts* left = nullptr);
bool decodes_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                   const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                   const DecodeRanks& ranks);
void decode_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeBefore* before, const AddNorm* after, const DecodeRanks& ranks);
bool decodes_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeRanks& ranks);
UnsummedExperts decode_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                            const BatchLayout& layout, const HeadShape& heads,
                            const DecodeTensors& tensors, const DecodeRanks& ranks);
int64_t sample_scratch_bytes(int64_t rows, int64_t vocab);
void sample(const Exec& exec, Tensor logits, int64_t id_limit, const SampleInput& input,
            Tensor scratch, const SampleOutput& out);
void unpack_step(const Exec& exec, const StepSizes& sizes, Tensor packed, Tensor previous,
                 int64_t padded, const BatchLayout& to, Tensor sample_rows);
double read_rate(const Exec& exec, Tensor memory);
double multiply_rate(const Exec& exec, Multiplier unit);

}  // namespace m2::ops::cuda
