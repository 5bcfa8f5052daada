#include "app/doctor/operations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "app/doctor/reference.h"
#include "ops/attention.h"
#include "ops/embed.h"
#include "ops/experts.h"
#include "ops/linear.h"
#include "ops/noise.h"
#include "ops/norm.h"
#include "ops/requantise.h"
#include "ops/route.h"
#include "ops/sample.h"
#include "ops/unpack_step.h"

namespace m2::app::doctor {
namespace {

using reference::Matrix;

constexpr float kEpsilon = 1e-6f, kTheta = 5e6f;
constexpr ops::HeadShape kHeads{12, 2, 128, 64};
constexpr int64_t kPage = 16;

// Limits: the difference's norm over the expected numbers' norm, and each single difference over
// their root mean square.
struct Limits {
  double norm = 0, single = 0;
};
constexpr Limits kSame{};
constexpr Limits kFp32{1e-5, 1e-3};         // FP32 sums, FP32 output
constexpr Limits kBf16{4e-3, 5e-2};         // one rounding to BF16
constexpr Limits kTwice{6e-3, 8e-2};        // BF16 in between as well
constexpr Limits kTwoProducts{6e-3, 0.15};  // and two products, whose sums may cancel
constexpr Limits kF8Between{1.2e-2, 0.3};   // FP8 in between: a last bit moves a whole step of it

// The larger of the two; NaN is larger than all.
void raise(double& most, double now) {
  if (std::isnan(now) || now > most) most = now;
}

std::vector<int32_t> shuffled(int32_t count, std::mt19937& random) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  std::ranges::shuffle(out, random);
  return out;
}

Numbers row(const Numbers& x, int64_t width, int64_t r, int64_t begin, int64_t count) {
  const auto from = x.begin() + r * width + begin;
  return {from, from + count};
}

class Checks {
 public:
  Checks(const Exec& exec, Lab::Spoil spoil)
      : lab_(exec, std::move(spoil)),
        exec_(exec),
        type_(activation_dtype(exec.device)),
        rounded_(type_ == DType::bf16),
        fp8_inputs_(ops::wants_quantised(exec.device)) {}

  std::vector<Finding> all() {
    for (void (Checks::*check)() :
         {&Checks::rows, &Checks::norms, &Checks::quantising, &Checks::requantising,
          &Checks::angles, &Checks::qk, &Checks::routing, &Checks::products, &Checks::all_experts,
          &Checks::attention, &Checks::unpacking, &Checks::sampling}) {
      (this->*check)();
      lab_.clear();
    }
    return std::move(findings_);
  }

 private:
  // One more case of an operation.
  void expect(const std::string& name, const Numbers& got, const Numbers& expected,
              const Limits& limits) {
    const auto known = std::ranges::find(findings_, name, &Finding::name);
    Finding& finding = known == findings_.end() ? findings_.emplace_back() : *known;
    finding.name = name;
    finding.numbers += std::ssize(expected);
    const double worst = std::numeric_limits<double>::infinity();
    if (got.size() != expected.size()) {
      finding.off = finding.of_allowed = worst;
      return;
    }
    double squares = 0, difference = 0, single = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double d = std::fabs(got[i] - expected[i]);
      difference += d * d;
      squares += expected[i] * expected[i];
      raise(single, d);
    }
    const double rms = std::sqrt(squares / static_cast<double>(got.size()));
    const double off = difference == 0 ? 0 : std::sqrt(difference / squares);
    const auto share = [&](double value, double limit) {
      return value == 0 ? 0 : limit == 0 ? worst : value / limit;
    };
    raise(finding.of_allowed, share(off, limits.norm));
    raise(finding.of_allowed, share(single, limits.single * rms));
    raise(finding.off, off);
  }
  Limits limits() const { return rounded_ ? kBf16 : kFp32; }
  Numbers activations(int64_t rows, int64_t columns, double size = 1) {
    return lab_.numbers(rows * columns, DType::bf16, size);
  }
  static Numbers as_numbers(const std::vector<int32_t>& values) {
    return {values.begin(), values.end()};
  }

  void rows();
  void norms();
  void quantising();
  void requantising();
  void angles();
  void qk();
  void routing();
  void products();
  void product(DType dtype, int64_t tokens, int64_t rows, int64_t columns, int64_t first_row,
               int64_t first_column);
  void all_experts();
  void experts(DType dtype, int64_t tokens, int64_t held, int64_t hidden, int64_t inner,
               int64_t first_inner);
  void attention();
  struct Sequence {
    int32_t length, context;
  };
  void attention(DType cache, const std::vector<Sequence>& sequences);
  void unpacking();
  void sampling();

  Matrix matrix(DType dtype, int64_t rows, int64_t columns, int64_t first_row,
                int64_t first_column);

  Lab lab_;
  const Exec exec_;
  const DType type_;
  const bool rounded_, fp8_inputs_;
  std::vector<Finding> findings_;
};

// ---- rows

void Checks::rows() {
  constexpr int64_t kWidth = 260, kTable = 40;
  const Numbers table = activations(kTable, kWidth);
  const std::vector<int32_t> ids{7, 46, 3, 47, 6, 20};  // two outside
  const Tensor out = lab_.blank(type_, {std::ssize(ids), kWidth});
  ops::embed(exec_, lab_.put(ids, {std::ssize(ids)}),
             lab_.put(table, DType::bf16, {kTable, kWidth}), 7, out);
  Numbers expected;
  for (const int32_t id : ids) {
    const bool there = id >= 7 && id < 7 + kTable;
    const Numbers one = there ? row(table, kWidth, id - 7, 0, kWidth) : Numbers(kWidth, 0.0);
    expected.insert(expected.end(), one.begin(), one.end());
  }
  expect("embed", lab_.fetch(out), expected, kSame);

  const Tensor x = lab_.put(table, type_, {kTable, kWidth});
  const std::vector<int32_t> chosen{39, 0, 17};
  const Tensor gathered = lab_.blank(type_, {3, kWidth});
  ops::gather_rows(exec_, x, lab_.put(chosen, {3}), gathered);
  expected.clear();
  for (const int32_t r : chosen) {
    const Numbers one = row(table, kWidth, r, 0, kWidth);
    expected.insert(expected.end(), one.begin(), one.end());
  }
  expect("gather_rows", lab_.fetch(gathered), expected, kSame);

  const std::vector<int32_t> added{5, -1, 8, -1, -1, -1, 1, 2, 3};
  const Tensor sums = lab_.blank(type_, {3, kWidth});
  ops::sum_rows(exec_, x, lab_.put(added, {3, 3}), sums);
  expected.assign(3 * kWidth, 0.0);
  for (size_t i = 0; i < added.size(); ++i)
    for (int64_t c = 0; added[i] >= 0 && c < kWidth; ++c)
      expected[i / 3 * kWidth + static_cast<size_t>(c)] +=
          table[static_cast<size_t>(added[i] * kWidth + c)];
  expect("sum_rows", lab_.fetch(sums), expected, limits());
}

void Checks::norms() {
  for (const int64_t width : {256, 1536, 200})
    for (const int64_t tokens : {1, 5}) {
      const Numbers x = activations(tokens, width, 3), delta = activations(tokens, width);
      const Numbers weight = lab_.numbers(width, DType::bf16);
      const Tensor weights = lab_.put(weight, DType::bf16, {width});
      const Tensor residual = lab_.put(x, type_, {tokens, width});
      const Tensor out = lab_.blank(type_, {tokens, width});
      ops::Quantised quantised;
      if (fp8_inputs_)
        quantised = {lab_.blank(DType::f8_e4m3, {tokens, width}),
                     lab_.blank(DType::f32, {tokens, (width + 127) / 128})};
      ops::rms_norm(exec_, residual, weights, kEpsilon, out, quantised);
      expect("rms_norm", lab_.fetch(out), reference::rms_norm(x, weight, kEpsilon), limits());
      if (fp8_inputs_) {
        const auto again = reference::quantise(lab_.fetch(out), width, 128, false);
        expect("rms_norm quantised", lab_.fetch_bytes(quantised.values), again.codes, kSame);
        expect("rms_norm quantised", lab_.fetch(quantised.scales), again.scales, kSame);
      }
      ops::add_rms_norm(exec_, residual, lab_.put(delta, type_, {tokens, width}), weights, kEpsilon,
                        out, quantised);
      Numbers sum = x;
      for (size_t i = 0; i < sum.size(); ++i) {
        const auto added = static_cast<float>(sum[i] + delta[i]);
        sum[i] = static_cast<double>(rounded_ ? to_float(to_bf16(added)) : added);
      }
      expect("add_rms_norm", lab_.fetch(residual), sum, kSame);
      expect("add_rms_norm", lab_.fetch(out), reference::rms_norm(sum, weight, kEpsilon), limits());
    }
}

void Checks::quantising() {
  for (const bool powers : {false, true})
    for (const int64_t columns : {4, 128, 132, 1536}) {
      const Numbers x = activations(5, columns, powers ? 30 : 1);
      const ops::Quantised out{lab_.blank(DType::f8_e4m3, {5, columns}),
                               lab_.blank(DType::f32, {5, (columns + 127) / 128})};
      Exec exec = exec_;
      exec.scales = powers ? ScaleFormat::e8m0 : ScaleFormat::f32;
      ops::quantise(exec, lab_.put(x, type_, {5, columns}), out);
      const auto expected = reference::quantise(x, columns, 128, powers);
      const char* name = powers ? "quantise e8m0" : "quantise";
      expect(name, lab_.fetch_bytes(out.values), expected.codes, kSame);
      expect(name, lab_.fetch(out.scales), expected.scales, kSame);
    }
}

void Checks::requantising() {
  for (const bool cut : {false, true}) {
    Matrix weight =
        cut ? matrix(DType::f8_e4m3, 100, 200, 60, 192) : matrix(DType::f8_e4m3, 256, 128, 0, 0);
    const Tensor codes = lab_.put(weight.codes, DType::f8_e4m3, {weight.rows, weight.columns});
    const Tensor scales =
        lab_.put(weight.scales, DType::f32, {weight.scale_rows(), weight.scale_columns()});
    ops::requantise(exec_, {codes, scales, weight.first_row, weight.first_column});
    const Numbers before = weight.scales;
    reference::requantise(weight);
    // Blocks that the slice does not reach stay.
    for (int64_t b = 0; b < std::ssize(before); ++b)
      if (b % weight.scale_columns() < weight.first_column / 128)
        weight.scales[static_cast<size_t>(b)] = before[static_cast<size_t>(b)];
    expect("requantise", lab_.fetch(codes), weight.codes, kSame);
    expect("requantise", lab_.fetch(scales), weight.scales, kSame);
  }
}

// ---- heads

void Checks::angles() {
  const std::vector<int32_t> positions{0, 1, 17, 4095, 190'000};
  const Tensor out = lab_.blank(DType::f32, {5, kHeads.rotary_dim});
  ops::rope_angles(exec_, lab_.put(positions, {5}), kTheta, out);
  Numbers expected;
  for (const int32_t position : positions)
    for (const bool sine : {false, true})
      for (int64_t i = 0; i < kHeads.rotary_dim / 2; ++i) {
        // The angle is FP32's, whose roundings grow with the position.
        const auto frequency = static_cast<float>(
            std::pow(static_cast<double>(kTheta),
                     -2.0 * static_cast<double>(i) / static_cast<double>(kHeads.rotary_dim)));
        const auto angle = static_cast<double>(static_cast<float>(position) * frequency);
        expected.push_back(sine ? std::sin(angle) : std::cos(angle));
      }
  expect("rope_angles", lab_.fetch(out), expected, {1e-2, 5e-2});
}

void Checks::qk() {
  constexpr int64_t kTokens = 21, kQ = 12 * 128, kK = 2 * 128, kWidth = kQ + 2 * kK;
  const Numbers qkv = activations(kTokens, kWidth, 2);
  const Numbers q_norm = lab_.numbers(kQ, DType::bf16), k_norm = lab_.numbers(kK, DType::bf16);
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < kTokens; ++t) positions.push_back(t * 3);
  std::vector<int32_t> slots = shuffled(48, lab_.random());
  slots.resize(kTokens);
  const Numbers turned =
      reference::norm_and_turn(qkv, positions, q_norm, k_norm, kTheta, kEpsilon, kHeads);

  for (const DType type : {DType::bf16, DType::f8_e4m3}) {
    const Tensor x = lab_.put(qkv, type_, {kTokens, kWidth});
    const Tensor sums = lab_.blank(DType::f32, {kTokens, 2});
    ops::qk_sum_squares(exec_, x, kHeads, sums);
    Numbers squares;
    for (int64_t t = 0; t < kTokens; ++t)
      for (const auto& [begin, count] : {std::pair{int64_t{0}, kQ}, {kQ, kK}}) {
        const Numbers part = row(qkv, kWidth, t, begin, count);
        squares.push_back(std::inner_product(part.begin(), part.end(), part.begin(), 0.0));
      }
    expect("qk_sum_squares", lab_.fetch(sums), squares, kFp32);

    const Tensor angles = lab_.blank(DType::f32, {kTokens, kHeads.rotary_dim});
    ops::rope_angles(exec_, lab_.put(positions, {kTokens}), kTheta, angles);
    const bool f8 = type == DType::f8_e4m3;
    const ops::KvCache cache{lab_.blank(type, {3, 2, kPage, 128}),
                             lab_.blank(type, {3, 2, kPage, 128}), f8 ? 0.06f : 1, f8 ? 0.03f : 1};
    ops::qk_norm_rope_store(exec_, x, sums, lab_.put(q_norm, DType::bf16, {kQ}),
                            lab_.put(k_norm, DType::bf16, {kK}), kQ, kK, kEpsilon, angles,
                            lab_.put(slots, {kTokens}), kHeads, cache);
    const Numbers q = lab_.fetch(x), k = lab_.fetch(cache.k), v = lab_.fetch(cache.v);
    Numbers q_got, q_expected, kv_got, kv_expected;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t c = 0; c < kQ; ++c) {
        q_got.push_back(q[static_cast<size_t>(t * kWidth + c)]);
        q_expected.push_back(turned[static_cast<size_t>(t * kWidth + c)]);
      }
      for (int64_t c = 0; c < kK; ++c) {
        const int64_t slot = slots[static_cast<size_t>(t)];
        const auto cell = static_cast<size_t>(
            ((slot / kPage * 2 + c / 128) * kPage + slot % kPage) * 128 + c % 128);
        kv_got.push_back(k[cell] * static_cast<double>(cache.k_scale));
        kv_expected.push_back(turned[static_cast<size_t>(t * kWidth + kQ + c)]);
        kv_got.push_back(v[cell] * static_cast<double>(cache.v_scale));
        kv_expected.push_back(qkv[static_cast<size_t>(t * kWidth + kQ + kK + c)]);
      }
    }
    expect("qk_norm_rope_store", q_got, q_expected, rounded_ ? kBf16 : Limits{1e-4, 2e-3});
    // e4m3 keeps three bits: 1/16 at most, 2.6 % in the mean.
    expect(f8 ? "qk_norm_rope_store fp8" : "qk_norm_rope_store", kv_got, kv_expected,
           f8 ? Limits{4e-2, 0.4} : kBf16);
  }
}

// ---- attention

void Checks::attention() {
  for (const DType cache : {DType::bf16, DType::f8_e4m3}) {
    attention(cache, {{1, 1}, {1, 17}, {1, 300}});
    attention(cache, {{1, 700}});
    attention(cache, {{1, 40}, {37, 90}, {1, 5}, {130, 130}});
  }
}

// A step over sequences whose pages are scattered over a cache that is NaN elsewhere.
void Checks::attention(DType cache_type, const std::vector<Sequence>& sequences) {
  constexpr int64_t kQ = 12 * 128, kK = 2 * 128;
  std::vector<int32_t> starts{0}, contexts, positions;
  int32_t pages = 0, widest = 0;
  for (const Sequence& s : sequences) {
    starts.push_back(starts.back() + s.length);
    contexts.push_back(s.context);
    for (int32_t i = 0; i < s.length; ++i) positions.push_back(s.context - s.length + i);
    widest = std::max(widest, (s.context + 15) / 16);
    pages += (s.context + 15) / 16;
  }
  const int64_t tokens = starts.back(), count = std::ssize(sequences), blocks = pages + 2;
  const std::vector<int32_t> order = shuffled(static_cast<int32_t>(blocks), lab_.random());
  std::vector<int32_t> tables(static_cast<size_t>(count * widest), 1 << 30);
  const auto nowhere = std::numeric_limits<double>::quiet_NaN();
  Numbers k(static_cast<size_t>(blocks * 2 * kPage * 128), nowhere), v = k;
  std::vector<std::vector<Numbers>> keys(sequences.size()), values(sequences.size());
  const bool f8 = cache_type == DType::f8_e4m3;
  const double k_scale = f8 ? static_cast<double>(0.01f) : 1,
               v_scale = f8 ? static_cast<double>(0.02f) : 1;
  for (size_t s = 0, next = 0; s < sequences.size(); ++s) {
    for (int32_t p = 0; p < contexts[s]; ++p) {
      if (p % kPage == 0)
        tables[s * static_cast<size_t>(widest) + static_cast<size_t>(p / kPage)] = order[next++];
      const int64_t block = order[next - 1];
      Numbers key = lab_.numbers(kK, cache_type), value = lab_.numbers(kK, cache_type);
      for (int64_t c = 0; c < kK; ++c) {
        const auto cell =
            static_cast<size_t>(((block * 2 + c / 128) * kPage + p % kPage) * 128 + c % 128);
        k[cell] = key[static_cast<size_t>(c)];
        v[cell] = value[static_cast<size_t>(c)];
        key[static_cast<size_t>(c)] *= k_scale;
        value[static_cast<size_t>(c)] *= v_scale;
      }
      keys[s].push_back(std::move(key));
      values[s].push_back(std::move(value));
    }
  }
  const Numbers q = activations(tokens, kQ);
  ops::BatchLayout layout;
  layout.token_ids = layout.positions = lab_.put(positions, {tokens});
  layout.query_starts = lab_.put(starts, {count + 1});
  layout.context_lens = lab_.put(contexts, {count});
  layout.block_tables = lab_.put(tables, {count, widest});
  const ops::KvCache cache{lab_.put(k, cache_type, {blocks, 2, kPage, 128}),
                           lab_.put(v, cache_type, {blocks, 2, kPage, 128}),
                           static_cast<float>(k_scale), static_cast<float>(v_scale)};
  const Tensor out = lab_.blank(type_, {tokens, kQ});
  ops::paged_attention(exec_, lab_.put(q, type_, {tokens, kQ}), cache, layout, kHeads, out);

  Numbers expected;
  for (size_t s = 0; s < sequences.size(); ++s)
    for (int32_t t = starts[s]; t < starts[s + 1]; ++t) {
      const auto seen = static_cast<size_t>(positions[static_cast<size_t>(t)] + 1);
      const Numbers one = reference::attend(std::span(q).subspan(static_cast<size_t>(t) * kQ, kQ),
                                            std::span(keys[s]).first(seen),
                                            std::span(values[s]).first(seen), kHeads);
      expected.insert(expected.end(), one.begin(), one.end());
    }
  expect(f8 ? "paged_attention fp8" : "paged_attention", lab_.fetch(out), expected,
         rounded_ ? kTwice : kFp32);
}

// ---- products

Matrix Checks::matrix(DType dtype, int64_t rows, int64_t columns, int64_t first_row,
                      int64_t first_column) {
  Matrix out{rows, columns, lab_.numbers(rows * columns, dtype, 0.5), {}, first_row, first_column};
  if (dtype != DType::f8_e4m3) return out;
  std::uniform_real_distribution<float> uniform(1e-4f, 9e-3f);
  for (int64_t i = 0; i < out.scale_rows() * out.scale_columns(); ++i)
    out.scales.push_back(static_cast<double>(uniform(lab_.random())));
  return out;
}

void Checks::products() {
  for (const int64_t tokens : {1, 9, 70, 200}) {
    product(DType::f8_e4m3, tokens, 192, 384, 0, 0);
    product(DType::f8_e4m3, tokens, 72, 256, 64, 128);
  }
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
    for (const int64_t tokens : {1, 33}) product(dtype, tokens, 100, 320, 0, 0);
}

void Checks::product(DType dtype, int64_t tokens, int64_t rows, int64_t columns, int64_t first_row,
                     int64_t first_column) {
  const bool f8 = dtype == DType::f8_e4m3;
  const Numbers x = activations(tokens, columns);
  const Matrix weight = matrix(dtype, rows, columns, first_row, first_column);
  const Tensor scale =
      f8 ? lab_.put(weight.scales, DType::f32, {weight.scale_rows(), weight.scale_columns()})
         : Tensor();
  const Tensor out = lab_.blank(type_, {tokens, rows});
  ops::linear(exec_, lab_.put(x, type_, {tokens, columns}),
              {lab_.put(weight.codes, dtype, {rows, columns}), scale, first_row, first_column},
              out);
  const Numbers seen = f8 && fp8_inputs_ ? reference::through_fp8(x, columns, 128) : x;
  expect(fmt::format("linear {}", name_of(dtype)), lab_.fetch(out),
         reference::product(seen, weight), limits());
}

void Checks::all_experts() {
  for (const int64_t tokens : {1, 7, 40}) experts(DType::f8_e4m3, tokens, 6, 256, 128, 0);
  experts(DType::f8_e4m3, 100, 3, 128, 192, 192);
  for (const int64_t tokens : {1, 20}) experts(DType::bf16, tokens, 4, 192, 64, 0);
}

void Checks::experts(DType dtype, int64_t tokens, int64_t held, int64_t hidden, int64_t inner,
                     int64_t first_inner) {
  constexpr int64_t kTop = 2;
  const bool f8 = dtype == DType::f8_e4m3, quantises = f8 && fp8_inputs_;
  const Numbers x = activations(tokens, hidden);
  // One more expert than are held: its pairs are another rank's.
  std::vector<int32_t> ids;
  Numbers shares;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> chosen = shuffled(static_cast<int32_t>(held + 1), lab_.random());
    std::sort(chosen.begin(), chosen.begin() + kTop);
    ids.insert(ids.end(), chosen.begin(), chosen.begin() + kTop);
    for (int64_t i = 0; i < kTop; ++i) shares.push_back(0.25 + 0.125 * static_cast<double>(i));
  }
  std::vector<Matrix> w1, w2, w3;
  Numbers w13_codes, w2_codes, s1, s2, s3;
  const auto append = [](Numbers& to, const Numbers& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  const int64_t inside = first_inner % 128;  // the scales begin with the block of the first column
  for (int64_t e = 0; e < held; ++e) {
    w1.push_back(matrix(dtype, inner, hidden, inside, 0));
    w3.push_back(matrix(dtype, inner, hidden, inside, 0));
    w2.push_back(matrix(dtype, hidden, inner, 0, inside));
    append(w13_codes, w1.back().codes);
    append(w13_codes, w3.back().codes);
    append(w2_codes, w2.back().codes);
    append(s1, w1.back().scales);
    append(s3, w3.back().scales);
    append(s2, w2.back().scales);
  }
  ops::Experts experts;
  experts.w13 = lab_.put(w13_codes, dtype, {held, 2 * inner, hidden});
  experts.w2 = lab_.put(w2_codes, dtype, {held, hidden, inner});
  if (f8) {
    experts.w1_scale = lab_.put(s1, DType::f32, {held, w1[0].scale_rows(), w1[0].scale_columns()});
    experts.w3_scale = lab_.put(s3, DType::f32, {held, w1[0].scale_rows(), w1[0].scale_columns()});
    experts.w2_scale = lab_.put(s2, DType::f32, {held, w2[0].scale_rows(), w2[0].scale_columns()});
  }
  experts.first_inner = first_inner;
  experts.scale_row = first_inner / 128;
  const Tensor out = lab_.blank(type_, {tokens, hidden});
  ops::experts(exec_, lab_.put(x, type_, {tokens, hidden}), experts, lab_.put(ids, {tokens, kTop}),
               lab_.put(shares, DType::f32, {tokens, kTop}),
               lab_.zeros(ops::experts_scratch_bytes(exec_.device, experts, tokens, kTop)), out);

  const Numbers seen = quantises ? reference::through_fp8(x, hidden, 128) : x;
  // As the experts do: by the weights' blocks where the slice is whole ones, else by half of one.
  const int64_t stretch = inner % 128 == 0 && inside == 0 ? 128 : 64;
  Numbers expected(static_cast<size_t>(tokens * hidden));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t i = 0; i < kTop; ++i) {
      const auto pair = static_cast<size_t>(t * kTop + i), e = static_cast<size_t>(ids[pair]);
      if (ids[pair] >= held) continue;
      const Numbers token = row(seen, hidden, t, 0, hidden);
      const Numbers gate = reference::product(token, w1[e]);
      Numbers up = reference::product(token, w3[e]);
      for (size_t c = 0; c < up.size(); ++c) {
        up[c] *= gate[c] / (1 + std::exp(-gate[c]));
        if (quantises) up[c] = to_float(to_bf16(static_cast<float>(up[c])));
      }
      if (quantises) up = reference::through_fp8(up, inner, stretch);
      const Numbers down = reference::product(up, w2[e]);
      for (int64_t c = 0; c < hidden; ++c)
        expected[static_cast<size_t>(t * hidden + c)] +=
            shares[pair] * down[static_cast<size_t>(c)];
    }
  // The CPU's tiles round what is between the two products to BF16.
  expect(fmt::format("experts {}", name_of(dtype)), lab_.fetch(out), expected,
         quantises ? kF8Between : kTwoProducts);
}

void Checks::routing() {
  constexpr int64_t kHidden = 256, kExperts = 40, kTop = 4;
  for (const int64_t tokens : {1, 5, 70}) {
    const Numbers x = activations(tokens, kHidden);
    const Numbers gate = lab_.numbers(kExperts * kHidden, DType::f32, 0.06);
    const Numbers bias = lab_.numbers(kExperts, DType::f32, 0.1);
    const Tensor ids = lab_.blank(DType::i32, {tokens, kTop});
    const Tensor weights = lab_.blank(DType::f32, {tokens, kTop});
    ops::route(exec_, lab_.put(x, type_, {tokens, kHidden}),
               lab_.put(gate, DType::f32, {kExperts, kHidden}),
               lab_.put(bias, DType::f32, {kExperts}), ids, weights);
    const auto expected = reference::route(x, gate, bias, kHidden, kTop);
    expect("route", lab_.fetch(ids), as_numbers(expected.ids), kSame);
    expect("route", lab_.fetch(weights), expected.weights, kFp32);
  }
}

// ---- a step's integers, and its tokens

void Checks::unpacking() {
  const ops::StepSizes sizes{4, 2, 3, 2, false};
  const std::vector<int32_t> packed{11, -2, 13, 14, 0, 1, 2,  9, 3, 4, 5, 99, 0,
                                    3,  4,  3,  10, 8, 1, -1, 7, 6, 2, 2, 3};
  std::vector<int32_t> previous;
  for (int32_t i = 0; i < 2 * ops::kSampledRowWords; ++i) previous.push_back(100 + i);
  ops::BatchLayout to;
  to.token_ids = lab_.blank(DType::i32, {4});
  to.positions = lab_.blank(DType::i32, {4});
  to.slots = lab_.blank(DType::i32, {4});
  to.query_starts = lab_.blank(DType::i32, {3});
  to.context_lens = lab_.blank(DType::i32, {2});
  to.block_tables = lab_.blank(DType::i32, {2, 3});
  to.logit_rows = lab_.blank(DType::i32, {2});
  ops::unpack_step(exec_, sizes, lab_.put(packed, {std::ssize(packed)}),
                   lab_.put(previous, {2, ops::kSampledRowWords}), 0, to, {});
  Numbers got, expected = as_numbers(packed);
  expected[1] = static_cast<double>(100 + ops::kSampledRowWords + 1);  // row 1 of the step before
  for (const Tensor& part : {to.token_ids, to.positions, to.slots, to.query_starts, to.context_lens,
                             to.block_tables, to.logit_rows}) {
    const Numbers one = lab_.fetch(part);
    got.insert(got.end(), one.begin(), one.end());
  }
  expect("unpack_step", got, expected, kSame);
}

void Checks::sampling() {
  if (!ops::can_sample(exec_.device)) return;
  constexpr int64_t kVocab = 5000, kRows = 3;
  const Numbers logits = lab_.numbers(kRows * kVocab, DType::f32, 3);
  std::vector<ops::SampleRow> rows(kRows);
  rows[1].temperature = rows[2].temperature = 1;
  rows[1].noise_first = 5;
  rows[2].noise_second = 77;
  for (ops::SampleRow& asked : rows) asked.logprobs = 0;
  std::vector<int32_t> words(kRows * ops::kSampleRowWords);
  std::memcpy(words.data(), rows.data(), words.size() * 4);
  const ops::SampleInput input{lab_.put(words, {kRows, ops::kSampleRowWords}),
                               lab_.blank(DType::i32, {1, ops::kLogitEditWords}),
                               lab_.blank(DType::i32, {1, (kVocab + 31) / 32})};
  const ops::SampleOutput out{lab_.blank(DType::i32, {kRows, ops::kSampledRowWords}),
                              lab_.blank(DType::i32, {kRows, 1}),
                              lab_.blank(DType::f32, {kRows, 1})};
  ops::sample(exec_, lab_.put(logits, DType::f32, {kRows, kVocab}), kVocab, input,
              lab_.zeros(ops::sample_scratch_bytes(exec_.device, kRows, kVocab)), out);
  const Numbers words_got = lab_.fetch(out.rows);
  Numbers got, expected;
  for (int64_t r = 0; r < kRows; ++r) {
    const ops::SampleRow& asked = rows[static_cast<size_t>(r)];
    Numbers score = row(logits, kVocab, r, 0, kVocab);
    for (int64_t id = 0; asked.temperature > 0 && id < kVocab; ++id) {
      const double uniform =
          ops::noise_uniform({asked.noise_first, asked.noise_second}, static_cast<uint32_t>(id));
      score[static_cast<size_t>(id)] -= std::log(-std::log1p(-uniform));
    }
    expected.push_back(0);  // SampleStatus::ok
    expected.push_back(static_cast<double>(std::ranges::max_element(score) - score.begin()));
    for (const int64_t word : {0, 1})
      got.push_back(words_got[static_cast<size_t>(r * ops::kSampledRowWords + word)]);
  }
  expect("sample", got, expected, kSame);
}

}  // namespace

std::vector<Finding> check_operations(const Exec& exec, Lab::Spoil spoil) {
  return Checks(exec, std::move(spoil)).all();
}

}  // namespace m2::app::doctor
