#pragma once

#include <algorithm>

#include "ops/cuda/kernels.h"
#include "ops/qk_norm_rope.h"

// Operations' arguments as kernels take them: plain pointers and sizes.
namespace m2::ops::cuda {

inline Matrix matrix(const Tensor& tensor) {
  return {tensor.data(), tensor.dtype(), tensor.size(0),
          tensor.elements() / std::max<int64_t>(1, tensor.size(0)), tensor.row_stride()};
}

inline Heads heads_of(const HeadShape& heads) {
  return {static_cast<int>(heads.q_heads), static_cast<int>(heads.kv_heads),
          static_cast<int>(heads.head_dim), static_cast<int>(heads.rotary_dim)};
}

inline Cache cache_of(const KvCache& cache) {
  M2_CHECK(cache.k.dense() && cache.v.dense(), "a cache with gaps");
  return {cache.k.data(),  cache.v.data(),  static_cast<int>(cache.k.size(2)),
          cache.k.size(0), cache.k.dtype(), cache.k_scale,
          cache.v_scale};
}

inline QkNormRope qk_args(const QkNorm& work) {
  QkNormRope args;
  args.qkv = matrix(work.qkv);
  args.sums = work.sums.as<float>();
  args.q_norm = work.q_norm.data();
  args.k_norm = work.k_norm.data();
  args.q_norm_dtype = work.q_norm.dtype();
  args.k_norm_dtype = work.k_norm.dtype();
  args.full_q = work.full_q;
  args.full_k = work.full_k;
  args.eps = work.eps;
  args.angles = work.angles.as<float>();
  args.slots = work.slots.as<int32_t>();
  args.heads = heads_of(work.heads);
  args.cache = cache_of(work.cache);
  return args;
}

}  // namespace m2::ops::cuda
