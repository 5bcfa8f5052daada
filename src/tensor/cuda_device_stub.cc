#include <cstdlib>

#include "base/check.h"
#include "tensor/cuda_device.h"

namespace m2::cuda_device {
namespace {

[[noreturn]] void no_cuda() {
  M2_CHECK(false, "this build has no GPU support; configure it with -DM2_CUDA=ON");
  std::abort();
}

}  // namespace

Result<void> check(Device) {
  return fail(Code::unavailable,
              "this build of m2 has no GPU support (build it with `make cuda`); use --device cpu");
}
void use(Device) {
  no_cuda();
}
DeviceMemory memory(Device) {
  no_cuda();
}
bool reach(Device, Device) {
  no_cuda();
}
int count() {
  return 0;
}
std::string driver_version() {
  return "";
}
DeviceLink link(Device, Device) {
  no_cuda();
}
void copy_between(const Exec&, Device, void*, Device, const void*, int64_t) {
  no_cuda();
}
void* allocate(Device, int64_t) {
  no_cuda();
}
void free(Device, void*) {
  no_cuda();
}
void* allocate_pinned(int64_t) {
  no_cuda();
}
void free_pinned(void*) {
  no_cuda();
}
void copy_to_device(const Exec&, void*, const void*, int64_t) {
  no_cuda();
}
void copy_to_host(const Exec&, void*, const void*, int64_t) {
  no_cuda();
}
void clear(const Exec&, void*, int64_t) {
  no_cuda();
}
void synchronize(const Exec&) {
  no_cuda();
}
std::string describe(Device) {
  no_cuda();
}
void* make_stream(Device) {
  no_cuda();
}
void free_stream(void*) {
  no_cuda();
}
void* make_event(Device) {
  no_cuda();
}
void free_event(void*) {
  no_cuda();
}
void record_event(const Exec&, void*) {
  no_cuda();
}
Result<void> wait_event(void*) {
  no_cuda();
}
void begin_recording(const Exec&) {
  no_cuda();
}
void* end_recording(const Exec&) {
  no_cuda();
}
void free_graph(void*) {
  no_cuda();
}
void launch_graph(const Exec&, void*) {
  no_cuda();
}

}  // namespace m2::cuda_device
