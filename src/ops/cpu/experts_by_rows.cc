#include <algorithm>
#include <cstring>

#include "ops/cpu/expert_pairs.h"
#include "ops/cpu/gated.h"

namespace m2::ops::cpu {
namespace {

struct RowPairs : Pairs {
  float* gated;  // [pairs, inner] silu(W1 x) * (W3 x)
  float* sums;   // [tokens, hidden] FP32 output before it is rounded to BF16
};

RowPairs place(const Experts& experts, int64_t tokens, int64_t top, Placer& placer) {
  RowPairs pairs{place_pairs(experts, tokens, top, placer), nullptr, nullptr};
  pairs.gated = placer.place<float>(tokens * top * experts.inner());
  pairs.sums = placer.place<float>(tokens * experts.hidden());
  return pairs;
}

// Calls body(first_pair, count) for an expert's pairs, at most kMaxProductTokens at a time.
template <class Body>
void for_tiles(const RowPairs& pairs, int64_t expert, Body&& body) {
  const int64_t begin = pairs.starts[expert];
  const int64_t total = pairs.starts[expert + 1] - begin;
  const int64_t tiles = (total + kMaxProductTokens - 1) / kMaxProductTokens;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile * total / tiles;
    body(begin + first, (tile + 1) * total / tiles - first);
  }
}

// gated[pair, rows] = silu(W1 x) * (W3 x) for some inner rows of one expert.
void gate_rows(const Experts& experts, const Tensor& x, const RowPairs& pairs, int64_t expert,
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
void add_down_rows(const Experts& experts, const RowPairs& pairs, int64_t expert,
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
void down_rows(const Experts& experts, const RowPairs& pairs, const RowUnits::Unit& unit,
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

}  // namespace

int64_t experts_by_rows_bytes(const Experts& experts, int64_t tokens, int64_t top) {
  Placer placer(nullptr);
  place(experts, tokens, top, placer);
  return placer.bytes();
}

void experts_by_rows(const Exec& exec, const Tensor& x, const Experts& experts, const Tensor& ids,
                     const Tensor& weights, const Tensor& scratch, const Tensor& out) {
  constexpr int64_t kLeastRows = 16;
  Placer placer(static_cast<std::byte*>(scratch.data()));
  RowPairs pairs = place(experts, ids.size(0), ids.size(1), placer);
  sort_pairs(experts, ids, weights, pairs);
  const int threads = exec.pool->size();
  const RowUnits inner{experts.first_inner, experts.inner(),
                       choose_unit_rows(experts.inner(), kLeastRows, pairs.active_count, threads)};
  exec.pool->for_each(pairs.active_count * inner.count(), [&](int64_t index) {
    gate_rows(experts, x, pairs, pairs.active[index / inner.count()],
              inner.at(index % inner.count()));
  });
  const RowUnits hidden{0, experts.hidden(),
                        choose_unit_rows(experts.hidden(), kLeastRows, 1, threads)};
  exec.pool->for_each(hidden.count(),
                      [&](int64_t index) { down_rows(experts, pairs, hidden.at(index), out); });
}

}  // namespace m2::ops::cpu
