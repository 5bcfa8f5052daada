#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace m2::ops::cpu {

// Query rows of one work item: (token, q head) pairs that read the same KV head of one sequence.
constexpr int64_t kAttentionRows = 48;
// Positions of one tile, counted from position 0.
constexpr int64_t kAttentionTile = 64;

// One thread's work: a few query rows of one sequence and KV head, over their whole context.
struct AttentionItem {
  struct Row {
    const std::byte* q;  // head_dim numbers
    std::byte* out;
    int64_t visible;  // positions 0..visible-1 count; ascending from row to row
  };
  Row rows[kAttentionRows];
  int64_t count;
  DType q_dtype;
  DType out_dtype;
  DType cache_dtype;
  int64_t head_dim;
  float scale;        // of scores, FP8's scale of K included
  float value_scale;  // of sums of V
  // Position p of this KV head is k[blocks[p / block_size] * block_stride + p % block_size, :].
  const std::byte* k;
  const std::byte* v;
  const int32_t* blocks;
  int64_t block_size;
  int64_t k_block_stride;  // elements
  int64_t v_block_stride;
};

}  // namespace m2::ops::cpu
