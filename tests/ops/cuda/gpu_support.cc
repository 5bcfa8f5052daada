#include "tests/ops/cuda/gpu_support.h"

#include <cuda_runtime_api.h>

#include "base/check.h"

namespace m2::gpu_test {

bool gpu_present(std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return true;
  why = status == cudaSuccess ? "no GPU" : cudaGetErrorString(status);
  return false;
}

const Exec& gpu() {
  static const Exec exec = [] {
    Exec made;
    made.device = {DeviceKind::cuda, 0};
    cudaStream_t stream;
    M2_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    made.stream = stream;
    made.workspace_bytes = 256 << 20;  // contexts of some thousand tokens take 100 MB
    made.workspace = device_allocate(made.device, made.workspace_bytes);
    return made;
  }();
  return exec;
}

double number_at(const uint8_t* bytes, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32:
      return reinterpret_cast<const float*>(bytes)[i];
    case DType::bf16:
      return to_float(reinterpret_cast<const BF16*>(bytes)[i]);
    case DType::f16:
      return to_float(reinterpret_cast<const F16*>(bytes)[i]);
    case DType::f8_e4m3:
      return to_float(reinterpret_cast<const F8E4M3*>(bytes)[i]);
    case DType::i32:
      return reinterpret_cast<const int32_t*>(bytes)[i];
    default:
      return std::nan("");
  }
}

Numbers random_numbers(std::mt19937& random, int64_t count, DType dtype, double scale) {
  Numbers numbers{dtype, {}, {}};
  numbers.bytes.resize(static_cast<size_t>(count * size_of(dtype)));
  numbers.values.resize(static_cast<size_t>(count));
  std::normal_distribution<double> normal(0.0, scale);
  uint8_t* bytes = numbers.bytes.data();
  for (int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(dtype == DType::f8_e4m3 ? 0.0 : normal(random));
    if (dtype == DType::f8_e4m3) {
      uint8_t code = static_cast<uint8_t>(random());
      if ((code & 0x7f) == 0x7f) code ^= 0x40;
      bytes[i] = code;
    } else if (dtype == DType::f32) {
      std::memcpy(bytes + 4 * i, &value, 4);
    } else {
      const uint16_t bits = dtype == DType::bf16 ? to_bf16(value).bits : to_f16(value).bits;
      std::memcpy(bytes + 2 * i, &bits, 2);
    }
    numbers.values[static_cast<size_t>(i)] = number_at(bytes, dtype, i);
  }
  return numbers;
}

OnGpu::OnGpu(DType dtype, std::initializer_list<int64_t> shape) {
  int64_t bytes = size_of(dtype);
  for (const int64_t size : shape) bytes *= size;
  buffer_ = Buffer(gpu().device, std::max<int64_t>(bytes, 16));
  tensor_ = Tensor(buffer_.data(), dtype, shape);
  M2_CHECK(cudaMemsetAsync(buffer_.data(), 0xff, static_cast<size_t>(buffer_.bytes()),
                           static_cast<cudaStream_t>(gpu().stream)) == cudaSuccess);
}

OnGpu::OnGpu(const Numbers& numbers, std::initializer_list<int64_t> shape)
    : OnGpu(numbers.dtype, shape) {
  copy_to_device(gpu(), buffer_.data(), numbers.bytes.data(),
                 static_cast<int64_t>(numbers.bytes.size()));
  synchronize(gpu());
}

OnGpu::OnGpu(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape)
    : OnGpu(DType::i32, shape) {
  copy_to_device(gpu(), buffer_.data(), values.data(), static_cast<int64_t>(values.size()) * 4);
  synchronize(gpu());
}

OnGpu::OnGpu(const std::vector<float>& values, std::initializer_list<int64_t> shape)
    : OnGpu(DType::f32, shape) {
  copy_to_device(gpu(), buffer_.data(), values.data(), static_cast<int64_t>(values.size()) * 4);
  synchronize(gpu());
}

std::vector<uint8_t> OnGpu::bytes() const {
  std::vector<uint8_t> host(static_cast<size_t>(tensor_.elements() * size_of(tensor_.dtype())));
  copy_to_host(gpu(), host.data(), buffer_.data(), static_cast<int64_t>(host.size()));
  synchronize(gpu());
  return host;
}

std::vector<double> OnGpu::values() const {
  const std::vector<uint8_t> host = bytes();
  std::vector<double> values(static_cast<size_t>(tensor_.elements()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = number_at(host.data(), tensor_.dtype(), static_cast<int64_t>(i));
  return values;
}

void copy(const OnGpu& from, const OnGpu& to) {
  const int64_t bytes = to.tensor().elements() * size_of(to.tensor().dtype());
  M2_CHECK(cudaMemcpyAsync(to.tensor().data(), from.tensor().data(), static_cast<size_t>(bytes),
                           cudaMemcpyDeviceToDevice,
                           static_cast<cudaStream_t>(gpu().stream)) == cudaSuccess);
}

void expect_close(const std::vector<double>& out, const std::vector<double>& expected,
                  double norm_tolerance, double single_tolerance, const std::string& what) {
  ASSERT_EQ(out.size(), expected.size()) << what;
  double difference = 0.0, norm = 0.0, worst = 0.0;
  size_t where = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double d = std::abs(out[i] - expected[i]);
    difference += d * d;
    norm += expected[i] * expected[i];
    if (!(d <= worst) && !std::isnan(worst)) {
      worst = d;
      where = i;
    }
  }
  const double rms = std::sqrt(norm / static_cast<double>(std::max<size_t>(1, out.size())));
  EXPECT_LE(std::sqrt(difference), norm_tolerance * std::sqrt(norm)) << what;
  EXPECT_LE(worst, single_tolerance * rms)
      << what << ": element " << where << " is " << (out.empty() ? 0.0 : out[where]) << ", not "
      << (out.empty() ? 0.0 : expected[where]);
}

}  // namespace m2::gpu_test
