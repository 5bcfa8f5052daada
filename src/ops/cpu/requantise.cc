#include "ops/requantise.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/ops_cpu.h"

namespace m2::ops::cpu {
namespace {

constexpr int64_t kBlock = 128;
constexpr float kF8Most = 448.0f;
constexpr uint8_t kNaN = 0x7f, kSign = 0x80;

// What becomes of each code of a block whose scale changes from `before` to `after`: the table's
// upper half has the signs. A negative scale turns them.
void new_codes(float before, float after, uint8_t* table) {
  const float inverse = 1.0f / after;
  for (int code = 0; code < kNaN; ++code) {
    const float value = to_float(F8E4M3{static_cast<uint8_t>(code)}) * before * inverse;
    table[code] = to_f8_e4m3(value).bits;
    table[code | kSign] = table[code] ^ kSign;
  }
  table[kNaN] = kNaN;
  table[kNaN | kSign] = kNaN | kSign;
}

// The largest magnitude's code; magnitudes are in the order of their codes.
uint8_t largest_code(const uint8_t* codes, int64_t stride, int64_t rows, int64_t columns) {
  uint8_t largest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* row = codes + r * stride;
    uint8_t most = 0;
    for (int64_t c = 0; c < columns; ++c) {
      const uint8_t magnitude = row[c] & kNaN;
      const uint8_t counted = magnitude == kNaN ? 0 : magnitude;
      most = counted > most ? counted : most;
    }
    largest = std::max(largest, most);
  }
  return largest;
}

void requantise_block(uint8_t* codes, int64_t stride, int64_t rows, int64_t columns, float& scale) {
  const F8E4M3 largest{largest_code(codes, stride, rows, columns)};
  const float most = std::max(std::fabs(to_float(largest) * scale), 1e-4f);
  const float after = up_to_power_of_two(most / kF8Most);
  uint8_t table[256];
  new_codes(scale, after, table);
  for (int64_t r = 0; r < rows; ++r) {
    uint8_t* row = codes + r * stride;
    for (int64_t c = 0; c < columns; ++c) row[c] = table[row[c]];
  }
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
