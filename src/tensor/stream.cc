#include "tensor/stream.h"

#include <cstdlib>
#include <utility>

#include "tensor/cuda_device.h"

namespace m2 {
namespace {

bool on_gpu(Device device) {
  return device.kind == DeviceKind::cuda;
}

}  // namespace

Result<void> check_device(Device device) {
  if (on_gpu(device)) return cuda_device::check(device);
  return {};
}

void use_device(Device device) {
  if (on_gpu(device)) cuda_device::use(device);
}

void load_kernels_early() {
  ::setenv("CUDA_MODULE_LOADING", "EAGER", 0);  // the user's own choice stands
}

bool reach_device(Device from, Device to) {
  M2_CHECK(on_gpu(from) && on_gpu(to), "only GPUs have memory of their own");
  return from == to || cuda_device::reach(from, to);
}

int gpu_count() {
  return cuda_device::count();
}

std::string driver_version() {
  return cuda_device::driver_version();
}

DeviceLink device_link(Device from, Device to) {
  M2_CHECK(on_gpu(from) && on_gpu(to), "only GPUs have memory of their own");
  return cuda_device::link(from, to);
}

void copy_between(const Exec& exec, Device to_device, void* to, Device from_device,
                  const void* from, int64_t bytes) {
  M2_CHECK(on_gpu(to_device) && on_gpu(from_device), "only GPUs have memory of their own");
  cuda_device::copy_between(exec, to_device, to, from_device, from, bytes);
}

DeviceMemory device_memory(Device device) {
  M2_CHECK(on_gpu(device), "only a GPU's memory is its own");
  return cuda_device::memory(device);
}

Stream::Stream(Device device) : device_(device) {
  if (on_gpu(device)) handle_ = cuda_device::make_stream(device);
}
Stream::~Stream() {
  if (handle_) cuda_device::free_stream(handle_);
}
Stream::Stream(Stream&& other) noexcept
    : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(handle_, other.handle_);
  return *this;
}

HostBuffer::HostBuffer(Device device, int64_t bytes) : device_(device), bytes_(bytes) {
  M2_CHECK(bytes >= 0);
  if (bytes == 0) return;
  data_ = static_cast<std::byte*>(on_gpu(device) ? cuda_device::allocate_pinned(bytes)
                                                 : device_allocate(device, bytes));
}
HostBuffer::~HostBuffer() {
  if (!data_) return;
  on_gpu(device_) ? cuda_device::free_pinned(data_) : device_free(device_, data_);
}
HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}
HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Event::Event(Device device) : device_(device) {
  if (on_gpu(device)) handle_ = cuda_device::make_event(device);
}
Event::~Event() {
  if (handle_) cuda_device::free_event(handle_);
}
Event::Event(Event&& other) noexcept
    : device_(other.device_), handle_(std::exchange(other.handle_, nullptr)) {}
Event& Event::operator=(Event&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(handle_, other.handle_);
  return *this;
}
void Event::record(const Exec& exec) {
  if (handle_) cuda_device::record_event(exec, handle_);
}
Result<void> Event::wait() const {
  if (handle_) return cuda_device::wait_event(handle_);
  return {};
}

bool can_record(Device device) {
  return on_gpu(device);
}

Graph Graph::record(const Exec& exec, const std::function<void()>& work) {
  M2_CHECK(can_record(exec.device), "the CPU runs, it does not record");
  Graph out;
  cuda_device::begin_recording(exec);
  work();
  out.handle_ = cuda_device::end_recording(exec);
  return out;
}
Graph::~Graph() {
  if (handle_) cuda_device::free_graph(handle_);
}
Graph::Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}
void Graph::launch(const Exec& exec) const {
  cuda_device::launch_graph(exec, handle_);
}

}  // namespace m2
