#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/cpu/product.h"
#include "ops/cpu/row.h"
#include "ops/experts.h"

namespace m2::ops::cpu {

// Places the parts of the scratch one after another; without a base it only counts.
class Placer {
 public:
  explicit Placer(std::byte* base) : base_(base) {}
  template <class T>
  T* place(int64_t count) {
    T* out = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return out;
  }
  int64_t bytes() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

// A token's choices of the experts held here. Pairs stand in the order of their experts, tokens
// ascending within one.
struct Pairs {
  int32_t* starts;  // [count + 1] first pair of each expert
  int32_t* active;  // [count] experts with pairs, ascending
  int64_t active_count;
  int32_t* tokens;  // [pairs]
  float* weights;   // [pairs]
};
Pairs place_pairs(const Experts& experts, int64_t tokens, int64_t top, Placer& placer);
// Counting sort of the (token, expert) pairs by expert. Experts of other ranks are left out.
void sort_pairs(const Experts& experts, const Tensor& ids, const Tensor& weights, Pairs& pairs);

inline const float* scales_of(const Tensor& scale, int64_t expert, int64_t block_row) {
  return scale.empty()
             ? nullptr
             : reinterpret_cast<const float*>(row_of(scale, expert)) + block_row * scale.size(2);
}

// Rows of one unit, at least `least`, such that every thread gets several of `repeats` times
// `rows`.
inline int64_t choose_unit_rows(int64_t rows, int64_t least, int64_t repeats, int threads) {
  int64_t unit = kMaxProductRows;
  while (unit > least && rows / unit * repeats < 8 * threads) unit /= 2;
  return unit;
}

// The bodies of experts(): by rows in FP32 for every processor, and by tiles (tiles.h).
int64_t experts_by_rows_bytes(const Experts& experts, int64_t tokens, int64_t top);
void experts_by_rows(const Exec& exec, const Tensor& x, const Experts& experts, const Tensor& ids,
                     const Tensor& weights, const Tensor& scratch, const Tensor& out);
int64_t experts_by_tiles_bytes(const Experts& experts, int64_t tokens, int64_t top);
void experts_by_tiles(const Exec& exec, const Tensor& x, const Experts& experts, const Tensor& ids,
                      const Tensor& weights, const Tensor& scratch, const Tensor& out);

}  // namespace m2::ops::cpu
