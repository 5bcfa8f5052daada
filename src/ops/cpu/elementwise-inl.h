// Sums of squares and scaled rows, for the norms. Included once per Highway target.
#if defined(M2_OPS_CPU_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M2_OPS_CPU_ELEMENTWISE_INL_H_
#undef M2_OPS_CPU_ELEMENTWISE_INL_H_
#else
#define M2_OPS_CPU_ELEMENTWISE_INL_H_
#endif

#include "ops/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

// Sum of x[i]^2 in the canonical order of vector-inl.h.
template <class X>
float sum_squares(const X* x, int64_t count) {
  VF acc[kParts];
  for (int p = 0; p < kParts; ++p) acc[p] = hn::Zero(DF());
  const auto step = [&acc](const X* from) HWY_ATTR {
#pragma GCC unroll 16
    for (int i = 0; i < kStep / kLanes; ++i) {
      const VF v = load_lanes(from + i * kLanes);
      acc[i % kParts] = hn::MulAdd(v, v, acc[i % kParts]);
    }
  };
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) step(x + i);
  if (i < count) {
    X padded[kStep] = {};
    std::memcpy(padded, x + i, static_cast<size_t>(count - i) * sizeof(X));
    step(padded);
  }
  return sum_lanes(acc);
}

// out[i] = (x[i] * factor) * weight[i]; out may be x.
template <class X, class W, class Out>
void scale_row(const X* x, const W* weight, float factor, int64_t count, Out* out) {
  const VF factors = hn::Set(DF(), factor);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store_lanes(hn::Mul(hn::Mul(load_lanes(x + i), factors), load_lanes(weight + i)), out + i);
  for (; i < count; ++i) store_one(one_float(x[i]) * factor * one_float(weight[i]), out + i);
}

// Calls body with the norm weights as what they are, f32 or bf16.
template <class Body>
void with_weights(const void* weight, DType dtype, Body&& body) {
  if (dtype == DType::f32) return body(static_cast<const float*>(weight));
  body(static_cast<const BF16*>(weight));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
