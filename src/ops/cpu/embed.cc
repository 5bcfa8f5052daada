#include "ops/embed.h"

#include <cstring>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/product.h"
#include "ops/cpu/row.h"

namespace m2::ops::cpu {
namespace {

// Numbers converted at a time between a table of one dtype and an output of another.
constexpr int64_t kChunk = 1024;

void convert_row(const std::byte* from, DType from_dtype, int64_t count, std::byte* to,
                 DType to_dtype) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(count * size_of(to_dtype)));
    return;
  }
  alignas(64) float floats[kChunk];
  for (int64_t i = 0; i < count; i += kChunk) {
    const int64_t n = std::min(kChunk, count - i);
    load_row(from + i * size_of(from_dtype), from_dtype, n, floats);
    store_row(floats, n, to + i * size_of(to_dtype), to_dtype);
  }
}

}  // namespace

void embed(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out) {
  const int64_t width = table.size(1);
  const int32_t* id = ids.as<int32_t>();
  const int64_t row_bytes = width * size_of(out.dtype());
  for_rows(exec, ids.size(0), row_bytes, [&](int64_t t) {
    const int64_t row = id[t] - first_id;
    if (row < 0 || row >= table.size(0)) {
      std::memset(row_of(out, t), 0, static_cast<size_t>(row_bytes));
    } else {
      convert_row(row_of(table, row), table.dtype(), width, row_of(out, t), out.dtype());
    }
  });
}

void gather_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out) {
  const int32_t* row = rows.as<int32_t>();
  const int64_t row_bytes = x.size(1) * size_of(x.dtype());
  for_rows(exec, rows.size(0), row_bytes, [&](int64_t r) {
    M2_CHECK(row[r] >= 0 && row[r] < x.size(0), "row {} of {}", row[r], x.describe());
    std::memcpy(row_of(out, r), row_of(x, row[r]), static_cast<size_t>(row_bytes));
  });
}

void sum_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out) {
  const int64_t width = x.size(1), most = rows.size(1), element = size_of(x.dtype());
  for_rows(exec, rows.size(0), most * width * element, [&](int64_t t) {
    const int32_t* row = rows.as<int32_t>() + t * most;
    alignas(64) float sums[kChunk], part[kChunk];
    for (int64_t first = 0; first < width; first += kChunk) {
      const int64_t n = std::min(kChunk, width - first);
      std::fill_n(sums, n, 0.0f);
      for (int64_t k = 0; k < most; ++k) {
        if (row[k] < 0) continue;
        M2_CHECK(row[k] < x.size(0), "row {} of {}", row[k], x.describe());
        load_row(row_of(x, row[k]) + first * element, x.dtype(), n, part);
        for (int64_t i = 0; i < n; ++i) sums[i] += part[i];
      }
      store_row(sums, n, row_of(out, t) + first * element, out.dtype());
    }
  });
}

}  // namespace m2::ops::cpu
