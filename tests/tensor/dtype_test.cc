#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace m2 {
namespace {

// Codes 0..127 as PyTorch's float8_e4m3fn converts them to float.
constexpr float kGolden[127] = {
    0.0,      0.001953125, 0.00390625, 0.005859375, 0.0078125, 0.009765625, 0.01171875, 0.013671875,
    0.015625, 0.017578125, 0.01953125, 0.021484375, 0.0234375, 0.025390625, 0.02734375, 0.029296875,
    0.03125,  0.03515625,  0.0390625,  0.04296875,  0.046875,  0.05078125,  0.0546875,  0.05859375,
    0.0625,   0.0703125,   0.078125,   0.0859375,   0.09375,   0.1015625,   0.109375,   0.1171875,
    0.125,    0.140625,    0.15625,    0.171875,    0.1875,    0.203125,    0.21875,    0.234375,
    0.25,     0.28125,     0.3125,     0.34375,     0.375,     0.40625,     0.4375,     0.46875,
    0.5,      0.5625,      0.625,      0.6875,      0.75,      0.8125,      0.875,      0.9375,
    1.0,      1.125,       1.25,       1.375,       1.5,       1.625,       1.75,       1.875,
    2.0,      2.25,        2.5,        2.75,        3.0,       3.25,        3.5,        3.75,
    4.0,      4.5,         5.0,        5.5,         6.0,       6.5,         7.0,        7.5,
    8.0,      9.0,         10.0,       11.0,        12.0,      13.0,        14.0,       15.0,
    16.0,     18.0,        20.0,       22.0,        24.0,      26.0,        28.0,       30.0,
    32.0,     36.0,        40.0,       44.0,        48.0,      52.0,        56.0,       60.0,
    64.0,     72.0,        80.0,       88.0,        96.0,      104.0,       112.0,      120.0,
    128.0,    144.0,       160.0,      176.0,       192.0,     208.0,       224.0,      240.0,
    256.0,    288.0,       320.0,      352.0,       384.0,     416.0,       448.0};

TEST(DTypeTest, EveryE4m3CodeHasPyTorchsValue) {
  for (uint8_t code = 0; code < 127; ++code) {
    EXPECT_EQ(to_float(F8E4M3{code}), kGolden[code]) << int{code};
    EXPECT_EQ(to_float(F8E4M3{static_cast<uint8_t>(code | 0x80)}), -kGolden[code]) << int{code};
  }
  EXPECT_TRUE(std::signbit(to_float(F8E4M3{0x80})));
  EXPECT_TRUE(std::isnan(to_float(F8E4M3{0x7f})));
  EXPECT_TRUE(std::isnan(to_float(F8E4M3{0xff})));
}

TEST(DTypeTest, E4m3RoundsToTheNearestTiesToEven) {
  for (uint8_t code = 0; code < 127; ++code) EXPECT_EQ(to_f8_e4m3(kGolden[code]).bits, code);
  for (uint8_t code = 0; code < 126; ++code) {
    const float middle = (kGolden[code] + kGolden[code + 1]) / 2;
    const uint8_t even = code % 2 == 0 ? code : static_cast<uint8_t>(code + 1);
    EXPECT_EQ(to_f8_e4m3(middle).bits, even) << middle;
    EXPECT_EQ(to_f8_e4m3(std::nextafterf(middle, 0)).bits, code) << middle;
    EXPECT_EQ(to_f8_e4m3(std::nextafterf(middle, 1000)).bits, code + 1) << middle;
    EXPECT_EQ(to_f8_e4m3(-middle).bits, even | 0x80) << middle;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_f8_e4m3(449).bits, 0x7e);
  EXPECT_EQ(to_f8_e4m3(infinity).bits, 0x7e);
  EXPECT_EQ(to_f8_e4m3(-infinity).bits, 0xfe);
  EXPECT_EQ(to_f8_e4m3(std::nanf("")).bits, 0x7f);
}

TEST(DTypeTest, EveryBf16ValueComesBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(BF16{static_cast<uint16_t>(bits)});
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_bf16(value))));
    } else {
      EXPECT_EQ(to_bf16(value).bits, bits);
    }
  }
}

// Sampled over every exponent and sign: the nearer of the two neighbours, ties to the even one.
TEST(DTypeTest, Bf16RoundsToTheNearestTiesToEven) {
  int ties = 0;
  for (uint64_t i = 0; i < 0x7f8000; ++i) {
    const uint32_t low = static_cast<uint32_t>((i * 2654435761u) >> 7) & 0xffffu;
    const uint32_t bits = static_cast<uint32_t>(i << 8 & 0x7fff0000u) | (i % 5 ? low : 0x8000u) |
                          (i & 0x80u ? 0x80000000u : 0);
    if ((bits & 0x7f800000u) >= 0x7f000000u) continue;  // the neighbour above may be infinite
    const float value = std::bit_cast<float>(bits);
    const uint16_t below = static_cast<uint16_t>(bits >> 16);
    const uint16_t above = static_cast<uint16_t>(below + 1);
    const double to_below = std::fabs(double{value} - double{to_float(BF16{below})});
    const double to_above = std::fabs(double{to_float(BF16{above})} - double{value});
    const bool tie = to_below == to_above;
    ties += tie;
    const uint16_t expected = tie                   ? (below % 2 ? above : below)
                              : to_below < to_above ? below
                                                    : above;
    ASSERT_EQ(to_bf16(value).bits, expected) << value;
  }
  EXPECT_GT(ties, 1000);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
  // A NaN whose payload is in the lower half must not become infinite.
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

// Against the compiler's own half type.
TEST(DTypeTest, F16IsIeeeHalf) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const F16 half{static_cast<uint16_t>(bits)};
    const float expected = static_cast<float>(std::bit_cast<_Float16>(half.bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(to_float(half)));
      EXPECT_TRUE(std::isnan(to_float(to_f16(expected))));
    } else {
      EXPECT_EQ(to_float(half), expected);
      EXPECT_EQ(to_f16(expected).bits, bits);
    }
  }
  for (uint64_t i = 0; i < 2000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(i * 2654435761u));
    if (std::isnan(value)) continue;
    ASSERT_EQ(to_f16(value).bits, std::bit_cast<uint16_t>(static_cast<_Float16>(value))) << value;
  }
}

TEST(DTypeTest, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4);
  EXPECT_EQ(size_of(DType::bf16), 2);
  EXPECT_EQ(size_of(DType::f8_e4m3), 1);
  EXPECT_EQ(size_of(DType::i64), 8);
  EXPECT_EQ(name_of(DType::f8_e4m3), "F8_E4M3");
  EXPECT_EQ(name_of(DType::bf16), "BF16");
}

}  // namespace
}  // namespace m2
