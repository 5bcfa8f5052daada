#include "tensor/dtype.h"

#include <algorithm>
#include <cmath>

namespace m2 {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "F32";
    case DType::bf16: return "BF16";
    case DType::f16: return "F16";
    case DType::f8_e4m3: return "F8_E4M3";
    case DType::i32: return "I32";
    case DType::i64: return "I64";
    case DType::u8: return "U8";
  }
  return "?";
}

float to_float(F8E4M3 value) {
  const int exponent = (value.bits >> 3) & 15;
  const int mantissa = value.bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float magnitude =
      exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return value.bits & 0x80 ? -magnitude : magnitude;
}

F8E4M3 to_f8_e4m3(float value) {
  if (std::isnan(value)) return {0x7f};
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return {static_cast<uint8_t>(sign | 0x7e)};
  if (magnitude < 0x1p-10f) return {sign};  // below half of the smallest subnormal, 2^-9
  // The spacing of representable numbers around `magnitude`: 2^(e-3), at least 2^-9.
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent, 0.5 <= m < 1
  const int e = std::max(exponent - 1, -6);
  // nearbyint rounds halves to even in the default rounding mode, which is what the format asks.
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - e)));
  // steps is 0..16; 8..15 are the normal numbers of exponent e, and 16 carries into the next.
  const int bits = (e + 6) * 8 + steps;
  return {static_cast<uint8_t>(sign | bits)};
}

float to_float(F16 value) {
  const int exponent = (value.bits >> 10) & 31;
  const int mantissa = value.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa ? std::nanf("") : INFINITY;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return value.bits & 0x8000 ? -magnitude : magnitude;
}

F16 to_f16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00)};
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-25f) return {sign};  // below half of the smallest subnormal, 2^-24
  int exponent;
  std::frexp(magnitude, &exponent);
  const int e = std::max(exponent - 1, -14);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - e)));
  return {static_cast<uint16_t>(sign | ((e + 14) * 1024 + steps))};
}

}  // namespace m2
