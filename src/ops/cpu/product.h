#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace m2::ops::cpu {

constexpr int64_t kMaxProductRows = 128;
constexpr int64_t kMaxProductTokens = 48;
constexpr int64_t kScaleBlock = 128;  // rows and columns that share one scale

// A few rows of a weight matrix times a few tokens, in the canonical order of vector-inl.h; the
// work of one thread. Every matrix operation is made of these.
//   out[t, r] = sum over c of w[r, c] * fl(x[t, c] * s(c)),  s(c) = scale[(first_column + c) / 128]
// The scale multiplies the input, once for all rows, rather than each weight: all rows of one
// product must lie in one block of 128 rows of the scaled matrix. Both places round alike.
struct Product {
  const void* weight;  // first of the rows
  DType weight_dtype;
  int64_t rows;        // <= kMaxProductRows
  int64_t columns;     // also the distance of two rows
  const float* scale;  // this row block's scales; null without scales
  int64_t first_column;
  const std::byte* const* x;  // [tokens] pointers to the tokens' `columns` numbers
  DType x_dtype;              // f32 | bf16
  int64_t tokens;             // <= kMaxProductTokens
  float* out;                 // [tokens, rows]
  int64_t out_stride;         // floats from token to token
};
void product(const Product& work);

// Rows of `dtype` numbers (f32 | bf16) from and to floats.
void store_row(const float* from, int64_t count, void* to, DType dtype);
void load_row(const void* from, DType dtype, int64_t count, float* to);

}  // namespace m2::ops::cpu
