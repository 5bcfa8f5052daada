#include "tensor/cuda_device.h"

#include <cuda_runtime_api.h>

#include "base/check.h"

namespace m2::cuda_device {
namespace {

// The runtime's own words, with a hint where the cause is the machine rather than this program.
void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]] return;
  const bool driver = status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice ||
                      status == cudaErrorSystemDriverMismatch;
  M2_CHECK(false, "{}: {}{}", what, cudaGetErrorString(status),
           driver ? " (this machine has no usable NVIDIA driver; use --device cpu, or install a "
                    "driver for CUDA 13)"
                  : "");
}

cudaStream_t stream_of(const Exec& exec) { return static_cast<cudaStream_t>(exec.stream); }

}  // namespace

void* allocate(Device device, int64_t bytes) {
  require(cudaSetDevice(device.index), "choosing the GPU");
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, static_cast<size_t>(bytes));
  size_t free_bytes = 0, total_bytes = 0;
  if (status == cudaErrorMemoryAllocation) cudaMemGetInfo(&free_bytes, &total_bytes);
  M2_CHECK(status != cudaErrorMemoryAllocation,
           "GPU {} is out of memory: {} bytes asked for, {} of {} free", device.index, bytes,
           free_bytes, total_bytes);
  require(status, "allocating GPU memory");
  return memory;
}

void free(Device device, void* memory) {
  require(cudaSetDevice(device.index), "choosing the GPU");
  require(cudaFree(memory), "freeing GPU memory");
}

void copy_to_device(const Exec& exec, void* to, const void* from_host, int64_t bytes) {
  require(cudaMemcpyAsync(to, from_host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice,
                          stream_of(exec)),
          "copying to the GPU");
}

void copy_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes) {
  require(cudaMemcpyAsync(to_host, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost,
                          stream_of(exec)),
          "copying from the GPU");
}

void synchronize(const Exec& exec) {
  require(cudaStreamSynchronize(stream_of(exec)), "waiting for the GPU");
}

std::string describe(Device device) {
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, device.index), "asking about the GPU");
  return fmt::format("{}, compute capability {}.{}, {} multiprocessors, {} MiB", properties.name,
                     properties.major, properties.minor, properties.multiProcessorCount,
                     properties.totalGlobalMem >> 20);
}

}  // namespace m2::cuda_device
