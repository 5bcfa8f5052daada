#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/exec.h"

// What the GPU tests share: random numbers in every format, copies that live on the GPU, and the
// comparison with references in double precision.
namespace m2::gpu_test {

// True if a GPU can be used; otherwise `why` says what is missing.
bool gpu_present(std::string& why);

// One stream and one workspace for all tests of a program.
const Exec& gpu();

// A matrix's numbers, in double, and the bytes that stand for exactly these numbers in a format.
struct Numbers {
  DType dtype;
  std::vector<double> values;
  std::vector<uint8_t> bytes;
};

// `count` normal numbers times `scale`, rounded to `dtype`; f8_e4m3: every code but NaN, evenly.
Numbers random_numbers(std::mt19937& random, int64_t count, DType dtype, double scale = 1.0);
double number_at(const uint8_t* bytes, DType dtype, int64_t i);

// A tensor in GPU memory with its buffer.
class OnGpu {
 public:
  OnGpu(DType dtype, std::initializer_list<int64_t> shape);  // every byte 0xff: NaN in each format
  OnGpu(const Numbers& numbers, std::initializer_list<int64_t> shape);
  OnGpu(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape);
  OnGpu(const std::vector<float>& values, std::initializer_list<int64_t> shape);

  operator const Tensor&() const { return tensor_; }  // NOLINT: stands for the tensor
  const Tensor& tensor() const { return tensor_; }
  std::vector<uint8_t> bytes() const;
  std::vector<double> values() const;  // f32, bf16, i32

 private:
  Buffer buffer_;
  Tensor tensor_;
};

// Copies a tensor of the same size.
void copy(const OnGpu& from, const OnGpu& to);

// |out - expected| / |expected| over all, and every single difference as a multiple of the expected
// numbers' root mean square.
void expect_close(const std::vector<double>& out, const std::vector<double>& expected,
                  double norm_tolerance, double single_tolerance, const std::string& what);

}  // namespace m2::gpu_test
