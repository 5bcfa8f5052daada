// The register-blocked product of a few rows with a few tokens, in the canonical order of
// vector-inl.h. Included once per Highway target.
#if defined(M2_OPS_CPU_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef M2_OPS_CPU_DOT_INL_H_
#undef M2_OPS_CPU_DOT_INL_H_
#else
#define M2_OPS_CPU_DOT_INL_H_
#endif

#include <limits>

#include "ops/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

// Accumulators that fit in registers beside the operands, in vectors: AVX-512 and NEON have 32
// registers, AVX2 and SSE 16.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif
// Most tokens of one register block, and the rows it takes with `tokens` of them.
constexpr int kMaxBlockTokens = kAccumulators == 12 ? 3 : (kParts == 1 ? 6 : 3);
constexpr int block_rows(int tokens) {
  const int most = kAccumulators / kParts / tokens;
  return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// One call of dot_block: out[t * out_stride + r] = (carry[r, t] +) sum over k of w[r, k] * x[t, k].
struct DotBlock {
  const void* w;     // rows of k numbers, w_stride apart
  int64_t w_stride;  // elements
  const float* x;    // tokens of k numbers, padded with zeros to a multiple of kStep
  int64_t x_stride;
  int64_t k;
  float* carry;  // [r, t, 16] lanes between blocks of k; carry_stride floats from row to row
  int64_t carry_stride;
  bool first, last;  // whether this is the first or last block of k
  bool fetch;        // whether the rows behind these are read next: fetches them
  float* out;
  int64_t out_stride;
};

template <class W, int R, int T>
HWY_INLINE void dot_step(const W* w, int64_t w_stride, const float* x, int64_t x_stride,
                         VF (&acc)[R][T][kParts], NanWatch<W>& watch) {
  constexpr int kChunk = kMany<W> < 16 ? 16 : kMany<W>;  // numbers of a row decoded at once
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) watch.step(w + r * w_stride);
#pragma GCC unroll 4
  for (int k = 0; k < kStep; k += kChunk) {
    VF weights[R][kChunk / kLanes];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kChunk; i += kMany<W>)
        load_many(w + r * w_stride + k + i, weights[r] + i / kLanes);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kChunk / kLanes; ++v) {
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const VF input = hn::LoadU(DF(), x + t * x_stride + k + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          acc[r][t][v % kParts] = hn::MulAdd(weights[r][v], input, acc[r][t][v % kParts]);
      }
    }
  }
}

inline bool has_nan_code(const F8E4M3* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if ((p[i].bits & 0x7f) == 0x7f) return true;
  return false;
}

// Makes the sums of rows that hold a NaN code NaN; rare, so that the loop above only watches.
template <class W>
HWY_NOINLINE void poison_rows(const DotBlock& block, int rows, int tokens) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int r = 0; r < rows; ++r) {
    if (!has_nan_code(static_cast<const W*>(block.w) + r * block.w_stride, block.k)) continue;
    for (int t = 0; t < tokens; ++t) {
      if (block.last) {
        block.out[t * block.out_stride + r] = nan;
      } else {
        for (int i = 0; i < 16; ++i) block.carry[r * block.carry_stride + t * 16 + i] = nan;
      }
    }
  }
}

template <int R, int T>
HWY_INLINE void store_sums(const VF (&acc)[R][T][kParts], float* out, int64_t out_stride) {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    float* to = out + t * out_stride;
    if constexpr (R % 4 == 0) {
#pragma GCC unroll 2
      for (int r = 0; r < R; r += 4)
        hn::StoreU(sum_four(to_four(acc[r][t]), to_four(acc[r + 1][t]), to_four(acc[r + 2][t]),
                            to_four(acc[r + 3][t])),
                   D4(), to + r);
    } else {
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) to[r] = sum_lanes(acc[r][t]);
    }
  }
}

template <class W, int R, int T>
void dot_block(const DotBlock& block) {
  const W* w = static_cast<const W*>(block.w);
  const float* x = block.x;
  VF acc[R][T][kParts];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
      for (int p = 0; p < kParts; ++p)
        acc[r][t][p] =
            block.first
                ? hn::Zero(DF())
                : hn::LoadU(DF(), block.carry + r * block.carry_stride + t * 16 + p * kLanes);
  // Decoded weights are in the cache already.
  const bool fetch = !std::is_same_v<W, float> && block.fetch;
  NanWatch<W> watch;
  int64_t k = 0;
  for (; k + kStep <= block.k; k += kStep) {
    // A row is too short for the processor to foresee the next: fetch the same place of the next
    // block's rows.
    if (fetch) {
#pragma GCC unroll 8
      for (int r = R; r < 2 * R; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < kStep; i += 64 / static_cast<int>(sizeof(W)))
          __builtin_prefetch(w + r * block.w_stride + k + i, 0, 2);
    }
    dot_step<W, R, T>(w + k, block.w_stride, x + k, block.x_stride, acc, watch);
  }
  if (k < block.k) {
    W padded[R][kStep] = {};
    for (int r = 0; r < R; ++r)
      std::memcpy(padded[r], w + r * block.w_stride + k,
                  static_cast<size_t>(block.k - k) * sizeof(W));
    dot_step<W, R, T>(padded[0], kStep, x + k, block.x_stride, acc, watch);
  }
  if (block.last) {
    store_sums<R, T>(acc, block.out, block.out_stride);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p)
          hn::StoreU(acc[r][t][p], DF(),
                     block.carry + r * block.carry_stride + t * 16 + p * kLanes);
  }
  if constexpr (std::is_same_v<W, F8E4M3>) {
    if (watch.seen()) [[unlikely]]
      poison_rows<W>(block, R, T);
  }
}

// All `rows` of a block with its `tokens` <= kMaxBlockTokens.
template <class W, int T>
void dot_rows_of(DotBlock block, int64_t rows) {
  constexpr int kRows = block_rows(T);
  const auto advance = [&block](int64_t count) {
    block.w = static_cast<const W*>(block.w) + count * block.w_stride;
    block.carry += count * block.carry_stride;
    block.out += count;
  };
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) {
    dot_block<W, kRows, T>(block);
    advance(kRows);
  }
  for (; r < rows; ++r) {
    dot_block<W, 1, T>(block);
    advance(1);
  }
}

template <class W>
void dot_rows(const DotBlock& block, int64_t rows, int64_t tokens) {
  switch (tokens) {
    case 1:
      return dot_rows_of<W, 1>(block, rows);
    case 2:
      return dot_rows_of<W, 2>(block, rows);
    case 3:
      return dot_rows_of<W, 3>(block, rows);
    default:
      break;
  }
  if constexpr (kMaxBlockTokens > 3) {
    switch (tokens) {
      case 4:
        return dot_rows_of<W, 4>(block, rows);
      case 5:
        return dot_rows_of<W, 5>(block, rows);
      default:
        return dot_rows_of<W, 6>(block, rows);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
