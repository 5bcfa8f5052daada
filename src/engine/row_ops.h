#pragma once

#include <cstdint>
#include <span>

#include "engine/random.h"

// Passes over one row of logits, vectorised for the machine at hand (Highway). A row may have any
// length; entries may be -infinity.

namespace m2::engine {

// Maxima are kept per block of this many ids: the k-th largest maximum bounds the k-th largest
// logit from below, so whoever looks for the top k reads k blocks and skips the rest.
constexpr int64_t kRowBlock = 64;

constexpr int64_t row_blocks(int64_t size) {
  return (size + kRowBlock - 1) / kRowBlock;
}

struct RowScan {
  float max;
  bool has_nan;
};

// maxima[b] = largest of row[64 b, 64 b + 64), b < row_blocks(row.size()). If the row has a NaN,
// `max` and `maxima` are meaningless. Precondition: row not empty.
RowScan scan_row(std::span<const float> row, std::span<float> maxima);

// row[i] = -infinity where bit i % 32 of words[i / 32] is clear. `words` covers the row.
void mask_row(std::span<float> row, std::span<const uint32_t> words);

// Sum of exp((x - max) * scale) over entries x >= cutoff. Preconditions: max is the row's, finite.
double sum_exp(std::span<const float> row, float max, float scale, float cutoff);

// How many entries are greater than `value`.
int64_t count_greater(std::span<const float> row, float value);

// The exponential race: argmax of exp((x - max) * scale) / Exp(1) over entries x >= cutoff, which
// samples the softmax of x * scale. The lowest id wins ties. Preconditions as for sum_exp().
int32_t race(std::span<const float> row, float max, float scale, float cutoff, NoiseKey key);

}  // namespace m2::engine
