#pragma once

#include "ops/batch_layout.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// Largest head_dim that the operations accept.
constexpr int64_t kMaxHeadDim = 256;

// Where q, k and v lie in one token's row of the qkv product, and the head geometry.
struct HeadShape {
  int64_t q_heads;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t rotary_dim;  // the first rotary_dim of head_dim turn; even
};

// Cosine and sine of pos * theta^(-2i / rotary_dim), i = 0..rotary_dim/2-1, angles in FP32.
//   positions  i32 [T]
//   out        f32 [T, rotary_dim]: cosines, then sines
void rope_angles(const Exec& exec, Tensor positions, float theta, Tensor out);
// Fails unless they are as rope_angles() wants them.
void check_angles(Tensor positions, Tensor out);

// The two numbers per token that the QK norm needs from every rank (model.md 6.3): the sums of
// squares of this rank's q and k channels, in FP32.
//   qkv   f32 | bf16 [T, (q_heads + 2 kv_heads) * head_dim]
//   sums  f32 [T, 2]
void qk_sum_squares(const Exec& exec, Tensor qkv, const HeadShape& heads, Tensor sums);

// Normalises q and k over their full width, turns them, and stores k and v in the cache.
// q = q_norm * q / sqrt(sums[:, 0] / full_q + eps), k alike; then RoPE on pairs (i, i + rotary/2).
//   qkv      f32 | bf16 [T, (q_heads + 2 kv_heads) * head_dim]; its q part is overwritten
//   sums     f32 [T, 2], already summed over ranks
//   q_norm   bf16 | f32 [q_heads * head_dim], k_norm bf16 | f32 [kv_heads * head_dim]: this rank's
//   full_q, full_k  widths the sums cover, over all ranks (6144 and 1024)
//   angles   f32 [T, rotary_dim] of rope_angles()
//   slots    i32 [T]
void qk_norm_rope_store(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm, Tensor k_norm,
                        int64_t full_q, int64_t full_k, float eps, Tensor angles, Tensor slots,
                        const HeadShape& heads, const KvCache& cache);

// qk_sum_squares() and qk_norm_rope_store() at once, for a rank that has all heads: as one kernel
// on a GPU whose shapes allow it.
//   sums  f32 [T, 2]: room to work in
void qk_norm_rope_store_whole(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm,
                              Tensor k_norm, float eps, Tensor angles, Tensor slots,
                              const HeadShape& heads, const KvCache& cache);

// What qk_norm_rope_store() is given.
struct QkNorm {
  Tensor qkv, sums, q_norm, k_norm;
  int64_t full_q, full_k;
  float eps;
  Tensor angles, slots;
  HeadShape heads;
  const KvCache& cache;
};

// Fails unless it is as qk_norm_rope_store() wants it.
void check_qk_norm(const QkNorm& work);

// Fails unless the cache has the heads' shape, one dtype and scales that can be divided by.
void check_cache(const KvCache& cache, const HeadShape& heads);

}  // namespace m2::ops
