#include "ops/quantised.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/ops/e4m3_reference.h"
#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

// A float's quotients and products come out of double as of float: 53 bits are more than twice 24.
float divide(double a, double b) {
  return static_cast<float>(a / b);
}

float reference_scale(double most, ScaleFormat format) {
  const float scale = divide(std::max(most, static_cast<double>(1e-10f)), 448);
  if (format == ScaleFormat::f32) return scale;
  return static_cast<float>(
      std::exp2(std::ceil(std::log2(std::max(static_cast<double>(scale), 1e-10)))));
}

class QuantiseTest : public testing::Test {
 protected:
  void expect_quantised(const Tensor& x, ScaleFormat format, const std::string& where) {
    Exec exec{Device{}, &pool_};
    exec.scales = format;
    const int64_t rows = x.size(0), columns = x.size(1), stretches = (columns + 127) / 128;
    Host values(DType::f8_e4m3, {rows, columns}), scales(DType::f32, {rows, stretches});
    quantise(exec, x, {values, scales});
    const auto* codes = static_cast<const uint8_t*>(values.view().data());
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t s = 0; s < stretches; ++s) {
        const int64_t end = std::min(columns, 128 * (s + 1));
        double most = 0;
        for (int64_t c = 128 * s; c < end; ++c)
          if (!std::isnan(load(x, t, c))) most = std::max(most, std::fabs(load(x, t, c)));
        const float scale = reference_scale(most, format);
        ASSERT_EQ(static_cast<float>(load(scales, t, s)), scale) << where << " row " << t;
        const auto inverse = static_cast<double>(divide(1, scale));
        for (int64_t c = 128 * s; c < end; ++c)
          ASSERT_EQ(codes[t * columns + c],
                    nearest_e4m3(static_cast<float>(load(x, t, c) * inverse)))
              << where << " [" << t << ", " << c << "] = " << load(x, t, c);
      }
  }

  ThreadPool pool_{2};
  Random random_{1};
};

TEST_F(QuantiseTest, EveryByteIsTheReferences) {
  for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0})
    for (const DType dtype : {DType::bf16, DType::f32})
      for (const auto& [rows, columns] :
           {std::pair{1, 1}, {3, 127}, {2, 128}, {5, 129}, {1, 3072}, {40, 200}, {300, 516}})
        for (const double size : {1.0, 1e-12, 1e30}) {
          Host x(dtype, {rows, columns}, 3);
          x.fill(random_, size);
          expect_quantised(x, format, x.view().describe());
          if (HasFailure()) return;
        }
}

// Rows whose largest number is a power of two times 448, and that number's neighbours: the scale is
// then a power of two already, or just below or above one.
TEST_F(QuantiseTest, ScalesAtPowersOfTwoAndBesideThem) {
  for (const int exponent : {-40, -33, -9, -1, 0, 1, 5, 60})
    for (const float ulps : {-1.0f, 0.0f, 1.0f}) {
      Host x(DType::f32, {1, 128});
      x.fill(random_, std::ldexp(1.0, exponent));
      const float most = std::ldexp(448.0f, exponent);
      const float beside = ulps == 0 ? most : std::nextafterf(most, ulps > 0 ? 1e38f : 0.0f);
      store(x, 17, beside);
      for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0})
        expect_quantised(x, format, std::to_string(exponent) + " " + std::to_string(ulps));
      if (HasFailure()) return;
    }
}

TEST_F(QuantiseTest, ZerosAndWhatIsNoNumber) {
  for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0}) {
    Host x(DType::bf16, {4, 256});
    for (int64_t i = 0; i < 4 * 256; ++i) store(x, i, i < 256 ? 0.0 : random_.normal());
    store(x, 300, std::nan(""));
    store(x, 512 + 5, std::numeric_limits<float>::denorm_min());
    expect_quantised(x, format, "zeros, NaN");
    // An infinite number makes its stretch unusable, and no other.
    store(x, 3 * 256 + 7, std::numeric_limits<float>::infinity());
    Exec exec{Device{}, &pool_};
    exec.scales = format;
    Host values(DType::f8_e4m3, {4, 256}), scales(DType::f32, {4, 2});
    quantise(exec, x, {values, scales});
    EXPECT_TRUE(std::isinf(load(scales, 3, 0)));
    EXPECT_TRUE(std::isnan(load(values, 3, 7)));
    EXPECT_TRUE(std::isfinite(load(scales, 3, 1)));
  }
}

TEST(PowersOfTwo, AreTheLeastThatAreNotBelow) {
  for (int exponent = -125; exponent <= 126; ++exponent) {
    const float power = std::ldexp(1.0f, exponent);
    EXPECT_EQ(up_to_power_of_two(power), power);
    EXPECT_EQ(up_to_power_of_two(std::nextafterf(power, 3e38f)), 2 * power);
    EXPECT_EQ(up_to_power_of_two(std::nextafterf(power, 0)), power);
  }
}

}  // namespace
}  // namespace m2::ops
