#pragma once

#include "tensor/exec.h"
#include "tensor/stream.h"

// What tensor/exec.h and tensor/stream.h promise, for GPUs. cuda_device.cc in builds with M2_CUDA;
// otherwise cuda_device_stub.cc, where check() says so and the rest ends the process.
namespace m2::cuda_device {

Result<void> check(Device device);
void use(Device device);
DeviceMemory memory(Device device);
bool reach(Device from, Device to);
int count();
std::string driver_version();
DeviceLink link(Device from, Device to);
void copy_between(const Exec& exec, Device to_device, void* to, Device from_device,
                  const void* from, int64_t bytes);

void* allocate(Device device, int64_t bytes);
void free(Device device, void* memory);
void* allocate_pinned(int64_t bytes);
void free_pinned(void* memory);
void copy_to_device(const Exec& exec, void* to, const void* from_host, int64_t bytes);
void copy_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes);
void clear(const Exec& exec, void* memory, int64_t bytes);
void synchronize(const Exec& exec);
std::string describe(Device device);

void* make_stream(Device device);
void free_stream(void* stream);
void* make_event(Device device);
void free_event(void* event);
void record_event(const Exec& exec, void* event);
Result<void> wait_event(void* event);
void begin_recording(const Exec& exec);
void* end_recording(const Exec& exec);
void free_graph(void* graph);
void launch_graph(const Exec& exec, void* graph);

}  // namespace m2::cuda_device
