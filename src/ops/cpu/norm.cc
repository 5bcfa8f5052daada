#include "ops/norm.h"

#include <cmath>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/row.h"
#include "ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/norm.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "ops/cpu/elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

template <class X>
void add_row(const void* delta, int64_t count, void* residual) {
  X* to = static_cast<X*>(residual);
  const X* from = static_cast<const X*>(delta);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    store_lanes(hn::Add(load_lanes(to + i), load_lanes(from + i)), to + i);
  for (; i < count; ++i) store_one(one_float(to[i]) + one_float(from[i]), to + i);
}

void add_row_here(const void* delta, DType dtype, int64_t count, void* residual) {
  dtype == DType::f32 ? add_row<float>(delta, count, residual)
                      : add_row<BF16>(delta, count, residual);
}

void norm_row_here(const void* x, DType dtype, const void* weight, DType weight_dtype,
                   int64_t count, float eps, void* out) {
  const float mean = (dtype == DType::f32 ? sum_squares(static_cast<const float*>(x), count)
                                          : sum_squares(static_cast<const BF16*>(x), count)) /
                     static_cast<float>(count);
  const float factor = 1.0f / std::sqrt(mean + eps);
  with_weights(weight, weight_dtype, [&](auto* w) {
    if (dtype == DType::f32) {
      scale_row(static_cast<const float*>(x), w, factor, count, static_cast<float*>(out));
    } else {
      scale_row(static_cast<const BF16*>(x), w, factor, count, static_cast<BF16*>(out));
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::ops::cpu {

HWY_EXPORT(add_row_here);
HWY_EXPORT(norm_row_here);

void rms_norm(const Exec& exec, Tensor x, Tensor weight, float eps, Tensor out) {
  const int64_t width = x.size(1);
  for_rows(exec, x.size(0), width * size_of(x.dtype()), [&](int64_t t) {
    HWY_DYNAMIC_DISPATCH(norm_row_here)
    (row_of(x, t), x.dtype(), weight.data(), weight.dtype(), width, eps, row_of(out, t));
  });
}

void add_rms_norm(const Exec& exec, Tensor residual, Tensor delta, Tensor weight, float eps,
                  Tensor out) {
  const int64_t width = residual.size(1);
  for_rows(exec, residual.size(0), width * size_of(residual.dtype()), [&](int64_t t) {
    std::byte* row = row_of(residual, t);
    HWY_DYNAMIC_DISPATCH(add_row_here)(row_of(delta, t), delta.dtype(), width, row);
    HWY_DYNAMIC_DISPATCH(norm_row_here)
    (row, residual.dtype(), weight.data(), weight.dtype(), width, eps, row_of(out, t));
  });
}

}  // namespace m2::ops::cpu
#endif  // HWY_ONCE
