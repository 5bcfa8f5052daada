// Every operation's CUDA body against naive references in double precision. Outputs are poisoned
// (NaN) before each run and checked whole. Needs a GPU; says so and skips without one.
#include <algorithm>
#include <array>
#include <numeric>

#include "ops/cuda/attention/plan.h"
#include "ops/cuda/experts/plan.h"
#include "ops/cuda/ops_cuda.h"
#include "ops/requantise.h"
#include "parallel/topology.h"
#include "tensor/stream.h"
#include "tests/ops/cuda/gpu_support.h"

namespace m2::gpu_test {
namespace {

namespace cuda = ops::cuda;

// Tolerances, as multiples of the expected numbers' norm and root mean square.
constexpr double kExactNorm = 2e-6, kExactSingle = 3e-5;  // FP32 sums and FP32 output
constexpr double kBf16Norm = 4e-3, kBf16Single = 5e-2;    // one rounding to bf16 (at most 2^-8 / 2)
constexpr double kTwiceNorm = 6e-3, kTwiceSingle = 8e-2;  // bf16 in between as well

class Gpu : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!gpu_present(why)) GTEST_SKIP() << "needs a GPU: " << why;
  }
  std::mt19937 random_{1234};
};

const Exec& without_workspace() {
  static const Exec exec = [] {
    Exec bare = gpu();
    bare.workspace = nullptr;
    bare.workspace_bytes = 0;
    return bare;
  }();
  return exec;
}

double norm_tolerance(DType dtype) {
  return dtype == DType::bf16 ? kBf16Norm : kExactNorm;
}
double single_tolerance(DType dtype) {
  return dtype == DType::bf16 ? kBf16Single : kExactSingle;
}

TEST_F(Gpu, Embed) {
  for (const DType table_dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const int64_t width : {1, 63, 256, 3072}) {
      const Numbers table = random_numbers(random_, 10 * width, table_dtype);
      const std::vector<int32_t> ids = {5, 0, 14, 15, 4, 9, 7};
      const OnGpu table_gpu(table, {10, width}), ids_gpu(ids, {7});
      const OnGpu out(DType::f32, {7, width});
      cuda::embed(gpu(), ids_gpu, table_gpu, 5, out);
      const std::vector<double> values = out.values();
      for (int64_t t = 0; t < 7; ++t)
        for (int64_t c = 0; c < width; ++c) {
          const int64_t row = ids[static_cast<size_t>(t)] - 5;
          const double expected =
              row >= 0 && row < 10 ? table.values[static_cast<size_t>(row * width + c)] : 0.0;
          ASSERT_EQ(values[static_cast<size_t>(t * width + c)], expected) << t << ", " << c;
        }
      const std::vector<int32_t> picked_rows = {6, 0, 3};
      const OnGpu rows(picked_rows, {3});
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const OnGpu all(dtype, {7, width}), gathered(dtype, {3, width});
        cuda::embed(gpu(), ids_gpu, table_gpu, 5, all);
        cuda::gather_rows(gpu(), all, rows, gathered);
        const std::vector<double> embedded = all.values(), picked = gathered.values();
        for (int64_t r = 0; r < 3; ++r) {
          const auto from = embedded.begin() + picked_rows[static_cast<size_t>(r)] * width;
          EXPECT_TRUE(std::equal(from, from + width, picked.begin() + r * width))
              << r << ", " << width;
        }
      }
    }
  }
}

TEST_F(Gpu, EmbedAndAnglesAreTheOperationsApart) {
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const int64_t width : {63, 256, 3072})
      for (const int64_t rotary : {6, 64, 1024}) {
        constexpr int64_t kTokens = 5;
        const Numbers table = random_numbers(random_, 10 * width, dtype);
        const OnGpu table_gpu(table, {10, width});
        const OnGpu ids(std::vector<int32_t>{5, 14, 4, 15, 9}, {kTokens});
        const OnGpu positions(std::vector<int32_t>{0, 1, 77, 2047, 196000}, {kTokens});
        const OnGpu out(dtype, {kTokens, width}), angles(DType::f32, {kTokens, rotary});
        const OnGpu expected(dtype, {kTokens, width}), turns(DType::f32, {kTokens, rotary});
        cuda::embed(gpu(), ids, table_gpu, 5, expected);
        cuda::rope_angles(gpu(), positions, 5e6f, turns);
        cuda::embed_and_angles(gpu(), ids, table_gpu, 5, out, positions, 5e6f, angles);
        EXPECT_EQ(out.bytes(), expected.bytes()) << width;
        EXPECT_EQ(angles.bytes(), turns.bytes()) << rotary;
      }
}

TEST_F(Gpu, SumRows) {
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const int64_t width : {1, 63, 3072}) {
      const Numbers x = random_numbers(random_, 9 * width, dtype);
      const std::vector<int32_t> rows{0, 3, 8, -1, 5, -1, 2, 2, -1, -1, -1, -1};
      const OnGpu x_gpu(x, {9, width}), rows_gpu(rows, {4, 3}), out(dtype, {4, width});
      cuda::sum_rows(gpu(), x_gpu, rows_gpu, out);
      const std::vector<double> values = out.values();
      for (int64_t i = 0; i < 4 * width; ++i) {
        float sum = 0;
        for (int64_t k = 0; k < 3; ++k)
          if (const int64_t row = rows[static_cast<size_t>(i / width * 3 + k)]; row >= 0)
            sum += static_cast<float>(x.values[static_cast<size_t>(row * width + i % width)]);
        ASSERT_EQ(values[static_cast<size_t>(i)],
                  dtype == DType::bf16 ? to_float(to_bf16(sum)) : sum);
      }
    }
}

TEST_F(Gpu, Norms) {
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const int64_t width : {1, 8, 257, 3071, 3072, 3080, 6144})
      for (const int64_t rows : {1, 5}) {
        const Numbers x = random_numbers(random_, rows * width, dtype, 3.0);
        const Numbers delta = random_numbers(random_, rows * width, dtype);
        const Numbers weight = random_numbers(random_, width, DType::bf16);
        const OnGpu residual(x, {rows, width}), change(delta, {rows, width});
        const OnGpu weight_gpu(weight, {width});
        const OnGpu out(dtype, {rows, width});
        const auto normed = [&](const std::vector<double>& from) {
          std::vector<double> to(from.size());
          for (int64_t r = 0; r < rows; ++r) {
            double sum = 0.0;
            for (int64_t c = 0; c < width; ++c) {
              const double v = from[static_cast<size_t>(r * width + c)];
              sum += v * v;
            }
            const double factor = 1.0 / std::sqrt(sum / static_cast<double>(width) + 1e-6);
            for (int64_t c = 0; c < width; ++c)
              to[static_cast<size_t>(r * width + c)] = from[static_cast<size_t>(r * width + c)] *
                                                       factor *
                                                       weight.values[static_cast<size_t>(c)];
          }
          return to;
        };
        const std::string what = std::to_string(rows) + " x " + std::to_string(width);
        cuda::rms_norm(gpu(), residual, weight_gpu, 1e-6f, out);
        expect_close(out.values(), normed(x.values), norm_tolerance(dtype), single_tolerance(dtype),
                     "norm " + what);
        cuda::add_rms_norm(gpu(), residual, change, weight_gpu, 1e-6f, change);
        std::vector<double> sum(x.values.size());
        for (size_t i = 0; i < sum.size(); ++i) {
          const auto added = static_cast<float>(x.values[i]) + static_cast<float>(delta.values[i]);
          sum[i] = dtype == DType::bf16 ? to_float(to_bf16(added)) : added;
        }
        EXPECT_EQ(residual.values(), sum) << what;
        expect_close(change.values(), normed(sum), norm_tolerance(dtype), single_tolerance(dtype),
                     "add and norm " + what);
      }
}

Exec gpu_with(ScaleFormat scales) {
  Exec exec = gpu();
  exec.scales = scales;
  return exec;
}

// What an operation writes quantised is what quantising its output gives.
void expect_quantised(const ops::Quantised& got, const OnGpu& values, const OnGpu& scales,
                      const Tensor& out, const std::string& what,
                      ScaleFormat format = ScaleFormat::f32) {
  const int64_t rows = out.size(0), columns = out.size(1);
  const OnGpu f8(DType::f8_e4m3, {rows, columns}),
      factors(DType::f32, {rows, (columns + 127) / 128});
  cuda::quantise(gpu_with(format), out, {f8, factors});
  M2_CHECK(!got.empty());
  EXPECT_EQ(values.bytes(), f8.bytes()) << what;
  EXPECT_EQ(scales.bytes(), factors.bytes()) << what;
}

TEST_F(Gpu, NormsQuantised) {
  for (const int64_t width : {128, 256, 3072, 6144, 192, 3080})
    for (const int64_t rows : {1, 5}) {
      const Numbers x = random_numbers(random_, rows * width, DType::bf16, 3.0);
      const OnGpu residual(x, {rows, width}), delta(x, {rows, width});
      const OnGpu weight(random_numbers(random_, width, DType::bf16), {width});
      const OnGpu out(DType::bf16, {rows, width});
      const OnGpu f8(DType::f8_e4m3, {rows, width}),
          scales(DType::f32, {rows, (width + 127) / 128});
      const ops::Quantised quantised{f8, scales};
      const std::string what = std::to_string(rows) + " x " + std::to_string(width);
      cuda::rms_norm(gpu_with(ScaleFormat::e8m0), residual, weight, 1e-6f, out, quantised);
      expect_quantised(quantised, f8, scales, out, what, ScaleFormat::e8m0);
      cuda::rms_norm(gpu(), residual, weight, 1e-6f, out, quantised);
      expect_quantised(quantised, f8, scales, out, what);
      // The reference's quantisation: codes from the bf16 numbers in double.
      const std::vector<double> values = out.values();
      const std::vector<double> factors = scales.values();
      const std::vector<uint8_t> codes = f8.bytes();
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t begin = 0; begin < width; begin += 128) {
          double most = 0;
          const int64_t end = std::min(width, begin + 128);
          for (int64_t c = begin; c < end; ++c)
            most = std::max(most, std::abs(values[static_cast<size_t>(r * width + c)]));
          const double scale =
              factors[static_cast<size_t>(r * ((width + 127) / 128) + begin / 128)];
          EXPECT_NEAR(scale, most / 448, most * 1e-9) << what;
          for (int64_t c = begin; c < end; ++c) {
            const auto at = static_cast<size_t>(r * width + c);
            const double code = number_at(codes.data(), DType::f8_e4m3, static_cast<int64_t>(at));
            // Half a step of e4m3 is a sixteenth of the number, or 2^-10 below 2^-6.
            EXPECT_NEAR(code * scale, values[at],
                        std::max(std::abs(values[at]) / 15.9, 1.01 * scale / 1024))
                << what;
          }
        }
      cuda::add_rms_norm(gpu(), residual, delta, weight, 1e-6f, delta, quantised);
      expect_quantised(quantised, f8, scales, delta, "added, " + what);
    }
}

// Steps of many rows have forms of their own, to the same bytes.
TEST_F(Gpu, NormsOfManyRowsAreThoseOfFew) {
  constexpr int64_t kRows = 700, kSome = 100;
  for (const int64_t width : {3072, 1024})
    for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0}) {
      const Numbers start = random_numbers(random_, kRows * width, DType::bf16, 3.0);
      const OnGpu delta(random_numbers(random_, kRows * width, DType::bf16), {kRows, width});
      const OnGpu weight(random_numbers(random_, width, DType::bf16), {width});
      const auto run = [&](int64_t some, bool add) {
        const OnGpu residual(start, {kRows, width}), out(DType::bf16, {kRows, width});
        const OnGpu f8(DType::f8_e4m3, {kRows, width}), scales(DType::f32, {kRows, width / 128});
        for (int64_t first = 0; first < kRows; first += some) {
          const int64_t count = std::min(some, kRows - first);
          const auto rows = [&](const OnGpu& of) { return of.tensor().rows(first, count); };
          const ops::Quantised quantised{rows(f8), rows(scales)};
          if (add)
            cuda::add_rms_norm(gpu_with(format), rows(residual), rows(delta), weight, 1e-6f,
                               rows(out), quantised);
          else
            cuda::rms_norm(gpu_with(format), rows(residual), weight, 1e-6f, rows(out), quantised);
        }
        return std::array{residual.bytes(), out.bytes(), f8.bytes(), scales.bytes()};
      };
      for (const bool add : {false, true})
        EXPECT_EQ(run(kRows, add), run(kSome, add)) << width << (add ? ", added" : "");
      // And not quantised.
      const OnGpu few(start, {kRows, width}), many(start, {kRows, width});
      for (int64_t first = 0; first < kRows; first += kSome) {
        const Tensor some = few.tensor().rows(first, kSome);
        cuda::rms_norm(gpu(), some, weight, 1e-6f, some);
      }
      cuda::rms_norm(gpu(), many, weight, 1e-6f, many);
      EXPECT_EQ(many.bytes(), few.bytes()) << width;
    }
}

TEST_F(Gpu, QkNormRopeOfManyTokensIsThatOfFew) {
  constexpr int64_t kTokens = 650, kSome = 130, kBlocks = 45, kBlock = 16;
  for (const auto& [q, kv] : {std::pair<int64_t, int64_t>{48, 8}, {24, 4}, {12, 2}, {6, 1}})
    for (const DType cache : {DType::bf16, DType::f8_e4m3}) {
      const ops::HeadShape heads{q, kv, 128, 64};
      const int64_t width = (q + 2 * kv) * 128;
      const Numbers x = random_numbers(random_, kTokens * width, DType::bf16);
      const OnGpu q_norm(random_numbers(random_, q * 128, DType::bf16), {q * 128});
      const OnGpu k_norm(random_numbers(random_, kv * 128, DType::bf16), {kv * 128});
      std::vector<int32_t> positions, slots;
      for (int32_t t = 0; t < kTokens; ++t) {
        positions.push_back(t * 7919 % 196000 + 3);
        slots.push_back(t % 17 == 3 ? -1 : (t * 7 + 2) % static_cast<int32_t>(kBlocks * kBlock));
      }
      const OnGpu positions_gpu(positions, {kTokens}), slots_gpu(slots, {kTokens});
      const OnGpu angles(DType::f32, {kTokens, 64}), sums(DType::f32, {kTokens, 2});
      cuda::rope_angles(gpu(), positions_gpu, 5e6f, angles);
      const auto run = [&](int64_t some) {
        const OnGpu qkv(x, {kTokens, width});
        const OnGpu k(cache, {kBlocks, kv, kBlock, 128}), v(cache, {kBlocks, kv, kBlock, 128});
        for (int64_t first = 0; first < kTokens; first += some) {
          const int64_t count = std::min(some, kTokens - first);
          cuda::qk_norm_rope_store_whole(
              gpu(), qkv.tensor().rows(first, count), sums.tensor().rows(first, count), q_norm,
              k_norm, 1e-6f, angles.tensor().rows(first, count),
              slots_gpu.tensor().rows(first, count), heads, {k, v, 0.011f, 0.003f});
        }
        return std::array{qkv.bytes(), k.bytes(), v.bytes()};
      };
      EXPECT_EQ(run(kTokens), run(kSome)) << q << " heads, " << name_of(cache);
    }
}

TEST_F(Gpu, QkNormRopeStore) {
  struct Case {
    int64_t tokens, q, kv, dim, rotary, block;
  };
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const Case& c :
         {Case{1, 48, 8, 128, 64, 16}, Case{7, 6, 1, 128, 64, 16}, Case{3, 4, 2, 32, 32, 4},
          Case{2, 2, 2, 20, 6, 3}, Case{5, 3, 1, 256, 8, 16}}) {
      const ops::HeadShape heads{c.q, c.kv, c.dim, c.rotary};
      const int64_t width = (c.q + 2 * c.kv) * c.dim;
      const Numbers x = random_numbers(random_, c.tokens * width, dtype);
      const Numbers q_norm = random_numbers(random_, c.q * c.dim, DType::bf16);
      const DType k_dtype = c.tokens == 3 ? DType::f32 : DType::bf16;
      const Numbers k_norm = random_numbers(random_, c.kv * c.dim, k_dtype);
      std::vector<int32_t> positions, slots;
      const int64_t blocks = 5;
      for (int32_t t = 0; t < c.tokens; ++t) {
        positions.push_back(t * 7919 % 196000 + 3);
        slots.push_back(static_cast<int32_t>((t * 5 + 2) % (blocks * c.block)));
      }
      const OnGpu qkv(x, {c.tokens, width}), positions_gpu(positions, {c.tokens}),
          slots_gpu(slots, {c.tokens});
      const OnGpu angles(DType::f32, {c.tokens, c.rotary}), sums(DType::f32, {c.tokens, 2});
      const OnGpu k(DType::bf16, {blocks, c.kv, c.block, c.dim}),
          v(DType::bf16, {blocks, c.kv, c.block, c.dim});
      cuda::rope_angles(gpu(), positions_gpu, 5e6f, angles);
      cuda::qk_sum_squares(gpu(), qkv, heads, sums);
      const OnGpu q_norm_gpu(q_norm, {c.q * c.dim}), k_norm_gpu(k_norm, {c.kv * c.dim});
      cuda::qk_norm_rope_store(gpu(), qkv, sums, q_norm_gpu, k_norm_gpu, c.q * c.dim, c.kv * c.dim,
                               1e-6f, angles, slots_gpu, heads, {k, v});

      const std::vector<double> turned = qkv.values(), keys = k.values(), values = v.values();
      const std::vector<double> sums_out = sums.values(), angles_out = angles.values();
      std::vector<double> q_out, q_expected, k_out, k_expected, v_out, v_expected;
      for (int64_t t = 0; t < c.tokens; ++t) {
        for (int64_t i = 0; i < c.rotary / 2; ++i) {
          const double angle =
              positions[static_cast<size_t>(t)] *
              std::pow(5e6, -2.0 * static_cast<double>(i) / static_cast<double>(c.rotary));
          // FP32 angles: half a unit in the last place of a position of 2e5 is 8e-3 rad.
          EXPECT_NEAR(angles_out[static_cast<size_t>(t * c.rotary + i)], std::cos(angle), 2e-2);
          EXPECT_NEAR(angles_out[static_cast<size_t>(t * c.rotary + c.rotary / 2 + i)],
                      std::sin(angle), 2e-2);
        }
        const auto raw = [&](int64_t i) { return x.values[static_cast<size_t>(t * width + i)]; };
        double q_sum = 0.0, k_sum = 0.0;
        for (int64_t i = 0; i < c.q * c.dim; ++i) q_sum += raw(i) * raw(i);
        for (int64_t i = 0; i < c.kv * c.dim; ++i)
          k_sum += raw(c.q * c.dim + i) * raw(c.q * c.dim + i);
        EXPECT_NEAR(sums_out[static_cast<size_t>(2 * t)], q_sum, 1e-5 * q_sum);
        EXPECT_NEAR(sums_out[static_cast<size_t>(2 * t + 1)], k_sum, 1e-5 * k_sum);
        const auto rotated = [&](int64_t begin, int64_t i, double mean, const Numbers& weight,
                                 int64_t weight_begin) {
          const double factor = 1.0 / std::sqrt(mean + 1e-6);
          const auto at = [&](int64_t j) {
            return raw(begin + j) * factor * weight.values[static_cast<size_t>(weight_begin + j)];
          };
          const int64_t half = c.rotary / 2;
          if (i >= c.rotary) return at(i);
          const int64_t pair = i % half;
          const double cosine = angles_out[static_cast<size_t>(t * c.rotary + pair)];
          const double sine = angles_out[static_cast<size_t>(t * c.rotary + half + pair)];
          return i < half ? at(i) * cosine - at(i + half) * sine
                          : at(i) * cosine + at(i - half) * sine;
        };
        for (int64_t h = 0; h < c.q; ++h)
          for (int64_t i = 0; i < c.dim; ++i) {
            q_out.push_back(turned[static_cast<size_t>(t * width + h * c.dim + i)]);
            q_expected.push_back(
                rotated(h * c.dim, i, q_sum / static_cast<double>(c.q * c.dim), q_norm, h * c.dim));
          }
        const int64_t slot = slots[static_cast<size_t>(t)];
        for (int64_t h = 0; h < c.kv; ++h)
          for (int64_t i = 0; i < c.dim; ++i) {
            const auto cell = static_cast<size_t>(
                ((slot / c.block * c.kv + h) * c.block + slot % c.block) * c.dim + i);
            k_out.push_back(keys[cell]);
            k_expected.push_back(rotated((c.q + h) * c.dim, i,
                                         k_sum / static_cast<double>(c.kv * c.dim), k_norm,
                                         h * c.dim));
            v_out.push_back(values[cell]);
            v_expected.push_back(raw((c.q + c.kv + h) * c.dim + i));
          }
      }
      expect_close(q_out, q_expected, norm_tolerance(dtype), single_tolerance(dtype), "q");
      expect_close(k_out, k_expected, kBf16Norm, kBf16Single, "k");
      expect_close(v_out, v_expected, kBf16Norm, kBf16Single, "v");

      // At once, sums and all.
      const OnGpu qkv1(x, {c.tokens, width}), sums1(DType::f32, {c.tokens, 2});
      const OnGpu k1(DType::bf16, {blocks, c.kv, c.block, c.dim}),
          v1(DType::bf16, {blocks, c.kv, c.block, c.dim});
      cuda::qk_norm_rope_store_whole(gpu(), qkv1, sums1, q_norm_gpu, k_norm_gpu, 1e-6f, angles,
                                     slots_gpu, heads, {k1, v1});
      expect_close(qkv1.values(), turned, norm_tolerance(dtype), single_tolerance(dtype),
                   "q, k, v");
      EXPECT_EQ(v1.bytes(), v.bytes());
      const std::vector<double> keys1 = k1.values();
      std::vector<double> stored, stored1;
      for (size_t i = 0; i < keys.size(); ++i) {
        ASSERT_EQ(std::isnan(keys1[i]), std::isnan(keys[i]));
        if (std::isnan(keys[i])) continue;
        stored.push_back(keys[i]);
        stored1.push_back(keys1[i]);
      }
      expect_close(stored1, stored, kBf16Norm, kBf16Single, "k at once");
      // FP8: the codes that the CPU's conversion gives (nearest, saturated), but for quotients next
      // to the middle of two codes, where FP32 may fall on either side.
      const float k_scale = 0.011f, v_scale = 0.003f;
      const OnGpu qkv8(x, {c.tokens, width}), k8(DType::f8_e4m3, {blocks, c.kv, c.block, c.dim}),
          v8(DType::f8_e4m3, {blocks, c.kv, c.block, c.dim});
      cuda::qk_norm_rope_store(gpu(), qkv8, sums, q_norm_gpu, k_norm_gpu, c.q * c.dim, c.kv * c.dim,
                               1e-6f, angles, slots_gpu, heads, {k8, v8, k_scale, v_scale});
      EXPECT_EQ(qkv8.bytes(), qkv.bytes()) << "q";
      const OnGpu qkv18(x, {c.tokens, width}), k18(DType::f8_e4m3, {blocks, c.kv, c.block, c.dim}),
          v18(DType::f8_e4m3, {blocks, c.kv, c.block, c.dim});
      cuda::qk_norm_rope_store_whole(gpu(), qkv18, sums1, q_norm_gpu, k_norm_gpu, 1e-6f, angles,
                                     slots_gpu, heads, {k18, v18, k_scale, v_scale});
      EXPECT_EQ(qkv18.bytes(), qkv1.bytes()) << "q at once";
      EXPECT_EQ(v18.bytes(), v8.bytes());
      const std::vector<uint8_t> k_once = k18.bytes(), k_twice = k8.bytes();
      int64_t moved = 0;
      for (size_t i = 0; i < k_once.size(); ++i) {
        moved += k_once[i] != k_twice[i];
        ASSERT_LE(std::abs(k_once[i] - k_twice[i]), 1);
      }
      EXPECT_LE(moved, c.tokens * c.kv * c.dim / 50);
      const std::vector<uint8_t> k_codes = k8.bytes(), v_codes = v8.bytes();
      int64_t other = 0;
      for (size_t cell = 0; cell < keys.size(); ++cell) {
        ASSERT_EQ(std::isnan(keys[cell]), (k_codes[cell] & 0x7f) == 0x7f);
        ASSERT_EQ(std::isnan(values[cell]), (v_codes[cell] & 0x7f) == 0x7f);
      }
      for (size_t i = 0; i < k_expected.size(); ++i) {
        const int64_t per_token = c.kv * c.dim, t = static_cast<int64_t>(i) / per_token;
        const int64_t slot = slots[static_cast<size_t>(t)],
                      h = static_cast<int64_t>(i) % per_token / c.dim;
        const auto cell =
            static_cast<size_t>(((slot / c.block * c.kv + h) * c.block + slot % c.block) * c.dim +
                                static_cast<int64_t>(i) % c.dim);
        ASSERT_EQ(v_codes[cell], to_f8_e4m3(static_cast<float>(v_expected[i]) / v_scale).bits);
        const double exact = k_expected[i] / static_cast<double>(k_scale);
        const auto code_of = [&](double factor) {
          return to_f8_e4m3(static_cast<float>(exact * factor)).bits;
        };
        other += k_codes[cell] != code_of(1);
        ASSERT_TRUE(k_codes[cell] == code_of(1) || k_codes[cell] == code_of(1 + 3e-5) ||
                    k_codes[cell] == code_of(1 - 3e-5))
            << exact;
      }
      EXPECT_LE(other, static_cast<int64_t>(k_expected.size()) / 200 + 2);
      // Nothing but the slots was written.
      const auto untouched =
          std::count_if(keys.begin(), keys.end(), [](double value) { return std::isnan(value); });
      EXPECT_EQ(untouched, static_cast<int64_t>(keys.size()) - c.tokens * c.kv * c.dim);
    }
}

// --- linear ------------------------------------------------------------------------------------

// A slice of a matrix with scales of the whole, and its numbers.
struct Slice {
  Numbers weight;
  std::vector<float> scales;
  int64_t rows, columns, first_row, first_column, scale_rows, scale_columns;

  Slice(std::mt19937& random, DType dtype, int64_t n, int64_t k, int64_t row, int64_t column)
      : weight(random_numbers(random, n * k, dtype, 0.5)),
        rows(n),
        columns(k),
        first_row(row),
        first_column(column),
        scale_rows((row + n + 127) / 128),
        scale_columns((column + k + 127) / 128) {
    std::uniform_real_distribution<float> uniform(1e-4f, 9e-3f);
    for (int64_t i = 0; i < scale_rows * scale_columns; ++i) scales.push_back(uniform(random));
  }
  bool scaled() const { return weight.dtype == DType::f8_e4m3; }
  double at(int64_t r, int64_t c) const {
    const double value = weight.values[static_cast<size_t>(r * columns + c)];
    if (!scaled()) return value;
    return value * scales[static_cast<size_t>((first_row + r) / 128 * scale_columns +
                                              (first_column + c) / 128)];
  }
};

struct SliceOnGpu {
  OnGpu weight, scale;
  explicit SliceOnGpu(const Slice& slice)
      : weight(slice.weight, {slice.rows, slice.columns}),
        scale(slice.scales, {slice.scale_rows, slice.scale_columns}) {}
  ops::Linear linear(const Slice& slice) const {
    return {weight, slice.scaled() ? scale.tensor() : Tensor(), slice.first_row,
            slice.first_column};
  }
};

std::vector<double> linear_reference(const Numbers& x, int64_t tokens, const Slice& slice) {
  std::vector<double> out;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t n = 0; n < slice.rows; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < slice.columns; ++k)
        sum += x.values[static_cast<size_t>(t * slice.columns + k)] * slice.at(n, k);
      out.push_back(sum);
    }
  return out;
}

TEST_F(Gpu, LinearOverShapesAndTypes) {
  struct Case {
    DType x, weight;
    int64_t first_row, first_column;
  };
  const Case cases[] = {
      {DType::bf16, DType::f8_e4m3, 0, 0},   {DType::bf16, DType::f8_e4m3, 40, 64},
      {DType::bf16, DType::f8_e4m3, 7, 24},  {DType::bf16, DType::bf16, 0, 0},
      {DType::bf16, DType::f16, 0, 0},       {DType::bf16, DType::f32, 0, 0},
      {DType::f32, DType::f8_e4m3, 130, 65}, {DType::f32, DType::bf16, 0, 0},
      {DType::f32, DType::f32, 0, 0},
  };
  for (const Case& c : cases)
    for (const int64_t tokens : {1, 7, 8, 9, 16, 17, 31, 33, 65})
      for (const int64_t rows : {3, 15, 16, 17, 131})
        for (const int64_t columns : {64, 192, 320, 33, 1536}) {
          if (columns == 1536 && rows * tokens > 600) continue;
          const Numbers x = random_numbers(random_, tokens * columns, c.x);
          const Slice slice(random_, c.weight, rows, columns, c.first_row, c.first_column);
          const OnGpu x_gpu(x, {tokens, columns});
          const SliceOnGpu on_gpu(slice);
          const ops::Linear weight = on_gpu.linear(slice);
          const std::vector<double> expected = linear_reference(x, tokens, slice);
          for (const DType out_dtype : {DType::f32, DType::bf16}) {
            const OnGpu out(out_dtype, {tokens, rows});
            cuda::linear(without_workspace(), x_gpu, {&weight, 1}, out);
            const bool exact = out_dtype == DType::f32;
            expect_close(out.values(), expected, exact ? kExactNorm : kBf16Norm,
                         exact ? kExactSingle : kBf16Single,
                         std::string(name_of(c.weight)) + " T " + std::to_string(tokens) + " N " +
                             std::to_string(rows) + " K " + std::to_string(columns) + " at " +
                             std::to_string(c.first_row) + ", " + std::to_string(c.first_column));
          }
          if (HasFailure()) return;
        }
}

// Places for the rows of an output like `out`, of which three ranks look after some each: here all
// in one tensor, the last rank's first.
struct OwnedRows {
  ops::RowOwners owners;
  OnGpu places;

  explicit OwnedRows(const OnGpu& out)
      : places(out.tensor().dtype(), {out.tensor().size(0), out.tensor().size(1)}) {
    const int64_t rows = out.tensor().size(0);
    owners.ranks = 3;
    owners.rank = 1;
    for (int64_t r = 2, at = 0; r >= 0; --r) {
      const auto [first, count] = parallel::split_evenly(rows, 3, r);
      owners.first[r] = first;
      owners.count[r] = count;
      owners.to[r] = count > 0 ? places.tensor().rows(at, count).data() : nullptr;
      at += count;
    }
  }
  // What is there once every row of out has gone where it belongs.
  std::vector<uint8_t> expected(const OnGpu& out) const {
    const std::vector<uint8_t> all = out.bytes();
    const int64_t row = std::ssize(all) / out.tensor().size(0);
    std::vector<uint8_t> bytes;
    for (int r = 2; r >= 0; --r)
      bytes.insert(bytes.end(), all.begin() + owners.first[r] * row,
                   all.begin() + (owners.first[r] + owners.count[r]) * row);
    return bytes;
  }
};

TEST_F(Gpu, LinearBringsRowsToTheirOwners) {
  struct Case {
    DType x, weight;
    int64_t tokens, rows, columns, first_column;
  };
  for (const Case& c : {Case{DType::bf16, DType::f8_e4m3, 300, 384, 512, 0},
                        {DType::bf16, DType::f8_e4m3, 1031, 3072, 128, 128},
                        {DType::bf16, DType::f8_e4m3, 257, 131, 256, 0},
                        {DType::bf16, DType::f8_e4m3, 200, 128, 192, 64},
                        {DType::bf16, DType::f8_e4m3, 300, 384, 768, 0},
                        {DType::bf16, DType::f8_e4m3, 257, 3072, 384, 128},
                        {DType::bf16, DType::bf16, 300, 384, 256, 0},
                        {DType::bf16, DType::f16, 66, 24, 128, 0},
                        {DType::f32, DType::f32, 67, 17, 33, 0}}) {
    const OnGpu x(random_numbers(random_, c.tokens * c.columns, c.x), {c.tokens, c.columns});
    const Slice slice(random_, c.weight, c.rows, c.columns, 0, c.first_column);
    const SliceOnGpu on_gpu(slice);
    const ops::Linear weight = on_gpu.linear(slice);
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const OnGpu out(dtype, {c.tokens, c.rows}), untouched(dtype, {c.tokens, c.rows});
      cuda::linear(gpu(), x, {&weight, 1}, out);
      const OwnedRows owned(out);
      cuda::linear(gpu(), x, {&weight, 1}, untouched, {}, owned.owners);
      EXPECT_EQ(owned.places.bytes(), owned.expected(out))
          << name_of(c.weight) << " T " << c.tokens << " N " << c.rows << " K " << c.columns;
    }
  }
}

// Rows of x as the FP8 tensor cores get them: groups of `group` columns over their scales.
void quantise(double* row, int64_t columns, int64_t group, ScaleFormat format) {
  for (int64_t begin = 0; begin < columns; begin += group) {
    const int64_t end = std::min(columns, begin + group);
    float most = 0.0f;
    for (int64_t c = begin; c < end; ++c)
      most = std::max(most, std::abs(static_cast<float>(row[c])));
    float scale = std::max(most, 1e-10f) / 448.0f;
    if (format == ScaleFormat::e8m0)
      scale = static_cast<float>(std::exp2(std::ceil(std::log2(std::max(scale, 1e-10f)))));
    const float inverse = 1.0f / scale;
    for (int64_t c = begin; c < end; ++c)
      row[c] = static_cast<double>(to_float(to_f8_e4m3(static_cast<float>(row[c]) * inverse))) *
               static_cast<double>(scale);
  }
}

TEST_F(Gpu, LinearOnFp8TensorCores) {
  if (!cuda::wants_quantised()) GTEST_SKIP() << "needs a GPU of compute capability 9.0";
  struct Case {
    int64_t tokens, rows, columns, first_row, first_column;
  };
  std::vector<Case> cases = {{65, 64, 128, 0, 0},      {128, 128, 256, 0, 0},
                             {129, 131, 320, 64, 128}, {300, 300, 192, 192, 256},
                             {200, 17, 1536, 0, 0},    {1000, 520, 3072, 0, 0},
                             {1, 3072, 6144, 0, 0},    {64, 3072, 768, 0, 256}};
  for (const int64_t tokens : {1, 7, 8, 9, 16, 17, 32, 33, 63, 64}) {
    cases.push_back({tokens, 131, 320, 64, 128});
    cases.push_back({tokens, 2049, 192, 0, 0});
    cases.push_back({tokens, 8, 3072, 128, 0});
  }
  for (const Case& c : cases) {
    const Numbers x = random_numbers(random_, c.tokens * c.columns, DType::bf16);
    const OnGpu x_gpu(x, {c.tokens, c.columns});
    const Slice slice(random_, DType::f8_e4m3, c.rows, c.columns, c.first_row, c.first_column);
    const SliceOnGpu on_gpu(slice);
    const ops::Linear weight = on_gpu.linear(slice);
    for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0}) {
      Numbers quantised = x;
      for (int64_t t = 0; t < c.tokens; ++t)
        quantise(&quantised.values[static_cast<size_t>(t * c.columns)], c.columns, 128, format);
      const std::vector<double> expected = linear_reference(quantised, c.tokens, slice);
      for (const DType dtype : {DType::f32, DType::bf16}) {
        const OnGpu out(dtype, {c.tokens, c.rows});
        cuda::linear(gpu_with(format), x_gpu, {&weight, 1}, out);
        const bool wide = dtype == DType::f32;
        expect_close(out.values(), expected, wide ? 1.5e-3 : kBf16Norm, wide ? 2e-2 : kBf16Single,
                     "T " + std::to_string(c.tokens) + " N " + std::to_string(c.rows) + " K " +
                         std::to_string(c.columns) +
                         (format == ScaleFormat::e8m0 ? " powers of two" : ""));
      }
    }
  }
}

TEST_F(Gpu, QuantisesAsTheCpu) {
  ThreadPool pool(2);
  for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0})
    for (const int64_t columns : {4, 128, 132, 768, 772, 3072, 6144})
      for (const double size : {1.0, 1e-12, 1e30}) {
        const int64_t rows = 9, stretches = (columns + 127) / 128;
        Numbers x = random_numbers(random_, rows * columns, DType::bf16, size);
        const OnGpu x_gpu(x, {rows, columns});
        const OnGpu values(DType::f8_e4m3, {rows, columns}), scales(DType::f32, {rows, stretches});
        ops::quantise(gpu_with(format), x_gpu, {values, scales});
        std::vector<uint8_t> codes(static_cast<size_t>(rows * columns)), factors(scales.bytes());
        Exec cpu{Device{}, &pool};
        cpu.scales = format;
        ops::quantise(cpu, Tensor(x.bytes.data(), DType::bf16, {rows, columns}),
                      {Tensor(codes.data(), DType::f8_e4m3, {rows, columns}),
                       Tensor(factors.data(), DType::f32, {rows, stretches})});
        EXPECT_EQ(values.bytes(), codes) << columns << " of size " << size;
        EXPECT_EQ(scales.bytes(), factors) << columns << " of size " << size;
      }
}

TEST_F(Gpu, RequantisesAsTheCpu) {
  ThreadPool pool(2);
  for (const auto& [rows, columns, first_row, first_column] :
       {std::array<int64_t, 4>{128, 128, 0, 0},
        {1, 1, 0, 0},
        {131, 320, 64, 128},
        {192, 192, 192, 0},
        {100, 20, 60, 120},
        {256, 3072, 0, 0}}) {
    Slice slice(random_, DType::f8_e4m3, rows, columns, first_row, first_column);
    slice.weight.bytes[0] = 0x7f;
    const SliceOnGpu on_gpu(slice);
    ops::requantise(gpu(), on_gpu.linear(slice));
    const ops::Linear here{
        Tensor(slice.weight.bytes.data(), DType::f8_e4m3, {rows, columns}),
        Tensor(slice.scales.data(), DType::f32, {slice.scale_rows, slice.scale_columns}), first_row,
        first_column};
    ops::requantise({Device{}, &pool}, here);
    EXPECT_EQ(on_gpu.weight.bytes(), slice.weight.bytes) << rows << " x " << columns;
    const std::vector<double> scales(slice.scales.begin(), slice.scales.end());
    EXPECT_EQ(on_gpu.scale.values(), scales) << rows << " x " << columns;
  }
}

TEST_F(Gpu, LinearSideBySideIntoAStridedOutput) {
  const int64_t tokens = 5, columns = 256;
  const Numbers x = random_numbers(random_, tokens * columns, DType::bf16);
  const OnGpu x_gpu(x, {tokens, columns});
  std::vector<Slice> slices;
  for (const int64_t rows : {100, 16, 17, 3, 40})
    slices.emplace_back(random_, DType::f8_e4m3, rows, columns, rows % 7 * 19, 0);
  std::vector<SliceOnGpu> on_gpu;
  std::vector<ops::Linear> weights;
  int64_t total = 0;
  for (const Slice& slice : slices) {
    on_gpu.emplace_back(slice);
    weights.push_back(on_gpu.back().linear(slice));
    total += slice.rows;
  }
  const OnGpu out(DType::f32, {tokens, total + 9});
  cuda::linear(gpu(), x_gpu, weights, out.tensor().columns(4, total));
  const std::vector<double> values = out.values();
  int64_t begin = 4;
  for (const Slice& slice : slices) {
    const std::vector<double> expected = linear_reference(x, tokens, slice);
    std::vector<double> part;
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t n = 0; n < slice.rows; ++n)
        part.push_back(values[static_cast<size_t>(t * (total + 9) + begin + n)]);
    expect_close(part, expected, kExactNorm, kExactSingle, "part at " + std::to_string(begin));
    begin += slice.rows;
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (const int64_t c : {int64_t{3}, total + 4})
      EXPECT_TRUE(std::isnan(values[static_cast<size_t>(t * (total + 9) + c)]));
}

// So many rows that tiles of BF16 weights have 128 (of 16000) and 192.
TEST_F(Gpu, LinearBf16OfManyRows) {
  const int64_t columns = 192, most = 130;
  const Numbers x = random_numbers(random_, most * columns, DType::bf16);
  const OnGpu x_gpu(x, {most, columns});
  for (const int64_t rows : {16000, 17001}) {
    const Slice slice(random_, DType::bf16, rows, columns, 0, 0);
    const SliceOnGpu on_gpu(slice);
    const ops::Linear weight = on_gpu.linear(slice);
    const std::vector<double> expected = linear_reference(x, most, slice);
    std::vector<double> all;
    for (const int64_t tokens : {most, int64_t{64}, int64_t{30}, int64_t{9}, int64_t{1}}) {
      const OnGpu out(DType::f32, {tokens, rows});
      cuda::linear(gpu(), x_gpu.tensor().rows(0, tokens), {&weight, 1}, out);
      const std::vector<double> values = out.values();
      const auto end = static_cast<std::ptrdiff_t>(tokens * rows);
      const std::string what = std::to_string(tokens) + " tokens, N " + std::to_string(rows);
      expect_close(values, {expected.begin(), expected.begin() + end}, kExactNorm, kExactSingle,
                   what);
      if (tokens == most) all = values;
      EXPECT_TRUE(std::equal(values.begin(), values.end(), all.begin())) << what;
    }
  }
}

TEST_F(Gpu, LinearRowsAreTheSameInAnyBatch) {
  const int64_t tokens = 200;
  struct Case {
    DType dtype;
    int64_t rows, columns;
  };
  for (const auto& [dtype, rows, columns] :
       {Case{DType::f8_e4m3, 192, 3072}, Case{DType::f8_e4m3, 3072, 6144},
        Case{DType::f8_e4m3, 456, 6144}, Case{DType::bf16, 192, 3072}}) {
    const Numbers x = random_numbers(random_, tokens * columns, DType::bf16);
    const Slice slice(random_, dtype, rows, columns, 0, 0);
    const OnGpu x_gpu(x, {tokens, columns});
    const SliceOnGpu on_gpu(slice);
    const ops::Linear weight = on_gpu.linear(slice);
    const OnGpu all(DType::f32, {tokens, rows});
    cuda::linear(gpu(), x_gpu, {&weight, 1}, all);
    const std::vector<double> together = all.values();
    for (const int64_t count : {1, 2, 8, 13, 16, 30, 32, 50, 64, 65, 130})
      for (const int64_t first : {0, 17, 70}) {
        const OnGpu some(DType::f32, {count, rows});
        cuda::linear(gpu(), x_gpu.tensor().rows(first, count), {&weight, 1}, some);
        EXPECT_EQ(some.values(), std::vector<double>(together.begin() + first * rows,
                                                     together.begin() + (first + count) * rows))
            << name_of(dtype) << ", tokens " << first << " to " << first + count;
      }
  }
}

// The matrices of a tensor rank, side by side, of few and of many tokens.
TEST_F(Gpu, LinearSharesOfRanksAreTheSameInAnyBatch) {
  struct Case {
    std::vector<int64_t> rows;
    int64_t columns, first_row;
  };
  for (const Case& c :
       {Case{{1536, 256, 256}, 3072, 512}, Case{{768, 128, 128}, 3072, 64},
        Case{{768, 128, 128}, 3072, 192}, Case{{3072, 512, 512}, 3072, 0}, Case{{3072}, 1536, 0},
        Case{{3072}, 768, 0}, Case{{1536, 5, 130}, 3072, 0}}) {
    const int64_t tokens = 600;
    const Numbers x = random_numbers(random_, tokens * c.columns, DType::bf16);
    const OnGpu x_gpu(x, {tokens, c.columns});
    std::vector<Slice> slices;
    std::vector<SliceOnGpu> on_gpu;
    std::vector<ops::Linear> weights;
    int64_t total = 0;
    for (const int64_t rows : c.rows) {
      slices.emplace_back(random_, DType::f8_e4m3, rows, c.columns, c.first_row, 0);
      total += rows;
    }
    for (const Slice& slice : slices) {
      on_gpu.emplace_back(slice);
      weights.push_back(on_gpu.back().linear(slice));
    }
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const OnGpu all(dtype, {tokens, total});
      cuda::linear(gpu(), x_gpu, weights, all);
      const std::vector<double> together = all.values();
      for (const int64_t count : {1, 2, 7, 8, 9, 10, 16, 17, 40, 64, 65, 130, 300, 520})
        for (const int64_t first : {0, 1}) {
          const OnGpu some(dtype, {count, total});
          cuda::linear(gpu(), x_gpu.tensor().rows(first, count), weights, some);
          EXPECT_EQ(some.values(), std::vector<double>(together.begin() + first * total,
                                                       together.begin() + (first + count) * total))
              << total << " x " << c.columns << ", tokens " << first << " to " << first + count;
        }
    }
  }
}

// --- route -------------------------------------------------------------------------------------

TEST_F(Gpu, Route) {
  struct Case {
    int64_t tokens, experts, hidden, top;
  };
  for (const DType dtype : {DType::bf16, DType::f32})
    for (const Case& c :
         {Case{1, 256, 3072, 8}, Case{3, 256, 3072, 8}, Case{5, 256, 512, 8}, Case{64, 256, 64, 8},
          Case{65, 256, 320, 8}, Case{131, 192, 100, 8}, Case{2, 10, 33, 3}, Case{70, 33, 65, 32},
          Case{9, 1, 8, 1}, Case{513, 256, 3072, 8}, Case{640, 190, 352, 8}}) {
      const Numbers x = random_numbers(random_, c.tokens * c.hidden, dtype);
      const Numbers gate = random_numbers(random_, c.experts * c.hidden, DType::f32,
                                          1.0 / std::sqrt(static_cast<double>(c.hidden)));
      const Numbers bias = random_numbers(random_, c.experts, DType::f32, 0.1);
      const OnGpu x_gpu(x, {c.tokens, c.hidden}), gate_gpu(gate, {c.experts, c.hidden}),
          bias_gpu(bias, {c.experts});
      const OnGpu ids(DType::i32, {c.tokens, c.top}), weights(DType::f32, {c.tokens, c.top});
      cuda::route(gpu(), x_gpu, gate_gpu, bias_gpu, {}, ids, weights);
      const std::vector<double> chosen = ids.values(), shares = weights.values();
      for (int64_t t = 0; t < c.tokens; ++t) {
        std::vector<double> score(static_cast<size_t>(c.experts));
        for (int64_t e = 0; e < c.experts; ++e) {
          double logit = 0.0;
          for (int64_t k = 0; k < c.hidden; ++k)
            logit += x.values[static_cast<size_t>(t * c.hidden + k)] *
                     gate.values[static_cast<size_t>(e * c.hidden + k)];
          score[static_cast<size_t>(e)] = 1.0 / (1.0 + std::exp(-logit));
        }
        std::vector<bool> taken(static_cast<size_t>(c.experts));
        double sum = 0.0, least = 1e9, best_left = -1e9;
        for (int64_t i = 0; i < c.top; ++i) {
          const double id = chosen[static_cast<size_t>(t * c.top + i)];
          ASSERT_TRUE(id >= 0 && id < static_cast<double>(c.experts)) << "token " << t;
          if (i > 0) {
            ASSERT_GT(id, chosen[static_cast<size_t>(t * c.top + i - 1)]);
          }
          const auto e = static_cast<size_t>(id);
          taken[e] = true;
          sum += score[e];
          least = std::min(least, score[e] + bias.values[e]);
        }
        for (size_t e = 0; e < taken.size(); ++e)
          if (!taken[e]) best_left = std::max(best_left, score[e] + bias.values[e]);
        EXPECT_GE(least, best_left - 2e-6) << "token " << t;
        for (int64_t i = 0; i < c.top; ++i) {
          const auto at = static_cast<size_t>(t * c.top + i);
          EXPECT_NEAR(shares[at], score[static_cast<size_t>(chosen[at])] / sum, 1e-5);
        }
      }
    }
}

TEST_F(Gpu, RouteIsTheSameInAnyBatch) {
  constexpr int64_t kTokens = 700, kExperts = 250, kTop = 8;
  for (const int64_t hidden : {3072, 352}) {
    const OnGpu x(random_numbers(random_, kTokens * hidden, DType::bf16), {kTokens, hidden});
    const OnGpu gate(random_numbers(random_, kExperts * hidden, DType::f32, 0.02),
                     {kExperts, hidden});
    const OnGpu bias(random_numbers(random_, kExperts, DType::f32, 0.1), {kExperts});
    const auto run = [&](int64_t first, int64_t count) {
      const OnGpu ids(DType::i32, {count, kTop}), weights(DType::f32, {count, kTop});
      cuda::route(gpu(), x.tensor().rows(first, count), gate, bias, {}, ids, weights);
      std::vector<double> both = ids.values();
      const std::vector<double> shares = weights.values();
      both.insert(both.end(), shares.begin(), shares.end());
      return both;
    };
    const std::vector<double> all = run(0, kTokens);
    for (const int64_t count : {1, 2, 4, 5, 16, 48, 49, 64, 127, 128, 511, 512})
      for (const int64_t first : {0, 19, 188}) {
        const std::vector<double> some = run(first, count);
        std::vector<double> expected(all.begin() + first * kTop,
                                     all.begin() + (first + count) * kTop);
        const auto shares = all.begin() + (kTokens + first) * kTop;
        expected.insert(expected.end(), shares, shares + count * kTop);
        EXPECT_EQ(some, expected) << count << " from " << first << ", hidden " << hidden;
      }
  }
}

// Enough tokens for each shape of the product: few of them share the columns of a tile.
TEST_F(Gpu, RouteOfManyTokensIsTheSameInAnyBatch) {
  constexpr int64_t kTokens = 6470, kExperts = 250, kHidden = 608, kTop = 8;
  const OnGpu x(random_numbers(random_, kTokens * kHidden, DType::bf16), {kTokens, kHidden});
  const OnGpu gate(random_numbers(random_, kExperts * kHidden, DType::f32, 0.05),
                   {kExperts, kHidden});
  const OnGpu bias(random_numbers(random_, kExperts, DType::f32, 0.1), {kExperts});
  const auto run = [&](int64_t first, int64_t count) {
    const OnGpu ids(DType::i32, {count, kTop}), weights(DType::f32, {count, kTop});
    cuda::route(gpu(), x.tensor().rows(first, count), gate, bias, {}, ids, weights);
    return std::pair(ids.values(), weights.values());
  };
  const auto [ids, weights] = run(0, kTokens);
  for (const int64_t count : {3, 100, 530, 1500, 3001})
    for (const int64_t first : {int64_t{0}, int64_t{1777}, kTokens - count}) {
      const auto [some_ids, some_weights] = run(first, count);
      const auto part = [&](const std::vector<double>& all) {
        return std::vector<double>(all.begin() + first * kTop,
                                   all.begin() + (first + count) * kTop);
      };
      EXPECT_EQ(some_ids, part(ids)) << count << " from " << first;
      EXPECT_EQ(some_weights, part(weights)) << count << " from " << first;
    }
}

TEST_F(Gpu, RouteBreaksTiesTowardsTheLowerId) {
  // All logits are zero: the choice is the bias's alone.
  const OnGpu x(std::vector<float>(64, 0.0f), {1, 64});
  const OnGpu gate(random_numbers(random_, 256 * 64, DType::f32), {256, 64});
  std::vector<float> biases(256, 0.5f);
  biases[200] = 0.75f;
  const OnGpu bias(biases, {256}), ids(DType::i32, {1, 8}), weights(DType::f32, {1, 8});
  cuda::route(gpu(), x, gate, bias, {}, ids, weights);
  EXPECT_EQ(ids.values(), (std::vector<double>{0, 1, 2, 3, 4, 5, 6, 200}));
  for (const double weight : weights.values()) EXPECT_EQ(weight, 0.125);
}

// --- attention ---------------------------------------------------------------------------------

struct Sequence {
  int32_t length, context;  // tokens in this step; tokens in the cache with them
};

// A step over sequences whose pages are scattered over a cache that is NaN elsewhere.
struct AttentionCase {
  ops::HeadShape heads;
  int64_t block_size;
  DType dtype;
  std::vector<Sequence> sequences;
  DType cache = DType::bf16;
};

// Runs the case and returns out [T, q_heads * dim]; `reference` gets what it should be for the
// tokens in `checked` (all if empty), as pairs of (out, expected).
std::vector<double> run_attention(std::mt19937& random, const AttentionCase& c, const Exec& exec,
                                  const std::string& what) {
  const auto [q_heads, kv_heads, dim, rotary] = c.heads;
  std::vector<int32_t> starts = {0}, contexts;
  int64_t blocks = 1, max_blocks = 0;
  for (const Sequence& s : c.sequences) {
    starts.push_back(starts.back() + s.length);
    contexts.push_back(s.context);
    const int64_t needed = (s.context + c.block_size - 1) / c.block_size;
    blocks += needed;
    max_blocks = std::max(max_blocks, needed + 3);
  }
  std::vector<int32_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const auto count = static_cast<int64_t>(c.sequences.size());
  std::vector<int32_t> tables(static_cast<size_t>(count * max_blocks), 1 << 30);
  const int64_t cells = blocks * kv_heads * c.block_size * dim;
  // Codes of FP8 are large numbers; the scales bring them near one.
  const bool f8 = c.cache == DType::f8_e4m3;
  const float k_scale = f8 ? 0.01f : 1, v_scale = f8 ? 0.02f : 1;
  const int64_t each = size_of(c.cache);
  Numbers k = random_numbers(random, cells, c.cache), v = k;
  std::fill(v.bytes.begin(), v.bytes.end(), uint8_t{0xff});
  Numbers unused = v;
  const Numbers v_random = random_numbers(random, cells, c.cache);
  const Numbers k_random = k;
  k.bytes = unused.bytes;
  size_t next = 0;
  for (int64_t s = 0; s < count; ++s)
    for (int64_t p = 0; p < contexts[static_cast<size_t>(s)]; ++p) {
      int32_t& block = tables[static_cast<size_t>(s * max_blocks + p / c.block_size)];
      if (p % c.block_size == 0) block = order[next++];
      for (int64_t h = 0; h < kv_heads; ++h) {
        const auto at = static_cast<size_t>(
            ((block * kv_heads + h) * c.block_size + p % c.block_size) * dim * each);
        std::copy_n(k_random.bytes.begin() + static_cast<int64_t>(at), dim * each,
                    k.bytes.begin() + static_cast<int64_t>(at));
        std::copy_n(v_random.bytes.begin() + static_cast<int64_t>(at), dim * each,
                    v.bytes.begin() + static_cast<int64_t>(at));
      }
    }
  const int64_t tokens = starts.back();
  const int64_t stride = (q_heads + 2 * kv_heads) * dim;  // q is the first part of qkv's rows
  const Numbers q = random_numbers(random, tokens * stride, c.dtype, 1.5);
  const OnGpu q_gpu(q, {tokens, stride}), out(c.dtype, {tokens, q_heads * dim});
  const OnGpu k_gpu(k, {blocks, kv_heads, c.block_size, dim}),
      v_gpu(v, {blocks, kv_heads, c.block_size, dim});
  const OnGpu starts_gpu(starts, {count + 1}), contexts_gpu(contexts, {count}),
      tables_gpu(tables, {count, max_blocks});
  ops::BatchLayout layout;
  layout.query_starts = starts_gpu;
  layout.context_lens = contexts_gpu;
  layout.block_tables = tables_gpu;
  const ops::KvCache cache{k_gpu, v_gpu, k_scale, v_scale};
  cuda::paged_attention(exec, q_gpu.tensor().columns(0, q_heads * dim), cache, layout, c.heads,
                        out);
  const std::vector<double> values = out.values();
  if (c.dtype == DType::bf16) {
    const int64_t width = q_heads * dim;
    const OnGpu codes(DType::f8_e4m3, {tokens, width}),
        scales(DType::f32, {tokens, (width + 127) / 128}), again(DType::bf16, {tokens, width});
    cuda::paged_attention(exec, q_gpu.tensor().columns(0, width), cache, layout, c.heads, again,
                          {codes, scales});
    EXPECT_EQ(again.bytes(), out.bytes()) << what;
    expect_quantised({codes, scales}, codes, scales, out, what, exec.scales);
  }

  std::vector<double> expected, checked;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t length = c.sequences[static_cast<size_t>(s)].length;
    for (int64_t i = 0; i < length; ++i) {
      const int64_t seen = contexts[static_cast<size_t>(s)] - length + i + 1;
      const int64_t token = starts[static_cast<size_t>(s)] + i;
      // References are slow: of long sequences every fifth token, and those around the tiles' ends.
      const bool at_border = i % 64 == 0 || i % 64 == 63 || i + 1 == length;
      if (seen > 600 ? i % 37 != 0 && i + 1 != length : i % 5 != 0 && !at_border) continue;
      for (int64_t h = 0; h < q_heads; ++h) {
        if (seen > 600 && h % 5 != 0) continue;
        const int64_t kv = h / (q_heads / kv_heads);
        const auto cell = [&](int64_t p) {
          const int64_t block = tables[static_cast<size_t>(s * max_blocks + p / c.block_size)];
          return static_cast<size_t>(((block * kv_heads + kv) * c.block_size + p % c.block_size) *
                                     dim);
        };
        std::vector<double> weight(static_cast<size_t>(seen));
        double top = -1e300, sum = 0.0;
        for (int64_t p = 0; p < seen; ++p) {
          double dot = 0.0;
          for (int64_t d = 0; d < dim; ++d)
            dot += q.values[static_cast<size_t>(token * stride + h * dim + d)] *
                   k_random.values[cell(p) + static_cast<size_t>(d)];
          weight[static_cast<size_t>(p)] = dot * k_scale / std::sqrt(static_cast<double>(dim));
          top = std::max(top, weight[static_cast<size_t>(p)]);
        }
        for (double& w : weight) sum += w = std::exp(w - top);
        std::vector<double> row(static_cast<size_t>(dim));
        for (int64_t p = 0; p < seen; ++p)
          for (int64_t d = 0; d < dim; ++d)
            row[static_cast<size_t>(d)] += weight[static_cast<size_t>(p)] / sum * v_scale *
                                           v_random.values[cell(p) + static_cast<size_t>(d)];
        for (int64_t d = 0; d < dim; ++d) {
          expected.push_back(row[static_cast<size_t>(d)]);
          checked.push_back(values[static_cast<size_t>((token * q_heads + h) * dim + d)]);
        }
      }
    }
  }
  const bool bf16 = c.dtype == DType::bf16;
  expect_close(checked, expected, bf16 ? kTwiceNorm : 1e-5, bf16 ? kTwiceSingle : 1e-3, what);
  for (const double value : values) {
    EXPECT_FALSE(std::isnan(value)) << what << " left NaN";
    if (std::isnan(value)) break;
  }
  return values;
}

constexpr DType kCaches[] = {DType::bf16, DType::f8_e4m3};

TEST_F(Gpu, AttentionDecode) {
  for (const DType cache : kCaches) {
    const std::string over = cache == DType::bf16 ? "" : "FP8, ";
    for (const int32_t context :
         {1, 15, 16, 17, 63, 64, 65, 127, 128, 255, 256, 257, 1021, 4099, 9001}) {
      const AttentionCase c{{48, 8, 128, 64}, 16, DType::bf16, {{1, context}}, cache};
      run_attention(random_, c, gpu(), over + "context " + std::to_string(context));
      run_attention(random_, c, without_workspace(),
                    over + "no workspace, context " + std::to_string(context));
    }
    run_attention(random_,
                  {{6, 1, 128, 64}, 16, DType::bf16, {{1, 5}, {1, 700}, {1, 33}, {1, 2500}}, cache},
                  gpu(), over + "one KV head");
    const std::vector<Sequence> seven{{1, 5}, {1, 700}, {1, 33},  {1, 2500},
                                      {1, 1}, {1, 256}, {1, 3001}};
    for (const Exec* exec : {&gpu(), &without_workspace()})
      run_attention(random_, {{12, 2, 128, 64}, 16, DType::bf16, seven, cache}, *exec,
                    over + "seven sequences");
    run_attention(random_, {{16, 2, 128, 64}, 16, DType::bf16, {{1, 300}, {1, 16}}, cache}, gpu(),
                  over + "groups of eight");
  }
}

// Whoever joins the parts of a context, their last block, the blocks that they are sent to, or a
// second kernel: the same bytes, again and again.
TEST_F(Gpu, AttentionJoinsItsParts) {
  Exec apart = gpu();
  apart.alone = false;
  const ops::HeadShape whole{48, 8, 128, 64}, quarter{12, 2, 128, 64}, eighth{6, 1, 128, 64};
  using Sequences = std::vector<Sequence>;
  for (const DType cache : kCaches)
    for (const auto& [heads, sequences] :
         {std::pair<ops::HeadShape, Sequences>{whole, {{1, 600}}},
          {whole, {{1, 9001}}},
          {whole, {{1, 257}, {1, 5}, {1, 4099}, {1, 256}, {1, 1021}}},
          {quarter, {{1, 129}}},
          {quarter, {{1, 2049}}},
          {quarter, {{1, 300}, {1, 4096}}},
          {quarter, {{1, 4097}, {1, 2000}}},
          {eighth, {{1, 128}, {1, 1025}}},
          {eighth, {{3, 700}, {1, 2303}}},
          {{16, 2, 128, 64}, {{1, 900}}}}) {
      const AttentionCase c{heads, 16, DType::bf16, sequences, cache};
      std::mt19937 same = random_;
      const std::vector<double> expected = run_attention(same, c, apart, "joined by a kernel");
      for (int round = 0; round < 3; ++round) {
        same = random_;
        EXPECT_EQ(run_attention(same, c, gpu(), "joined by the last block"), expected);
      }
    }
}

TEST_F(Gpu, AttentionQuantisesWithPowersOfTwo) {
  for (const DType cache : kCaches)
    run_attention(
        random_,
        {{12, 2, 128, 64}, 16, DType::bf16, {{1, 400}, {150, 150}, {1, 1}, {1, 4500}}, cache},
        gpu_with(ScaleFormat::e8m0), "powers of two");
}

TEST_F(Gpu, AttentionPrefillAndMixed) {
  for (const DType cache : kCaches) {
    const std::string over = cache == DType::bf16 ? "" : "FP8, ";
    for (const int32_t length : {2, 16, 63, 64, 65, 127, 128, 129, 257, 300})
      for (const int32_t before : {0, 1, 64, 127, 200})
        run_attention(random_,
                      {{6, 1, 128, 64}, 16, DType::bf16, {{length, length + before}}, cache}, gpu(),
                      over + std::to_string(length) + " tokens after " + std::to_string(before));
    run_attention(random_,
                  {{12, 2, 128, 64},
                   16,
                   DType::bf16,
                   {{1, 400}, {150, 150}, {1, 1}, {3, 3}, {257, 900}, {1, 4500}},
                   cache},
                  gpu(), over + "mixed");
    run_attention(random_,
                  {{10, 2, 128, 64}, 16, DType::bf16, {{150, 400}, {1, 30}, {129, 129}}, cache},
                  gpu(), over + "groups of five");
    // More sequences than a warp has lanes, and more tiles than the GPU has multiprocessors.
    std::vector<Sequence> many;
    for (int32_t i = 0; i < 90; ++i) many.push_back({i % 3 ? 1 + i % 7 : 130 + i, 140 + 2 * i});
    run_attention(random_, {{16, 2, 128, 64}, 16, DType::bf16, many, cache}, gpu(),
                  over + "many sequences");
  }
}

// A prompt's tokens are the same bytes however it is cut, in chunks of at least two tokens.
void expect_chunks(std::mt19937& random, DType cache) {
  const ops::HeadShape heads{12, 2, 128, 64};
  constexpr int32_t kTokens = 700, kBlocks = (kTokens + 15) / 16;
  const Numbers cells = random_numbers(random, kBlocks * 2 * 16 * 128, cache);
  const OnGpu k(cells, {kBlocks, 2, 16, 128}), v(cells, {kBlocks, 2, 16, 128});
  const OnGpu q(random_numbers(random, kTokens * 12 * 128, DType::bf16, 1.5), {kTokens, 12 * 128});
  const float scale = cache == DType::bf16 ? 1 : 0.01f;
  const ops::KvCache kv{k, v, scale, scale};
  std::vector<int32_t> blocks(kBlocks);
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  const OnGpu table(blocks, {1, kBlocks});
  const auto run = [&](int32_t begin, int32_t end) {
    const OnGpu starts(std::vector<int32_t>{0, end - begin}, {2});
    const OnGpu context(std::vector<int32_t>{end}, {1});
    const OnGpu out(DType::bf16, {end - begin, 12 * 128});
    ops::BatchLayout layout;
    layout.query_starts = starts;
    layout.context_lens = context;
    layout.block_tables = table;
    cuda::paged_attention(gpu(), q.tensor().rows(begin, end - begin), kv, layout, heads, out);
    return out.values();
  };
  const std::vector<double> whole = run(0, kTokens);
  for (const std::vector<int32_t>& cuts :
       {std::vector<int32_t>{0, 2, 700}, {0, 65, 130, 641, 700}, {0, 512, 698, 700}}) {
    std::vector<double> pieces;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const std::vector<double> piece = run(cuts[i], cuts[i + 1]);
      pieces.insert(pieces.end(), piece.begin(), piece.end());
    }
    EXPECT_EQ(pieces, whole) << "cut after " << cuts[1];
  }
}

// A step over sequences, of which any stretch can be run alone.
struct StepOfSequences {
  std::vector<int32_t> starts{0}, contexts, tables;
  int64_t most = 0;  // pages of a sequence

  explicit StepOfSequences(const std::vector<Sequence>& sequences) {
    for (const auto& [length, context] : sequences) {
      starts.push_back(starts.back() + length);
      contexts.push_back(context);
      most = std::max<int64_t>(most, (context + 15) / 16);
    }
    tables.assign(static_cast<size_t>(static_cast<int64_t>(sequences.size()) * most), 1 << 30);
  }

  // The outputs of sequences [first, end). q: of all of the step's tokens.
  std::vector<uint8_t> attend(const Exec& exec, const Tensor& q, const ops::KvCache& cache,
                              const ops::HeadShape& heads, int64_t first, int64_t end) const {
    std::vector<int32_t> from;
    for (int64_t s = first; s <= end; ++s)
      from.push_back(starts[static_cast<size_t>(s)] - starts[static_cast<size_t>(first)]);
    const OnGpu query_starts(from, {end - first + 1});
    const OnGpu context_lens(std::vector<int32_t>(contexts.begin() + first, contexts.begin() + end),
                             {end - first});
    const OnGpu block_tables(
        std::vector<int32_t>(tables.begin() + first * most, tables.begin() + end * most),
        {end - first, most});
    const OnGpu out(DType::bf16, {from.back(), heads.q_heads * 128});
    ops::BatchLayout layout;
    layout.query_starts = query_starts;
    layout.context_lens = context_lens;
    layout.block_tables = block_tables;
    cuda::paged_attention(exec, q.rows(starts[static_cast<size_t>(first)], from.back()), cache,
                          layout, heads, out);
    return out.bytes();
  }
};

void expect_prompts_alone(std::mt19937& random, const ops::HeadShape& heads, DType cache_dtype,
                          const std::vector<Sequence>& sequences) {
  const int64_t width = heads.q_heads * 128;
  StepOfSequences step(sequences);
  const std::vector<int32_t>& starts = step.starts;
  std::vector<int32_t> begins{0};
  for (const int32_t context : step.contexts) begins.push_back(begins.back() + (context + 15) / 16);
  const auto count = static_cast<int64_t>(sequences.size());
  std::vector<int32_t> order(static_cast<size_t>(begins.back()));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (int64_t s = 0; s < count; ++s)
    std::copy(order.begin() + begins[static_cast<size_t>(s)],
              order.begin() + begins[static_cast<size_t>(s + 1)],
              step.tables.begin() + s * step.most);
  const int64_t blocks = begins.back();
  const OnGpu k(random_numbers(random, blocks * heads.kv_heads * 16 * 128, cache_dtype),
                {blocks, heads.kv_heads, 16, 128});
  const OnGpu v(random_numbers(random, blocks * heads.kv_heads * 16 * 128, cache_dtype),
                {blocks, heads.kv_heads, 16, 128});
  const float scale = cache_dtype == DType::bf16 ? 1 : 0.01f;
  const OnGpu q(random_numbers(random, starts.back() * width, DType::bf16, 1.5),
                {starts.back(), width});
  const auto run = [&](const Exec& exec, int64_t first, int64_t end) {
    return step.attend(exec, q.tensor(), {k, v, scale, scale}, heads, first, end);
  };
  // Room to widen all long contexts, some, none.
  for (const int64_t bytes : {gpu().workspace_bytes, int64_t{2'600'000}, int64_t{0}}) {
    Exec exec = gpu();
    exec.workspace_bytes = bytes;
    const std::vector<uint8_t> together = run(exec, 0, count);
    for (int64_t s = 0; s < count; ++s) {
      if (sequences[static_cast<size_t>(s)].length < 2) continue;
      const auto begin = together.begin() + starts[static_cast<size_t>(s)] * width * 2,
                 end = together.begin() + starts[static_cast<size_t>(s + 1)] * width * 2;
      ASSERT_EQ(std::vector<uint8_t>(begin, end), run(gpu(), s, s + 1))
          << "sequence " << s << " with " << bytes << " bytes";
    }
  }
}

TEST_F(Gpu, AttentionOfChunks) {
  for (const DType cache : kCaches) expect_chunks(random_, cache);
}

// A decoded token is the same bytes in a step of many sequences as alone, whatever these are: other
// tokens, prompts, or empty ones, as recorded graphs have them, whose outputs stay as they were.
void expect_same_alone(std::mt19937& random, const ops::HeadShape& heads, DType cache_dtype,
                       const std::vector<Sequence>& sequences, const std::string& what) {
  constexpr int64_t kPages = 40;  // several sequences may have the same one, except for their last
  const auto count = static_cast<int64_t>(sequences.size());
  const int64_t blocks = kPages + count, width = heads.q_heads * 128;
  const int64_t row = 128 * size_of(cache_dtype), page = 16 * row;
  Numbers keys = random_numbers(random, blocks * heads.kv_heads * 16 * 128, cache_dtype);
  Numbers values = random_numbers(random, blocks * heads.kv_heads * 16 * 128, cache_dtype);
  StepOfSequences step(sequences);
  const std::vector<int32_t>&starts = step.starts, &contexts = step.contexts;
  std::uniform_int_distribution<int32_t> any(0, kPages - 1);
  for (int64_t s = 0; s < count; ++s) {
    const int64_t context = contexts[static_cast<size_t>(s)], pages = (context + 15) / 16;
    for (int64_t p = 0; p < pages; ++p)
      step.tables[static_cast<size_t>(s * step.most + p)] =
          p + 1 < pages ? any(random) : static_cast<int32_t>(kPages + s);
    for (int64_t h = 0; h < heads.kv_heads; ++h)
      for (Numbers* numbers : {&keys, &values})
        std::fill_n(numbers->bytes.begin() + ((kPages + s) * heads.kv_heads + h) * page +
                        (context - (pages - 1) * 16) * row,
                    (pages * 16 - context) * row, uint8_t{0xff});
  }
  const OnGpu k(keys, {blocks, heads.kv_heads, 16, 128});
  const OnGpu v(values, {blocks, heads.kv_heads, 16, 128});
  const float scale = cache_dtype == DType::bf16 ? 1 : 0.01f;
  const int64_t tokens = starts.back();
  const OnGpu q(random_numbers(random, tokens * width, DType::bf16, 1.5), {tokens, width});
  Exec shared = gpu();
  shared.alone = false;
  const auto run = [&](const Exec& exec, int64_t first, int64_t end) {
    return step.attend(exec, q.tensor(), {k, v, scale, scale}, heads, first, end);
  };
  const std::vector<uint8_t> together = run(gpu(), 0, count);
  ASSERT_EQ(run(gpu(), 0, count), together) << what << ", again";
  ASSERT_EQ(run(shared, 0, count), together) << what << ", on a shared GPU";
  for (int64_t s = 0; s < count; ++s) {
    if (sequences[static_cast<size_t>(s)].length != 1) continue;
    const auto begin = together.begin() + starts[static_cast<size_t>(s)] * width * 2;
    const std::vector<uint8_t> here(begin, begin + width * 2);
    const int32_t context = contexts[static_cast<size_t>(s)];
    ASSERT_EQ(here, context == 0 ? std::vector<uint8_t>(here.size(), 0xff) : run(gpu(), s, s + 1))
        << what << ", sequence " << s << " of context " << context;
  }
}

void expect_same_alone(std::mt19937& random, const std::vector<Sequence>& sequences,
                       const std::string& what) {
  for (const DType cache : kCaches)
    for (const auto& [q_heads, kv_heads] : {std::pair<int64_t, int64_t>{48, 8}, {12, 2}, {6, 1}})
      expect_same_alone(
          random, {q_heads, kv_heads, 128, 64}, cache, sequences,
          std::string(name_of(cache)) + ", " + std::to_string(kv_heads) + " KV heads, " + what);
}

TEST_F(Gpu, AttentionOfSeveralSequences) {
  expect_same_alone(random_, {{1, 4099}, {1, 1}, {1, 256}, {1, 257}, {1, 2500}}, "five");
  expect_same_alone(random_, {{1, 16}, {1, 15}, {1, 17}, {1, 0}, {1, 1}, {1, 128}}, "short ones");
  expect_same_alone(random_, std::vector<Sequence>(6, {1, 0}), "empty ones");
}

// Blocks of whole parts, several for a head.
TEST_F(Gpu, AttentionOfEvenSequences) {
  expect_same_alone(random_, std::vector<Sequence>(8, {1, 2041}), "eight of 2041");
  expect_same_alone(random_, std::vector<Sequence>(4, {1, 8192}), "four of 8192");
  expect_same_alone(random_, std::vector<Sequence>(10, {1, 2500}), "ten of 2500");
  expect_same_alone(random_, std::vector<Sequence>(33, {1, 8200}), "more parts than are sent");
}

// Blocks that go on to further parts, which have more pages than a warp has lanes for their ids.
TEST_F(Gpu, AttentionOfLongSequences) {
  expect_same_alone(random_,
                    {{1, 66000}, {1, 5000}, {1, 300}, {1, 0}, {1, 20000}, {1, 8193}, {1, 140000}},
                    "seven long ones");
  expect_same_alone(random_, {{1, 9000}, {3, 40000}, {1, 100000}, {1, 4097}}, "beside a prompt");
  std::vector<Sequence> many(26, {1, 70});
  many[3].context = 66000;
  many[25].context = 12000;
  expect_same_alone(random_, many, "two among many");
}

TEST_F(Gpu, AttentionOfManySequences) {
  std::vector<Sequence> uneven, mixed;
  for (int32_t i = 0; i < 70; ++i) {
    uneven.push_back({1, i % 9 == 5 ? 0 : 1 + i * i * 37 % 3001});
    const int32_t length = i % 5 == 2 ? 2 + i : 1;
    mixed.push_back({length, length + i * i * 53 % 1009});
  }
  uneven[40].context = 34000;  // long parts among short ones
  uneven[3].context = 20000;
  expect_same_alone(random_, uneven, "70 uneven ones");
  uneven.resize(33);
  expect_same_alone(random_, uneven, "33 uneven ones");
  expect_same_alone(random_, mixed, "beside prompts");
}

// A prompt's tokens are the same bytes beside others as alone, and whether a tile of queries is one
// of many or few.
TEST_F(Gpu, AttentionOfPromptsIsTheSameInAnyBatch) {
  std::vector<std::vector<Sequence>> steps = {
      {{700, 700}, {2, 900}, {1, 300}, {513, 1500}, {129, 130}, {130, 194}, {640, 640}}, {}};
  for (int32_t i = 0; i < 45; ++i) steps[1].push_back({i % 4 ? 2 + i * 13 % 300 : 1, 310 + 31 * i});
  for (const DType cache : kCaches)
    for (const auto& sequences : steps)
      for (const auto& [q_heads, kv_heads] : {std::pair<int64_t, int64_t>{12, 2}, {6, 1}, {5, 1}})
        expect_prompts_alone(random_, {q_heads, kv_heads, 128, 64}, cache, sequences);
}

// A stretch of a prompt, of which [begin, end) are a step's tokens.
struct Stretch {
  int32_t begin, end;
};

// A prompt's tokens are the same bytes in whatever chunks and beside whatever others, where their
// contexts are shared out over blocks by parts of keys and where one block has all of one.
void expect_shared_out(std::mt19937& random, const ops::HeadShape& heads, DType cache_dtype,
                       const std::vector<Stretch>& stretches) {
  int32_t tokens = 0;
  for (const Stretch& s : stretches) tokens = std::max(tokens, s.end);
  const int64_t width = heads.q_heads * 128, blocks = (tokens + 15) / 16;
  const int64_t cells = blocks * heads.kv_heads * 16 * 128;
  const OnGpu k(random_numbers(random, cells, cache_dtype), {blocks, heads.kv_heads, 16, 128});
  const OnGpu v(random_numbers(random, cells, cache_dtype), {blocks, heads.kv_heads, 16, 128});
  const float scale = cache_dtype == DType::bf16 ? 1 : 0.01f;
  constexpr int32_t kQueries = 2039;  // positions take them in turns
  const Numbers q = random_numbers(random, kQueries * width, DType::bf16, 1.5);
  std::vector<int32_t> order(static_cast<size_t>(blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  // A step of all stretches, as sequences over the same pages; outputs in their order.
  const auto run = [&](const std::vector<Stretch>& some, bool widens) {
    std::vector<Sequence> sequences;
    Numbers queries{DType::bf16, {}, {}};
    for (const auto& [begin, end] : some) {
      sequences.push_back({end - begin, end});
      for (int32_t position = begin; position < end; ++position) {
        const auto from = q.bytes.begin() + position % kQueries * width * 2;
        queries.bytes.insert(queries.bytes.end(), from, from + width * 2);
      }
    }
    StepOfSequences step(sequences);
    for (size_t s = 0; s < some.size(); ++s)
      std::copy_n(order.begin(), (some[s].end + 15) / 16,
                  step.tables.begin() + static_cast<int64_t>(s) * step.most);
    static const std::vector<float> poison(static_cast<size_t>(gpu().workspace_bytes / 4),
                                           std::nanf(""));
    copy_to_device(gpu(), gpu().workspace, poison.data(), gpu().workspace_bytes);
    const OnGpu q_gpu(queries, {step.starts.back(), width});
    const auto count = static_cast<int64_t>(some.size());
    Exec exec = gpu();
    if (!widens)
      exec.workspace_bytes = cuda::attention_workspace_bytes(count, step.most * 16, heads) + 1024;
    return step.attend(exec, q_gpu.tensor(), {k, v, scale, scale}, heads, 0, count);
  };
  std::vector<std::vector<uint8_t>> rows(static_cast<size_t>(tokens));
  const auto check = [&](const std::vector<Stretch>& some, const std::string& what,
                         bool widens = true) {
    const std::vector<uint8_t> out = run(some, widens);
    auto from = out.begin();
    for (const auto& [begin, end] : some)
      for (int32_t position = begin; position < end; ++position, from += width * 2) {
        const std::vector<uint8_t> row(from, from + width * 2);
        std::vector<uint8_t>& known = rows[static_cast<size_t>(position)];
        if (known.empty()) known = row;
        ASSERT_EQ(row, known) << what << ", position " << position << " of tokens from " << begin
                              << " to " << end << ", " << heads.q_heads << " heads";
      }
  };
  for (const Stretch& one : stretches) {
    check({one}, "alone");
    if (cache_dtype == DType::f8_e4m3) check({one}, "alone, widened by each block", false);
  }
  check(stretches, "together");
  std::vector<Stretch> many;  // so many tiles of queries that each block has whole contexts
  for (int64_t count = 0; count < 30000;)
    for (const Stretch& one : stretches) {
      many.push_back(one);
      count += one.end - one.begin;
    }
  check(many, "beside many");
}

// Parts are 4,096 keys of one or two KV heads, 8,192 of four.
TEST_F(Gpu, AttentionOfLongPromptsInAnyForm) {
  const std::vector<Stretch> stretches = {
      {3990, 4290},   {4095, 4097}, {4094, 4096}, {4096, 4226},   {4032, 4160},
      {8000, 8300},   {8191, 8193}, {8190, 8192}, {8192, 8322},   {8128, 8256},
      {12200, 12300}, {2, 131},     {7000, 9000}, {16383, 16385}, {16420, 16450}};
  for (const DType cache : kCaches) {
    for (const auto& [q_heads, kv_heads] : {std::pair<int64_t, int64_t>{12, 2}, {5, 1}, {24, 4}})
      expect_shared_out(random_, {q_heads, kv_heads, 128, 64}, cache, stretches);
    expect_shared_out(random_, {6, 1, 128, 64}, cache,
                      {{69000, 71100}, {65530, 65560}, {65500, 65700}, {57300, 57360}});
  }
}

TEST_F(Gpu, AttentionOfLongPrompts) {
  for (const DType cache : kCaches)
    run_attention(random_,
                  {{6, 1, 128, 64},
                   16,
                   DType::bf16,
                   {{150, 8250}, {1, 5000}, {300, 16500}, {2, 8193}, {40, 26000}, {129, 129}},
                   cache},
                  gpu(), "over several parts");
}

TEST_F(Gpu, AttentionOfAnyShape) {
  run_attention(random_, {{4, 2, 64, 32}, 16, DType::f32, {{1, 100}, {30, 77}, {5, 5}}}, gpu(),
                "f32");
  run_attention(random_,
                {{4, 2, 64, 32}, 16, DType::f32, {{1, 100}, {30, 77}, {5, 5}}, DType::f8_e4m3},
                gpu(), "f32 over FP8");
  run_attention(random_, {{4, 4, 40, 8}, 8, DType::bf16, {{1, 100}, {9, 9}}}, gpu(), "blocks of 8");
  run_attention(random_, {{20, 2, 128, 8}, 16, DType::bf16, {{1, 100}, {9, 40}}}, gpu(),
                "groups of ten");
}

// --- experts -----------------------------------------------------------------------------------

struct ExpertsCase {
  DType x, weight;
  int64_t tokens, top, total, first_expert, count;  // of all experts, this rank's
  int64_t hidden, inner, first_inner;
  // Between two quantisations a last bit of the first sums may move a number by a whole FP8 step;
  // long sums do so more often, and of few numbers one weighs more. The error's root mean square
  // and, in units of that limit, a single number's.
  double quantised_norm = 1.2e-2, single = 24;
};

// The weights of one rank; scales for the blocks that its slice touches.
struct RankExperts {
  Numbers w13, w2;
  std::vector<float> s1, s3, s2;
  int64_t scale_row, inner_blocks, hidden_blocks;
  ExpertsCase c;

  RankExperts(std::mt19937& random, const ExpertsCase& from)
      : w13(random_numbers(random, from.count * 2 * from.inner * from.hidden, from.weight, 0.06)),
        w2(random_numbers(random, from.count * from.inner * from.hidden, from.weight, 0.06)),
        scale_row(from.first_inner / 128),
        inner_blocks((from.first_inner + from.inner + 127) / 128 - scale_row),
        hidden_blocks((from.hidden + 127) / 128),
        c(from) {
    std::uniform_real_distribution<float> uniform(2e-4f, 1e-3f);
    for (int64_t i = 0; i < c.count * inner_blocks * hidden_blocks; ++i) {
      s1.push_back(uniform(random));
      s3.push_back(uniform(random));
      s2.push_back(uniform(random));
    }
  }
  bool scaled() const { return c.weight == DType::f8_e4m3; }
  double up_weight(bool third, int64_t e, int64_t i, int64_t k) const {
    const int64_t row = (e * 2 + (third ? 1 : 0)) * c.inner + i;
    const double value = w13.values[static_cast<size_t>(row * c.hidden + k)];
    if (!scaled()) return value;
    const int64_t block =
        (e * inner_blocks + (c.first_inner + i) / 128 - scale_row) * hidden_blocks + k / 128;
    return value * (third ? s3 : s1)[static_cast<size_t>(block)];
  }
  double down_weight(int64_t e, int64_t n, int64_t i) const {
    const double value = w2.values[static_cast<size_t>((e * c.hidden + n) * c.inner + i)];
    if (!scaled()) return value;
    const int64_t block =
        (e * hidden_blocks + n / 128) * inner_blocks + (c.first_inner + i) / 128 - scale_row;
    return value * s2[static_cast<size_t>(block)];
  }
};

struct RankOnGpu {
  OnGpu w13, w2, s1, s3, s2;

  explicit RankOnGpu(const RankExperts& rank)
      : w13(rank.w13, {rank.c.count, 2 * rank.c.inner, rank.c.hidden}),
        w2(rank.w2, {rank.c.count, rank.c.hidden, rank.c.inner}),
        s1(rank.s1, {rank.c.count, rank.inner_blocks, rank.hidden_blocks}),
        s3(rank.s3, {rank.c.count, rank.inner_blocks, rank.hidden_blocks}),
        s2(rank.s2, {rank.c.count, rank.hidden_blocks, rank.inner_blocks}) {}
  ops::Experts experts(const RankExperts& rank) const {
    const bool scaled = rank.scaled();
    return {w13,
            scaled ? s1.tensor() : Tensor(),
            scaled ? s3.tensor() : Tensor(),
            w2,
            scaled ? s2.tensor() : Tensor(),
            rank.c.first_expert,
            rank.c.first_inner,
            rank.scale_row};
  }
};

// Zeros where kernels leave counters and marked values, NaN elsewhere.
OnGpu experts_scratch(const ops::Experts& experts, int64_t tokens, int64_t top) {
  const cuda::ExpertsPlan plan = cuda::plan_experts({.tokens = tokens,
                                                     .top = top,
                                                     .experts = experts.count(),
                                                     .inner = experts.inner(),
                                                     .hidden = experts.hidden()});
  OnGpu scratch(DType::u8, {cuda::experts_scratch_bytes(experts, tokens, top)});
  clear(gpu(), scratch.tensor().data(), plan.offsets);
  return scratch;
}

void run_experts(std::mt19937& random, const ExpertsCase& c, const std::string& what,
                 ScaleFormat format = ScaleFormat::f32) {
  const bool quantised = cuda::wants_quantised() && c.x == DType::bf16 &&
                         c.weight == DType::f8_e4m3 && c.hidden % 128 == 0 && c.inner % 64 == 0 &&
                         c.first_inner % 64 == 0;
  const RankExperts rank(random, c);
  const Numbers x = random_numbers(random, c.tokens * c.hidden, c.x);
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::uniform_real_distribution<float> uniform(0.05f, 0.3f);
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::vector<int32_t> all(static_cast<size_t>(c.total));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    std::sort(all.begin(), all.begin() + c.top);
    ids.insert(ids.end(), all.begin(), all.begin() + c.top);
    for (int64_t i = 0; i < c.top; ++i) weights.push_back(uniform(random));
  }
  const RankOnGpu on_gpu(rank);
  const ops::Experts experts = on_gpu.experts(rank);
  const OnGpu x_gpu(x, {c.tokens, c.hidden}), ids_gpu(ids, {c.tokens, c.top}),
      weights_gpu(weights, {c.tokens, c.top});
  const OnGpu scratch = experts_scratch(experts, c.tokens, c.top);
  const OnGpu out(c.x, {c.tokens, c.hidden});
  cuda::experts(gpu_with(format), x_gpu, experts, ids_gpu, weights_gpu, scratch, out);
  const std::vector<double> values = out.values();

  std::vector<double> expected(static_cast<size_t>(c.tokens * c.hidden));
  std::vector<double> x_row(static_cast<size_t>(c.hidden));
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::copy_n(x.values.begin() + t * c.hidden, c.hidden, x_row.begin());
    if (quantised) quantise(x_row.data(), c.hidden, 128, format);
    for (int64_t p = 0; p < c.top; ++p) {
      const auto pair = static_cast<size_t>(t * c.top + p);
      const int64_t e = ids[pair] - c.first_expert;
      if (e < 0 || e >= c.count) continue;
      std::vector<double> inner(static_cast<size_t>(c.inner));
      for (int64_t i = 0; i < c.inner; ++i) {
        double gate = 0.0, up = 0.0;
        for (int64_t k = 0; k < c.hidden; ++k) {
          const double value = x_row[static_cast<size_t>(k)];
          gate += value * rank.up_weight(false, e, i, k);
          up += value * rank.up_weight(true, e, i, k);
        }
        inner[static_cast<size_t>(i)] = gate / (1.0 + std::exp(-gate)) * up;
      }
      if (quantised) {
        for (double& value : inner) value = to_float(to_bf16(static_cast<float>(value)));
        const bool whole = c.inner % 128 == 0 && c.first_inner % 128 == 0;
        quantise(inner.data(), c.inner, whole ? 128 : 64, format);
      }
      for (int64_t n = 0; n < c.hidden; ++n) {
        double sum = 0.0;
        for (int64_t i = 0; i < c.inner; ++i)
          sum += inner[static_cast<size_t>(i)] * rank.down_weight(e, n, i);
        expected[static_cast<size_t>(t * c.hidden + n)] += weights[pair] * sum;
      }
    }
  }
  const double norm_limit = quantised ? c.quantised_norm : c.x == DType::bf16 ? kTwiceNorm : 1e-5;
  expect_close(values, expected, norm_limit, c.x == DType::bf16 ? c.single * norm_limit : 1e-3,
               what);

  // With the norm behind it: the bytes of the two after one another.
  {
    const Numbers start = random_numbers(random, c.tokens * c.hidden, c.x);
    const OnGpu norm(random_numbers(random, c.hidden, DType::bf16), {c.hidden});
    const OnGpu residual(start, {c.tokens, c.hidden}), normed(c.x, {c.tokens, c.hidden});
    const OnGpu residual1(start, {c.tokens, c.hidden}), normed1(c.x, {c.tokens, c.hidden});
    const OnGpu f8(DType::f8_e4m3, {c.tokens, c.hidden}), f81(DType::f8_e4m3, {c.tokens, c.hidden});
    const OnGpu scales(DType::f32, {c.tokens, (c.hidden + 127) / 128}),
        scales1(DType::f32, {c.tokens, (c.hidden + 127) / 128}), delta(c.x, {c.tokens, c.hidden});
    const bool both = c.x == DType::bf16 && c.hidden % 4 == 0;
    cuda::add_rms_norm(gpu_with(format), residual, out, norm, 1e-6f, normed,
                       both ? ops::Quantised{f8, scales} : ops::Quantised());
    const ops::AddNorm after{residual1, norm, 1e-6f, normed1,
                             both ? ops::Quantised{f81, scales1} : ops::Quantised()};
    cuda::experts(gpu_with(format), x_gpu, experts, ids_gpu, weights_gpu, scratch, delta, {},
                  &after);
    EXPECT_EQ(residual1.bytes(), residual.bytes()) << what;
    EXPECT_EQ(normed1.bytes(), normed.bytes()) << what;
    EXPECT_EQ(f81.bytes(), f8.bytes()) << what;
    EXPECT_EQ(scales1.bytes(), scales.bytes()) << what;
  }

  // Rows that go to whoever looks after them.
  {
    const OwnedRows owned(out);
    const OnGpu untouched(c.x, {c.tokens, c.hidden});
    cuda::experts(gpu_with(format), x_gpu, experts, ids_gpu, weights_gpu, scratch, untouched, {},
                  nullptr, owned.owners);
    EXPECT_EQ(owned.places.bytes(), owned.expected(out)) << what;
  }

  // The same bytes in any batch, whether they come quantised or not.
  for (const int64_t count : {1, 2, 7, 8, 10, 16, 20, 32, 33, 64, 150}) {
    if (count > c.tokens) continue;
    const int64_t first = c.tokens - count;
    const std::vector<double> same(values.begin() + first * c.hidden, values.end());
    const Tensor tokens = x_gpu.tensor().rows(first, count);
    for (const bool given : {false, true}) {
      if (given && !quantised) continue;
      const OnGpu f8(DType::f8_e4m3, {count, c.hidden});
      const OnGpu scales(DType::f32, {count, (c.hidden + 127) / 128});
      if (given) cuda::quantise(gpu_with(format), tokens, {f8, scales});
      const OnGpu some(c.x, {count, c.hidden});
      cuda::experts(gpu_with(format), tokens, experts, ids_gpu.tensor().rows(first, count),
                    weights_gpu.tensor().rows(first, count), scratch, some,
                    given ? ops::Quantised{f8, scales} : ops::Quantised());
      EXPECT_EQ(some.values(), same)
          << what << ": the last " << count << " alone differ, quantised before " << given;
    }
  }
}

TEST_F(Gpu, Experts) {
  for (const int64_t tokens : {1, 2, 8, 9, 16, 17, 32, 33, 70})
    run_experts(random_, {DType::bf16, DType::f8_e4m3, tokens, 4, 10, 0, 10, 256, 128, 0},
                std::to_string(tokens) + " tokens");
  for (const int64_t tokens : {1, 13, 32, 33})
    run_experts(random_, {DType::bf16, DType::f8_e4m3, tokens, 8, 16, 5, 6, 320, 192, 192},
                "a slice of experts and columns, " + std::to_string(tokens) + " tokens");
  for (const int64_t tokens : {1, 40})
    run_experts(random_, {DType::bf16, DType::bf16, tokens, 3, 5, 0, 5, 192, 64, 0},
                "bf16, " + std::to_string(tokens) + " tokens");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 3, 8, 16, 0, 16, 3072, 1536, 0}, "full width");
  for (const int64_t inner : {384, 192})  // of four and of eight tensor ranks
    run_experts(random_, {DType::bf16, DType::f8_e4m3, 17, 8, 40, 0, 40, 1024, inner, inner},
                "inner " + std::to_string(inner));
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 30, 1, 2, 0, 2, 256, 128, 0}, "crowded");
  // Rows too wide for two teams, by lists even of one token.
  for (const int64_t tokens : {1, 20}) {
    run_experts(random_,
                {DType::bf16, DType::f8_e4m3, tokens, 4, 12, 0, 12, 4096, 128, 0, 2.5e-2, 36},
                "wide, " + std::to_string(tokens) + " tokens");
    run_experts(random_,
                {DType::bf16, DType::f8_e4m3, tokens, 4, 12, 0, 12, 256, 4096, 0, 2.5e-2, 36},
                "wide inside, " + std::to_string(tokens) + " tokens");
  }
}

// Few tokens at a time, and one by one, each choosing inside the experts: the bytes of route() and
// experts() of all of them at once, whatever runs on the same scratch in between.
void run_choosing_experts(std::mt19937& random, const ExpertsCase& c) {
  const std::string what = std::to_string(c.total) + " experts, inner " + std::to_string(c.inner);
  const RankExperts rank(random, c);
  const RankOnGpu on_gpu(rank);
  const ops::Experts experts = on_gpu.experts(rank);
  const OnGpu x(random_numbers(random, c.tokens * c.hidden, DType::bf16), {c.tokens, c.hidden});
  const OnGpu gate(random_numbers(random, c.total * c.hidden, DType::f32, 0.05),
                   {c.total, c.hidden});
  const OnGpu bias(random_numbers(random, c.total, DType::f32, 0.1), {c.total});
  std::vector<int32_t> places(static_cast<size_t>(c.tokens), 3);
  places[7] = -1;  // pads the batch
  const OnGpu slots(places, {c.tokens});
  const OnGpu f8(DType::f8_e4m3, {c.tokens, c.hidden}),
      scales(DType::f32, {c.tokens, c.hidden / 128});
  cuda::quantise(gpu(), x, {f8, scales});
  const ops::Quantised quantised{f8, scales};
  const OnGpu scratch = experts_scratch(experts, c.tokens, c.top);
  const OnGpu ids(DType::i32, {c.tokens, c.top}), weights(DType::f32, {c.tokens, c.top}),
      out(DType::bf16, {c.tokens, c.hidden});
  cuda::route(gpu(), x, gate, bias, slots, ids, weights);
  cuda::experts(gpu(), x, experts, ids, weights, scratch, out, quantised);
  const Numbers start = random_numbers(random, c.tokens * c.hidden, DType::bf16);
  const OnGpu residual(start, {c.tokens, c.hidden}), residual1(start, {c.tokens, c.hidden});
  const OnGpu norm(random_numbers(random, c.hidden, DType::bf16), {c.hidden});

  const OnGpu ids1(DType::i32, {c.tokens, c.top}), weights1(DType::f32, {c.tokens, c.top}),
      out1(DType::bf16, {c.tokens, c.hidden}), other(DType::bf16, {2, c.hidden}),
      normed(DType::bf16, {c.tokens, c.hidden}), normed1(DType::bf16, {c.tokens, c.hidden}),
      delta(DType::bf16, {1, c.hidden});
  const auto run = [&](int64_t t, Tensor to, const ops::AddNorm* after, bool alone = true) {
    Exec exec = gpu();
    exec.alone = alone;
    const int64_t n = to.size(0);
    cuda::route_experts(exec, x.tensor().rows(t, n), {gate, bias, slots.tensor().rows(t, n)},
                        experts, ids1.tensor().rows(t, n), weights1.tensor().rows(t, n), scratch,
                        to, t % 7 == 2 ? ops::Quantised() : quantised.rows(t, n), after);
  };
  // Some tokens, each of which has its bytes in any company.
  for (int64_t t = 0, n = 2; t < c.tokens; t += n, n = n % 9 + 1)
    run(t, out1.tensor().rows(t, std::min(n, c.tokens - t)), nullptr, n % 3 != 1);
  EXPECT_EQ(ids1.bytes(), ids.bytes()) << what;
  EXPECT_EQ(out1.bytes(), out.bytes()) << what;
  clear(gpu(), out1.tensor().data(), 2 * out1.tensor().elements());
  clear(gpu(), ids1.tensor().data(), 4 * ids1.tensor().elements());
  for (int64_t t = 0; t < c.tokens; ++t) {
    run(t, out1.tensor().rows(t, 1), nullptr, t % 3 != 1);
    if (t % 5 == 0)
      cuda::experts(gpu(), x.tensor().rows(0, 2), experts, ids.tensor().rows(0, 2),
                    weights.tensor().rows(0, 2), scratch, other, quantised.rows(0, 2));
  }
  EXPECT_EQ(ids1.bytes(), ids.bytes()) << what;
  EXPECT_EQ(weights1.bytes(), weights.bytes()) << what;
  EXPECT_EQ(out1.bytes(), out.bytes()) << what;

  cuda::add_rms_norm(gpu(), residual, out, norm, 1e-6f, normed);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const ops::AddNorm after{
        residual1.tensor().rows(t, 1), norm, 1e-6f, normed1.tensor().rows(t, 1), {}};
    run(t, delta, &after, t % 4 != 2);
  }
  EXPECT_EQ(residual1.bytes(), residual.bytes()) << what;
  EXPECT_EQ(normed1.bytes(), normed.bytes()) << what;

  // NaN passes through, and nothing waits for it.
  const OnGpu nan(DType::bf16, {1, c.hidden}), nan_f8(DType::f8_e4m3, {1, c.hidden}),
      nan_scales(DType::f32, {1, c.hidden / 128});
  cuda::route_experts(gpu(), nan, {gate, bias, slots.tensor().rows(0, 1)}, experts,
                      ids1.tensor().rows(0, 1), weights1.tensor().rows(0, 1), scratch, delta,
                      {nan_f8, nan_scales}, nullptr);
  for (const double value : delta.values())
    EXPECT_TRUE(std::isnan(value) || c.count < c.total) << what;
  run(3, out1.tensor().rows(3, 1), nullptr);
  EXPECT_EQ(out1.bytes(), out.bytes()) << what;
}

TEST_F(Gpu, ExpertsChooseForFewTokens) {
  for (const ExpertsCase& c :
       {ExpertsCase{DType::bf16, DType::f8_e4m3, 24, 8, 256, 0, 256, 256, 64, 0},
        ExpertsCase{DType::bf16, DType::f8_e4m3, 24, 8, 64, 5, 30, 640, 192, 192},
        ExpertsCase{DType::bf16, DType::f8_e4m3, 24, 3, 12, 2, 9, 384, 128, 128},
        ExpertsCase{DType::bf16, DType::f8_e4m3, 24, 4, 10, 0, 10, 256, 128, 0},
        ExpertsCase{DType::bf16, DType::bf16, 24, 4, 12, 0, 12, 256, 128, 0}})
    run_choosing_experts(random_, c);
}

TEST_F(Gpu, ExpertsChooseAtFullWidth) {
  run_choosing_experts(random_, {DType::bf16, DType::f8_e4m3, 60, 8, 16, 0, 16, 3072, 1536, 0});
}

// One token's slices are so few that two teams share each tile; of experts that engines share there
// are fewer still.
TEST_F(Gpu, ExpertsChooseOfEightRanks) {
  run_choosing_experts(random_, {DType::bf16, DType::f8_e4m3, 24, 8, 32, 0, 32, 3072, 192, 192});
  run_choosing_experts(random_, {DType::bf16, DType::f8_e4m3, 24, 8, 64, 5, 30, 3072, 192, 0});
}

// Layers in a row, recorded, so that every kernel begins as early as it can: each row's experts are
// other ones in each layer, and the kernels right in front choose them. The same bytes whether all
// rows go through a layer at once, or in parts of sizes that change from layer to layer (by lists,
// of few tokens, one that chooses inside), or a few at a time with a pause behind each operation.
void run_layers_of_experts(std::mt19937& random, const ExpertsCase& c) {
  constexpr int64_t kLayers = 10, kTimes = 3;
  const std::string what = std::to_string(c.hidden) + " columns, inner " + std::to_string(c.inner);
  const RankExperts rank(random, c);
  const RankOnGpu on_gpu(rank);
  const ops::Experts experts = on_gpu.experts(rank);
  const OnGpu gates(random_numbers(random, kLayers * c.total * c.hidden, DType::f32, 0.05),
                    {kLayers * c.total, c.hidden});
  const OnGpu bias(random_numbers(random, c.total, DType::f32, 0.1), {c.total});
  const OnGpu norm(random_numbers(random, c.hidden, DType::bf16), {c.hidden});
  const OnGpu scratch = experts_scratch(experts, c.tokens, c.top);
  const Numbers begin = random_numbers(random, c.tokens * c.hidden, DType::bf16);
  struct State {
    OnGpu residual, x, delta, f8, scales, ids, weights;
    State(const ExpertsCase& of, const Numbers& from)
        : residual(from, {of.tokens, of.hidden}),
          x(DType::bf16, {of.tokens, of.hidden}),
          delta(DType::bf16, {of.tokens, of.hidden}),
          f8(DType::f8_e4m3, {of.tokens, of.hidden}),
          scales(DType::f32, {of.tokens, of.hidden / 128}),
          ids(DType::i32, {of.tokens, of.top}),
          weights(DType::f32, {of.tokens, of.top}) {
      clear(gpu(), delta.tensor().data(), 2 * delta.tensor().elements());
    }
  };
  const auto layer = [&](const State& s, int64_t l, int64_t first, int64_t count, bool pauses) {
    const auto rows = [&](const OnGpu& all) { return all.tensor().rows(first, count); };
    const auto pause = [&] {
      if (pauses) synchronize(gpu());
    };
    const Tensor gate = gates.tensor().rows(l * c.total, c.total);
    const ops::Quantised quantised{rows(s.f8), rows(s.scales)};
    if (count == 1) {
      cuda::route_experts(gpu(), rows(s.x), {gate, bias, {}}, experts, rows(s.ids), rows(s.weights),
                          scratch, rows(s.delta), quantised, nullptr);
    } else {
      cuda::route(gpu(), rows(s.x), gate, bias, {}, rows(s.ids), rows(s.weights));
      pause();
      cuda::experts(gpu(), rows(s.x), experts, rows(s.ids), rows(s.weights), scratch, rows(s.delta),
                    quantised);
    }
    pause();
    cuda::add_rms_norm(gpu(), rows(s.residual), rows(s.delta), norm, 1e-6f, rows(s.x), quantised);
    pause();
  };
  const auto start = [&](const State& s) {
    cuda::add_rms_norm(gpu(), s.residual, s.delta, norm, 1e-6f, s.x, {s.f8, s.scales});
  };
  const State slow(c, begin), whole(c, begin), parts(c, begin);
  for (const State* s : {&slow, &whole, &parts}) start(*s);

  const Graph all_rows = Graph::record(gpu(), [&] {
    for (int64_t l = 0; l < kLayers; ++l) layer(whole, l, 0, c.tokens, false);
  });
  for (int64_t i = 0; i < kTimes; ++i) all_rows.launch(gpu());
  synchronize(gpu());
  constexpr std::array<int64_t, 7> kParts{70, 1, 9, 24, 2, 66, 17};
  const Graph in_parts = Graph::record(gpu(), [&] {
    for (int64_t l = 0; l < kLayers; ++l)
      for (int64_t first = 0, part = l, count = 0; first < c.tokens; first += count, ++part) {
        count = std::min(kParts[static_cast<size_t>(part) % kParts.size()], c.tokens - first);
        layer(parts, l, first, count, false);
      }
  });
  for (int64_t i = 0; i < kTimes; ++i) in_parts.launch(gpu());
  synchronize(gpu());
  for (int64_t i = 0; i < kTimes * kLayers; ++i)
    for (int64_t first = 0; first < c.tokens; first += 12)
      layer(slow, i % kLayers, first, std::min<int64_t>(12, c.tokens - first), true);
  EXPECT_EQ(whole.ids.bytes(), slow.ids.bytes()) << what;
  EXPECT_EQ(whole.residual.bytes(), slow.residual.bytes()) << what;
  EXPECT_EQ(parts.residual.bytes(), slow.residual.bytes()) << what;
  for (const double value : slow.residual.values()) ASSERT_TRUE(std::isfinite(value)) << what;
}

TEST_F(Gpu, ExpertsInARow) {
  if (!cuda::wants_quantised()) GTEST_SKIP() << "needs a Hopper GPU";
  run_layers_of_experts(random_, {DType::bf16, DType::f8_e4m3, 128, 8, 256, 0, 256, 256, 64, 0});
  run_layers_of_experts(random_, {DType::bf16, DType::f8_e4m3, 128, 8, 256, 0, 256, 640, 192, 192});
  run_layers_of_experts(random_, {DType::bf16, DType::f8_e4m3, 150, 8, 64, 5, 40, 1024, 384, 384});
  run_layers_of_experts(random_, {DType::bf16, DType::f8_e4m3, 100, 4, 32, 0, 32, 384, 256, 0});
}

TEST_F(Gpu, ExpertsWithScalesOfPowersOfTwo) {
  for (const int64_t tokens : {1, 20, 300})
    run_experts(random_, {DType::bf16, DType::f8_e4m3, tokens, 4, 10, 0, 10, 256, 128, 0},
                "powers of two, " + std::to_string(tokens) + " tokens", ScaleFormat::e8m0);
}

TEST_F(Gpu, ExpertsOfAnyShape) {
  run_experts(random_, {DType::f32, DType::f32, 5, 2, 6, 0, 6, 33, 17, 0}, "f32");
  run_experts(random_, {DType::f32, DType::f8_e4m3, 67, 3, 6, 2, 3, 160, 72, 100}, "f32 and f8");
  run_experts(random_, {DType::bf16, DType::f16, 5, 2, 6, 0, 6, 64, 64, 0}, "f16");
}

TEST_F(Gpu, ExpertsOfALargeStep) {
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 600, 4, 10, 0, 10, 256, 128, 0}, "600 tokens");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 517, 4, 10, 3, 5, 384, 192, 192},
              "517 tokens of a slice");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 300, 8, 12, 0, 12, 512, 256, 0}, "300 tokens");
  // An odd number of 128 rows on both sides; 257 to 400 tokens an expert, and 130 to 190.
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 650, 2, 4, 0, 4, 384, 320, 64}, "odd halves");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 160, 3, 3, 0, 3, 640, 64, 0}, "160 an expert");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 1100, 8, 40, 3, 30, 128, 64, 0, 1.2e-2, 36},
              "1100 tokens");
  // Tiles even for one token, since other forms do not hold rows that wide.
  for (const int64_t tokens : {1, 3})
    run_experts(random_, {DType::bf16, DType::f8_e4m3, tokens, 3, 5, 1, 4, 8320, 64, 0, 2.5e-2, 36},
                "wide rows");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 160, 8, 64, 0, 64, 3072, 192, 0}, "narrow");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 100, 8, 24, 0, 24, 1024, 1536, 0}, "wide");
}

// At the model's width, where the sum, the norm behind it and the tokens' way to their places have
// forms for many tokens: the bytes of fewer at a time, and of the norm apart.
TEST_F(Gpu, ExpertsOfManyTokensAreThoseOfFew) {
  constexpr int64_t kTokens = 600, kSome = 120, kTop = 8, kHidden = 3072;
  for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0}) {
    const Exec exec = gpu_with(format);
    const ExpertsCase c{DType::bf16, DType::f8_e4m3, kTokens, kTop, 20, 3, 14, kHidden, 128, 0};
    const RankExperts rank(random_, c);
    const RankOnGpu on_gpu(rank);
    const ops::Experts experts = on_gpu.experts(rank);
    std::vector<int32_t> ids;
    std::vector<float> weights;
    for (int64_t t = 0; t < kTokens; ++t) {
      std::vector<int32_t> all(20);
      std::iota(all.begin(), all.end(), 0);
      std::shuffle(all.begin(), all.end(), random_);
      std::sort(all.begin(), all.begin() + kTop);
      if (t % 41 == 7) std::fill_n(all.begin(), kTop, -1);  // a padding token
      ids.insert(ids.end(), all.begin(), all.begin() + kTop);
      for (int64_t i = 0; i < kTop; ++i)
        weights.push_back(0.01f * static_cast<float>(3 + (t * 5 + i * 7) % 23));
    }
    const OnGpu x(random_numbers(random_, kTokens * kHidden, DType::bf16), {kTokens, kHidden});
    const OnGpu ids_gpu(ids, {kTokens, kTop}), weights_gpu(weights, {kTokens, kTop});
    const OnGpu x_f8(DType::f8_e4m3, {kTokens, kHidden}), x_scales(DType::f32, {kTokens, 24});
    cuda::quantise(exec, x, {x_f8, x_scales});
    const Numbers start = random_numbers(random_, kTokens * kHidden, DType::bf16);
    const OnGpu norm(random_numbers(random_, kHidden, DType::bf16), {kHidden});
    const auto run = [&](int64_t some, bool given, bool apart) {
      const OnGpu scratch = experts_scratch(experts, some, kTop);
      const OnGpu residual(start, {kTokens, kHidden}), out(DType::bf16, {kTokens, kHidden});
      const OnGpu delta(DType::bf16, {kTokens, kHidden});
      const OnGpu f8(DType::f8_e4m3, {kTokens, kHidden}), scales(DType::f32, {kTokens, 24});
      for (int64_t first = 0; first < kTokens; first += some) {
        const auto rows = [&](const OnGpu& of) { return of.tensor().rows(first, some); };
        const ops::AddNorm after{rows(residual), norm, 1e-6f, rows(out), {rows(f8), rows(scales)}};
        cuda::experts(exec, rows(x), experts, rows(ids_gpu), rows(weights_gpu), scratch,
                      rows(delta),
                      given ? ops::Quantised{rows(x_f8), rows(x_scales)} : ops::Quantised(),
                      apart ? nullptr : &after);
        if (apart)
          cuda::add_rms_norm(exec, after.residual, rows(delta), norm, 1e-6f, after.out,
                             after.quantised);
      }
      return std::array{residual.bytes(), out.bytes(), f8.bytes(), scales.bytes()};
    };
    const auto few = run(kSome, false, true);
    for (const bool given : {false, true})
      for (const bool apart : {false, true})
        EXPECT_EQ(run(kTokens, given, apart), few) << given << apart;
  }
}

// Tiles of up to 32 tokens, which have the sides exchanged, behind whole ones and alone.
TEST_F(Gpu, ExpertsOfAFewTokensMoreThanATile) {
  for (const int64_t tokens : {9, 32, 33, 129, 160, 161, 290})
    run_experts(random_, {DType::bf16, DType::f8_e4m3, tokens, 1, 1, 0, 1, 256, 128, 0, 1.2e-2, 36},
                std::to_string(tokens) + " tokens of one expert");
  // Scales of every 64 inner columns, and odd numbers of 128 rows on both sides.
  for (const int64_t tokens : {12, 150, 275})
    run_experts(random_,
                {DType::bf16, DType::f8_e4m3, tokens, 1, 1, 0, 1, 384, 192, 192, 1.2e-2, 36},
                std::to_string(tokens) + " tokens of a slice");
  // So many inner columns that tokens are written in the order of the experts, and an odd number of
  // 128 of them: the last strip has one part.
  for (const int64_t tokens : {33, 161, 290})
    run_experts(random_, {DType::bf16, DType::f8_e4m3, tokens, 1, 1, 0, 1, 256, 832, 0, 1.2e-2, 36},
                std::to_string(tokens) + " tokens in order");
  // Such experts among others, more tiles than blocks; and slices, whose tokens are read where they
  // are.
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 540, 8, 16, 0, 16, 128, 1024, 0, 1.2e-2, 36},
              "many");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 300, 8, 16, 0, 16, 256, 384, 384, 1.2e-2, 36},
              "many of a slice");
  run_experts(random_, {DType::bf16, DType::f8_e4m3, 300, 8, 16, 2, 9, 256, 192, 192, 1.2e-2, 36},
              "many of a narrow slice, some elsewhere");
}

}  // namespace
}  // namespace m2::gpu_test
