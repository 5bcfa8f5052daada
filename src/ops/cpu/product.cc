#include "ops/cpu/product.h"

#include <algorithm>

#include "base/check.h"
#include "ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/product.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "ops/cpu/dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

// Columns of one block when weights are decoded to floats first: a panel of 16 rows (24 KiB) and a
// few tokens (9 KiB) stay in a first-level cache of 32 KiB or more.
constexpr int64_t kDecodedColumns = 384;
constexpr int64_t kPanelRows = 16;
constexpr int64_t kInputFloats = kMaxProductTokens * kDecodedColumns;

// Buffers of one product() call, on its stack.
struct Workspace {
  alignas(64) float input[kInputFloats];                              // [tokens, columns]
  alignas(64) float decoded[kPanelRows * kDecodedColumns];            // [rows, columns]
  alignas(64) float carry[kMaxProductRows * kMaxProductTokens * 16];  // [rows, tokens, 16]
};

// Columns [begin, begin + count) of the work, `padded` to a multiple of kStep.
struct Columns {
  int64_t begin;
  int64_t count;
  int64_t padded;
};

template <class X>
void scale_run(const X* from, int64_t count, float scale, float* to) {
  const VF factor = hn::Set(DF(), scale);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    hn::StoreU(hn::Mul(load_lanes(from + i), factor), DF(), to + i);
  for (; i < count; ++i) to[i] = one_float(from[i]) * scale;
}

// input[t, c] = x[t, c] * s(c), zeros behind. load_many() gives FP8 weights / 256; the scale makes
// up for it, exactly.
template <class X>
void prepare_input(const Product& work, const Columns& columns, float* input) {
  const float unit = work.weight_dtype == DType::f8_e4m3 ? 256.0f : 1.0f;
  for (int64_t t = 0; t < work.tokens; ++t) {
    const X* from = reinterpret_cast<const X*>(work.x[t]) + columns.begin;
    float* to = input + t * columns.padded;
    for (int64_t c = 0; c < columns.count;) {
      int64_t run = columns.count - c;
      float scale = unit;
      if (work.scale) {
        const int64_t column = work.first_column + columns.begin + c;
        run = std::min(run, kScaleBlock - column % kScaleBlock);
        scale *= work.scale[column / kScaleBlock];
      }
      scale_run(from + c, run, scale, to + c);
      c += run;
    }
    std::fill(to + columns.count, to + columns.padded, 0.0f);
  }
}

template <class W>
void decode_row(const W* from, int64_t count, float* to) {
  NanWatch<W> watch;
  int64_t c = 0;
  for (; c + kStep <= count; c += kStep) {
    watch.step(from + c);
    decode_step(from + c, to + c);
  }
  if (c < count) {
    W padded[kStep] = {};
    std::memcpy(padded, from + c, static_cast<size_t>(count - c) * sizeof(W));
    watch.step(padded);
    decode_step(padded, to + c);
  }
  if constexpr (std::is_same_v<W, F8E4M3>) {
    if (watch.seen()) [[unlikely]] {
      for (int64_t i = 0; i < count; ++i)
        if ((from[i].bits & 0x7f) == 0x7f) to[i] = std::numeric_limits<float>::quiet_NaN();
    }
  }
}

// Fetches rows of memory into the cache, a few lines at each step between register blocks: fetched
// in one go, most of it would be waited for. row_at(i) is the first byte of row i.
template <class RowAt>
class Prefetcher {
 public:
  Prefetcher(RowAt row_at, int64_t rows, int64_t row_bytes, int64_t steps)
      : row_at_(row_at),
        rows_(row_bytes > 0 ? rows : 0),
        lines_(row_bytes / kLine + 1),
        per_step_(lines_ * rows_ / steps + 1) {}

  void step() {
    for (int64_t i = 0; i < per_step_ && row_ < rows_; ++i) {
      __builtin_prefetch(row_at_(row_) + line_ * kLine, 0, 2);
      if (++line_ < lines_) continue;
      line_ = 0;
      ++row_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  RowAt row_at_;
  int64_t rows_, lines_, per_step_;
  int64_t row_ = 0, line_ = 0;
};

// Many tokens: decodes a panel of rows, then multiplies it with groups of tokens. Meanwhile the
// next panel's weights and the next columns' inputs are fetched.
template <class W>
void many_tokens(const Product& work, const Columns& columns, const Columns& next,
                 Workspace& space) {
  const int64_t groups = (work.tokens + kMaxBlockTokens - 1) / kMaxBlockTokens;
  const int64_t panels = (work.rows + kPanelRows - 1) / kPanelRows;
  const auto weight_at = [&](int64_t row, int64_t column) {
    return static_cast<const W*>(work.weight) + row * work.columns + column;
  };
  const int64_t input_begin = next.begin * size_of(work.x_dtype);
  Prefetcher inputs([&](int64_t t) { return work.x[t] + input_begin; }, work.tokens,
                    next.count * size_of(work.x_dtype), groups * panels);
  for (int64_t row = 0; row < work.rows; row += kPanelRows) {
    const int64_t rows = std::min(kPanelRows, work.rows - row);
    for (int64_t r = 0; r < rows; ++r)
      decode_row(weight_at(row + r, columns.begin), columns.count,
                 space.decoded + r * columns.padded);
    const bool last_panel = row + rows == work.rows;
    const int64_t next_row = last_panel ? 0 : row + rows;
    const Columns& next_columns = last_panel ? next : columns;
    Prefetcher weights(
        [&](int64_t r) {
          return reinterpret_cast<const std::byte*>(weight_at(next_row + r, next_columns.begin));
        },
        std::min(kPanelRows, work.rows - next_row),
        next_columns.count * static_cast<int64_t>(sizeof(W)), groups);
    for (int64_t group = 0; group < groups; ++group) {
      inputs.step();
      weights.step();
      const int64_t begin = group * work.tokens / groups;
      const int64_t tokens = (group + 1) * work.tokens / groups - begin;
      const DotBlock block{.w = space.decoded,
                           .w_stride = columns.padded,
                           .x = space.input + begin * columns.padded,
                           .x_stride = columns.padded,
                           .k = columns.padded,
                           .carry = space.carry + (row * work.tokens + begin) * 16,
                           .carry_stride = work.tokens * 16,
                           .first = columns.begin == 0,
                           .last = columns.begin + columns.count == work.columns,
                           .fetch = false,
                           .out = work.out + begin * work.out_stride + row,
                           .out_stride = work.out_stride};
      dot_rows<float>(block, rows, tokens);
    }
  }
}

// Few tokens: weights go from memory through registers.
template <class W>
void few_tokens(const Product& work, const Columns& columns, Workspace& space) {
  const DotBlock block{.w = static_cast<const W*>(work.weight) + columns.begin,
                       .w_stride = work.columns,
                       .x = space.input,
                       .x_stride = columns.padded,
                       .k = columns.count,
                       .carry = space.carry,
                       .carry_stride = work.tokens * 16,
                       .first = columns.begin == 0,
                       .last = columns.begin + columns.count == work.columns,
                       .fetch = true,
                       .out = work.out,
                       .out_stride = work.out_stride};
  dot_rows<W>(block, work.rows, work.tokens);
}

template <class W>
void product_of(const Product& work) {
  Workspace space;
  const bool few = work.tokens <= kMaxBlockTokens;
  const int64_t most = few ? kInputFloats / work.tokens / kStep * kStep : kDecodedColumns;
  const int64_t blocks = (work.columns + most - 1) / most;
  const int64_t width = ((work.columns + blocks - 1) / blocks + kStep - 1) / kStep * kStep;
  const auto columns_at = [&](int64_t begin) {
    const int64_t count = std::max<int64_t>(0, std::min(width, work.columns - begin));
    return Columns{begin, count, (count + kStep - 1) / kStep * kStep};
  };
  for (int64_t begin = 0; begin < work.columns; begin += width) {
    const Columns columns = columns_at(begin);
    if (work.x_dtype == DType::f32) {
      prepare_input<float>(work, columns, space.input);
    } else {
      prepare_input<BF16>(work, columns, space.input);
    }
    if (few) {
      few_tokens<W>(work, columns, space);
    } else {
      many_tokens<W>(work, columns, columns_at(begin + width), space);
    }
  }
}

void product_here(const Product& work) {
  switch (work.weight_dtype) {
    case DType::f8_e4m3:
      return product_of<F8E4M3>(work);
    case DType::bf16:
      return product_of<BF16>(work);
    case DType::f16:
      return product_of<F16>(work);
    case DType::f32:
      return product_of<float>(work);
    default:
      return;
  }
}

template <class To>
void store_row_as(const float* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_lanes(hn::LoadU(DF(), from + i), to + i);
  for (; i < count; ++i) store_one(from[i], to + i);
}

void store_row_here(const float* from, int64_t count, void* to, DType dtype) {
  if (dtype == DType::f32) return store_row_as(from, count, static_cast<float*>(to));
  store_row_as(from, count, static_cast<BF16*>(to));
}

template <class From>
void load_row_as(const From* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(load_lanes(from + i), DF(), to + i);
  for (; i < count; ++i) to[i] = to_float(from[i]);
}

void load_row_here(const void* from, DType dtype, int64_t count, float* to) {
  switch (dtype) {
    case DType::bf16:
      return load_row_as(static_cast<const BF16*>(from), count, to);
    case DType::f16:
      return load_row_as(static_cast<const F16*>(from), count, to);
    default:
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::ops::cpu {

HWY_EXPORT(product_here);
HWY_EXPORT(store_row_here);
HWY_EXPORT(load_row_here);

void product(const Product& work) {
  M2_CHECK(work.rows <= kMaxProductRows && work.tokens <= kMaxProductTokens && work.columns > 0);
  HWY_DYNAMIC_DISPATCH(product_here)(work);
}

void store_row(const float* from, int64_t count, void* to, DType dtype) {
  HWY_DYNAMIC_DISPATCH(store_row_here)(from, count, to, dtype);
}

void load_row(const void* from, DType dtype, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(load_row_here)(from, dtype, count, to);
}

}  // namespace m2::ops::cpu
#endif  // HWY_ONCE
