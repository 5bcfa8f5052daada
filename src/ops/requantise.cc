#include "ops/requantise.h"

#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {

void requantise(const Exec& exec, const Linear& weight) {
  M2_CHECK(weight.weight.rank() == 2, "weight is {}", weight.weight.describe());
  check_linear(weight, weight.weight.size(1));
  if (weight.weight.dtype() != DType::f8_e4m3 || weight.weight.elements() == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::requantise(exec, weight);
  cpu::requantise(exec, weight);
}

}  // namespace m2::ops
