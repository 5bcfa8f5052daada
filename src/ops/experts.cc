#include "ops/experts.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"
#include "ops/norm.h"
#include "ops/route.h"

namespace m2::ops {
namespace {

constexpr int64_t kScaleBlock = 128;

int64_t blocks(int64_t end) {
  return (end + kScaleBlock - 1) / kScaleBlock;
}

void check_scale(const Tensor& scale, int64_t experts, int64_t rows, int64_t columns) {
  M2_CHECK(scale.dtype() == DType::f32 && scale.rank() == 3 && scale.size(0) == experts &&
               scale.size(1) >= rows && scale.size(2) >= columns,
           "scale {} for {} experts of {} by {} blocks", scale.describe(), experts, rows, columns);
}

void check_experts(const Experts& experts) {
  M2_CHECK(experts.w13.rank() == 3 && experts.w2.rank() == 3, "w13 {}, w2 {}",
           experts.w13.describe(), experts.w2.describe());
  const int64_t count = experts.count();
  const int64_t inner = experts.inner();
  const int64_t hidden = experts.hidden();
  const DType dtype = experts.w13.dtype();
  M2_CHECK(experts.first_expert >= 0 && experts.expert_step > 0);
  check_tensor("w13", experts.w13, {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32},
               {count, 2 * inner, hidden});
  check_tensor("w2", experts.w2, {dtype}, {count, hidden, inner});
  M2_CHECK(inner > 0 && hidden > 0);
  if (dtype != DType::f8_e4m3) {
    M2_CHECK(experts.w1_scale.empty() && experts.w3_scale.empty() && experts.w2_scale.empty(),
             "{} weights have no scales", name_of(dtype));
    return;
  }
  M2_CHECK(experts.first_inner >= experts.scale_row * kScaleBlock && experts.scale_row >= 0);
  const int64_t inner_blocks = blocks(experts.first_inner + inner) - experts.scale_row;
  check_scale(experts.w1_scale, count, inner_blocks, blocks(hidden));
  check_scale(experts.w3_scale, count, inner_blocks, blocks(hidden));
  check_scale(experts.w2_scale, count, blocks(hidden), inner_blocks);
}

}  // namespace

int64_t experts_scratch_bytes(Device device, const Experts& experts, int64_t tokens, int64_t top) {
  if (device.kind == DeviceKind::cuda) return cuda::experts_scratch_bytes(experts, tokens, top);
  return cpu::experts_scratch_bytes(experts, tokens, top);
}

namespace {

void check_tensors(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
                   Tensor scratch, Tensor out, const Quantised& quantised, const AddNorm* after) {
  check_quantised(quantised, x);
  check_experts(experts);
  M2_CHECK(x.rank() == 2 && ids.rank() == 2 && ids.size(1) > 0);
  const int64_t tokens = x.size(0);
  const int64_t top = ids.size(1);
  check_tensor("x", x, {DType::f32, DType::bf16}, {tokens, experts.hidden()});
  check_tensor("ids", ids, {DType::i32}, {tokens, top});
  check_tensor("weights", weights, {DType::f32}, {tokens, top});
  check_tensor("out", out, {DType::f32, DType::bf16}, {tokens, experts.hidden()});
  check_dense("ids", ids);
  check_dense("weights", weights);
  const int64_t needed = experts_scratch_bytes(exec.device, experts, tokens, top);
  M2_CHECK(scratch.dtype() == DType::u8 && scratch.elements() >= needed,
           "scratch {} of at least {} bytes", scratch.describe(), needed);
  M2_CHECK(exec.device.kind != DeviceKind::cuda || experts.expert_step == 1,
           "experts on a GPU are a run of them");
  if (!after) return;
  check_tensor("residual", after->residual, {out.dtype()}, {tokens, x.size(1)});
  check_tensor("norm", after->weight, {DType::bf16, DType::f32}, {x.size(1)});
  check_tensor("normed", after->out, {after->residual.dtype()}, {tokens, x.size(1)});
  check_quantised(after->quantised, after->out);
}

}  // namespace

void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out, const Quantised& quantised, const RowOwners& owners) {
  check_tensors(exec, x, experts, ids, weights, scratch, out, quantised, nullptr);
  if (x.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::experts(exec, x, experts, ids, weights, scratch, out, quantised, nullptr, owners);
  M2_CHECK(owners.ranks == 0, "rows go elsewhere on GPUs alone");
  cpu::experts(exec, x, experts, ids, weights, scratch, out);
}

bool experts_read_quantised(const Exec& exec, const Tensor& x, const Experts& experts, int64_t top,
                            const Quantised& quantised) {
  return exec.device.kind == DeviceKind::cuda && !quantised.empty() &&
         cuda::experts_read_quantised(exec, x, experts, top);
}

void route_experts(const Exec& exec, Tensor x, const Routing& routing, const Experts& experts,
                   Tensor ids, Tensor weights, Tensor scratch, Tensor delta,
                   const Quantised& quantised, const AddNorm* after, UnsummedExperts* left) {
  M2_CHECK(!after || !left);
  check_route(x, routing.gate, routing.bias, ids, weights, routing.slots);
  check_tensors(exec, x, experts, ids, weights, scratch, delta, quantised, after);
  if (x.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::route_experts(exec, x, routing, experts, ids, weights, scratch, delta, quantised,
                               after, left);
  cpu::route(exec, x, routing.gate, routing.bias, routing.slots, ids, weights);
  cpu::experts(exec, x, experts, ids, weights, scratch, delta);
  if (after)
    add_rms_norm(exec, after->residual, delta, after->weight, after->eps, after->out,
                 after->quantised);
}

}  // namespace m2::ops
