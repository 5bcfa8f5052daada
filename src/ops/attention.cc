#include "ops/attention.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {

int64_t attention_workspace_bytes(Device device, int64_t sequences, int64_t max_context,
                                  const HeadShape& heads) {
  if (device.kind == DeviceKind::cuda)
    return cuda::attention_workspace_bytes(sequences, max_context, heads);
  return 0;
}

void paged_attention(const Exec& exec, Tensor q, const KvCache& cache, const BatchLayout& layout,
                     const HeadShape& heads, Tensor out, const Quantised& quantised) {
  M2_CHECK(q.rank() == 2 && heads.kv_heads > 0 && heads.q_heads % heads.kv_heads == 0 &&
               heads.head_dim > 0 && heads.head_dim <= kMaxHeadDim && heads.head_dim % 16 == 0,
           "q {}, {} q heads, {} kv heads of {}", q.describe(), heads.q_heads, heads.kv_heads,
           heads.head_dim);
  check_cache(cache, heads);
  const int64_t tokens = q.size(0);
  const int64_t sequences = layout.sequences();
  const int64_t width = heads.q_heads * heads.head_dim;
  check_tensor("q", q, {DType::f32, DType::bf16}, {tokens, width});
  check_tensor("out", out, {DType::f32, DType::bf16}, {tokens, width});
  check_quantised(quantised, out);
  check_tensor("positions", layout.positions, {DType::i32}, {tokens});
  check_tensor("query_starts", layout.query_starts, {DType::i32}, {sequences + 1});
  check_tensor("context_lens", layout.context_lens, {DType::i32}, {sequences});
  M2_CHECK(layout.block_tables.rank() == 2);
  check_tensor("block_tables", layout.block_tables, {DType::i32},
               {sequences, layout.block_tables.size(1)});
  if (tokens == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::paged_attention(exec, q, cache, layout, heads, out, quantised);
  cpu::paged_attention(exec, q, cache, layout, heads, out);
}

}  // namespace m2::ops
