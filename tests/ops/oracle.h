#pragma once

// What the tests of the operations share: host tensors of random numbers, double-precision views of
// them, the table of tolerances, and the instruction sets to run under.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "ops/instruction_set.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops::test {

// Splitmix64; the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // Roughly normal: mean 0, variance 1.
  double normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * std::sqrt(3.0); }

 private:
  uint64_t state_;
};

inline void store(const Tensor& tensor, int64_t byte_index, double value) {
  char* at = static_cast<char*>(tensor.data()) + byte_index * size_of(tensor.dtype());
  const float f = static_cast<float>(value);
  switch (tensor.dtype()) {
    case DType::f32:
      std::memcpy(at, &f, 4);
      return;
    case DType::bf16: {
      const BF16 v = to_bf16(f);
      std::memcpy(at, &v, 2);
      return;
    }
    case DType::f16: {
      const F16 v = to_f16(f);
      std::memcpy(at, &v, 2);
      return;
    }
    case DType::f8_e4m3: {
      const F8E4M3 v = to_f8_e4m3(f);
      std::memcpy(at, &v, 1);
      return;
    }
    case DType::i32: {
      const int32_t v = static_cast<int32_t>(value);
      std::memcpy(at, &v, 4);
      return;
    }
    default:
      FAIL() << "dtype";
  }
}

inline double load(const Tensor& tensor, int64_t index) {
  const char* at = static_cast<const char*>(tensor.data()) + index * size_of(tensor.dtype());
  switch (tensor.dtype()) {
    case DType::f32: {
      float v;
      std::memcpy(&v, at, 4);
      return v;
    }
    case DType::bf16: {
      BF16 v;
      std::memcpy(&v, at, 2);
      return to_float(v);
    }
    case DType::f16: {
      F16 v;
      std::memcpy(&v, at, 2);
      return to_float(v);
    }
    case DType::f8_e4m3: {
      F8E4M3 v;
      std::memcpy(&v, at, 1);
      return to_float(v);
    }
    case DType::i32: {
      int32_t v;
      std::memcpy(&v, at, 4);
      return v;
    }
    default:
      return std::nan("");
  }
}

// Element [row, column] of a rank 2 view that may have gaps between rows.
inline double load(const Tensor& tensor, int64_t row, int64_t column) {
  return load(tensor, row * tensor.row_stride() + column);
}

// A host tensor that owns its memory; rank 2 ones may have `gap` more columns between rows. Memory
// starts as NaN (bytes 0xff), also the gaps, which must stay so.
class Host {
 public:
  Host(DType dtype, std::initializer_list<int64_t> shape, int64_t gap = 0) {
    const std::vector<int64_t> sizes(shape);
    if (gap == 0) {
      const Tensor counted(nullptr, dtype, shape);
      bytes_ = Buffer(Device{}, counted.elements() * size_of(dtype) + 1);
      view_ = Tensor(bytes_.data(), dtype, shape);
    } else {
      bytes_ = Buffer(Device{}, sizes[0] * (sizes[1] + gap) * size_of(dtype) + 1);
      view_ = Tensor(bytes_.data(), dtype, {sizes[0], sizes[1] + gap}).columns(0, sizes[1]);
    }
    poison();
  }

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }
  void poison() { std::memset(bytes_.data(), 0xff, static_cast<size_t>(bytes_.bytes())); }

  Host& fill(Random& random, double scale = 1) {
    const int64_t rows = view_.size(0);
    const int64_t width = rows ? view_.elements() / rows : 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c)
        store(view_, r * view_.row_stride() + c, random.normal() * scale);
    return *this;
  }
  Host& set(const std::vector<int32_t>& values) {
    for (size_t i = 0; i < values.size(); ++i) store(view_, static_cast<int64_t>(i), values[i]);
    return *this;
  }

 private:
  Buffer bytes_;
  Tensor view_;
};

// Tolerances, by the dtype of the output. An element may be off by `sum` times the sum of the
// magnitudes that were added for it (FP32 accumulation), plus `round` of its own value (storing
// it). Where tiles round the inputs of products to BF16 (ops/cpu/tiles.h), references round them
// too; `slack` is for numbers so near the middle of two BF16 numbers that either may be taken.
struct Tolerance {
  double sum;
  double round;
};
inline Tolerance tolerance_of(DType out) {
  return out == DType::bf16 ? Tolerance{1e-6, 0x1p-8} : Tolerance{1e-6, 2e-6};
}

inline void expect_close(double actual, double expected, double magnitude, DType out,
                         const std::string& where, double slack = 0) {
  const Tolerance tolerance = tolerance_of(out);
  const double allowed =
      tolerance.sum * magnitude + tolerance.round * std::fabs(expected) + slack + 1e-37;
  // Not EXPECT_NEAR: NaN must fail, and nothing is printed for the many that pass.
  if (!(std::fabs(actual - expected) <= allowed))
    ADD_FAILURE() << where << ": " << actual << " instead of " << expected << " +- " << allowed;
}

inline bool same_bytes(const Tensor& a, const Tensor& b) {
  if (a.size(0) != b.size(0) || a.elements() != b.elements() || a.dtype() != b.dtype())
    return false;
  const int64_t bytes = a.size(0) ? a.elements() / a.size(0) * size_of(a.dtype()) : 0;
  for (int64_t r = 0; r < a.size(0); ++r)
    if (std::memcmp(a.rows(r, 1).data(), b.rows(r, 1).data(), static_cast<size_t>(bytes)) != 0)
      return false;
  return true;
}

// Runs body(name, has_fma) under every instruction set that this machine has.
template <class Body>
void for_each_target(Body&& body) {
  for (const std::string_view set : instruction_sets()) {
    M2_CHECK(choose_instruction_set(set).ok());
    body(std::string(set).c_str(), set != "baseline");
  }
  M2_CHECK(choose_instruction_set("auto").ok());
}

// Whether products with such weights round their inputs to BF16 now.
inline bool rounds_inputs(DType weight) {
  return cpu::use_tiles() && (weight == DType::f8_e4m3 || weight == DType::bf16);
}
inline double as_input(double value, bool rounded) {
  return rounded ? to_float(to_bf16(static_cast<float>(value))) : value;
}

inline std::string name(DType dtype) {
  return std::string(name_of(dtype));
}

}  // namespace m2::ops::test
