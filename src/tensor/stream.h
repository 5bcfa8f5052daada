#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "tensor/exec.h"

// What a device needs beside memory to be kept busy: streams, pinned host memory, events, recorded
// graphs. On the CPU, where an operation is finished when it returns, they cost nothing.

namespace m2 {

// Whether the device can be used from this build on this machine. The error says what is missing:
// `unsupported` if there is a GPU that the build has no code for, else `unavailable`.
Result<void> check_device(Device device);

// Makes the device the one that the calling thread launches on. Every thread that enqueues work
// calls it once.
void use_device(Device device);

// To be called before anything else of a device: all kernels are loaded when a GPU is first used,
// not each at its first launch, for which the driver may wait for what the GPU is doing, such as a
// sum that waits for another GPU.
void load_kernels_early();

// Lets work of GPU `from` read and write memory of GPU `to`; false if the machine does not. At once
// or later allocated.
bool reach_device(Device from, Device to);

// GPUs that the driver shows; 0 without one, or in a build without GPUs.
int gpu_count();
// The CUDA version that the driver is for, as "13.0"; empty without a driver.
std::string driver_version();

// How GPU `from` reaches memory of GPU `to`: directly, or through the host; and whether with atomic
// operations too, as over NVLink and not over PCIe.
struct DeviceLink {
  bool direct = false;
  bool atomics = false;
};
DeviceLink device_link(Device from, Device to);
// Copies between the memory of two GPUs. Asynchronous, ordered by exec.stream.
void copy_between(const Exec& exec, Device to_device, void* to, Device from_device,
                  const void* from, int64_t bytes);

// Bytes of device memory: free now, and in all. Only for GPUs.
struct DeviceMemory {
  int64_t free = 0;
  int64_t total = 0;
};
DeviceMemory device_memory(Device device);

// A queue of device work. Move-only.
class Stream {
 public:
  explicit Stream(Device device);
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  void* handle() const { return handle_; }  // for Exec::stream

 private:
  Device device_;
  void* handle_ = nullptr;
};

// Host memory that the device copies from and to at full speed (pinned for GPUs). Move-only.
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(Device device, int64_t bytes);
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  Device device_;
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A place in a stream that the host can wait for. Move-only.
class Event {
 public:
  Event() = default;
  explicit Event(Device device);
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;

  void record(const Exec& exec);
  // Returns when the work enqueued before the last record() is done. An error is the device's own
  // (an illegal access, say): nothing that ran on it can be trusted any more.
  Result<void> wait() const;

 private:
  Device device_;
  void* handle_ = nullptr;
};

// Whether work of the device can be recorded and replayed.
bool can_record(Device device);

// Device work recorded once and replayed with one launch. Move-only.
class Graph {
 public:
  Graph() = default;
  // Runs `work`, whose operations are recorded on exec.stream instead of executed. It must enqueue
  // on that stream alone, and neither allocate nor wait. Precondition: can_record().
  static Graph record(const Exec& exec, const std::function<void()>& work);
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;

  bool empty() const { return handle_ == nullptr; }
  void launch(const Exec& exec) const;

 private:
  void* handle_ = nullptr;
};

}  // namespace m2
