#include "ops/ceilings.h"

#include "base/check.h"
#include "ops/cpu/ceilings.h"
#include "ops/cuda/ops_cuda.h"
#include "ops/instruction_set.h"

namespace m2::ops {

Multiplier multiplier_of(Device device, DType weights) {
  if (device.kind == DeviceKind::cuda)
    return weights == DType::f8_e4m3 ? Multiplier::fp8 : Multiplier::bf16;
  const bool tiles = cpu::use_tiles() && (weights == DType::f8_e4m3 || weights == DType::bf16);
  return tiles ? Multiplier::bf16 : Multiplier::fp32;
}

double read_rate(const Exec& exec, Tensor memory) {
  M2_CHECK(memory.dense() && memory.elements() * size_of(memory.dtype()) >= (int64_t{64} << 20));
  return exec.device.kind == DeviceKind::cuda ? cuda::read_rate(exec, memory)
                                              : cpu::read_rate(exec, memory);
}

double multiply_rate(const Exec& exec, Multiplier unit) {
  return exec.device.kind == DeviceKind::cuda ? cuda::multiply_rate(exec, unit)
                                              : cpu::multiply_rate(exec, unit);
}

}  // namespace m2::ops
