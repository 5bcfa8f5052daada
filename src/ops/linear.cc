#include "ops/linear.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {
namespace {

constexpr int64_t kScaleBlock = 128;

int64_t blocks(int64_t end) {
  return (end + kScaleBlock - 1) / kScaleBlock;
}

}  // namespace

void check_linear(const Linear& linear, int64_t columns) {
  const Tensor& weight = linear.weight;
  M2_CHECK(weight.rank() == 2, "weight is {}", weight.describe());
  check_tensor("weight", weight, {DType::f8_e4m3, DType::bf16, DType::f16, DType::f32},
               {weight.size(0), columns});
  check_dense("weight", weight);
  if (weight.dtype() != DType::f8_e4m3) {
    M2_CHECK(linear.scale.empty(), "{} weights have no scales", name_of(weight.dtype()));
    return;
  }
  M2_CHECK(linear.first_row >= 0 && linear.first_column >= 0);
  const Tensor& scale = linear.scale;
  M2_CHECK(scale.dtype() == DType::f32 && scale.rank() == 2 && scale.dense() &&
               scale.size(0) >= blocks(linear.first_row + weight.size(0)) &&
               scale.size(1) >= blocks(linear.first_column + columns),
           "scale {} of weight {} at row {}, column {}", scale.describe(), weight.describe(),
           linear.first_row, linear.first_column);
}

int64_t linear_workspace_bytes(Device device, int64_t tokens, int64_t columns) {
  if (device.kind == DeviceKind::cuda) return cuda::linear_workspace_bytes(tokens, columns);
  return cpu::linear_workspace_bytes(tokens, columns);
}

void linear(const Exec& exec, Tensor x, const Linear& weight, Tensor out,
            const Quantised& quantised, const RowOwners& owners) {
  linear(exec, x, std::span(&weight, 1), out, quantised, owners);
}

void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out,
            const Quantised& quantised, const RowOwners& owners) {
  M2_CHECK(x.rank() == 2 && x.size(1) > 0, "x is {}", x.describe());
  check_tensor("x", x, {DType::f32, DType::bf16}, {x.size(0), x.size(1)});
  check_quantised(quantised, x);
  int64_t rows = 0;
  for (const Linear& weight : weights) {
    check_linear(weight, x.size(1));
    rows += weight.weight.size(0);
  }
  check_tensor("out", out, {DType::f32, DType::bf16}, {x.size(0), rows});
  if (x.size(0) == 0 || rows == 0) return;
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::linear(exec, x, weights, out, quantised, owners);
  M2_CHECK(owners.ranks == 0, "rows go elsewhere on GPUs alone");
  cpu::linear(exec, x, weights, out);
}

bool linear_reads_quantised(const Exec& exec, const Tensor& x, std::span<const Linear> weights,
                            const Quantised& quantised) {
  return exec.device.kind == DeviceKind::cuda && !quantised.empty() &&
         cuda::linear_reads_quantised(exec, x, weights);
}

}  // namespace m2::ops
