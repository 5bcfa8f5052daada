#include "ops/experts.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/gated.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/product.h"
#include "ops/cpu/row.h"

namespace m2::ops::cpu {
namespace {

// A token's choice of one expert held here. Pairs stand in the order of their experts, tokens
// ascending within one.
struct Pairs {
  int32_t* starts;  // [count + 1] first pair of each expert
  int32_t* active;  // [count] experts with pairs, ascending
  int64_t active_count;
  int32_t* tokens;  // [pairs]
  float* weights;   // [pairs]
  float* gated;     // [pairs, inner] silu(W1 x) * (W3 x)
  float* sums;      // [tokens, hidden] FP32 output before it is rounded to BF16
};

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

Pairs place_pairs(const Experts& experts, int64_t tokens, int64_t top, Placer& placer) {
  const int64_t count = experts.count();
  Pairs pairs{};
  pairs.starts = placer.place<int32_t>(count + 1);
  pairs.active = placer.place<int32_t>(count);
  pairs.tokens = placer.place<int32_t>(tokens * top);
  pairs.weights = placer.place<float>(tokens * top);
  pairs.gated = placer.place<float>(tokens * top * experts.inner());
  pairs.sums = placer.place<float>(tokens * experts.hidden());
  return pairs;
}

// Counting sort of the (token, expert) pairs by expert. Experts of other ranks are left out.
void sort_pairs(const Experts& experts, const Tensor& ids, const Tensor& weights, Pairs& pairs) {
  const int64_t count = experts.count();
  const int64_t choices = ids.elements();
  const int64_t top = ids.size(1);
  const int32_t* id = ids.as<int32_t>();
  const auto expert_of = [&](int64_t choice) { return id[choice] - experts.first_expert; };
  std::fill(pairs.starts, pairs.starts + count + 1, 0);
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t e = expert_of(i);
    if (e >= 0 && e < count) ++pairs.starts[e];
  }
  int32_t next = 0;
  for (int64_t e = 0; e <= count; ++e) next += std::exchange(pairs.starts[e], next);
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t e = expert_of(i);
    if (e < 0 || e >= count) continue;
    const int32_t at = pairs.starts[e]++;
    pairs.tokens[at] = static_cast<int32_t>(i / top);
    pairs.weights[at] = weights.as<float>()[i];
  }
  // Each start has moved to the next expert's: move them back.
  for (int64_t e = count; e > 0; --e) pairs.starts[e] = pairs.starts[e - 1];
  pairs.starts[0] = 0;
  for (int64_t e = 0; e < count; ++e)
    if (pairs.starts[e + 1] > pairs.starts[e])
      pairs.active[pairs.active_count++] = static_cast<int32_t>(e);
}

// Calls body(first_pair, count) for an expert's pairs, at most kMaxProductTokens at a time.
template <class Body>
void for_tiles(const Pairs& pairs, int64_t expert, Body&& body) {
  const int64_t begin = pairs.starts[expert];
  const int64_t total = pairs.starts[expert + 1] - begin;
  const int64_t tiles = (total + kMaxProductTokens - 1) / kMaxProductTokens;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile * total / tiles;
    body(begin + first, (tile + 1) * total / tiles - first);
  }
}

const float* scales_of(const Tensor& scale, int64_t expert, int64_t block_row) {
  return scale.empty()
             ? nullptr
             : reinterpret_cast<const float*>(row_of(scale, expert)) + block_row * scale.size(2);
}

// gated[pair, rows] = silu(W1 x) * (W3 x) for some inner rows of one expert.
void gate_rows(const Experts& experts, const Tensor& x, const Pairs& pairs, int64_t expert,
               const RowUnits::Unit& unit) {
  alignas(64) float gate[kMaxProductTokens * kMaxProductRows];
  alignas(64) float up[kMaxProductTokens * kMaxProductRows];
  const std::byte* inputs[kMaxProductTokens];
  const int64_t inner = experts.inner();
  const int64_t hidden = experts.hidden();
  const int64_t block_row = (experts.first_inner + unit.begin) / kScaleBlock - experts.scale_row;
  const int64_t row_bytes = hidden * size_of(experts.w13.dtype());
  const std::byte* w1 = row_of(experts.w13, expert) + unit.begin * row_bytes;
  for_tiles(pairs, expert, [&](int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) inputs[i] = row_of(x, pairs.tokens[first + i]);
    Product work{.weight = w1,
                 .weight_dtype = experts.w13.dtype(),
                 .rows = unit.count,
                 .columns = hidden,
                 .scale = scales_of(experts.w1_scale, expert, block_row),
                 .first_column = 0,
                 .x = inputs,
                 .x_dtype = x.dtype(),
                 .tokens = count,
                 .out = gate,
                 .out_stride = kMaxProductRows};
    product(work);
    work.weight = w1 + inner * row_bytes;
    work.scale = scales_of(experts.w3_scale, expert, block_row);
    work.out = up;
    product(work);
    for (int64_t i = 0; i < count; ++i)
      silu_multiply(gate + i * kMaxProductRows, up + i * kMaxProductRows, unit.count,
                    pairs.gated + (first + i) * inner + unit.begin);
  });
}

// sums[token, rows] += weight * (W2 gated) for some hidden rows of one expert.
void add_down_rows(const Experts& experts, const Pairs& pairs, int64_t expert,
                   const RowUnits::Unit& unit, const Tensor& sums) {
  alignas(64) float down[kMaxProductTokens * kMaxProductRows];
  const std::byte* inputs[kMaxProductTokens];
  const int64_t inner = experts.inner();
  const Product rows{
      .weight = row_of(experts.w2, expert) + unit.begin * inner * size_of(experts.w2.dtype()),
      .weight_dtype = experts.w2.dtype(),
      .rows = unit.count,
      .columns = inner,
      .scale = scales_of(experts.w2_scale, expert, unit.begin / kScaleBlock),
      .first_column = experts.first_inner - experts.scale_row * kScaleBlock,
      .x = inputs,
      .x_dtype = DType::f32,
      .tokens = 0,
      .out = down,
      .out_stride = kMaxProductRows};
  for_tiles(pairs, expert, [&](int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
      inputs[i] = reinterpret_cast<const std::byte*>(pairs.gated + (first + i) * inner);
    Product work = rows;
    work.tokens = count;
    product(work);
    for (int64_t i = 0; i < count; ++i) {
      const float weight = pairs.weights[first + i];
      const float* from = down + i * kMaxProductRows;
      float* to = reinterpret_cast<float*>(row_of(sums, pairs.tokens[first + i])) + unit.begin;
      for (int64_t r = 0; r < unit.count; ++r) to[r] += weight * from[r];
    }
  });
}

// Some hidden rows of the output, all experts in ascending order.
void down_rows(const Experts& experts, const Pairs& pairs, const RowUnits::Unit& unit,
               const Tensor& out) {
  const int64_t tokens = out.size(0);
  const bool direct = out.dtype() == DType::f32;
  const Tensor sums = direct ? out : Tensor(pairs.sums, DType::f32, {tokens, experts.hidden()});
  for (int64_t t = 0; t < tokens; ++t)
    std::memset(row_of(sums, t) + unit.begin * 4, 0, static_cast<size_t>(unit.count) * 4);
  for (int64_t a = 0; a < pairs.active_count; ++a)
    add_down_rows(experts, pairs, pairs.active[a], unit, sums);
  if (direct) return;
  for (int64_t t = 0; t < tokens; ++t)
    store_row(reinterpret_cast<const float*>(row_of(sums, t)) + unit.begin, unit.count,
              row_of(out, t) + unit.begin * size_of(out.dtype()), out.dtype());
}

// Rows of one unit such that every thread gets several of `repeats` times `rows`.
int64_t choose_unit_rows(int64_t rows, int64_t repeats, int threads) {
  int64_t unit = kMaxProductRows;
  while (unit > 16 && rows / unit * repeats < 8 * threads) unit /= 2;
  return unit;
}

}  // namespace

int64_t experts_scratch_bytes(const Experts& experts, int64_t tokens, int64_t top) {
  Placer placer(nullptr);
  place_pairs(experts, tokens, top, placer);
  return placer.bytes();
}

void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out) {
  Placer placer(static_cast<std::byte*>(scratch.data()));
  Pairs pairs = place_pairs(experts, ids.size(0), ids.size(1), placer);
  sort_pairs(experts, ids, weights, pairs);
  const int threads = exec.pool->size();
  const RowUnits inner{experts.first_inner, experts.inner(),
                       choose_unit_rows(experts.inner(), pairs.active_count, threads)};
  exec.pool->for_each(pairs.active_count * inner.count(), [&](int64_t index) {
    gate_rows(experts, x, pairs, pairs.active[index / inner.count()],
              inner.at(index % inner.count()));
  });
  const RowUnits hidden{0, experts.hidden(), choose_unit_rows(experts.hidden(), 1, threads)};
  exec.pool->for_each(hidden.count(),
                      [&](int64_t index) { down_rows(experts, pairs, hidden.at(index), out); });
}

}  // namespace m2::ops::cpu
