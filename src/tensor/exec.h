#pragma once

#include <cstdint>
#include <string>

#include "base/thread_pool.h"
#include "tensor/dtype.h"

namespace m2 {

enum class DeviceKind : uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

// Where an operation runs: passed to every operation, never global. Owns nothing.
struct Exec {
  Device device;
  ThreadPool* pool = nullptr;  // cpu: the threads to use; never null there
  void* stream = nullptr;      // cuda: a cudaStream_t
  // Memory of the device for the operation that runs now; its contents belong to nobody between
  // operations. cpu: linear()'s packed inputs (ops/linear.h says how much); cuda: attention's
  // partial results (ops/cuda/attention/plan.h).
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  // cuda: nobody else enqueues on the device, so that a kernel may have all of it.
  bool alone = true;
  // Scales of the activations that operations quantise for products with FP8 weights.
  ScaleFormat scales = ScaleFormat::f32;
};

// The dtype activations have on a device: f32 on the CPU, bf16 on GPUs.
DType activation_dtype(Device device);

// True if the host may read and write the device's memory through its address.
bool host_addressable(Device device);

// Memory of a device. CPU memory is 64-byte aligned, and large blocks ask for huge pages.
// Failure ends the process with a message that names the size.
void* device_allocate(Device device, int64_t bytes);
void device_free(Device device, void* memory);

// Copies between host and device memory. Asynchronous on cuda (ordered by exec.stream) if the
// host's is pinned (HostBuffer). If it is not, the call waits for what its stream has before, and
// other threads' calls of the kind wait with it: none may stand behind a wait for another rank.
void copy_to_device(const Exec& exec, void* to, const void* from_host, int64_t bytes);
void copy_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes);
// Zeros. Asynchronous on cuda, likewise.
void clear(const Exec& exec, void* memory, int64_t bytes);
// Returns when everything enqueued on exec has finished. Nothing to do on the CPU.
void synchronize(const Exec& exec);

// "AMD EPYC ..., 2 threads" or the GPU's name; for logs and measured tables.
std::string describe_device(Device device);

}  // namespace m2
