#pragma once

#include <cstdint>

namespace m2::ops {

// Where the rows of an output go if not into the output: each to the rank that looks after it, in
// memory that all ranks reach. Rank r looks after rows [first[r], first[r] + count[r]), which
// follow one another from to[r] on, dense, in the output's dtype.
struct RowOwners {
  static constexpr int kMost = 8;
  int ranks = 0;  // 0: rows stay
  int rank = 0;   // this one
  int64_t first[kMost] = {}, count[kMost] = {};
  void* to[kMost] = {};

  // Of the output's rows from `row` on.
  RowOwners from(int64_t row) const {
    RowOwners out = *this;
    for (int64_t& begin : out.first) begin -= row;
    return out;
  }
};

}  // namespace m2::ops
