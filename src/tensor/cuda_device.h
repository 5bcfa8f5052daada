#pragma once

#include "tensor/exec.h"

// What tensor/exec.h promises, for GPUs. cuda_device.cc in builds with M2_CUDA; otherwise
// cuda_device_stub.cc, whose bodies end the process and say so.
namespace m2::cuda_device {

void* allocate(Device device, int64_t bytes);
void free(Device device, void* memory);
void copy_to_device(const Exec& exec, void* to, const void* from_host, int64_t bytes);
void copy_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes);
void synchronize(const Exec& exec);
std::string describe(Device device);

}  // namespace m2::cuda_device
