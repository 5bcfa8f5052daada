#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

// Products with the tile unit of x86 (AMX, BF16), for weights in FP8 and BF16. A tile of weights is
// 16 rows by 32 columns, a tile of inputs 32 columns by up to 16 tokens; inputs are rounded to BF16
// once, sums are FP32.
//
// The canonical sum of one output element, whatever the number of tokens: columns are cut at the
// borders of scale blocks (BF16 weights: not at all) and padded with zeros to steps of 64. Of a
// step, FP8 gives even columns to one tile and odd ones to the next; BF16 gives each 32 neighbours.
// A tile adds every other of its columns by fused multiply-adds in ascending order from zero, the
// others likewise, and adds the sum of the two to its accumulator. At the end of a scale block the
// accumulator times the scale is added to the result by one fused multiply-add. Subnormal numbers
// count as zero.
namespace m2::ops::cpu {

constexpr int64_t kTileTokens = 16;
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileStep = 64;  // columns of one step: two tiles
constexpr int64_t kMaxProductTiles = 16;

// Whether this build, processor and kernel have what the functions below need. They must not be
// called otherwise. The first call asks the kernel for the tiles' registers.
bool tiles_supported();

// The columns of one weight matrix, or of a slice of it, cut into steps.
struct TileColumns {
  struct Step {
    int64_t begin;
    int64_t count;  // <= kTileStep; the others are zeros
  };

  int64_t columns;
  int64_t lead;  // columns before the first border of a scale block inside
  bool scaled;   // FP8: scale blocks, and their order of columns

  TileColumns(DType weight, int64_t columns_of_slice, int64_t first_column)
      : columns(columns_of_slice), lead(0), scaled(weight == DType::f8_e4m3) {
    if (scaled) lead = std::min(columns, (128 - first_column % 128) % 128);
  }
  int64_t lead_steps() const { return (lead + kTileStep - 1) / kTileStep; }
  int64_t steps() const { return lead_steps() + (columns - lead + kTileStep - 1) / kTileStep; }
  Step at(int64_t step) const {
    const int64_t first = lead_steps();
    const int64_t begin = step < first ? step * kTileStep : lead + (step - first) * kTileStep;
    return {begin, std::min(kTileStep, (step < first ? lead : columns) - begin)};
  }
};

// Tokens are packed at most 16 to a tile: fewer than 16 stand alone in tiles as wide as they are
// many, more in tiles of 16 of which the last is filled up with zeros.
constexpr int64_t tile_width(int64_t tokens) {
  return std::min(tokens, kTileTokens);
}
constexpr int64_t tile_slots(int64_t tokens) {
  return tokens < kTileTokens ? tokens : (tokens + kTileTokens - 1) / kTileTokens * kTileTokens;
}
// Numbers that `tokens` packed tokens take.
inline int64_t packed_size(const TileColumns& columns, int64_t tokens) {
  return tile_slots(tokens) * columns.steps() * kTileStep;
}

// Rounds `tokens` <= 16 inputs to BF16 and packs them for products with a matrix of these columns.
//   x   [tokens] pointers to `columns` numbers of x_dtype (f32 | bf16)
//   to  [steps, 2, 16 pairs of columns, width, 2]
void pack_tokens(const std::byte* const* x, DType x_dtype, int64_t tokens, int64_t width,
                 const TileColumns& columns, BF16* to);

// A few rows of a weight matrix times a few tiles of packed tokens; the work of one thread.
struct TileProduct {
  const void* weight;   // first of the rows
  DType weight_dtype;   // f8_e4m3 | bf16
  int64_t rows;         // <= kMaxProductRows, in one block of 128 rows of the scaled matrix
  TileColumns columns;  // of one row; rows are as far apart
  const float* scale;   // this row block's scales, of the first column's block on; null for bf16
  const BF16* x;        // pack_tokens()' tiles, one after another
  int64_t tiles;        // <= kMaxProductTiles
  int64_t width;        // tokens of a tile
  float* sums;          // [tiles, rows rounded up to 16, width]
  // Weights that this thread reads next, to be fetched meanwhile; null: those behind these.
  const void* then = nullptr;
};
void tile_product(const TileProduct& work);

// One tile of tokens of a product's sums, transposed.
//   from  [rows rounded up to 16, width]
//   to    [width, to_stride]; rows rounded up to 16 are written
void transpose_sums(const float* from, int64_t rows, int64_t width, float* to, int64_t to_stride);

// Packs products' sums as inputs of the next product, whose columns [first, first + rows) they are;
// `first` begins a step and the end ends one.
//   from  [rows, width], one tile of tokens
//   to    as in pack_tokens(), the whole tile
void pack_sums(const float* from, int64_t rows, int64_t width, const TileColumns& columns,
               int64_t first, BF16* to);

}  // namespace m2::ops::cpu
