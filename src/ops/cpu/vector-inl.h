// Per-target vocabulary of the CPU operations: 16 logical FP32 lanes, loads of every weight and
// activation type, and the one order in which lanes are summed. Included once per Highway target.
//
// The canonical sum over k of a[k] * b[k]: lane l takes k = l, l + 16, l + 32, ... in ascending
// order, one fused multiply-add each, from zero, k padded with zeros to a multiple of 64; then the
// lanes are added as 16 -> 8 -> 4 -> 2 -> 1, lane l with lane l + half. Every body that has fused
// multiply-add computes the same bytes, whatever its vector width.
#if defined(M2_OPS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M2_OPS_CPU_VECTOR_INL_H_
#undef M2_OPS_CPU_VECTOR_INL_H_
#else
#define M2_OPS_CPU_VECTOR_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// One vector of floats: 16 lanes with AVX-512, 8 with AVX2, 4 otherwise.
using DF = hn::CappedTag<float, 16>;
using VF = hn::Vec<DF>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
constexpr int kParts = 16 / kLanes;  // vectors that hold the 16 logical lanes
constexpr int64_t kStep = 64;        // K is padded to a multiple of this

// The four sums of a quarter each, of vectors that hold lanes 0..15.
using D4 = hn::FixedTag<float, 4>;
using V4 = hn::Vec<D4>;

HWY_INLINE V4 to_four(hn::Vec<D4> v) {
  return v;
}
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
HWY_INLINE V4 to_four(hn::Vec<hn::FixedTag<float, 8>> v) {
  return hn::Add(hn::LowerHalf(D4(), v), hn::UpperHalf(D4(), v));
}
#endif
#if HWY_TARGET == HWY_AVX3
HWY_INLINE V4 to_four(hn::Vec<hn::FixedTag<float, 16>> v) {
  const hn::FixedTag<float, 8> half;
  return to_four(hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
}
#endif

HWY_INLINE V4 to_four(const VF (&v)[kParts]) {
  if constexpr (kParts == 1) {
    return to_four(v[0]);
  } else if constexpr (kParts == 2) {
    return to_four(hn::Add(v[0], v[1]));
  } else {
    return to_four(hn::Add(hn::Add(v[0], v[2]), hn::Add(v[1], v[3])));
  }
}

// Sums of a, b, c and d, each four lanes, in that order.
HWY_INLINE V4 sum_four(V4 a, V4 b, V4 c, V4 d) {
  const D4 d4;
  const V4 ab = hn::Add(hn::InterleaveLower(d4, a, b), hn::InterleaveUpper(d4, a, b));
  const V4 cd = hn::Add(hn::InterleaveLower(d4, c, d), hn::InterleaveUpper(d4, c, d));
  return hn::Add(hn::ConcatLowerLower(d4, cd, ab), hn::ConcatUpperUpper(d4, cd, ab));
}

HWY_INLINE float sum_lanes(const VF (&v)[kParts]) {
  const V4 four = to_four(v);
  return hn::GetLane(sum_four(four, four, four, four));
}

// kLanes numbers as floats.
HWY_INLINE VF load_lanes(const float* p) {
  return hn::LoadU(DF(), p);
}

HWY_INLINE VF load_lanes(const BF16* p) {
  const hn::Rebind<uint16_t, DF> d16;
  const hn::Rebind<uint32_t, DF> d32;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

HWY_INLINE VF load_lanes(const F16* p) {
  const hn::Rebind<uint16_t, DF> d16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(DF(), hn::BitCast(dh, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p))));
}

// e4m3 -> float, exact: as load_many() below, but NaN stays NaN.
HWY_INLINE VF load_lanes(const F8E4M3* p) {
  const hn::Rebind<int8_t, DF> d8;
  const hn::Rebind<int16_t, DF> d16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const auto wide = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(p)));
  const auto bits = hn::And(hn::ShiftLeft<7>(wide), hn::Set(d16, static_cast<int16_t>(0xbfff)));
  const VF value = hn::Mul(hn::PromoteTo(DF(), hn::BitCast(dh, bits)), hn::Set(DF(), 256.0f));
  const auto is_nan = hn::Gt(hn::Abs(value), hn::Set(DF(), 448.0f));  // its code reads as 480
  return hn::IfThenElse(is_nan, hn::NaN(DF()), value);
}

// Numbers that load_many() reads at once: a full vector of int16 for FP8, to share its shifts.
template <class W>
constexpr int kMany = kLanes;
template <>
constexpr int kMany<F8E4M3> = 2 * kLanes;

template <class W>
HWY_INLINE void load_many(const W* p, VF* HWY_RESTRICT out) {
  out[0] = load_lanes(p);
}

// e4m3 -> float / 256, exact, subnormals included: the sign goes to bit 15 of a half and the other
// bits to 13..7, where they mean the same number with a bias of 15 instead of 7. The two NaN codes
// come out as +-480 / 256; NanWatch looks for them.
template <>
HWY_INLINE void load_many<F8E4M3>(const F8E4M3* p, VF* HWY_RESTRICT out) {
  const hn::CappedTag<int16_t, 32> d16;
  const hn::Rebind<int8_t, decltype(d16)> d8;
  const hn::Half<decltype(d16)> half16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const auto wide = hn::PromoteTo(d16, hn::LoadU(d8, reinterpret_cast<const int8_t*>(p)));
  const auto bits = hn::And(hn::ShiftLeft<7>(wide), hn::Set(d16, static_cast<int16_t>(0xbfff)));
  out[0] = hn::PromoteTo(DF(), hn::BitCast(dh, hn::LowerHalf(half16, bits)));
  out[1] = hn::PromoteTo(DF(), hn::BitCast(dh, hn::UpperHalf(half16, bits)));
}

// 64 numbers, e.g. one step of a row.
template <class W>
HWY_INLINE void decode_step(const W* p, float* HWY_RESTRICT out) {
#pragma GCC unroll 16
  for (int i = 0; i < kStep; i += kMany<W>) {
    VF v[kMany<W> / kLanes];
    load_many(p + i, v);
#pragma GCC unroll 2
    for (int j = 0; j < kMany<W> / kLanes; ++j) hn::StoreU(v[j], DF(), out + i + j * kLanes);
  }
}

// Whether a NaN code was among the FP8 bytes seen: 0x7f is the largest signed, 0xff the largest
// unsigned byte. Nothing to do for other types, whose conversions keep NaN.
template <class W>
struct NanWatch {
  HWY_INLINE void step(const W*) {}
  HWY_INLINE bool seen() const { return false; }
};

template <>
struct NanWatch<F8E4M3> {
  using DI = hn::CappedTag<int8_t, 64>;
  using DU = hn::CappedTag<uint8_t, 64>;
  hn::Vec<DI> largest_signed;
  hn::Vec<DU> largest_unsigned;

  HWY_INLINE NanWatch() : largest_signed(hn::Zero(DI())), largest_unsigned(hn::Zero(DU())) {}
  HWY_INLINE void step(const F8E4M3* p) {
    constexpr int kBytes = static_cast<int>(hn::MaxLanes(DU()));
#pragma GCC unroll 4
    for (int i = 0; i < kStep; i += kBytes) {
      const auto bytes = hn::LoadU(DU(), reinterpret_cast<const uint8_t*>(p) + i);
      largest_signed = hn::Max(largest_signed, hn::BitCast(DI(), bytes));
      largest_unsigned = hn::Max(largest_unsigned, bytes);
    }
  }
  HWY_INLINE bool seen() const {
    const DI d;
    return !hn::AllFalse(d, hn::Eq(largest_signed, hn::Set(d, 0x7f))) ||
           !hn::AllFalse(d, hn::Eq(hn::BitCast(d, largest_unsigned), hn::Set(d, -1)));
  }
};

// kLanes floats to memory, rounded to nearest even for BF16.
HWY_INLINE void store_lanes(VF v, float* p) {
  hn::StoreU(v, DF(), p);
}

HWY_INLINE void store_lanes(VF v, BF16* p) {
  const hn::Rebind<uint32_t, DF> d32;
  const hn::Rebind<uint16_t, DF> d16;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(d32, 0x7fff)), odd));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(d32, 0x40));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  hn::StoreU(hn::TruncateTo(d16, hn::IfThenElse(is_nan, quiet, rounded)), d16,
             reinterpret_cast<uint16_t*>(p));
}

// Rounded to nearest even, saturated at +-448: steps of 2^-9 below 2^-6, where adding 2^14 rounds
// to them, else the three upper bits of the mantissa. NaN becomes 0x7f.
HWY_INLINE void store_lanes(VF v, F8E4M3* p) {
  const hn::Rebind<uint32_t, DF> d32;
  const hn::Rebind<uint8_t, DF> d8;
  const VF most = hn::Set(DF(), 448.0f), border = hn::Set(DF(), 16384.0f);
  const VF magnitude = hn::Min(hn::Abs(v), most);
  const auto bits = hn::BitCast(d32, magnitude);
  const auto odd = hn::And(hn::ShiftRight<20>(bits), hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<20>(hn::Add(hn::Add(bits, hn::Set(d32, 0x7ffff)), odd));
  const auto normal = hn::Sub(rounded, hn::Set(d32, (127 - 7) << 3));
  const auto steps =
      hn::Sub(hn::BitCast(d32, hn::Add(magnitude, border)), hn::BitCast(d32, border));
  const auto is_small = hn::RebindMask(d32, hn::Lt(magnitude, hn::Set(DF(), 0x1p-6f)));
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(d32, v)), hn::Set(d32, 0x80));
  const auto code = hn::Or(hn::IfThenElse(is_small, steps, normal), sign);
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  hn::StoreU(hn::TruncateTo(d8, hn::IfThenElse(is_nan, hn::Set(d32, 0x7f), code)), d8,
             reinterpret_cast<uint8_t*>(p));
}

HWY_INLINE float one_float(float value) {
  return value;
}
HWY_INLINE float one_float(BF16 value) {
  return to_float(value);
}
HWY_INLINE void store_one(float value, float* p) {
  *p = value;
}
HWY_INLINE void store_one(float value, BF16* p) {
  *p = to_bf16(value);
}
HWY_INLINE void store_one(float value, F8E4M3* p) {
  *p = to_f8_e4m3(value);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
