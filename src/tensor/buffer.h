#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2 {

// Owning memory on one device, aligned to 64 bytes (256 on GPUs). Uninitialised. Move-only.
class Buffer {
 public:
  Buffer() = default;
  // Allocation failure ends the process: sizes are planned before.
  Buffer(Device device, int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
};

// Places tensors one after another in a buffer sized beforehand. Dry runs (no buffer) only count,
// so that one function both plans and places.
class Arena {
 public:
  Arena() = default;  // dry: tensors have no data, bytes() counts
  explicit Arena(const Buffer& buffer) : base_(buffer.data()), capacity_(buffer.bytes()) {}

  // A dense tensor at the next 64-byte border.
  Tensor place(DType dtype, std::initializer_list<int64_t> shape);

  int64_t bytes() const { return used_; }

 private:
  std::byte* base_ = nullptr;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
};

}  // namespace m2
