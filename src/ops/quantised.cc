#include "ops/quantised.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {

bool wants_quantised(Device device) {
  return device.kind == DeviceKind::cuda && cuda::wants_quantised();
}

void quantise(const Exec& exec, Tensor x, const Quantised& to) {
  M2_CHECK(x.rank() == 2 && !to.empty(), "x is {}", x.describe());
  check_tensor("x", x, {DType::f32, DType::bf16}, {x.size(0), x.size(1)});
  check_quantised(to, x);
  if (x.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::quantise(exec, x, to);
  cpu::quantise(exec, x, to);
}

void check_quantised(const Quantised& quantised, const Tensor& x) {
  if (quantised.empty()) return;
  check_tensor("quantised", quantised.values, {DType::f8_e4m3}, {x.size(0), x.size(1)});
  check_tensor("scales", quantised.scales, {DType::f32}, {x.size(0), (x.size(1) + 127) / 128});
  check_dense("quantised", quantised.values);
  check_dense("scales", quantised.scales);
}

}  // namespace m2::ops
