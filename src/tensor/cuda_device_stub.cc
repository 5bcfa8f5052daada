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

void* allocate(Device, int64_t) { no_cuda(); }
void free(Device, void*) { no_cuda(); }
void copy_to_device(const Exec&, void*, const void*, int64_t) { no_cuda(); }
void copy_to_host(const Exec&, void*, const void*, int64_t) { no_cuda(); }
void synchronize(const Exec&) { no_cuda(); }
std::string describe(Device) { no_cuda(); }

}  // namespace m2::cuda_device
