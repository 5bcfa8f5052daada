#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>

// Arithmetic on numbers that come from a file or a socket: fails instead of wrapping.

namespace m2 {

template <class T>
std::optional<T> checked_add(T a, T b) {
  T out;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

template <class T>
std::optional<T> checked_mul(T a, T b) {
  T out;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

// The same value in another integer type, or nothing if it does not fit.
template <class To, class From>
std::optional<To> narrow(From value) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  To out;
  if (__builtin_add_overflow(value, From{0}, &out)) return std::nullopt;
  return out;
}

// Reads little-endian integers and byte ranges from a span; every read is bounds-checked.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }

  std::optional<uint32_t> u32() { return integer<uint32_t>(); }
  std::optional<uint64_t> u64() { return integer<uint64_t>(); }

  std::optional<std::span<const std::byte>> bytes(uint64_t count) {
    if (count > remaining()) return std::nullopt;
    auto out = bytes_.subspan(position_, static_cast<size_t>(count));
    position_ += static_cast<size_t>(count);
    return out;
  }

 private:
  template <class T>
  std::optional<T> integer() {
    if (remaining() < sizeof(T)) return std::nullopt;
    T out;
    std::memcpy(&out, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return out;
  }

  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

}  // namespace m2
