#include "ops/linear.h"

#include <algorithm>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/product.h"
#include "ops/cpu/row.h"
#include "ops/cpu/tiles.h"
#include "ops/instruction_set.h"

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

// As many rows as make `wanted` units, so that every thread gets several and uneven speeds even
// out.
int64_t choose_unit_rows(std::span<const Linear> weights, int64_t least, int64_t wanted) {
  int64_t rows = kMaxProductRows;
  while (rows > least && unit_count(weights, rows) < wanted) rows /= 2;
  return rows;
}

const float* scales_of(const Unit& unit) {
  const Tensor& scale = unit.linear->scale;
  if (scale.empty()) return nullptr;
  return scale.as<float>() + (unit.linear->first_row + unit.begin) / kScaleBlock * scale.size(1);
}

Product product_of(const Unit& unit, const Tensor& x) {
  const Tensor& weight = unit.linear->weight;
  Product work{};
  work.weight = weight.rows(unit.begin, unit.count).data();
  work.weight_dtype = weight.dtype();
  work.rows = unit.count;
  work.columns = weight.size(1);
  work.scale = scales_of(unit);
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

void linear_by_rows(const Exec& exec, const Tensor& x, std::span<const Linear> weights,
                    const Tensor& out) {
  constexpr int64_t kLeastRows = 16;
  const int64_t unit_rows = choose_unit_rows(weights, kLeastRows, 8 * exec.pool->size());
  exec.pool->for_each(unit_count(weights, unit_rows),
                      [&](int64_t index) { run_unit(unit_at(weights, unit_rows, index), x, out); });
}

// Tokens that stand packed in the workspace, and how their tiles are dealt to products.
struct PackedTokens {
  TileColumns columns;
  const BF16* tiles;
  int64_t tokens;
  int64_t slabs;  // products beside each other

  int64_t width() const { return tile_width(tokens); }
  int64_t count() const { return (tokens + kTileTokens - 1) / kTileTokens; }
  int64_t first_tile(int64_t slab) const { return slab * count() / slabs; }
};

// The outputs of `unit` for one slab of tokens. `then`: the weights read next.
void run_unit(const Unit& unit, const PackedTokens& packed, int64_t slab, const void* then,
              const Tensor& out) {
  alignas(64) float sums[kMaxProductTiles * kTileTokens * kMaxProductRows];
  alignas(64) float rows[kTileTokens * kMaxProductRows];
  const Tensor& weight = unit.linear->weight;
  const int64_t width = packed.width();
  const int64_t first = packed.first_tile(slab);
  const float* scale = scales_of(unit);
  const TileProduct work{.weight = weight.rows(unit.begin, unit.count).data(),
                         .weight_dtype = weight.dtype(),
                         .rows = unit.count,
                         .columns = packed.columns,
                         .scale = scale ? scale + unit.linear->first_column / kScaleBlock : nullptr,
                         .x = packed.tiles + first * packed_size(packed.columns, kTileTokens),
                         .tiles = packed.first_tile(slab + 1) - first,
                         .width = width,
                         .sums = sums,
                         .then = then};
  tile_product(work);
  const int64_t tile_rows = (unit.count + kTileRows - 1) / kTileRows * kTileRows;
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    transpose_sums(sums + tile * tile_rows * width, unit.count, width, rows, kMaxProductRows);
    const int64_t begin = (first + tile) * kTileTokens;
    const int64_t tokens = std::min(width, packed.tokens - begin);
    for (int64_t t = 0; t < tokens; ++t)
      store_row(rows + t * kMaxProductRows, unit.count,
                row_of(out, begin + t) + unit.out_column * size_of(out.dtype()), out.dtype());
  }
}

void pack_rows(const Exec& exec, const Tensor& x, const TileColumns& columns, BF16* to) {
  const int64_t tokens = x.size(0);
  const int64_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  for_rows(exec, tiles, tile_width(tokens) * x.size(1) * size_of(x.dtype()), [&](int64_t tile) {
    const std::byte* inputs[kTileTokens];
    const int64_t begin = tile * kTileTokens;
    const int64_t count = std::min(kTileTokens, tokens - begin);
    for (int64_t t = 0; t < count; ++t) inputs[t] = row_of(x, begin + t);
    pack_tokens(inputs, x.dtype(), count, tile_width(tokens), columns,
                to + tile * packed_size(columns, kTileTokens));
  });
}

// Matrices that take the same packed inputs.
void linear_by_tiles(const Exec& exec, const Tensor& x, std::span<const Linear> weights,
                     const Tensor& out) {
  constexpr int64_t kLeastRows = 32;
  constexpr int64_t kLeastSlab = 8;  // tiles over which decoding a weight is spread
  const Linear& first = weights.front();
  const TileColumns columns(first.weight.dtype(), x.size(1), first.first_column);
  auto* tiles = static_cast<BF16*>(exec.workspace);
  const int64_t fitting = exec.workspace_bytes / size_of(DType::bf16) / packed_size(columns, 1);
  M2_CHECK(fitting > 0, "workspace of {} bytes for rows of {}", exec.workspace_bytes, x.size(1));
  const int64_t most = fitting < kTileTokens ? fitting : fitting / kTileTokens * kTileTokens;
  const int64_t wanted = 8 * exec.pool->size();
  for (int64_t begin = 0; begin < x.size(0); begin += most) {
    const int64_t tokens = std::min(most, x.size(0) - begin);
    pack_rows(exec, x.rows(begin, tokens), columns, tiles);
    PackedTokens packed{columns, tiles, tokens, 1};
    packed.slabs = (packed.count() + kMaxProductTiles - 1) / kMaxProductTiles;
    const int64_t whole = unit_count(weights, kMaxProductRows);
    while (whole * packed.slabs < wanted && packed.count() / packed.slabs >= 2 * kLeastSlab)
      packed.slabs *= 2;
    const int64_t unit_rows =
        choose_unit_rows(weights, kLeastRows, (wanted + packed.slabs - 1) / packed.slabs);
    const int64_t units = unit_count(weights, unit_rows);
    const Tensor part = out.rows(begin, tokens);
    exec.pool->for_each(units * packed.slabs, [&](int64_t index) {
      const Unit next = unit_at(weights, unit_rows, (index + 1) % units);
      run_unit(unit_at(weights, unit_rows, index % units), packed, index / units,
               next.linear->weight.rows(next.begin, next.count).data(), part);
    });
  }
}

bool by_tiles(const Linear& linear) {
  const DType dtype = linear.weight.dtype();
  return use_tiles() && (dtype == DType::f8_e4m3 || dtype == DType::bf16);
}

bool alike(const Linear& a, const Linear& b) {
  return by_tiles(a) == by_tiles(b) && a.weight.dtype() == b.weight.dtype() &&
         a.first_column == b.first_column;
}

}  // namespace

int64_t linear_workspace_bytes(int64_t tokens, int64_t columns) {
  if (!tiles_supported()) return 0;
  constexpr int64_t kMostTokens = 512;
  const int64_t most_padding = 2 * kTileStep;  // at a scale block's border and at the end
  return tile_slots(std::min(tokens, kMostTokens)) * (columns + most_padding) *
         size_of(DType::bf16);
}

void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out) {
  int64_t column = 0;
  for (size_t begin = 0; begin < weights.size();) {
    size_t end = begin;
    int64_t width = 0;
    for (; end < weights.size() && alike(weights[begin], weights[end]); ++end)
      width += weights[end].weight.size(0);
    const auto same = weights.subspan(begin, end - begin);
    const Tensor part = out.columns(column, width);
    by_tiles(same.front()) ? linear_by_tiles(exec, x, same, part)
                           : linear_by_rows(exec, x, same, part);
    column += width;
    begin = end;
  }
}

}  // namespace m2::ops::cpu
