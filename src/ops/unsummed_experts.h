#pragma once

#include <cstdint>

namespace m2::ops {

// What experts() have left unsummed on a GPU, for who sums it on its way to something else: each
// token's results in the order of its ids. Those held here are weighed and added up in that order,
// and the counters left as the next experts() wants them.
struct UnsummedExperts {
  static constexpr int kTop = 8;
  const void* results = nullptr;  // bf16 [T, kTop, H]; null: nothing is left
  const int32_t* ids = nullptr;   // [T, kTop]
  const float* weights = nullptr;
  int first_expert = 0, experts = 0;  // that are held here
  // To be: zero, zeros, one more.
  int32_t *next_tile = nullptr, *done = nullptr;
  int counts = 0;  // of done
  uint32_t* posted = nullptr;
};

}  // namespace m2::ops
