#include "tensor/exec.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/check.h"
#include "base/huge_pages.h"
#include "tensor/cuda_device.h"

namespace m2 {
namespace {

bool on_gpu(Device device) {
  return device.kind == DeviceKind::cuda;
}

}  // namespace

DType activation_dtype(Device device) {
  return device.kind == DeviceKind::cpu ? DType::f32 : DType::bf16;
}

bool host_addressable(Device device) {
  return device.kind == DeviceKind::cpu;
}

void* device_allocate(Device device, int64_t bytes) {
  if (on_gpu(device)) return cuda_device::allocate(device, bytes);
  const auto size = static_cast<size_t>(bytes);
  if (size >= 4 * kHugePage) return allocate_huge_pages(size);
  void* memory = std::aligned_alloc(64, (size + 63) / 64 * 64);
  M2_CHECK(memory, "out of memory: {} bytes", bytes);
  return memory;
}

void device_free(Device device, void* memory) {
  if (on_gpu(device)) return cuda_device::free(device, memory);
  std::free(memory);
}

void copy_to_device(const Exec& exec, void* to, const void* from_host, int64_t bytes) {
  if (on_gpu(exec.device)) return cuda_device::copy_to_device(exec, to, from_host, bytes);
  std::memcpy(to, from_host, static_cast<size_t>(bytes));
}

void copy_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes) {
  if (on_gpu(exec.device)) return cuda_device::copy_to_host(exec, to_host, from, bytes);
  std::memcpy(to_host, from, static_cast<size_t>(bytes));
}

void clear(const Exec& exec, void* memory, int64_t bytes) {
  if (on_gpu(exec.device)) return cuda_device::clear(exec, memory, bytes);
  std::memset(memory, 0, static_cast<size_t>(bytes));
}

void synchronize(const Exec& exec) {
  if (on_gpu(exec.device)) cuda_device::synchronize(exec);
}

std::string describe_device(Device device) {
  if (on_gpu(device)) return cuda_device::describe(device);
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos)
      return fmt::format("{}, {} threads", line.substr(colon + 2), usable_cpus());
  }
  return fmt::format("CPU, {} threads", usable_cpus());
}

}  // namespace m2
