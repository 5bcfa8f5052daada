#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "app/doctor/lab.h"
#include "ops/qk_norm_rope.h"

// What the operations promise in their headers, once more, in the plainest loops and in double; of
// nothing but those headers. Rows stand one after another.
namespace m2::app::doctor::reference {

// Weights as numbers: of FP8 times the scales of their blocks.
struct Matrix {
  int64_t rows = 0, columns = 0;
  Numbers codes;
  Numbers scales;  // one for each 128x128 of the full matrix; empty: none
  int64_t first_row = 0, first_column = 0;

  int64_t scale_columns() const { return (first_column + columns + 127) / 128; }
  int64_t scale_rows() const { return (first_row + rows + 127) / 128; }
  double at(int64_t row, int64_t column) const;
};

Numbers product(const Numbers& x, const Matrix& weight);
Numbers rms_norm(const Numbers& x, const Numbers& weight, double eps);

// The code of e4m3 nearest to x, of two as near the even one.
uint8_t nearest_e4m3(double x);
struct Quantised {
  Numbers codes, scales;
};
// Rows of `columns`, stretches of `stretch`. `powers`: of two.
Quantised quantise(const Numbers& x, int64_t columns, int64_t stretch, bool powers);
// What products then see instead of x.
Numbers through_fp8(const Numbers& x, int64_t columns, int64_t stretch);
// ops/requantise.h, in place.
void requantise(Matrix& matrix);

struct Routed {
  std::vector<int32_t> ids;
  Numbers weights;
};
Routed route(const Numbers& x, const Numbers& gate, const Numbers& bias, int64_t hidden,
             int64_t top);

// x once q, k and v are normed and turned, by angles of positions; rows as qkv's.
Numbers norm_and_turn(const Numbers& qkv, const std::vector<int32_t>& positions,
                      const Numbers& q_norm, const Numbers& k_norm, double theta, double eps,
                      const ops::HeadShape& heads);

// Attention of one token's q over keys and values [positions][kv_heads * head_dim], all seen.
Numbers attend(std::span<const double> q, std::span<const Numbers> keys,
               std::span<const Numbers> values, const ops::HeadShape& heads);

}  // namespace m2::app::doctor::reference
