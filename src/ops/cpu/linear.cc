#include "ops/linear.h"

#include <algorithm>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/product.h"
#include "ops/cpu/row.h"

namespace m2::ops::cpu {
namespace {

// Rows [begin, begin + count) of one matrix: what one thread does at a time.
struct Unit {
  const Linear* linear;
  int64_t begin;
  int64_t count;
  int64_t out_column;
};

RowUnits units_of(const Linear& linear, int64_t unit_rows) {
  return {linear.first_row, linear.weight.size(0), unit_rows};
}

int64_t unit_count(std::span<const Linear> weights, int64_t unit_rows) {
  int64_t count = 0;
  for (const Linear& linear : weights) count += units_of(linear, unit_rows).count();
  return count;
}

Unit unit_at(std::span<const Linear> weights, int64_t unit_rows, int64_t index) {
  int64_t out_column = 0;
  for (const Linear& linear : weights) {
    const RowUnits units = units_of(linear, unit_rows);
    if (index < units.count()) {
      const RowUnits::Unit rows = units.at(index);
      return {&linear, rows.begin, rows.count, out_column + rows.begin};
    }
    index -= units.count();
    out_column += linear.weight.size(0);
  }
  return {};
}

// As many rows as leave every thread several units, so that uneven speeds even out.
int64_t choose_unit_rows(std::span<const Linear> weights, int threads) {
  int64_t rows = kMaxProductRows;
  while (rows > 16 && unit_count(weights, rows) < 8 * threads) rows /= 2;
  return rows;
}

Product product_of(const Unit& unit, const Tensor& x) {
  const Tensor& weight = unit.linear->weight;
  const Tensor& scale = unit.linear->scale;
  Product work{};
  work.weight = weight.rows(unit.begin, unit.count).data();
  work.weight_dtype = weight.dtype();
  work.rows = unit.count;
  work.columns = weight.size(1);
  if (weight.dtype() == DType::f8_e4m3)
    work.scale =
        scale.as<float>() + (unit.linear->first_row + unit.begin) / kScaleBlock * scale.size(1);
  work.first_column = unit.linear->first_column;
  work.x_dtype = x.dtype();
  return work;
}

void run_unit(const Unit& unit, const Tensor& x, const Tensor& out) {
  alignas(64) float sums[kMaxProductTokens * kMaxProductRows];
  const std::byte* inputs[kMaxProductTokens];
  const int64_t tokens = x.size(0);
  const int64_t tiles = (tokens + kMaxProductTokens - 1) / kMaxProductTokens;
  Product work = product_of(unit, x);
  work.x = inputs;
  work.out = sums;
  work.out_stride = kMaxProductRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = tile * tokens / tiles;
    work.tokens = (tile + 1) * tokens / tiles - begin;
    for (int64_t t = 0; t < work.tokens; ++t) inputs[t] = row_of(x, begin + t);
    product(work);
    for (int64_t t = 0; t < work.tokens; ++t)
      store_row(sums + t * kMaxProductRows, unit.count,
                row_of(out, begin + t) + unit.out_column * size_of(out.dtype()), out.dtype());
  }
}

}  // namespace

void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out) {
  const int64_t unit_rows = choose_unit_rows(weights, exec.pool->size());
  exec.pool->for_each(unit_count(weights, unit_rows),
                      [&](int64_t index) { run_unit(unit_at(weights, unit_rows, index), x, out); });
}

}  // namespace m2::ops::cpu
