#pragma once

#include "tensor/tensor.h"

namespace m2::ops {

// What one step works on, as data: prefill, decode, chunked and mixed batches differ only here.
// T tokens of S sequences stand one sequence after another; tokens of one sequence are consecutive
// positions. All tensors are dense i32 in the memory of the step's device.
struct BatchLayout {
  Tensor token_ids;     // [T]
  Tensor positions;     // [T]
  Tensor slots;         // [T] where this token's K and V go: block * block_size + offset
  Tensor query_starts;  // [S + 1] first token of each sequence; the last entry is T
  Tensor context_lens;  // [S] tokens in the cache once this step's are stored
  Tensor block_tables;  // [S, max_blocks] block of each 16 positions; unused entries are not read
  Tensor logit_rows;    // [R] tokens whose logits are wanted, ascending; R may be 0

  int64_t tokens() const { return token_ids.size(0); }
  int64_t sequences() const { return context_lens.size(0); }
};

// One layer's paged cache. Slot s of KV head h is k[s / B, h, s % B, :], B = block size. FP8 holds
// k / k_scale and v / v_scale, rounded to nearest even, saturated at +-448; NaN stays NaN.
struct KvCache {
  Tensor k;           // bf16 | f8_e4m3 [blocks, kv_heads, block_size, head_dim]
  Tensor v;           // the same
  float k_scale = 1;  // finite and positive; 1 unless FP8
  float v_scale = 1;
};

}  // namespace m2::ops
