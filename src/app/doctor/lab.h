#pragma once

#include <deque>
#include <functional>
#include <initializer_list>
#include <random>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/exec.h"
#include "tensor/stream.h"

namespace m2::app::doctor {

using Numbers = std::vector<double>;

// A device with what its operations need, also as workspace for small steps.
struct Machine {
  Machine(Device the_device, ThreadPool& pool);
  Device device;
  Stream stream;
  Buffer workspace;
  Exec exec;
};

// Tensors of one check, on their way to the device and back.
class Lab {
 public:
  // Called with all numbers of each output that comes back: tests spoil one, to see it noticed.
  using Spoil = std::function<void(Numbers&)>;

  Lab(const Exec& exec, Spoil spoil) : exec_(exec), spoil_(std::move(spoil)) {}

  const Exec& exec() const { return exec_; }
  std::mt19937& random() { return random_; }

  // Normal numbers times `size`, such as the dtype holds; bf16's where it is f32, so that who
  // rounds inputs to BF16 changes nothing. f8_e4m3: any code but NaN's, evenly, whatever the size.
  Numbers numbers(int64_t count, DType dtype, double size = 1);

  Tensor put(const Numbers& values, DType dtype, std::initializer_list<int64_t> shape);
  Tensor put(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape);
  // Every byte 0xff, which is NaN in each format.
  Tensor blank(DType dtype, std::initializer_list<int64_t> shape);
  // Zeros.
  Tensor zeros(int64_t bytes);
  // The numbers of a dense tensor, or its bytes.
  Numbers fetch(const Tensor& tensor);
  Numbers fetch_bytes(const Tensor& tensor);

  // Frees all tensors.
  void clear() { buffers_.clear(); }

 private:
  Tensor place(DType dtype, std::initializer_list<int64_t> shape);
  std::vector<std::byte> bytes_of(const Tensor& tensor);

  const Exec exec_;
  const Spoil spoil_;
  std::mt19937 random_{20};
  std::deque<Buffer> buffers_;
};

}  // namespace m2::app::doctor
