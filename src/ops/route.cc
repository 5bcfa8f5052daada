#include "ops/route.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {

int64_t route_workspace_bytes(Device device, int64_t tokens, int64_t hidden, int64_t experts) {
  if (device.kind != DeviceKind::cuda) return 0;
  return cuda::route_workspace_bytes(tokens, hidden, experts);
}

void check_route(const Tensor& x, const Tensor& gate, const Tensor& bias, const Tensor& ids,
                 const Tensor& weights, const Tensor& slots) {
  M2_CHECK(x.rank() == 2 && gate.rank() == 2 && ids.rank() == 2 && x.size(1) > 0);
  const int64_t tokens = x.size(0);
  const int64_t top = ids.size(1);
  check_tensor("x", x, {DType::f32, DType::bf16}, {tokens, x.size(1)});
  check_tensor("gate", gate, {DType::f32}, {gate.size(0), x.size(1)});
  check_tensor("bias", bias, {DType::f32}, {gate.size(0)});
  check_tensor("ids", ids, {DType::i32}, {tokens, top});
  check_tensor("weights", weights, {DType::f32}, {tokens, top});
  for (const Tensor& tensor : {gate, ids, weights}) check_dense("gate, ids or weights", tensor);
  if (!slots.empty()) check_tensor("slots", slots, {DType::i32}, {tokens});
  M2_CHECK(
      top >= 1 && top <= kMaxTopExperts && top <= gate.size(0) && gate.size(0) <= kMaxRoutedExperts,
      "{} of {} experts", top, gate.size(0));
}

void route(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor ids, Tensor weights,
           Tensor slots) {
  check_route(x, gate, bias, ids, weights, slots);
  if (x.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::route(exec, x, gate, bias, slots, ids, weights);
  cpu::route(exec, x, gate, bias, slots, ids, weights);
}

}  // namespace m2::ops
