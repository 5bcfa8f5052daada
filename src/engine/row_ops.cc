#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/row_ops.cc"

#include "engine/row_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

// foreach_target.h compiles this file once per instruction set; it must come first.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace m2::engine {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, kRowBlock>;
using V = hn::Vec<F32>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Calls body(vector, first id, mask) for every vector of the row. Lanes past its end hold
// -infinity, which no pass counts.
template <class Body>
HWY_INLINE void for_each_vector(std::span<const float> row, Body&& body) {
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= row.size(); i += lanes) body(hn::LoadU(d, row.data() + i), i);
  if (i == row.size()) return;
  HWY_ALIGN float tail[HWY_MAX_BYTES / sizeof(float)];
  std::fill(std::begin(tail), std::end(tail), -kInfinity);
  std::copy(row.begin() + static_cast<std::ptrdiff_t>(i), row.end(), tail);
  body(hn::Load(d, tail), i);
}

RowScan scan_row(std::span<const float> row, std::span<float> maxima) {
  const F32 d;
  float max = -kInfinity;
  auto not_a_number = hn::Zero(d);  // becomes NaN with the first one met
  for (size_t b = 0; b < maxima.size(); ++b) {
    const size_t first = b * kRowBlock;
    V largest = hn::Set(d, -kInfinity);
    for_each_vector(row.subspan(first, std::min<size_t>(kRowBlock, row.size() - first)),
                    [&](V x, size_t) {
                      largest = hn::Max(largest, x);
                      not_a_number = hn::Or(not_a_number, hn::VecFromMask(d, hn::IsNaN(x)));
                    });
    maxima[b] = hn::GetLane(hn::MaxOfLanes(d, largest));
    max = std::max(max, maxima[b]);
  }
  return {max, !hn::AllTrue(d, hn::Eq(not_a_number, hn::Zero(d)))};
}

HWY_INLINE V weight(V x, float max, float scale) {
  const F32 d;
  return hn::Exp(d, hn::Mul(hn::Sub(x, hn::Set(d, max)), hn::Set(d, scale)));
}

double sum_exp(std::span<const float> row, float max, float scale, float cutoff) {
  const F32 d;
  constexpr size_t kRun = 512;  // short enough for float sums, long enough to be free
  double total = 0;
  for (size_t first = 0; first < row.size(); first += kRun) {
    V sum = hn::Zero(d);
    for_each_vector(row.subspan(first, std::min(kRun, row.size() - first)), [&](V x, size_t) {
      const auto counted =
          hn::And(hn::Ge(x, hn::Set(d, cutoff)), hn::Gt(x, hn::Set(d, -kInfinity)));
      sum = hn::Add(sum, hn::IfThenElseZero(counted, weight(x, max, scale)));
    });
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

int64_t count_greater(std::span<const float> row, float value) {
  const F32 d;
  int64_t count = 0;
  for_each_vector(row, [&](V x, size_t) {
    count += static_cast<int64_t>(hn::CountTrue(d, hn::Gt(x, hn::Set(d, value))));
  });
  return count;
}

// noise_uniform() of random.h, a vector of ids at a time.
HWY_INLINE V uniform(NoiseKey key, hn::Vec<hn::RebindToUnsigned<F32>> id) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const hn::RebindToSigned<F32> di;
  auto x = hn::Add(id, hn::Set(du, key.first));
  for (int round = 0; round < 2; ++round) {
    x = hn::Xor(x, hn::ShiftRight<16>(x));
    x = hn::Mul(x, hn::Set(du, 0x7feb352du));
    x = hn::Xor(x, hn::ShiftRight<15>(x));
    x = hn::Mul(x, hn::Set(du, 0x846ca68bu));
    x = hn::Xor(x, hn::ShiftRight<16>(x));
    if (round == 0) x = hn::Xor(x, hn::Set(du, key.second));
  }
  const auto bits = hn::ConvertTo(d, hn::BitCast(di, hn::ShiftRight<1>(x)));
  return hn::Min(hn::Mul(hn::Add(bits, hn::Set(d, 0.5f)), hn::Set(d, 0x1p-31f)),
                 hn::Set(d, 0x1.fffffep-1f));
}

int32_t race(std::span<const float> row, float max, float scale, float cutoff, NoiseKey key) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  V best = hn::Set(d, -1.0f);
  auto best_id = hn::Zero(du);
  for_each_vector(row, [&](V x, size_t first) {
    const auto id = hn::Iota(du, static_cast<uint32_t>(first));
    const auto runs = hn::And(hn::Ge(x, hn::Set(d, cutoff)), hn::Gt(x, hn::Set(d, -kInfinity)));
    const V time = hn::Neg(hn::Log1p(d, hn::Neg(uniform(key, id))));
    const V score = hn::IfThenElse(runs, hn::Div(weight(x, max, scale), time), hn::Set(d, -1.0f));
    const auto better = hn::Gt(score, best);
    best = hn::IfThenElse(better, score, best);
    best_id = hn::IfThenElse(hn::RebindMask(du, better), id, best_id);
  });
  HWY_ALIGN float scores[HWY_MAX_BYTES / sizeof(float)];
  HWY_ALIGN uint32_t ids[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(best, d, scores);
  hn::Store(best_id, du, ids);
  size_t winner = 0;
  for (size_t lane = 1; lane < hn::Lanes(d); ++lane) {
    if (scores[lane] > scores[winner] ||
        (scores[lane] == scores[winner] && ids[lane] < ids[winner]))
      winner = lane;
  }
  return static_cast<int32_t>(ids[winner]);
}

}  // namespace HWY_NAMESPACE
}  // namespace m2::engine
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::engine {

HWY_EXPORT(scan_row);
HWY_EXPORT(sum_exp);
HWY_EXPORT(count_greater);
HWY_EXPORT(race);

// Masks as grammars make them are runs of all or nothing with few words between, so whole words are
// what matters.
void mask_row(std::span<float> row, std::span<const uint32_t> words) {
  constexpr size_t kBits = 32;
  constexpr float kMasked = -std::numeric_limits<float>::infinity();
  for (size_t first = 0; first < row.size(); first += kBits) {
    const uint32_t word = words[first / kBits];
    if (word == ~0u) continue;
    float* const values = row.data() + first;
    const size_t count = std::min(kBits, row.size() - first);
    for (size_t i = 0; i < count; ++i)
      values[i] = (word >> i & 1u) != 0 ? values[i] : kMasked;
  }
}

RowScan scan_row(std::span<const float> row, std::span<float> maxima) {
  return HWY_DYNAMIC_DISPATCH(scan_row)(row, maxima);
}

double sum_exp(std::span<const float> row, float max, float scale, float cutoff) {
  return HWY_DYNAMIC_DISPATCH(sum_exp)(row, max, scale, cutoff);
}

int64_t count_greater(std::span<const float> row, float value) {
  return HWY_DYNAMIC_DISPATCH(count_greater)(row, value);
}

int32_t race(std::span<const float> row, float max, float scale, float cutoff, NoiseKey key) {
  return HWY_DYNAMIC_DISPATCH(race)(row, max, scale, cutoff, key);
}

}  // namespace m2::engine
#endif  // HWY_ONCE
