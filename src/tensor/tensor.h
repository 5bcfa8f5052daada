#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace m2 {

// A view of numbers in somebody else's memory: pointer, dtype, shape, row stride. Passed by value;
// never owns. Row-major; only the first axis may have a stride of its own (a slice of columns), all
// others are dense. Whether the memory is the host's or a device's is the operation's business.
class Tensor {
 public:
  static constexpr int kMaxRank = 4;

  Tensor() = default;
  // A dense view.
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape);

  void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  bool empty() const { return data_ == nullptr; }

  // Size of axis i. Precondition: i < rank().
  int64_t size(int i) const {
    M2_CHECK(i >= 0 && i < rank_, "axis {} of a tensor of rank {}", i, rank_);
    return shape_[static_cast<size_t>(i)];
  }
  int64_t elements() const;
  // Elements from one index of axis 0 to the next.
  int64_t row_stride() const { return row_stride_; }
  bool dense() const { return row_stride_ == elements_per_row(); }

  // Data as T, which must be the C++ type of dtype() (float, BF16, F16, F8E4M3, int32_t, ...).
  template <class T>
  T* as() const;

  // Indices [begin, begin + count) of axis 0.
  Tensor rows(int64_t begin, int64_t count) const;
  // Rank 2: columns [begin, begin + count); keeps the row stride.
  Tensor columns(int64_t begin, int64_t count) const;
  // Element i of axis 0, one rank less. Precondition: rank() >= 2.
  Tensor at(int64_t i) const;
  // The same dense memory in another shape with as many elements.
  Tensor reshaped(std::initializer_list<int64_t> shape) const;

  // "bf16[4, 3072]", for messages.
  std::string describe() const;

 private:
  int64_t elements_per_row() const;

  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  int rank_ = 0;
  std::array<int64_t, kMaxRank> shape_{};
  int64_t row_stride_ = 0;
};

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() { return DType::f32; }
template <>
constexpr DType dtype_of<BF16>() { return DType::bf16; }
template <>
constexpr DType dtype_of<F16>() { return DType::f16; }
template <>
constexpr DType dtype_of<F8E4M3>() { return DType::f8_e4m3; }
template <>
constexpr DType dtype_of<int32_t>() { return DType::i32; }
template <>
constexpr DType dtype_of<int64_t>() { return DType::i64; }
template <>
constexpr DType dtype_of<uint8_t>() { return DType::u8; }

template <class T>
T* Tensor::as() const {
  M2_CHECK(dtype_of<T>() == dtype_, "tensor {} read as {}", describe(), name_of(dtype_of<T>()));
  return static_cast<T*>(data_);
}

}  // namespace m2
