#include "ops/cpu/tiles.h"

#include "base/check.h"
#include "ops/cpu/product.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// GCC 12 says so of its own intrinsics' deliberately undefined operands (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

// Of functions alone: nothing that is compiled for these instructions may be shared with other
// files, as a template of the standard library would be.
#define M2_TILES \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16")))
#define M2_TILES_INLINE M2_TILES __attribute__((always_inline)) inline

namespace m2::ops::cpu {
namespace {

// Weights are decoded a panel at a time, 32 rows by a few steps, while the panel before is
// multiplied.
constexpr int64_t kPanelRows = 2 * kTileRows;
constexpr int64_t kMaxPanelSteps = 4;
constexpr int64_t kTileNumbers = kTileRows * 32;
constexpr int64_t kPanelNumbers = kPanelRows * kMaxPanelSteps * kTileStep;

// Which tile registers hold what: two by two accumulators, two tiles of weights, two of inputs.
// (The intrinsics take literal numbers only.)
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

M2_TILES void configure_tiles(int64_t width) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool weights = tile == 4 || tile == 5;
    config.row_bytes[tile] = static_cast<uint16_t>(weights ? 64 : 4 * width);
    config.rows[tile] = 16;
  }
  _tile_loadconfig(&config);
}

// FP8 weights are decoded to a 256th of what they are, and scales make up for it: exact both.
constexpr float kFp8Unit = 256;

// The two bytes of every e4m3 code / 256 as BF16, without its sign: tables of 128 bytes.
struct alignas(64) Fp8Table {
  uint8_t low[128];
  uint8_t high[128];
};

constexpr uint16_t bf16_of_code(int code) {
  constexpr int kBias = 127 - 8;  // of BF16, and the unit
  const int exponent = code >> 3, mantissa = code & 7;
  if (code == 0x7f) return 0x7fc0;
  if (exponent > 0) return static_cast<uint16_t>((exponent - 7 + kBias) << 7 | mantissa << 4);
  if (mantissa == 0) return 0;
  const int top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;  // mantissa * 2^-9
  return static_cast<uint16_t>((top - 9 + kBias) << 7 | (mantissa - (1 << top)) << (7 - top));
}

constexpr Fp8Table make_fp8_table() {
  Fp8Table table{};
  for (int code = 0; code < 128; ++code) {
    table.low[code] = static_cast<uint8_t>(bf16_of_code(code) & 0xff);
    table.high[code] = static_cast<uint8_t>(bf16_of_code(code) >> 8);
  }
  return table;
}

constexpr Fp8Table kFp8Table = make_fp8_table();

// A code s eeee mmm becomes the BF16 s 0111eeee mmm0000, its value / 256, by one shift and one
// logical operation; even columns go to the first tile, odd ones to the second.
M2_TILES_INLINE void decode_normal(__m512i codes, BF16* to) {
  constexpr int kAndOr = 0xea;  // (a & b) | c
  const __m512i kept = _mm512_set1_epi16(static_cast<int16_t>(0x87f0));
  const __m512i exponent = _mm512_set1_epi16(0x3800);
  const __m512i even = _mm512_maddubs_epi16(_mm512_set1_epi16(16), codes);
  const __m512i odd = _mm512_srai_epi16(codes, 4);
  _mm512_store_si512(to, _mm512_ternarylogic_epi32(even, kept, exponent, kAndOr));
  _mm512_store_si512(to + kTileNumbers, _mm512_ternarylogic_epi32(odd, kept, exponent, kAndOr));
}

// Zero, subnormal codes and NaN are not like that (nor are, to make the test cheaper, the next 7
// codes): a vector with any goes through the table.
M2_TILES_INLINE __mmask64 not_normal(__m512i codes) {
  const __m512i next = _mm512_sub_epi8(codes, _mm512_set1_epi8(-1));
  return _mm512_testn_epi8_mask(next, _mm512_set1_epi8(0x70));
}

M2_TILES void look_up_fp8(__m512i codes, BF16* to) {
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Table.low), codes,
                                               _mm512_load_si512(kFp8Table.low + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Table.high), codes,
                                                _mm512_load_si512(kFp8Table.high + 64));
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  const __m512i with_sign = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), kOrAnd);
  constexpr uint64_t kOdd = 0xaaaaaaaaaaaaaaaa;
  _mm512_store_si512(to, _mm512_mask_blend_epi8(kOdd, low, _mm512_slli_epi16(with_sign, 8)));
  _mm512_store_si512(to + kTileNumbers,
                     _mm512_mask_blend_epi8(kOdd, _mm512_srli_epi16(low, 8), with_sign));
}

// Where a panel lies in the weights.
struct PanelPlace {
  const std::byte* from;  // its first row's first column
  int64_t rows;           // <= kPanelRows
  int64_t first_step;
  int64_t steps;
  int64_t columns;  // <= steps * kTileStep; those missing are zeros
};

// Decodes one panel to BF16 tiles [2 tiles of rows, 2 * steps, 16, 32], some rows at a time, so
// that it can go on between the multiplications with the panel before. Rows that are not there
// repeat the last. Fetches the same columns of a later panel from memory.
class Decoder {
 public:
  Decoder(DType dtype, int64_t row_numbers, const PanelPlace& place, const PanelPlace& later,
          BF16* to)
      : place_(place),
        fp8_(dtype == DType::f8_e4m3),
        full_(place.columns == place.steps * kTileStep),
        row_bytes_(row_numbers * size_of(dtype)),
        rows_(place.rows > kTileRows ? kPanelRows : kTileRows),
        ahead_(reinterpret_cast<uintptr_t>(later.from) - reinterpret_cast<uintptr_t>(place.from)),
        to_(to) {}

  // Rows that are still to be decoded.
  int64_t left() const { return rows_ - row_; }

  M2_TILES void decode(int64_t rows) {
    const int64_t end = std::min(rows_, row_ + rows);
    if (row_ == end) return;
    if (fp8_ && full_ && place_.steps == 2) return decode_rows<true, 2>(end);
    if (fp8_ && full_ && place_.steps == 4) return decode_rows<true, 4>(end);
    if (!fp8_ && full_ && place_.steps == 2) return decode_rows<false, 2>(end);
    if (!fp8_ && full_ && place_.steps == 4) return decode_rows<false, 4>(end);
    fp8_ ? decode_rows<true, 0>(end) : decode_rows<false, 0>(end);
  }

 private:
  // kSteps full steps, or 0: as many as there are, the last perhaps not full.
  template <bool kFp8, int kSteps>
  M2_TILES_INLINE void decode_rows(int64_t end) {
    const int64_t steps = kSteps ? kSteps : place_.steps;
    const uintptr_t ahead = ahead_;
    for (; row_ < end; ++row_) {
      const std::byte* from = place_.from + std::min(row_, place_.rows - 1) * row_bytes_;
      BF16* to = to_ + row_ / kTileRows * 2 * steps * kTileNumbers + row_ % kTileRows * 32;
      int64_t columns = place_.columns;
#pragma GCC unroll 4
      for (int64_t s = 0; s < steps; ++s) {
        const uint64_t mask = kSteps ? ~uint64_t{0} : first_bits(columns);
        columns -= kTileStep;
        prefetch(from, ahead);
        if constexpr (kFp8) {
          decode_fp8(from, mask, to);
        } else {
          prefetch(from + 64, ahead);
          copy_bf16(from, mask, to);
        }
        from += kTileStep * (kFp8 ? 1 : 2);
        to += 2 * kTileNumbers;
      }
    }
  }

  M2_TILES_INLINE static void prefetch(const std::byte* from, uintptr_t ahead) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + ahead), 0,
                       2);
  }

  static uint64_t first_bits(int64_t count) {
    return count >= kTileStep ? ~uint64_t{0} : ~uint64_t{0} >> (kTileStep - count);
  }

  M2_TILES_INLINE static void decode_fp8(const std::byte* from, uint64_t mask, BF16* to) {
    const __m512i codes = ~mask ? _mm512_maskz_loadu_epi8(mask, from) : _mm512_loadu_si512(from);
    const __mmask64 others = not_normal(codes);
    _kortestz_mask64_u8(others, others) ? decode_normal(codes, to) : look_up_fp8(codes, to);
  }

  M2_TILES_INLINE static void copy_bf16(const std::byte* from, uint64_t mask, BF16* to) {
    _mm512_store_si512(to, _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), from));
    _mm512_store_si512(to + kTileNumbers,
                       _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask >> 32), from + 64));
  }

  const PanelPlace place_;
  const bool fp8_, full_;
  const int64_t row_bytes_;
  const int64_t rows_;  // of tiles, those that are not there included
  const uintptr_t ahead_;
  BF16* const to_;
  int64_t row_ = 0;
};

// The product of a panel with at most two tiles of tokens.
struct PanelProduct {
  const BF16* weights;  // the panel
  const BF16* x[2];     // each tile of tokens at the panel's first step
  float* sums[2][2];    // [tile of rows][tile of tokens]
  int64_t width;
  int64_t steps;
  int64_t block_steps;  // steps of a scale block
  const float* scales;  // the panel's blocks; null without scales
};

M2_TILES_INLINE void add_scaled(const float* from, float scale, int64_t width, float* sums) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t i = 0; i < width; ++i)
    _mm512_storeu_ps(sums + i * 16, _mm512_fmadd_ps(factor, _mm512_load_ps(from + i * 16),
                                                    _mm512_loadu_ps(sums + i * 16)));
}

// Compilers take a tile's load for something that reads nothing.
M2_TILES_INLINE void order_memory() {
  asm volatile("" ::: "memory");
}

// R tiles of rows, T tiles of tokens; decodes `decode` rows of the next panel at each tile.
template <int R, int T>
M2_TILES void multiply_panel(const PanelProduct& work, Decoder& next, int64_t decode) {
  alignas(64) float block[4][kTileRows * kTileTokens];
  const int64_t row_bytes = 4 * work.width;
  const int64_t x_tile = 32 * work.width;
  const BF16* weights = work.weights;
  const BF16* x0 = work.x[0];
  const BF16* x1 = work.x[1];
  for (int64_t begin = 0, index = 0; begin < work.steps; begin += work.block_steps, ++index) {
    const int64_t end = std::min(work.steps, begin + work.block_steps);
    order_memory();
    if (work.scales) {
      _tile_zero(0);
      if constexpr (T > 1) _tile_zero(1);
      if constexpr (R > 1) _tile_zero(2);
      if constexpr (R > 1 && T > 1) _tile_zero(3);
    } else {
      _tile_loadd(0, work.sums[0][0], row_bytes);
      if constexpr (T > 1) _tile_loadd(1, work.sums[0][1], row_bytes);
      if constexpr (R > 1) _tile_loadd(2, work.sums[1][0], row_bytes);
      if constexpr (R > 1 && T > 1) _tile_loadd(3, work.sums[1][1], row_bytes);
    }
    for (int64_t tile = 2 * begin; tile < 2 * end; ++tile) {
      _tile_loadd(4, weights, 64);
      _tile_loadd(6, x0, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (R > 1) {
        _tile_loadd(5, weights + 2 * work.steps * kTileNumbers, 64);
        _tile_dpbf16ps(2, 5, 6);
      }
      if constexpr (T > 1) {
        _tile_loadd(7, x1, row_bytes);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (R > 1) _tile_dpbf16ps(3, 5, 7);
      }
      weights += kTileNumbers;
      x0 += x_tile;
      x1 += x_tile;
      next.decode(decode);
    }
    if (work.scales) {
      _tile_stored(0, block[0], row_bytes);
      if constexpr (T > 1) _tile_stored(1, block[1], row_bytes);
      if constexpr (R > 1) _tile_stored(2, block[2], row_bytes);
      if constexpr (R > 1 && T > 1) _tile_stored(3, block[3], row_bytes);
      order_memory();
      const float scale = work.scales[index] * kFp8Unit;
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t)
          add_scaled(block[2 * r + t], scale, work.width, work.sums[r][t]);
    } else {
      _tile_stored(0, work.sums[0][0], row_bytes);
      if constexpr (T > 1) _tile_stored(1, work.sums[0][1], row_bytes);
      if constexpr (R > 1) _tile_stored(2, work.sums[1][0], row_bytes);
      if constexpr (R > 1 && T > 1) _tile_stored(3, work.sums[1][1], row_bytes);
    }
    order_memory();
  }
}

// The panels of one product in the order they are multiplied. Few tokens: along the rows, as memory
// likes it. Many: down the columns, so that the inputs stay in the cache.
class Panels {
 public:
  Panels(const TileProduct& work, bool few)
      : work_(work),
        few_(few),
        steps_(few ? 2 : kMaxPanelSteps),
        lead_(work.columns.lead_steps()),
        row_panels_((work.rows + kPanelRows - 1) / kPanelRows),
        column_panels_((lead_ > 0) + (work.columns.steps() - lead_ + steps_ - 1) / steps_) {}

  int64_t count() const { return row_panels_ * column_panels_; }
  int64_t first_row(int64_t panel) const {
    return (few_ ? panel / column_panels_ : panel % row_panels_) * kPanelRows;
  }
  // Panels behind the last: with few tokens in the rows that follow in memory, else the last.
  PanelPlace at(int64_t panel) const {
    if (!few_) panel = std::min(panel, count() - 1);
    const int64_t row = first_row(panel);
    const int64_t column = few_ ? panel % column_panels_ : panel / row_panels_;
    // The columns before the first border of a scale block are a panel of their own.
    int64_t begin = 0, end = lead_;
    if (lead_ == 0 || column > 0) {
      begin = lead_ + (column - (lead_ > 0)) * steps_;
      end = std::min(work_.columns.steps(), begin + steps_);
    }
    const auto* weight = static_cast<const std::byte*>(work_.weight);
    const int64_t index = row * work_.columns.columns + work_.columns.at(begin).begin;
    const TileColumns::Step last = work_.columns.at(end - 1);
    return {weight + index * size_of(work_.weight_dtype), std::min(kPanelRows, work_.rows - row),
            begin, end - begin, last.begin + last.count - work_.columns.at(begin).begin};
  }

 private:
  const TileProduct& work_;
  const bool few_;
  const int64_t steps_, lead_, row_panels_, column_panels_;
};

// Index of the scale block, counted from the slice's first, that a step lies in.
int64_t scale_block(const TileColumns& columns, int64_t step) {
  const int64_t lead = columns.lead_steps();
  return step < lead ? 0 : (lead > 0) + (step - lead) / 2;
}

M2_TILES void multiply(const TileProduct& work, const Panels& panels, int64_t panel,
                       const BF16* weights, Decoder& next) {
  const PanelPlace place = panels.at(panel);
  const int64_t width = work.width;
  const int64_t tiles = work.tiles;
  const int64_t row_tiles = (work.rows + kTileRows - 1) / kTileRows;
  const int64_t first_row_tile = panels.first_row(panel) / kTileRows;
  const bool two_rows = place.rows > kTileRows;
  const int64_t turns = 2 * place.steps * ((tiles + 1) / 2);
  const int64_t decode = (next.left() + turns - 1) / turns;
  for (int64_t tile = 0; tile < tiles; tile += 2) {
    PanelProduct part{};
    part.weights = weights;
    part.width = width;
    part.steps = place.steps;
    part.block_steps = work.scale ? 2 : place.steps;
    part.scales = work.scale ? work.scale + scale_block(work.columns, place.first_step) : nullptr;
    const bool two_tiles = tile + 1 < tiles;
    for (int64_t t = 0; t < 2; ++t) {
      const int64_t at = tile + (two_tiles ? t : 0);
      part.x[t] = work.x + (at * work.columns.steps() + place.first_step) * kTileStep * width;
      for (int64_t r = 0; r < 2; ++r)
        part.sums[r][t] =
            work.sums + (at * row_tiles + first_row_tile + (two_rows ? r : 0)) * kTileRows * width;
    }
    if (two_rows) {
      two_tiles ? multiply_panel<2, 2>(part, next, decode)
                : multiply_panel<2, 1>(part, next, decode);
    } else {
      two_tiles ? multiply_panel<1, 2>(part, next, decode)
                : multiply_panel<1, 1>(part, next, decode);
    }
  }
  next.decode(next.left());
}

// Rows and columns of 16 by 16 words of 32 bits, exchanged.
M2_TILES_INLINE void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
  }
}

// 32 numbers, `mask` of them there, as BF16.
M2_TILES_INLINE __m512i load_half_step(const std::byte* from, DType dtype, uint32_t mask) {
  if (dtype == DType::bf16) return _mm512_maskz_loadu_epi16(mask, from);
  const __m512 first = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  const __m512 second = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + 64);
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

M2_TILES_INLINE void store_tile(const BF16* rows, int64_t width, BF16* to) {
  if (width == 1) return _mm512_storeu_si512(to, _mm512_load_si512(rows));
  __m512i r[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_si512(rows + i * 32);
  transpose(r);
  const auto mask = static_cast<__mmask16>((1u << width) - 1);
  for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(to + i * 2 * width, mask, r[i]);
}

M2_TILES void pack_tokens_here(const std::byte* const* x, DType x_dtype, int64_t tokens,
                               int64_t width, const TileColumns& columns, BF16* to) {
  alignas(64) BF16 first[kTileTokens * 32] = {};
  alignas(64) BF16 second[kTileTokens * 32] = {};
  const int64_t size = size_of(x_dtype);
  alignas(64) uint16_t places[2][32];
  for (int i = 0; i < 32; ++i) {
    places[0][i] = static_cast<uint16_t>(2 * i);
    places[1][i] = static_cast<uint16_t>(2 * i + 1);
  }
  const __m512i even = _mm512_load_si512(places[0]);
  const __m512i odd = _mm512_load_si512(places[1]);
  for (int64_t s = 0; s < columns.steps(); ++s) {
    const TileColumns::Step step = columns.at(s);
    const uint64_t mask = ~uint64_t{0} >> (kTileStep - step.count);
    for (int64_t t = 0; t < tokens; ++t) {
      const std::byte* from = x[t] + step.begin * size;
      __m512i low = load_half_step(from, x_dtype, static_cast<uint32_t>(mask));
      __m512i high = load_half_step(from + 32 * size, x_dtype, static_cast<uint32_t>(mask >> 32));
      if (columns.scaled) {
        const __m512i dealt = _mm512_permutex2var_epi16(low, even, high);
        high = _mm512_permutex2var_epi16(low, odd, high);
        low = dealt;
      }
      _mm512_store_si512(first + t * 32, low);
      _mm512_store_si512(second + t * 32, high);
    }
    store_tile(first, width, to);
    store_tile(second, width, to + 32 * width);
    to += kTileStep * width;
  }
}

// Decoding, where weights come from memory once and all else must hide behind them: FP8, one tile
// of tokens, whole tiles of rows and whole scale blocks. Panels are 32 rows by one scale block.
constexpr int64_t kBlockColumns = 128;

bool can_stream(const TileProduct& work) {
  return work.weight_dtype == DType::f8_e4m3 && work.scale && work.tiles == 1 &&
         work.rows % kPanelRows == 0 && work.columns.lead == 0 &&
         work.columns.columns % kBlockColumns == 0;
}

// Asks for the weights one panel's rows ahead, line by line as they lie in memory, and a second
// time kAgain bytes before: one request alone leaves the memory idle a fifth of the time.
class Fetcher {
 public:
  explicit Fetcher(const TileProduct& work)
      : end_(reinterpret_cast<uintptr_t>(work.weight) +
             static_cast<uintptr_t>(work.rows * work.columns.columns)),
        then_(work.then ? reinterpret_cast<uintptr_t>(work.then) : end_) {
    skip_to(reinterpret_cast<uintptr_t>(work.weight) +
            static_cast<uintptr_t>(kPanelRows * work.columns.columns));
  }

  [[gnu::always_inline]] void two_lines() {
    fetch(at_);
    fetch(at_ + 64);
    fetch(at_ + kAgain);
    fetch(at_ + kAgain + 64);
    skip_to(at_ + 128);
  }

 private:
  static constexpr uintptr_t kAgain = 2048;
  [[gnu::always_inline]] static void fetch(uintptr_t line) {
    __builtin_prefetch(reinterpret_cast<const void*>(line), 0, 2);
  }
  [[gnu::always_inline]] void skip_to(uintptr_t line) { at_ = line == end_ ? then_ : line; }
  const uintptr_t end_, then_;
  uintptr_t at_;
};

// Rows of one scale block into its four tiles: even and odd columns of each half.
template <int kRows>
M2_TILES_INLINE void decode_block(const std::byte* from, int64_t row_bytes, Fetcher& fetch,
                                  BF16* to) {
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
    const __m512i first = _mm512_loadu_si512(from);
    const __m512i second = _mm512_loadu_si512(from + 64);
    fetch.two_lines();
    if (_kortestz_mask64_u8(not_normal(first), not_normal(second))) [[likely]] {
      decode_normal(first, to);
      decode_normal(second, to + 2 * kTileNumbers);
    } else {
      look_up_fp8(first, to);
      look_up_fp8(second, to + 2 * kTileNumbers);
    }
    from += row_bytes;
    to += 32;
  }
}

// Where a panel's sums over one scale block go.
struct BlockSums {
  float* sums;  // [2 tiles of rows, 16, width]
  float scale;
};

M2_TILES_INLINE void add_block(const float (&block)[2][kTileRows * kTileTokens],
                               const BlockSums& to, int64_t width) {
  add_scaled(block[0], to.scale, width, to.sums);
  add_scaled(block[1], to.scale, width, to.sums + kTileRows * width);
}

M2_TILES void stream_product(const TileProduct& work) {
  constexpr int64_t kRowTile = 4 * kTileNumbers;  // of a panel
  alignas(64) BF16 weights[2][kPanelRows * kBlockColumns];
  alignas(64) float block[2][2][kTileRows * kTileTokens];
  const int64_t row_bytes = work.columns.columns;
  const int64_t blocks = row_bytes / kBlockColumns;
  const int64_t panels = work.rows / kPanelRows * blocks;
  const int64_t x_bytes = 4 * work.width, x_tile = 32 * work.width;
  const auto* rows = static_cast<const std::byte*>(work.weight);
  float* sums = work.sums;
  BlockSums before{};
  Fetcher fetch(work);
  configure_tiles(work.width);
  for (int64_t row = 0; row < kPanelRows; row += 8)
    decode_block<8>(rows + row * row_bytes, row_bytes, fetch,
                    weights[0] + row / kTileRows * kRowTile + row % kTileRows * 32);
  for (int64_t panel = 0, column = 0; panel < panels; ++panel) {
    const BF16* now = weights[panel & 1];
    BF16* next = weights[~panel & 1];
    const bool row_ends = column + 1 == blocks;
    const bool last = panel + 1 == panels;
    const std::byte* from =
        row_ends ? rows + kPanelRows * row_bytes : rows + (column + 1) * kBlockColumns;
    const BF16* x = work.x + column * 4 * x_tile;
    order_memory();
    _tile_zero(0);
    _tile_zero(2);
#pragma GCC unroll 4
    for (int tile = 0; tile < 4; ++tile) {
      _tile_loadd(6, x + tile * x_tile, x_bytes);
      _tile_loadd(4, now + tile * kTileNumbers, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (!last)
        decode_block<4>(from + 4 * tile * row_bytes, row_bytes, fetch, next + 4 * tile * 32);
      _tile_loadd(5, now + kRowTile + tile * kTileNumbers, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (!last)
        decode_block<4>(from + (kTileRows + 4 * tile) * row_bytes, row_bytes, fetch,
                        next + kRowTile + 4 * tile * 32);
    }
    _tile_stored(0, block[panel & 1][0], x_bytes);
    _tile_stored(2, block[panel & 1][1], x_bytes);
    order_memory();
    // The sums of the panel before: those just stored cannot be read at once.
    if (panel > 0) add_block(block[~panel & 1], before, work.width);
    before = {sums, work.scale[column] * kFp8Unit};
    column = row_ends ? 0 : column + 1;
    if (!row_ends) continue;
    rows += kPanelRows * row_bytes;
    sums += 2 * kTileRows * work.width;
  }
  add_block(block[~panels & 1], before, work.width);
  _tile_release();
}

M2_TILES void tile_product_here(const TileProduct& work) {
  alignas(64) BF16 weights[2][kPanelNumbers];
  const int64_t row_tiles = (work.rows + kTileRows - 1) / kTileRows;
  std::fill_n(work.sums, work.tiles * row_tiles * kTileRows * work.width, 0.0f);
  if (can_stream(work)) return stream_product(work);
  const bool few = work.tiles <= 2;
  const Panels panels(work, few);
  // So many panels ahead of the one being decoded, memory is asked for.
  const int64_t ahead = few ? 8 : 1;
  configure_tiles(work.width);
  const auto decoder = [&](int64_t panel) {
    return Decoder(work.weight_dtype, work.columns.columns, panels.at(panel),
                   panels.at(panel + ahead), weights[panel & 1]);
  };
  Decoder first = decoder(0);
  first.decode(first.left());
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    Decoder next = panel + 1 < panels.count() ? decoder(panel + 1) : Decoder(first);
    multiply(work, panels, panel, weights[panel & 1], next);
  }
  _tile_release();
}

M2_TILES void transpose_sums_here(const float* from, int64_t rows, int64_t width, float* to,
                                  int64_t to_stride) {
  const auto mask = static_cast<__mmask16>((1u << width) - 1);
  for (int64_t row = 0; row < rows; row += kTileRows) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_maskz_loadu_epi32(mask, from + (row + i) * width);
    transpose(r);
    alignas(64) float columns[16][16];
    for (int i = 0; i < 16; ++i) _mm512_store_si512(columns[i], r[i]);
    for (int64_t t = 0; t < width; ++t)
      _mm512_storeu_ps(to + t * to_stride + row, _mm512_load_ps(columns[t]));
  }
}

M2_TILES void pack_sums_here(const float* from, int64_t rows, int64_t width,
                             const TileColumns& columns, int64_t first, BF16* to) {
  const auto mask = static_cast<__mmask16>((1u << width) - 1);
  alignas(64) uint16_t order[32];
  for (int i = 0; i < 32; ++i) order[i] = static_cast<uint16_t>(i / 2 + (i & 1) * 16);
  const __m512i pairs = _mm512_load_si512(order);
  int64_t s = 0;
  while (columns.at(s).begin < first) ++s;
  M2_CHECK(columns.at(s).begin == first);
  for (; s < columns.steps() && columns.at(s).begin < first + rows; ++s) {
    const TileColumns::Step step = columns.at(s);
    M2_CHECK(step.begin + step.count <= first + rows);
    BF16* tiles = to + s * kTileStep * width;
    for (int64_t place = 0; place < 32; ++place) {
      // FP8 has even columns in the first tile and odd ones in the second.
      const int64_t first_column = columns.scaled ? place % 16 * 4 + place / 16 : 2 * place;
      const int64_t second_column = first_column + (columns.scaled ? 2 : 1);
      const float* row = from + (step.begin - first) * width;
      const __m512 low = _mm512_maskz_loadu_ps(first_column < step.count ? mask : __mmask16{0},
                                               row + first_column * width);
      const __m512 high = _mm512_maskz_loadu_ps(second_column < step.count ? mask : __mmask16{0},
                                                row + second_column * width);
      const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      _mm512_mask_storeu_epi32(tiles + place * 2 * width, mask,
                               _mm512_permutexvar_epi16(pairs, both));
    }
  }
}

bool processor_has_tiles() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vbmi"))
    return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr uint32_t kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  if (!(d & kAmxBf16) || !(d & kAmxTile)) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
  constexpr uint32_t kAvx512Bf16 = 1u << 5;
  return (a & kAvx512Bf16) != 0;
}

// Linux gives a process the tiles' registers, 8 KiB a thread, only when it asks.
bool kernel_grants_tiles() {
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool tiles_supported() {
  static const bool supported = processor_has_tiles() && kernel_grants_tiles();
  return supported;
}

void pack_tokens(const std::byte* const* x, DType x_dtype, int64_t tokens, int64_t width,
                 const TileColumns& columns, BF16* to) {
  pack_tokens_here(x, x_dtype, tokens, width, columns, to);
}

void tile_product(const TileProduct& work) {
  M2_CHECK(work.rows > 0 && work.rows <= kMaxProductRows && work.tiles > 0 &&
           work.tiles <= kMaxProductTiles && work.columns.columns > 0);
  tile_product_here(work);
}

void transpose_sums(const float* from, int64_t rows, int64_t width, float* to, int64_t to_stride) {
  transpose_sums_here(from, rows, width, to, to_stride);
}

void pack_sums(const float* from, int64_t rows, int64_t width, const TileColumns& columns,
               int64_t first, BF16* to) {
  pack_sums_here(from, rows, width, columns, first, to);
}

}  // namespace m2::ops::cpu

#else  // another architecture

namespace m2::ops::cpu {

bool tiles_supported() {
  return false;
}

void pack_tokens(const std::byte* const*, DType, int64_t, int64_t, const TileColumns&, BF16*) {
  M2_CHECK(false, "no tiles here");
}
void tile_product(const TileProduct&) {
  M2_CHECK(false, "no tiles here");
}
void transpose_sums(const float*, int64_t, int64_t, float*, int64_t) {
  M2_CHECK(false, "no tiles here");
}
void pack_sums(const float*, int64_t, int64_t, const TileColumns&, int64_t, BF16*) {
  M2_CHECK(false, "no tiles here");
}

}  // namespace m2::ops::cpu

#endif
