#include "ops/qk_norm_rope.h"

#include <cmath>

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {
namespace {

void check_heads(const HeadShape& heads) {
  M2_CHECK(heads.q_heads > 0 && heads.kv_heads > 0 && heads.head_dim > 0 &&
               heads.head_dim <= kMaxHeadDim && heads.rotary_dim >= 0 &&
               heads.rotary_dim <= heads.head_dim && heads.rotary_dim % 2 == 0,
           "{} q heads, {} kv heads of {}, rotary {}", heads.q_heads, heads.kv_heads,
           heads.head_dim, heads.rotary_dim);
}

void check_qkv(const Tensor& qkv, const HeadShape& heads) {
  check_heads(heads);
  M2_CHECK(qkv.rank() == 2, "qkv is {}", qkv.describe());
  check_tensor("qkv", qkv, {DType::f32, DType::bf16},
               {qkv.size(0), (heads.q_heads + 2 * heads.kv_heads) * heads.head_dim});
}

}  // namespace

void check_qk_norm(const QkNorm& work) {
  check_qkv(work.qkv, work.heads);
  const int64_t tokens = work.qkv.size(0), dim = work.heads.head_dim;
  check_tensor("sums", work.sums, {DType::f32}, {tokens, 2});
  check_tensor("q_norm", work.q_norm, {DType::bf16, DType::f32}, {work.heads.q_heads * dim});
  check_tensor("k_norm", work.k_norm, {DType::bf16, DType::f32}, {work.heads.kv_heads * dim});
  check_tensor("angles", work.angles, {DType::f32}, {tokens, work.heads.rotary_dim});
  check_tensor("slots", work.slots, {DType::i32}, {tokens});
  check_cache(work.cache, work.heads);
  M2_CHECK(work.full_q > 0 && work.full_k > 0);
}

void check_angles(Tensor positions, Tensor out) {
  M2_CHECK(positions.rank() == 1 && out.rank() == 2 && out.size(1) % 2 == 0);
  check_tensor("positions", positions, {DType::i32}, {positions.size(0)});
  check_tensor("out", out, {DType::f32}, {positions.size(0), out.size(1)});
  check_dense("out", out);
}

void rope_angles(const Exec& exec, Tensor positions, float theta, Tensor out) {
  check_angles(positions, out);
  if (positions.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::rope_angles(exec, positions, theta, out);
  cpu::rope_angles(exec, positions, theta, out);
}

void qk_sum_squares(const Exec& exec, Tensor qkv, const HeadShape& heads, Tensor sums) {
  check_qkv(qkv, heads);
  check_tensor("sums", sums, {DType::f32}, {qkv.size(0), 2});
  check_dense("sums", sums);
  if (qkv.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::qk_sum_squares(exec, qkv, heads, sums);
  cpu::qk_sum_squares(exec, qkv, heads, sums);
}

void qk_norm_rope_store(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm, Tensor k_norm,
                        int64_t full_q, int64_t full_k, float eps, Tensor angles, Tensor slots,
                        const HeadShape& heads, const KvCache& cache) {
  check_qk_norm({qkv, sums, q_norm, k_norm, full_q, full_k, eps, angles, slots, heads, cache});
  if (qkv.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) {
    return cuda::qk_norm_rope_store(exec, qkv, sums, q_norm, k_norm, full_q, full_k, eps, angles,
                                    slots, heads, cache);
  }
  cpu::qk_norm_rope_store(exec, qkv, sums, q_norm, k_norm, full_q, full_k, eps, angles, slots,
                          heads, cache);
}

void qk_norm_rope_store_whole(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm,
                              Tensor k_norm, float eps, Tensor angles, Tensor slots,
                              const HeadShape& heads, const KvCache& cache) {
  const int64_t q_width = heads.q_heads * heads.head_dim;
  const int64_t k_width = heads.kv_heads * heads.head_dim;
  if (exec.device.kind == DeviceKind::cuda && qkv.size(0) > 0) {
    check_qk_norm({qkv, sums, q_norm, k_norm, q_width, k_width, eps, angles, slots, heads, cache});
    return cuda::qk_norm_rope_store_whole(exec, qkv, sums, q_norm, k_norm, eps, angles, slots,
                                          heads, cache);
  }
  qk_sum_squares(exec, qkv, heads, sums);
  qk_norm_rope_store(exec, qkv, sums, q_norm, k_norm, q_width, k_width, eps, angles, slots, heads,
                     cache);
}

void check_cache(const KvCache& cache, const HeadShape& heads) {
  M2_CHECK(cache.k.rank() == 4, "k cache is {}", cache.k.describe());
  for (const Tensor& tensor : {cache.k, cache.v})
    check_tensor("cache", tensor, {DType::bf16, DType::f8_e4m3},
                 {cache.k.size(0), heads.kv_heads, cache.k.size(2), heads.head_dim});
  M2_CHECK(cache.k.dtype() == cache.v.dtype(), "k cache {}, v cache {}", cache.k.describe(),
           cache.v.describe());
  const bool scaled = cache.k.dtype() == DType::f8_e4m3;
  for (const float scale : {cache.k_scale, cache.v_scale})
    M2_CHECK(scaled ? std::isfinite(scale) && scale > 0 : scale == 1, "a scale of {}", scale);
}

}  // namespace m2::ops
