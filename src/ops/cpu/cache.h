#pragma once

#include "ops/batch_layout.h"

namespace m2::ops::cpu {

// Where one token's K and V go, head 0; head h lies h * head_stride further. C is the cache's
// dtype.
template <class C>
struct CacheSlot {
  C* k;
  C* v;
  int64_t head_stride;
};

template <class C>
CacheSlot<C> cache_slot(const KvCache& cache, int64_t slot) {
  const int64_t block_size = cache.k.size(2);
  const int64_t head_dim = cache.k.size(3);
  const int64_t block = slot / block_size;
  M2_CHECK(slot >= 0 && block < cache.k.size(0), "slot {} of {}", slot, cache.k.describe());
  const int64_t inside = slot % block_size * head_dim;
  return {cache.k.as<C>() + block * cache.k.row_stride() + inside,
          cache.v.as<C>() + block * cache.v.row_stride() + inside, block_size * head_dim};
}

// What the QK norm of one token needs.
struct TokenNorm {
  const void* q_weight;
  DType q_dtype;
  const void* k_weight;
  DType k_dtype;
  float q_factor;  // 1 / sqrt(mean of squares + eps)
  float k_factor;
  const float* angles;
};

}  // namespace m2::ops::cpu
