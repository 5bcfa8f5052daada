#include "ops/cpu/gated.h"

#include <cstring>

#include "ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gated.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/contrib/math/math-inl.h"
#include "ops/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

// The exponential is taken of -|g| <= 0, so that it cannot overflow.
HWY_INLINE VF silu(VF g) {
  const VF e = hn::Exp(DF(), hn::Neg(hn::Abs(g)));
  const VF one = hn::Set(DF(), 1.0f);
  const VF numerator = hn::IfThenElse(hn::Lt(g, hn::Zero(DF())), e, one);
  return hn::Mul(g, hn::Div(numerator, hn::Add(one, e)));
}

void silu_multiply_here(const float* gate, const float* up, int64_t count, float* out) {
  const auto product = [](const float* g, const float* u) HWY_ATTR {
    return hn::Mul(silu(hn::LoadU(DF(), g)), hn::LoadU(DF(), u));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(product(gate + i, up + i), DF(), out + i);
  if (i == count) return;
  const size_t rest = static_cast<size_t>(count - i) * sizeof(float);
  float g[kLanes] = {};
  float u[kLanes] = {};
  std::memcpy(g, gate + i, rest);
  std::memcpy(u, up + i, rest);
  hn::StoreU(product(g, u), DF(), g);
  std::memcpy(out + i, g, rest);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::ops::cpu {

HWY_EXPORT(silu_multiply_here);

void silu_multiply(const float* gate, const float* up, int64_t count, float* out) {
  HWY_DYNAMIC_DISPATCH(silu_multiply_here)(gate, up, count, out);
}

}  // namespace m2::ops::cpu
#endif  // HWY_ONCE
