#pragma once

#include <cmath>
#include <cstdint>

namespace m2::ops::test {

// A code of e4m3fn by the format's definition (OCP 8-bit floating point, section 5.1); not NaN's.
inline double e4m3_value(int code) {
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double magnitude =
      exponent ? (1 + mantissa / 8.0) * std::exp2(exponent - 7) : mantissa / 8.0 * std::exp2(-6);
  return code & 0x80 ? -magnitude : magnitude;
}

// The code whose value is nearest, by looking at all; of two as near the even one.
inline uint8_t nearest_e4m3(double x) {
  if (std::isnan(x)) return 0x7f;
  const int sign = std::signbit(x) ? 0x80 : 0;
  int best = 0;
  for (int code = 1; code < 0x7f; ++code) {
    const double distance = std::fabs(std::fabs(x) - e4m3_value(code));
    const double least = std::fabs(std::fabs(x) - e4m3_value(best));
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(sign | best);
}

}  // namespace m2::ops::test
