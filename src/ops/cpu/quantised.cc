#include "ops/quantised.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/row.h"

namespace m2::ops::cpu {
namespace {

constexpr int64_t kStretch = 128;
constexpr float kF8Most = 448.0f, kLeast = 1e-10f;

float number(const std::byte* row, DType dtype, int64_t i) {
  if (dtype == DType::f32) return reinterpret_cast<const float*>(row)[i];
  return to_float(reinterpret_cast<const BF16*>(row)[i]);
}

void quantise_row(const std::byte* x, DType dtype, int64_t columns, ScaleFormat format,
                  uint8_t* values, float* scales) {
  for (int64_t begin = 0; begin < columns; begin += kStretch) {
    const int64_t end = std::min(columns, begin + kStretch);
    float most = kLeast;
    for (int64_t c = begin; c < end; ++c) most = std::fmax(most, std::fabs(number(x, dtype, c)));
    float scale = most / kF8Most;
    if (format == ScaleFormat::e8m0) scale = up_to_power_of_two(std::max(scale, kLeast));
    const float inverse = 1.0f / scale;
    for (int64_t c = begin; c < end; ++c)
      values[c] = to_f8_e4m3(number(x, dtype, c) * inverse).bits;
    scales[begin / kStretch] = scale;
  }
}

}  // namespace

void quantise(const Exec& exec, Tensor x, const Quantised& to) {
  const int64_t columns = x.size(1), stretches = (columns + kStretch - 1) / kStretch;
  for_rows(exec, x.size(0), columns * size_of(x.dtype()), [&](int64_t t) {
    quantise_row(row_of(x, t), x.dtype(), columns, exec.scales,
                 static_cast<uint8_t*>(to.values.data()) + t * columns,
                 to.scales.as<float>() + t * stretches);
  });
}

}  // namespace m2::ops::cpu
