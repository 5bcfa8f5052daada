#include "ops/cpu/attention.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/product.h"
#include "ops/cpu/row.h"
#include "ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/contrib/math/math-inl.h"
#include "ops/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

// The canonical order of one query row: tiles of kAttentionTile positions in ascending order, each
// with its maximum, its exponentials summed over 16 lanes, and its values added in ascending order
// of position by fused multiply-adds; between tiles the usual rescaling of the running maximum.

constexpr int kValueRows = kAccumulators / 4;  // query rows of one register block of values
constexpr int kValueVectors = 4;               // vectors of head_dim of one register block

struct AttentionSpace {
  alignas(64) float q[kAttentionRows * kMaxHeadDim];     // scaled; rows padded to kStep
  alignas(64) float sums[kAttentionRows * kMaxHeadDim];  // [row, head_dim]
  alignas(64) float scores[kAttentionRows * kAttentionTile];
  alignas(64) float k[kAttentionTile * kMaxHeadDim];  // a tile, for many rows
  alignas(64) float v[kAttentionTile * kMaxHeadDim];
  float largest[kAttentionRows];
  float total[kAttentionRows];
};

// Positions [begin, begin + count) of one tile, and the query rows that see any of them.
struct Tile {
  int64_t begin;
  int64_t count;
  int64_t first_row;
};

// Calls body(first, count, k, v) for the runs of a tile's positions that are consecutive in memory;
// `first` counts from the tile's begin. C is the cache's dtype.
template <class C, class Body>
HWY_INLINE void for_runs(const AttentionItem& item, const Tile& tile, Body&& body) {
  for (int64_t first = 0; first < tile.count;) {
    const int64_t position = tile.begin + first;
    const int64_t block = item.blocks[position / item.block_size];
    const int64_t inside = position % item.block_size;
    const int64_t count = std::min(tile.count - first, item.block_size - inside);
    const auto* k = reinterpret_cast<const C*>(item.k);
    const auto* v = reinterpret_cast<const C*>(item.v);
    body(first, count, k + block * item.k_block_stride + inside * item.head_dim,
         v + block * item.v_block_stride + inside * item.head_dim);
    first += count;
  }
}

// Fetches what the next tile reads where this one reads `count` positions from `first` on: blocks
// lie anywhere, so that the processor cannot foresee them.
template <class C>
void prefetch_next(const AttentionItem& item, const Tile& tile, int64_t first, int64_t count,
                   const std::byte* cache, int64_t block_stride) {
  const int64_t position = tile.begin + kAttentionTile + first;
  const int64_t end = std::min(position + count, item.rows[item.count - 1].visible);
  const int64_t inside = position % item.block_size;
  if (position >= end) return;
  const C* from =
      reinterpret_cast<const C*>(cache) + item.blocks[position / item.block_size] * block_stride;
  const int64_t last = std::min(item.block_size, inside + end - position);
  constexpr int64_t kLine = 64 / sizeof(C);  // numbers of a cache line
  for (int64_t i = inside * item.head_dim; i < last * item.head_dim; i += kLine) {
    __builtin_prefetch(from + i, 0, 2);
    asm volatile("");  // GCC drops loops, and whole functions, that do nothing but prefetch
  }
}

int64_t padded_dim(const AttentionItem& item) {
  return (item.head_dim + kStep - 1) / kStep * kStep;
}

void prepare(const AttentionItem& item, AttentionSpace& space) {
  const int64_t stride = padded_dim(item);
  for (int64_t r = 0; r < item.count; ++r) {
    float* q = space.q + r * stride;
    load_row(item.rows[r].q, item.q_dtype, item.head_dim, q);
    for (int64_t d = 0; d < item.head_dim; ++d) q[d] *= item.scale;
    std::fill(q + item.head_dim, q + stride, 0.0f);
    std::fill_n(space.sums + r * item.head_dim, item.head_dim, 0.0f);
    space.largest[r] = -INFINITY;
    space.total[r] = 0;
  }
}

template <class C>
void convert(const C* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) hn::StoreU(load_lanes(from + i), DF(), to + i);
}

// scores[row, position] = q . k for rows [first_row, count).
template <class K>
void score_run(const AttentionItem& item, const Tile& tile, int64_t first, int64_t count,
               const K* k, AttentionSpace& space) {
  const int64_t stride = padded_dim(item);
  const int64_t rows = item.count - tile.first_row;
  const int64_t groups = (rows + kMaxBlockTokens - 1) / kMaxBlockTokens;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = tile.first_row + group * rows / groups;
    const int64_t end = tile.first_row + (group + 1) * rows / groups;
    const DotBlock block{.w = k,
                         .w_stride = item.head_dim,
                         .x = space.q + begin * stride,
                         .x_stride = stride,
                         .k = item.head_dim,
                         .carry = nullptr,
                         .carry_stride = 0,
                         .first = true,
                         .last = true,
                         .fetch = false,
                         .out = space.scores + begin * kAttentionTile + first,
                         .out_stride = kAttentionTile};
    dot_rows<K>(block, count, end - begin);
  }
}

int64_t visible_in(const AttentionItem& item, const Tile& tile, int64_t row) {
  return std::clamp<int64_t>(item.rows[row].visible - tile.begin, 0, tile.count);
}

// Turns a row's scores into exponentials and rescales what the row has summed so far.
void softmax_row(const AttentionItem& item, const Tile& tile, int64_t row, AttentionSpace& space) {
  float* scores = space.scores + row * kAttentionTile;
  std::fill(scores + visible_in(item, tile, row), scores + kAttentionTile, -INFINITY);
  VF most = hn::LoadU(DF(), scores);
  for (int64_t i = kLanes; i < kAttentionTile; i += kLanes)
    most = hn::Max(most, hn::LoadU(DF(), scores + i));
  const float before = space.largest[row];
  const float largest = std::max(before, hn::GetLane(hn::MaxOfLanes(DF(), most)));
  const VF offset = hn::Set(DF(), largest);
  VF lanes[kParts];
  for (int p = 0; p < kParts; ++p) lanes[p] = hn::Zero(DF());
#pragma GCC unroll 16
  for (int i = 0; i < kAttentionTile / kLanes; ++i) {
    const VF e = hn::Exp(DF(), hn::Sub(hn::LoadU(DF(), scores + i * kLanes), offset));
    hn::StoreU(e, DF(), scores + i * kLanes);
    lanes[i % kParts] = hn::Add(lanes[i % kParts], e);
  }
  const float sum = sum_lanes(lanes);
  space.largest[row] = largest;
  if (before == largest) {
    space.total[row] += sum;
    return;
  }
  const VF keep = hn::Exp(DF(), hn::Set(DF(), before - largest));
  space.total[row] = space.total[row] * hn::GetLane(keep) + sum;
  float* sums = space.sums + row * item.head_dim;
  for (int64_t d = 0; d < item.head_dim; d += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(DF(), sums + d), keep), DF(), sums + d);
}

// sums[r, 0..C*kLanes) += weights[r, j] * v[j, ...] for j in ascending order.
template <class V, int R, int C>
void add_values_block(const float* weights, const V* v, int64_t count, int64_t dim, float* sums) {
  VF acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) acc[r][c] = hn::LoadU(DF(), sums + r * dim + c * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    VF values[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) values[c] = load_lanes(v + j * dim + c * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const VF weight = hn::Set(DF(), weights[r * kAttentionTile + j]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = hn::MulAdd(weight, values[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) hn::StoreU(acc[r][c], DF(), sums + r * dim + c * kLanes);
}

template <class V, int R>
void add_values(const float* weights, const V* v, int64_t count, int64_t dim, float* sums) {
  int64_t d = 0;
  for (; d + kValueVectors * kLanes <= dim; d += kValueVectors * kLanes)
    add_values_block<V, R, kValueVectors>(weights, v + d, count, dim, sums + d);
  for (; d < dim; d += kLanes) add_values_block<V, R, 1>(weights, v + d, count, dim, sums + d);
}

// sums += weights * v for a run of positions [first, first + count), every row as far as it sees.
template <class V>
void value_run(const AttentionItem& item, const Tile& tile, int64_t first, int64_t count,
               const V* v, AttentionSpace& space) {
  const auto seen = [&](int64_t row) {
    return std::clamp<int64_t>(visible_in(item, tile, row) - first, 0, count);
  };
  const auto weights = [&](int64_t row) { return space.scores + row * kAttentionTile + first; };
  const auto sums = [&](int64_t row) { return space.sums + row * item.head_dim; };
  int64_t row = tile.first_row;
  for (; row + kValueRows <= item.count; row += kValueRows) {
    const int64_t common = seen(row);
    add_values<V, kValueRows>(weights(row), v, common, item.head_dim, sums(row));
    for (int64_t r = row + 1; r < row + kValueRows; ++r)
      add_values<V, 1>(weights(r) + common, v + common * item.head_dim, seen(r) - common,
                       item.head_dim, sums(r));
  }
  for (; row < item.count; ++row)
    add_values<V, 1>(weights(row), v, seen(row), item.head_dim, sums(row));
}

// Scores and values read BF16 as it lies in the cache; FP8 is decoded in front of them.
const BF16* as_operand(const BF16* from, int64_t, float*) {
  return from;
}
const float* as_operand(const F8E4M3* from, int64_t count, float* to) {
  convert(from, count, to);
  return to;
}

// Fetches the next tile a few positions at a time, between what is multiplied meanwhile: fetched in
// one go, most of it would be waited for.
template <class C>
void tile_of_few_rows(const AttentionItem& item, const Tile& tile, AttentionSpace& space) {
  constexpr int64_t kScored = 4, kAdded = 8;  // positions at a time
  const int64_t dim = item.head_dim;
  for_runs<C>(item, tile, [&](int64_t first, int64_t count, const C* k, const C*) {
    for (int64_t i = 0; i < count; i += kScored) {
      const int64_t some = std::min(kScored, count - i);
      prefetch_next<C>(item, tile, first + i, some, item.k, item.k_block_stride);
      score_run(item, tile, first + i, some, as_operand(k + i * dim, some * dim, space.k), space);
    }
  });
  for (int64_t r = tile.first_row; r < item.count; ++r) softmax_row(item, tile, r, space);
  for_runs<C>(item, tile, [&](int64_t first, int64_t count, const C*, const C* v) {
    for (int64_t i = 0; i < count; i += kAdded) {
      const int64_t some = std::min(kAdded, count - i);
      prefetch_next<C>(item, tile, first + i, some, item.v, item.v_block_stride);
      value_run(item, tile, first + i, some, as_operand(v + i * dim, some * dim, space.v), space);
    }
  });
}

// K and V of the tile are converted once for all rows.
template <class C>
void tile_of_many_rows(const AttentionItem& item, const Tile& tile, AttentionSpace& space) {
  for_runs<C>(item, tile, [&](int64_t first, int64_t count, const C* k, const C* v) {
    prefetch_next<C>(item, tile, first, count, item.k, item.k_block_stride);
    prefetch_next<C>(item, tile, first, count, item.v, item.v_block_stride);
    convert(k, count * item.head_dim, space.k + first * item.head_dim);
    convert(v, count * item.head_dim, space.v + first * item.head_dim);
  });
  score_run(item, tile, 0, tile.count, static_cast<const float*>(space.k), space);
  for (int64_t r = tile.first_row; r < item.count; ++r) softmax_row(item, tile, r, space);
  value_run(item, tile, 0, tile.count, static_cast<const float*>(space.v), space);
}

template <class C>
void attend(const AttentionItem& item) {
  AttentionSpace space;
  prepare(item, space);
  const int64_t end = item.rows[item.count - 1].visible;
  Tile tile{0, 0, 0};
  for (; tile.begin < end; tile.begin += kAttentionTile) {
    tile.count = std::min(kAttentionTile, end - tile.begin);
    while (item.rows[tile.first_row].visible <= tile.begin) ++tile.first_row;
    item.count - tile.first_row <= kMaxBlockTokens ? tile_of_few_rows<C>(item, tile, space)
                                                   : tile_of_many_rows<C>(item, tile, space);
  }
  for (int64_t r = 0; r < item.count; ++r) {
    float* sums = space.sums + r * item.head_dim;
    const float total = space.total[r] / item.value_scale;
    for (int64_t d = 0; d < item.head_dim; ++d) sums[d] /= total;
    store_row(sums, item.head_dim, item.rows[r].out, item.out_dtype);
  }
}

void attend_here(const AttentionItem& item) {
  item.cache_dtype == DType::bf16 ? attend<BF16>(item) : attend<F8E4M3>(item);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::ops::cpu {
namespace {

HWY_EXPORT(attend_here);

// The (token, head) rows of one sequence that share a KV head, kAttentionRows at a time.
struct Chunks {
  const BatchLayout& layout;
  int64_t group;  // q heads per KV head

  int64_t rows(int64_t sequence) const {
    const int32_t* starts = layout.query_starts.as<int32_t>();
    return (starts[sequence + 1] - starts[sequence]) * group;
  }
  int64_t of(int64_t sequence) const {
    return (rows(sequence) + kAttentionRows - 1) / kAttentionRows;
  }
  int64_t total() const {
    int64_t count = 0;
    for (int64_t s = 0; s < layout.sequences(); ++s) count += of(s);
    return count;
  }
};

AttentionItem make_item(const Tensor& q, const KvCache& cache, const Chunks& chunks,
                        const HeadShape& heads, const Tensor& out, int64_t index) {
  const int64_t head = index % heads.kv_heads;
  int64_t chunk = index / heads.kv_heads;
  int64_t sequence = 0;
  for (; chunk >= chunks.of(sequence); ++sequence) chunk -= chunks.of(sequence);
  const BatchLayout& layout = chunks.layout;
  const int64_t first_token = layout.query_starts.as<int32_t>()[sequence];
  const int64_t head_elements = cache.k.size(2) * heads.head_dim;
  AttentionItem item;
  item.q_dtype = q.dtype();
  item.out_dtype = out.dtype();
  item.head_dim = heads.head_dim;
  item.cache_dtype = cache.k.dtype();
  item.scale = cache.k_scale / std::sqrt(static_cast<float>(heads.head_dim));
  item.value_scale = cache.v_scale;
  const int64_t head_bytes = head_elements * size_of(item.cache_dtype);
  item.k = static_cast<const std::byte*>(cache.k.data()) + head * head_bytes;
  item.v = static_cast<const std::byte*>(cache.v.data()) + head * head_bytes;
  item.blocks = layout.block_tables.as<int32_t>() + sequence * layout.block_tables.row_stride();
  item.block_size = cache.k.size(2);
  item.k_block_stride = cache.k.row_stride();
  item.v_block_stride = cache.v.row_stride();
  const int64_t first = chunk * kAttentionRows;
  item.count = std::min(kAttentionRows, chunks.rows(sequence) - first);
  for (int64_t r = 0; r < item.count; ++r) {
    const int64_t token = first_token + (first + r) / chunks.group;
    const int64_t column = (head * chunks.group + (first + r) % chunks.group) * heads.head_dim;
    item.rows[r] = {row_of(q, token) + column * size_of(q.dtype()),
                    row_of(out, token) + column * size_of(out.dtype()),
                    layout.positions.as<int32_t>()[token] + 1};
  }
  return item;
}

}  // namespace

void paged_attention(const Exec& exec, Tensor q, const KvCache& cache, const BatchLayout& layout,
                     const HeadShape& heads, Tensor out) {
  const Chunks chunks{layout, heads.q_heads / heads.kv_heads};
  exec.pool->for_each(chunks.total() * heads.kv_heads, [&](int64_t index) {
    HWY_DYNAMIC_DISPATCH(attend_here)(make_item(q, cache, chunks, heads, out, index));
  });
}

}  // namespace m2::ops::cpu
#endif  // HWY_ONCE
