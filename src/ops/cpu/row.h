#pragma once

#include <algorithm>
#include <cstddef>

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops::cpu {

// First byte of row i.
inline std::byte* row_of(const Tensor& tensor, int64_t i) {
  return static_cast<std::byte*>(tensor.data()) + i * tensor.row_stride() * size_of(tensor.dtype());
}

// The rows [first_row, first_row + rows) of a matrix cut on a grid of unit_rows, so that no unit
// crosses a border of scale blocks.
struct RowUnits {
  struct Unit {
    int64_t begin;  // relative to first_row
    int64_t count;
  };

  int64_t first_row;
  int64_t rows;
  int64_t unit_rows;  // a power of two <= kMaxProductRows

  int64_t count() const {
    return (first_row + rows + unit_rows - 1) / unit_rows - first_row / unit_rows;
  }
  Unit at(int64_t index) const {
    const int64_t grid = (first_row / unit_rows + index) * unit_rows - first_row;
    const int64_t begin = std::max<int64_t>(0, grid);
    return {begin, std::min(rows, grid + unit_rows) - begin};
  }
};

// Calls body(i) for every i in [0, rows) on the pool, a few rows at a time: one row of `row_bytes`
// alone is not worth waking a thread.
template <class Body>
void for_rows(const Exec& exec, int64_t rows, int64_t row_bytes, Body&& body) {
  constexpr int64_t kWorthwhileBytes = 64 << 10;
  const int64_t group = std::max<int64_t>(1, kWorthwhileBytes / std::max<int64_t>(1, row_bytes));
  exec.pool->for_each((rows + group - 1) / group, [&](int64_t index) {
    const int64_t end = std::min(rows, (index + 1) * group);
    for (int64_t i = index * group; i < end; ++i) body(i);
  });
}

}  // namespace m2::ops::cpu
