#pragma once

#include "ops/batch_layout.h"
#include "ops/qk_norm_rope.h"
#include "ops/quantised.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// Bytes of Exec::workspace with which paged_attention() spreads steps of that many sequences and
// contexts of that many tokens over the whole device. With less it is right but slow.
int64_t attention_workspace_bytes(Device device, int64_t sequences, int64_t max_context,
                                  const HeadShape& heads);

// Causal softmax attention over the paged cache, scale head_dim^-0.5; q head j reads KV head
// j / (q_heads / kv_heads). head_dim is a multiple of 16 up to kMaxHeadDim. Softmax in FP32. A
// token at position p sees positions 0..p, all of them already stored. Positions are summed in
// tiles of a fixed size from position 0, so that a token's result does not depend on its batch or
// on how its prompt was chunked (CPU always).
//   q    f32 | bf16 [T, q_heads * head_dim]; rows may be strided (the q part of qkv)
//   out  f32 | bf16 [T, q_heads * head_dim]
//   quantised  out again, if not empty
// On a GPU the operation enqueued right before may write q and the page of a decoded token's own
// position, but no other page of the sequence, nor the layout: these are read before it has ended.
void paged_attention(const Exec& exec, Tensor q, const KvCache& cache, const BatchLayout& layout,
                     const HeadShape& heads, Tensor out, const Quantised& quantised = {});

}  // namespace m2::ops
