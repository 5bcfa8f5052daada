#include "ops/norm.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {
namespace {

void check_norm(const Tensor& x, const Tensor& weight, const Tensor& out) {
  M2_CHECK(x.rank() == 2 && x.size(1) > 0, "x is {}", x.describe());
  check_tensor("x", x, {DType::f32, DType::bf16}, {x.size(0), x.size(1)});
  check_tensor("weight", weight, {DType::bf16, DType::f32}, {x.size(1)});
  check_tensor("out", out, {x.dtype()}, {x.size(0), x.size(1)});
}

}  // namespace

void rms_norm(const Exec& exec, Tensor x, Tensor weight, float eps, Tensor out,
              const Quantised& quantised) {
  check_norm(x, weight, out);
  check_quantised(quantised, out);
  if (x.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::rms_norm(exec, x, weight, eps, out, quantised);
  cpu::rms_norm(exec, x, weight, eps, out);
}

void add_rms_norm(const Exec& exec, Tensor residual, Tensor delta, Tensor weight, float eps,
                  Tensor out, const Quantised& quantised) {
  check_norm(residual, weight, out);
  check_quantised(quantised, out);
  check_tensor("delta", delta, {residual.dtype()}, {residual.size(0), residual.size(1)});
  if (residual.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::add_rms_norm(exec, residual, delta, weight, eps, out, quantised);
  cpu::add_rms_norm(exec, residual, delta, weight, eps, out);
}

}  // namespace m2::ops
