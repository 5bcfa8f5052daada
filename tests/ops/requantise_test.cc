#include "ops/requantise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/ops/e4m3_reference.h"
#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

int64_t blocks(int64_t n) {
  return (n + 127) / 128;
}

struct Place {
  int64_t rows, columns, first_row = 0, first_column = 0;
};

// Random codes (all but NaN's) with scales of any size, rows between others that nobody may touch.
struct Matrix {
  Matrix(Random& random, const Place& place, double size)
      : all(DType::f8_e4m3, {place.rows + 4, place.columns}),
        scale(DType::f32,
              {blocks(place.first_row + place.rows), blocks(place.first_column + place.columns)}),
        linear{all.view().rows(2, place.rows), scale, place.first_row, place.first_column} {
    for (int64_t i = 0; i < all.view().elements(); ++i) {
      auto code = static_cast<uint8_t>(random.bits());
      if ((code & 0x7f) == 0x7f) code ^= 1;
      codes()[i] = code;
    }
    for (int64_t i = 0; i < scale.view().elements(); ++i)
      store(scale, i, size * (0.1 + random.uniform()));
  }
  uint8_t* codes() const { return static_cast<uint8_t*>(all.view().data()); }
  std::vector<uint8_t> bytes() const { return {codes(), codes() + all.view().elements()}; }
  std::vector<float> scales() const {
    const float* from = scale.view().as<float>();
    return {from, from + scale.view().elements()};
  }
  Host all, scale;
  Linear linear;
};

// What vLLM's requant_weight_ue8m0_inplace and per_block_cast_to_fp8(use_ue8m0) do, in double with
// float's roundings, block by block.
void reference(const Place& place, std::vector<uint8_t>& codes, std::vector<float>& scales) {
  const int64_t across = blocks(place.first_column + place.columns);
  for (int64_t b = 0; b < std::ssize(scales); ++b) {
    std::vector<size_t> members;
    for (int64_t r = 0; r < place.rows; ++r)
      for (int64_t c = 0; c < place.columns; ++c)
        if ((place.first_row + r) / 128 * across + (place.first_column + c) / 128 == b)
          members.push_back(static_cast<size_t>((r + 2) * place.columns + c));
    if (members.empty()) continue;
    float& scale = scales[static_cast<size_t>(b)];
    double most = static_cast<double>(1e-4f);
    std::vector<float> values;
    for (const size_t i : members) {
      const bool is_nan = (codes[i] & 0x7f) == 0x7f;
      values.push_back(
          is_nan ? NAN : static_cast<float>(e4m3_value(codes[i]) * static_cast<double>(scale)));
      if (!is_nan) most = std::max(most, std::fabs(static_cast<double>(values.back())));
    }
    const auto divided = static_cast<double>(static_cast<float>(most / 448));
    scale = static_cast<float>(std::exp2(std::ceil(std::log2(divided))));
    for (size_t m = 0; m < members.size(); ++m)
      if (!std::isnan(values[m]))
        codes[members[m]] = nearest_e4m3(static_cast<double>(values[m] * (1 / scale)));
  }
}

class RequantiseTest : public testing::Test {
 protected:
  void expect_requantised(const Matrix& matrix, const Place& place) {
    std::vector<uint8_t> codes = matrix.bytes();
    std::vector<float> scales = matrix.scales();
    reference(place, codes, scales);
    requantise(exec_, matrix.linear);
    EXPECT_EQ(matrix.bytes(), codes) << matrix.linear.weight.describe();
    EXPECT_EQ(matrix.scales(), scales) << matrix.linear.weight.describe();
  }

  ThreadPool pool_{2};
  const Exec exec_{Device{}, &pool_};
  Random random_{3};
};

TEST_F(RequantiseTest, EveryByteIsTheReferences) {
  for (const Place& place :
       {Place{128, 128}, Place{1, 1}, Place{256, 384}, Place{130, 200}, Place{192, 192, 192, 0},
        Place{64, 300, 64, 130}, Place{100, 20, 60, 120}})
    for (const double size : {1.0, 1e-3, 1e-8, 1e-20, 1e10}) {
      expect_requantised(Matrix(random_, place, size), place);
      if (HasFailure()) return;
    }
}

// Blocks without large codes, and with none but zeros.
TEST_F(RequantiseTest, BlocksOfSmallNumbers) {
  const Place place{256, 256};
  const Matrix matrix(random_, place, 1e-2);
  for (int64_t i = 0; i < matrix.all.view().elements(); ++i)
    matrix.codes()[i] &= i % 256 < 128 ? uint8_t{0x9f} : uint8_t{0};
  expect_requantised(matrix, place);
}

// A scale that is a power of two already stays, and so does each code, where the largest is 448.
TEST_F(RequantiseTest, PowersOfTwoStay) {
  const Matrix matrix(random_, {256, 128}, 1);
  store(matrix.scale, 0, 0.25);
  store(matrix.scale, 1, 0x1p-20);
  matrix.codes()[2 * 128] = matrix.codes()[200 * 128] = 0x7e;
  const std::vector<uint8_t> before = matrix.bytes();
  requantise(exec_, matrix.linear);
  EXPECT_EQ(matrix.bytes(), before);
  EXPECT_EQ(matrix.scales(), (std::vector<float>{0.25f, 0x1p-20f}));
  // A code of NaN is none that a scale is chosen by.
  matrix.codes()[2 * 128 + 1] = 0xff;
  requantise(exec_, matrix.linear);
  EXPECT_EQ(matrix.scales()[0], 0.25f);
  EXPECT_EQ(matrix.codes()[2 * 128 + 1], 0xff);
}

TEST_F(RequantiseTest, OtherDtypesStay) {
  Host weight(DType::bf16, {3, 5});
  weight.fill(random_);
  std::vector<std::byte> before(30);
  std::memcpy(before.data(), weight.view().data(), 30);
  requantise(exec_, {weight, {}});
  EXPECT_EQ(std::memcmp(before.data(), weight.view().data(), 30), 0);
}

}  // namespace
}  // namespace m2::ops
