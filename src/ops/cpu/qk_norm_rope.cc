#include "ops/qk_norm_rope.h"

#include <cmath>

#include "ops/cpu/cache.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/row.h"
#include "ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/qk_norm_rope.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "ops/cpu/elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

// (a, b) -> (a cos - b sin, b cos + a sin) for a = x[i], b = x[i + half].
void rotate(float* x, const float* angles, int64_t half) {
  const float* cosines = angles;
  const float* sines = angles + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VF a = hn::LoadU(DF(), x + i);
    const VF b = hn::LoadU(DF(), x + half + i);
    const VF c = hn::LoadU(DF(), cosines + i);
    const VF s = hn::LoadU(DF(), sines + i);
    hn::StoreU(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), DF(), x + i);
    hn::StoreU(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), DF(), x + half + i);
  }
  for (; i < half; ++i) {
    const float a = x[i];
    const float b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

// to = from / scale, in To's rounding.
template <class From, class To>
void convert(const From* from, int64_t count, float scale, To* to) {
  const VF divisor = hn::Set(DF(), scale);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const VF value = load_lanes(from + i);
    store_lanes(scale == 1 ? value : hn::Div(value, divisor), to + i);
  }
  for (; i < count; ++i) store_one(one_float(from[i]) / scale, to + i);
}

// One head: normalised, turned, divided by `scale`, rounded once.
template <class X, class W, class To>
void norm_rope_head(const X* x, const W* weight, float factor, const float* angles,
                    const HeadShape& heads, float scale, To* out) {
  alignas(64) float head[kMaxHeadDim];
  scale_row(x, weight, factor, heads.head_dim, head);
  rotate(head, angles, heads.rotary_dim / 2);
  convert(static_cast<const float*>(head), heads.head_dim, scale, out);
}

template <class X>
void sums_of(const X* qkv, const HeadShape& heads, float* sums) {
  const int64_t q_width = heads.q_heads * heads.head_dim;
  sums[0] = sum_squares(qkv, q_width);
  sums[1] = sum_squares(qkv + q_width, heads.kv_heads * heads.head_dim);
}

void sums_here(const void* qkv, DType dtype, const HeadShape& heads, float* sums) {
  dtype == DType::f32 ? sums_of(static_cast<const float*>(qkv), heads, sums)
                      : sums_of(static_cast<const BF16*>(qkv), heads, sums);
}

template <class C, class X>
void store_token_as(X* qkv, const TokenNorm& norm, const HeadShape& heads, const KvCache& cache,
                    int64_t index) {
  const CacheSlot<C> slot = cache_slot<C>(cache, index);
  const int64_t dim = heads.head_dim;
  with_weights(norm.q_weight, norm.q_dtype, [&](auto* weight) {
    for (int64_t h = 0; h < heads.q_heads; ++h)
      norm_rope_head(qkv + h * dim, weight + h * dim, norm.q_factor, norm.angles, heads, 1.0f,
                     qkv + h * dim);
  });
  const X* k = qkv + heads.q_heads * dim;
  const X* v = k + heads.kv_heads * dim;
  with_weights(norm.k_weight, norm.k_dtype, [&](auto* weight) {
    for (int64_t h = 0; h < heads.kv_heads; ++h)
      norm_rope_head(k + h * dim, weight + h * dim, norm.k_factor, norm.angles, heads,
                     cache.k_scale, slot.k + h * slot.head_stride);
  });
  for (int64_t h = 0; h < heads.kv_heads; ++h)
    convert(v + h * dim, dim, cache.v_scale, slot.v + h * slot.head_stride);
}

template <class X>
void store_token(X* qkv, const TokenNorm& norm, const HeadShape& heads, const KvCache& cache,
                 int64_t slot) {
  cache.k.dtype() == DType::bf16 ? store_token_as<BF16>(qkv, norm, heads, cache, slot)
                                 : store_token_as<F8E4M3>(qkv, norm, heads, cache, slot);
}

void store_token_here(void* qkv, DType dtype, const TokenNorm& norm, const HeadShape& heads,
                      const KvCache& cache, int64_t slot) {
  dtype == DType::f32 ? store_token(static_cast<float*>(qkv), norm, heads, cache, slot)
                      : store_token(static_cast<BF16*>(qkv), norm, heads, cache, slot);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::ops::cpu {

HWY_EXPORT(sums_here);
HWY_EXPORT(store_token_here);

// Angles as the references compute them: 1 / theta^(2i / rotary) and its product with the position
// in FP32.
void rope_angles(const Exec& exec, Tensor positions, float theta, Tensor out) {
  const int64_t rotary = out.size(1);
  const int64_t half = rotary / 2;
  const int32_t* position = positions.as<int32_t>();
  const int64_t kCost = 64;  // a sine costs about as much as moving this many bytes
  for_rows(exec, positions.size(0), rotary * kCost, [&](int64_t t) {
    float* row = out.as<float>() + t * rotary;
    for (int64_t i = 0; i < half; ++i) {
      const float exponent = static_cast<float>(2 * i) / static_cast<float>(rotary);
      const float frequency = 1.0f / std::pow(theta, exponent);
      const float angle = static_cast<float>(position[t]) * frequency;
      row[i] = std::cos(angle);
      row[half + i] = std::sin(angle);
    }
  });
}

void qk_sum_squares(const Exec& exec, Tensor qkv, const HeadShape& heads, Tensor sums) {
  for_rows(exec, qkv.size(0), qkv.size(1) * size_of(qkv.dtype()), [&](int64_t t) {
    HWY_DYNAMIC_DISPATCH(sums_here)
    (row_of(qkv, t), qkv.dtype(), heads, sums.as<float>() + 2 * t);
  });
}

void qk_norm_rope_store(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm, Tensor k_norm,
                        int64_t full_q, int64_t full_k, float eps, Tensor angles, Tensor slots,
                        const HeadShape& heads, const KvCache& cache) {
  const int32_t* slot = slots.as<int32_t>();
  const auto factor = [eps](float sum, int64_t width) {
    return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
  };
  for_rows(exec, qkv.size(0), qkv.size(1) * size_of(qkv.dtype()), [&](int64_t t) {
    const float* sum = reinterpret_cast<const float*>(row_of(sums, t));
    const TokenNorm norm{.q_weight = q_norm.data(),
                         .q_dtype = q_norm.dtype(),
                         .k_weight = k_norm.data(),
                         .k_dtype = k_norm.dtype(),
                         .q_factor = factor(sum[0], full_q),
                         .k_factor = factor(sum[1], full_k),
                         .angles = reinterpret_cast<const float*>(row_of(angles, t))};
    HWY_DYNAMIC_DISPATCH(store_token_here)
    (row_of(qkv, t), qkv.dtype(), norm, heads, cache, slot[t]);
  });
}

}  // namespace m2::ops::cpu
#endif  // HWY_ONCE
