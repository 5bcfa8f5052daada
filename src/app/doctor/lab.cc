#include "app/doctor/lab.h"

#include <algorithm>
#include <cstring>

#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/route.h"

namespace m2::app::doctor {
namespace {

double number_at(const std::byte* bytes, DType dtype, int64_t i) {
  const std::byte* at = bytes + i * size_of(dtype);
  const auto read = [&]<class T>(T value) {
    std::memcpy(&value, at, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::f32:
      return read(0.0f);
    case DType::bf16:
      return to_float(read(BF16{}));
    case DType::f16:
      return to_float(read(F16{}));
    case DType::f8_e4m3:
      return to_float(read(F8E4M3{}));
    case DType::i32:
      return read(int32_t{0});
    case DType::u8:
      return read(uint8_t{0});
    case DType::i64:
      return static_cast<double>(read(int64_t{0}));
  }
  return 0;
}

void store_at(std::byte* bytes, DType dtype, int64_t i, double number) {
  std::byte* at = bytes + i * size_of(dtype);
  const auto value = static_cast<float>(number);
  const auto write = [&](auto stored) { std::memcpy(at, &stored, sizeof stored); };
  switch (dtype) {
    case DType::bf16:
      return write(to_bf16(value));
    case DType::f16:
      return write(to_f16(value));
    case DType::f8_e4m3:
      return write(to_f8_e4m3(value));
    default:
      return write(value);
  }
}

int64_t workspace_bytes(Device device) {
  constexpr int64_t kTokens = 256, kColumns = 1536;
  const ops::HeadShape heads{12, 2, 128, 64};
  return std::max({ops::linear_workspace_bytes(device, kTokens, kColumns),
                   ops::attention_workspace_bytes(device, 8, 1024, heads),
                   ops::route_workspace_bytes(device, kTokens, kColumns, 256), int64_t{256}});
}

}  // namespace

Machine::Machine(Device the_device, ThreadPool& pool)
    : device(the_device),
      stream(device),
      workspace(device, workspace_bytes(device)),
      exec{device, &pool, stream.handle(), workspace.data(), workspace.bytes()} {
  use_device(device);
}

Numbers Lab::numbers(int64_t count, DType dtype, double size) {
  std::normal_distribution<double> normal;
  Numbers out(static_cast<size_t>(count));
  for (double& value : out) {
    if (dtype == DType::f8_e4m3) {
      auto code = static_cast<uint8_t>(random_());
      if ((code & 0x7f) == 0x7f) code ^= 1;
      value = to_float(F8E4M3{code});
      continue;
    }
    const auto number = static_cast<float>(normal(random_) * size);
    value = dtype == DType::f16 ? to_float(to_f16(number)) : to_float(to_bf16(number));
  }
  return out;
}

Tensor Lab::place(DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor counted(nullptr, dtype, shape);
  const int64_t bytes = counted.elements() * size_of(dtype);
  buffers_.emplace_back(exec_.device, std::max<int64_t>(bytes, 1));
  return {buffers_.back().data(), dtype, shape};
}

Tensor Lab::put(const Numbers& values, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor out = place(dtype, shape);
  M2_CHECK(out.elements() == std::ssize(values));
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(size_of(dtype)));
  for (size_t i = 0; i < values.size(); ++i)
    store_at(bytes.data(), dtype, static_cast<int64_t>(i), values[i]);
  copy_to_device(exec_, out.data(), bytes.data(), std::ssize(bytes));
  synchronize(exec_);
  return out;
}

Tensor Lab::put(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  const Tensor out = place(DType::i32, shape);
  M2_CHECK(out.elements() == std::ssize(values));
  copy_to_device(exec_, out.data(), values.data(), std::ssize(values) * 4);
  synchronize(exec_);
  return out;
}

Tensor Lab::blank(DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor out = place(dtype, shape);
  const std::vector<std::byte> bytes(static_cast<size_t>(out.elements() * size_of(dtype)),
                                     std::byte{0xff});
  copy_to_device(exec_, out.data(), bytes.data(), std::ssize(bytes));
  synchronize(exec_);
  return out;
}

Tensor Lab::zeros(int64_t bytes) {
  const Tensor out = place(DType::u8, {bytes});
  m2::clear(exec_, out.data(), bytes);
  return out;
}

std::vector<std::byte> Lab::bytes_of(const Tensor& tensor) {
  M2_CHECK(tensor.dense(), "{}", tensor.describe());
  std::vector<std::byte> out(static_cast<size_t>(tensor.elements() * size_of(tensor.dtype())));
  copy_to_host(exec_, out.data(), tensor.data(), std::ssize(out));
  synchronize(exec_);
  return out;
}

Numbers Lab::fetch(const Tensor& tensor) {
  const std::vector<std::byte> bytes = bytes_of(tensor);
  Numbers out(static_cast<size_t>(tensor.elements()));
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = number_at(bytes.data(), tensor.dtype(), static_cast<int64_t>(i));
  if (spoil_) spoil_(out);
  return out;
}

Numbers Lab::fetch_bytes(const Tensor& tensor) {
  Numbers out;
  for (const std::byte byte : bytes_of(tensor)) out.push_back(std::to_integer<int>(byte));
  if (spoil_) spoil_(out);
  return out;
}

}  // namespace m2::app::doctor
