#include "ops/linear.h"

#include <algorithm>
#include <utility>

#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

int64_t blocks(int64_t n) {
  return (n + 127) / 128;
}

// A random matrix, FP8 ones with scales and a place in a larger matrix.
struct Matrix {
  Matrix(Random& random, DType dtype, int64_t rows, int64_t columns, int64_t first_row = 0,
         int64_t first_column = 0)
      : weight(dtype, {rows, columns}),
        scale(DType::f32, {blocks(first_row + rows), blocks(first_column + columns)}) {
    weight.fill(random, dtype == DType::f8_e4m3 ? 60 : 1);
    for (int64_t i = 0; i < scale.view().elements(); ++i)
      store(scale, i, 0.001 * (0.5 + random.uniform()));
    linear = {weight, dtype == DType::f8_e4m3 ? scale.view() : Tensor(), first_row, first_column};
  }
  double at(int64_t row, int64_t column) const {
    double value = load(weight, row, column);
    if (!linear.scale.empty())
      value *=
          load(linear.scale, (linear.first_row + row) / 128, (linear.first_column + column) / 128);
    return value;
  }
  Host weight, scale;
  Linear linear;
};

void expect_product(const Tensor& x, const Matrix& matrix, const Tensor& out,
                    const std::string& where) {
  const bool rounded = rounds_inputs(matrix.linear.weight.dtype());
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t n = 0; n < out.size(1); ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < x.size(1); ++k) {
        const double product = as_input(load(x, t, k), rounded) * matrix.at(n, k);
        sum += product;
        magnitude += std::fabs(product);
      }
      expect_close(load(out, t, n), sum, magnitude, out.dtype(),
                   where + " [" + std::to_string(t) + ", " + std::to_string(n) + "]");
      if (testing::Test::HasFailure()) return;
    }
  }
}

struct Shape {
  int64_t rows, columns, tokens, first_row = 0, first_column = 0;
};

class LinearTest : public testing::Test {
 protected:
  Exec exec(ThreadPool& pool) {
    return {Device{}, &pool, nullptr, workspace_.data(), workspace_.bytes()};
  }

  ThreadPool pool_{2};
  const Buffer workspace_{Device{}, linear_workspace_bytes(Device{}, 512, 20000) + 1};
  const Exec exec_ = exec(pool_);
};

TEST_F(LinearTest, MatchesDoublePrecision) {
  const Shape shapes[] = {{1, 1, 1},
                          {3, 5, 2},
                          {17, 63, 1},
                          {33, 64, 4},
                          {70, 65, 7},
                          {129, 130, 13},
                          {16, 400, 50},
                          {5, 777, 97},
                          {64, 128, 6},
                          {192, 192, 3, 192},
                          {100, 192, 9, 0, 192},
                          {131, 200, 5, 70, 100},
                          {40, 1000, 8, 120, 61},
                          {200, 19000, 1},
                          {7, 7000, 3},
                          {7, 7000, 11},
                          {20, 130, 530},
                          {33, 260, 40, 128, 84}};
  Random random(1);
  for (const DType dtype : {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32}) {
    for (const Shape& s : shapes) {
      for (const DType activation : {DType::f32, DType::bf16}) {
        Matrix matrix(random, dtype, s.rows, s.columns, s.first_row, s.first_column);
        Host x(activation, {s.tokens, s.columns}, 3);
        x.fill(random);
        Host out(activation == DType::f32 ? DType::bf16 : DType::f32, {s.tokens, s.rows}, 5);
        for_each_target([&](const char* target, bool) {
          out.poison();
          linear(exec_, x, matrix.linear, out);
          expect_product(x, matrix, out,
                         name(dtype) + " " + out.view().describe() + " K " +
                             std::to_string(s.columns) + " " + target);
        });
        if (HasFailure()) return;
      }
    }
  }
}

// The model's own shapes; a sample of the output is checked.
TEST_F(LinearTest, MatchesDoublePrecisionAtTheModelsShapes) {
  Random random(2);
  for (const Shape& s : {Shape{8192, 3072, 1}, Shape{3072, 6144, 2}, Shape{3072, 6144, 9}}) {
    for (const DType dtype : {DType::f8_e4m3, DType::bf16}) {
      Matrix matrix(random, dtype, s.rows, s.columns);
      Host x(DType::bf16, {s.tokens, s.columns});
      x.fill(random);
      Host out(DType::f32, {s.tokens, s.rows});
      linear(exec_, x, matrix.linear, out);
      for (int i = 0; i < 200; ++i) {
        const int64_t t = random.below(s.tokens);
        const int64_t n = random.below(s.rows);
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < s.columns; ++k) {
          const double product = load(x, t, k) * matrix.at(n, k);
          sum += product;
          magnitude += std::fabs(product);
        }
        expect_close(load(out, t, n), sum, magnitude, DType::f32, out.view().describe());
      }
    }
  }
}

class LinearOfWidthTest : public LinearTest, public testing::WithParamInterface<int64_t> {};

// Every one of the 256 codes at every place of a row, exactly: each output is one weight.
TEST_P(LinearOfWidthTest, DecodesEveryFp8CodeExactly) {
  const int64_t width = GetParam();
  Host weight(DType::f8_e4m3, {width, width});
  for (int64_t r = 0; r < width; ++r)
    for (int64_t c = 0; c < width; ++c) {
      const auto code = static_cast<uint8_t>((r + c) & 0xff);
      // Only the diagonal is a NaN code where it is one: elsewhere they become zeros.
      const bool nan = (code & 0x7f) == 0x7f;
      weight.view().as<F8E4M3>()[r * width + c] = {r == c || !nan ? code : uint8_t{0}};
    }
  Host scale(DType::f32, {3, 3});
  for (int64_t i = 0; i < 9; ++i) store(scale, i, 0.5);
  for (const int64_t tokens : {int64_t{1}, int64_t{12}, width}) {
    Host x(DType::f32, {width, width});
    for (int64_t t = 0; t < width; ++t)
      for (int64_t c = 0; c < width; ++c) store(x, t * width + c, t == c ? 1 : 0);
    Host out(DType::f32, {width, width});
    for_each_target([&](const char* target, bool) {
      out.poison();
      for (int64_t t = 0; t < width; t += tokens) {
        const int64_t count = std::min(tokens, width - t);
        linear(exec_, x.view().rows(t, count), Linear{weight, scale}, out.view().rows(t, count));
      }
      for (int64_t t = 0; t < width; ++t)
        for (int64_t n = 0; n < width; ++n) {
          const bool nan_row = std::isnan(load(weight, n, n));
          const double expected = nan_row ? std::nan("") : load(weight, n, t) * 0.5;
          const double actual = load(out, t, n);
          ASSERT_TRUE(actual == expected || (std::isnan(actual) && std::isnan(expected)))
              << target << " " << tokens << " tokens, [" << t << ", " << n << "]: " << actual
              << " instead of " << expected;
        }
    });
  }
}
// Ragged, and whole blocks.
INSTANTIATE_TEST_SUITE_P(Widths, LinearOfWidthTest, testing::Values(256 + 5, 384));

TEST_F(LinearTest, NanCodeOfALaterColumnBlockIsSeen) {
  // More columns than one block of any path, so that sums are carried from block to block.
  constexpr int64_t kColumns = 20000;
  Host weight(DType::f8_e4m3, {9, kColumns});
  std::memset(weight.view().data(), 0x38, 9 * kColumns);
  weight.view().as<F8E4M3>()[3 * kColumns + 17000] = {0xff};
  weight.view().as<F8E4M3>()[8 * kColumns + 40] = {0x7f};
  Host scale(DType::f32, {1, blocks(kColumns)});
  for (int64_t i = 0; i < blocks(kColumns); ++i) store(scale, i, 1);
  for (const int64_t tokens : {1, 5, 20}) {
    Host x(DType::f32, {tokens, kColumns});
    for (int64_t i = 0; i < tokens * kColumns; ++i) store(x, i, 0);
    Host out(DType::f32, {tokens, 9});
    for_each_target([&](const char* target, bool) {
      linear(exec_, x, Linear{weight, scale}, out);
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t n = 0; n < 9; ++n)
          EXPECT_EQ(std::isnan(load(out, t, n)), n == 3 || n == 8)
              << target << " " << tokens << " " << n;
    });
  }
}

// One set of bytes where tiles multiply, one everywhere else.
TEST_F(LinearTest, ATokensResultDoesNotDependOnItsBatchThreadsOrInstructionSet) {
  Random random(3);
  for (const DType dtype : {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32}) {
    for (const Shape& s :
         {Shape{150, 1000, 101, 70, 100}, Shape{40, 6144, 37}, Shape{224, 640, 37, 96, 256}}) {
      Matrix matrix(random, dtype, s.rows, s.columns, s.first_row, s.first_column);
      Host x(DType::f32, {s.tokens, s.columns});
      x.fill(random);
      Host by_tiles(DType::f32, {s.tokens, s.rows}), by_rows(DType::f32, {s.tokens, s.rows});
      bool have[2] = {};
      for_each_target([&](const char* target, bool has_fma) {
        if (!has_fma) return;
        const bool tiles = rounds_inputs(dtype);
        const Host& all = tiles ? by_tiles : by_rows;
        if (!std::exchange(have[tiles], true)) linear(exec_, x, matrix.linear, all);
        for (const int threads : {1, 2, 3, 19}) {
          ThreadPool pool(threads);
          for (const int64_t count : {1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 37}) {
            Host part(DType::f32, {count, s.rows});
            const int64_t begin = s.tokens - count;
            linear(exec(pool), x.view().rows(begin, count), matrix.linear, part);
            ASSERT_TRUE(same_bytes(part, all.view().rows(begin, count)))
                << name(dtype) << " " << target << " " << threads << " threads, " << count;
          }
        }
      });
    }
  }
}

// Long prompts are done in slabs and, if the workspace is small, in parts: the same bytes.
TEST_F(LinearTest, ManyTokensEqualFew) {
  Random random(6);
  Matrix matrix(random, DType::f8_e4m3, 130, 300);
  constexpr int64_t kTokens = 700;
  Host x(DType::f32, {kTokens, 300});
  x.fill(random);
  Host all(DType::f32, {kTokens, 130}), part(DType::f32, {kTokens, 130});
  linear(exec_, x, matrix.linear, all);
  for (const int64_t fitting : {3, 16, 50, 333}) {
    Exec small = exec_;
    small.workspace_bytes = linear_workspace_bytes(Device{}, 1, 300) * fitting;
    part.poison();
    linear(small, x, matrix.linear, part);
    EXPECT_TRUE(same_bytes(part, all)) << fitting;
  }
}

// BF16 of a product's input is to nearest even; weights are exact.
TEST_F(LinearTest, TilesRoundInputsToNearestEven) {
  if (!cpu::use_tiles()) GTEST_SKIP() << "no tiles on this machine";
  Host weight(DType::bf16, {1, 8});
  for (int64_t i = 0; i < 8; ++i) store(weight, i, 1);
  const float inputs[] = {1 + 0x1p-8f, 1 + 3 * 0x1p-8f, 1 + 0x1p-9f, -1 - 0x1p-8f, 3e38f, 1e-30f};
  for (const float input : inputs) {
    Host x(DType::f32, {1, 8}), out(DType::f32, {1, 1});
    for (int64_t i = 0; i < 8; ++i) store(x, i, i == 5 ? input : 0);
    linear(exec_, x, Linear{weight, Tensor()}, out);
    EXPECT_EQ(load(out, 0), to_float(to_bf16(input))) << input;
  }
}

TEST_F(LinearTest, SeveralMatricesEqualOneCallEach) {
  Random random(4);
  Matrix q(random, DType::f8_e4m3, 200, 300, 128), k(random, DType::f8_e4m3, 70, 300, 64),
      v(random, DType::f8_e4m3, 33, 300);
  Host x(DType::bf16, {8, 300});
  x.fill(random);
  Host together(DType::bf16, {8, 303}), apart(DType::bf16, {8, 303});
  const Linear all[] = {q.linear, k.linear, v.linear};
  linear(exec_, x, all, together);
  linear(exec_, x, q.linear, apart.view().columns(0, 200));
  linear(exec_, x, k.linear, apart.view().columns(200, 70));
  linear(exec_, x, v.linear, apart.view().columns(270, 33));
  EXPECT_TRUE(same_bytes(together, apart));
}

TEST_F(LinearTest, WritesNothingBetweenRows) {
  Random random(5);
  Matrix matrix(random, DType::bf16, 21, 40);
  Host x(DType::f32, {9, 40});
  x.fill(random);
  Host out(DType::f32, {9, 21}, 4);
  linear(exec_, x, matrix.linear, out);
  const auto* words = static_cast<const uint32_t*>(out.view().data());
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t c = 21; c < 25; ++c) EXPECT_EQ(words[t * 25 + c], 0xffffffffu);
}

TEST_F(LinearTest, NoTokensNoWork) {
  Host weight(DType::bf16, {4, 8});
  linear(exec_, Tensor(nullptr, DType::f32, {0, 8}), Linear{weight, Tensor()},
         Tensor(nullptr, DType::f32, {0, 4}));
}

}  // namespace
}  // namespace m2::ops
