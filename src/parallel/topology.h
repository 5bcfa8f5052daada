#pragma once

#include <cstdint>

namespace m2::parallel {

// Who this rank is. Plain data; the one rank of a single process by default.
struct Topology {
  int64_t tensor_size = 1;  // ranks that split heads, inner columns and vocabulary
  int64_t tensor_rank = 0;
  bool expert_parallel = false;  // experts are held whole: expert_size ranks share them
  int64_t expert_size = 1;
  int64_t expert_rank = 0;
};

// Indices [begin, begin + count) of an axis.
struct Range {
  int64_t begin;
  int64_t count;
};

// Part `rank` of `size` as even as can be: the first (total % size) parts are one longer.
inline Range split_evenly(int64_t total, int64_t size, int64_t rank) {
  const int64_t base = total / size;
  const int64_t extra = total % size;
  return {rank * base + (rank < extra ? rank : extra), base + (rank < extra ? 1 : 0)};
}

}  // namespace m2::parallel
