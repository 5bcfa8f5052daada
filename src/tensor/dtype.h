#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace m2 {

enum class DType : uint8_t { f32, bf16, f16, f8_e4m3, i32, i64, u8 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::bf16:
    case DType::f16: return 2;
    case DType::f8_e4m3:
    case DType::u8: return 1;
  }
  return 0;
}

// As safetensors headers spell it: "F32", "BF16", "F16", "F8_E4M3", "I32", "I64", "U8".
std::string_view name_of(DType dtype);

// Brain float: the upper half of an IEEE float. Stored as bits; arithmetic is done in float.
struct BF16 {
  uint16_t bits;
};

inline float to_float(BF16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
inline BF16 to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// e4m3fn: bias 7, largest 448, 0x7f and 0xff are NaN, no infinities (model.md 7).
struct F8E4M3 {
  uint8_t bits;
};
float to_float(F8E4M3 value);
// Round to nearest even, saturating at +-448; NaN becomes 0x7f.
F8E4M3 to_f8_e4m3(float value);

// How scales of FP8 numbers are chosen: as they come out, or the next power of two, which a byte of
// exponent can hold (OCP's E8M0).
enum class ScaleFormat : uint8_t { f32, e8m0 };

// The least power of two that is not below a positive, normal value.
inline float up_to_power_of_two(float value) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(value) + 0x7fffffu) & 0xff800000u);
}

// IEEE half.
struct F16 {
  uint16_t bits;
};
float to_float(F16 value);
F16 to_f16(float value);

}  // namespace m2
