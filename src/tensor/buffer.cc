#include "tensor/buffer.h"

#include <cstdlib>
#include <utility>

namespace m2 {

Buffer::Buffer(Device device, int64_t bytes) : bytes_(bytes), device_(device) {
  M2_CHECK(bytes >= 0);
  if (bytes > 0) data_ = static_cast<std::byte*>(device_allocate(device, bytes));
}

Buffer::~Buffer() {
  if (data_) device_free(device_, data_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

Tensor Arena::place(DType dtype, std::initializer_list<int64_t> shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  used_ = (used_ + 63) / 64 * 64;
  const int64_t begin = used_;
  used_ += elements * size_of(dtype);
  if (base_) M2_CHECK(used_ <= capacity_, "arena of {} bytes is full", capacity_);
  return Tensor(base_ ? base_ + begin : nullptr, dtype, shape);
}

}  // namespace m2
