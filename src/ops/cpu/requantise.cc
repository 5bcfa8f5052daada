#include "ops/requantise.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ops/cpu/ops_cpu.h"

namespace m2::ops::cpu {
namespace {

constexpr int64_t kBlock = 128;
constexpr float kF8Most = 448.0f;
constexpr uint8_t kNaN = 0x7f;

// What becomes of each code of a block whose scale changes from `before` to `after`.
std::array<uint8_t, 256> new_codes(float before, float after) {
  std::array<uint8_t, 256> out;
  const float inverse = 1.0f / after;
  for (int code = 0; code < 256; ++code) {
    const F8E4M3 old{static_cast<uint8_t>(code)};
    const bool is_nan = (code & kNaN) == kNaN;
    out[static_cast<size_t>(code)] =
        is_nan ? old.bits : to_f8_e4m3(to_float(old) * before * inverse).bits;
  }
  return out;
}

void requantise_block(uint8_t* codes, int64_t stride, int64_t rows, int64_t columns, float& scale) {
  uint8_t largest = 0;  // magnitudes are in the order of their codes
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const uint8_t magnitude = codes[r * stride + c] & kNaN;
      largest = std::max(largest, magnitude == kNaN ? uint8_t{0} : magnitude);
    }
  const float most = std::max(std::fabs(to_float(F8E4M3{largest}) * scale), 1e-4f);
  const float after = up_to_power_of_two(most / kF8Most);
  const std::array<uint8_t, 256> code_of = new_codes(scale, after);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) codes[r * stride + c] = code_of[codes[r * stride + c]];
  scale = after;
}

}  // namespace

void requantise(const Exec& exec, const Linear& linear) {
  const Tensor &weight = linear.weight, &scale = linear.scale;
  const int64_t rows = weight.size(0), columns = weight.size(1), stride = weight.row_stride();
  const int64_t first = linear.first_row / kBlock, left = linear.first_column / kBlock;
  const int64_t down = (linear.first_row + rows + kBlock - 1) / kBlock - first;
  const int64_t across = (linear.first_column + columns + kBlock - 1) / kBlock - left;
  exec.pool->for_each(down * across, [&](int64_t index) {
    const int64_t block_row = first + index / across, block_column = left + index % across;
    const int64_t top = std::max(block_row * kBlock - linear.first_row, int64_t{0});
    const int64_t begin = std::max(block_column * kBlock - linear.first_column, int64_t{0});
    const int64_t bottom = std::min((block_row + 1) * kBlock - linear.first_row, rows);
    const int64_t end = std::min((block_column + 1) * kBlock - linear.first_column, columns);
    requantise_block(static_cast<uint8_t*>(weight.data()) + top * stride + begin, stride,
                     bottom - top, end - begin,
                     scale.as<float>()[block_row * scale.row_stride() + block_column]);
  });
}

}  // namespace m2::ops::cpu
