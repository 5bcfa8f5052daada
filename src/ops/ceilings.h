#pragma once

#include "tensor/exec.h"
#include "tensor/tensor.h"

// What the device itself can do, measured: the denominators of every figure of speed. Not
// operations of the model; nothing else may run on the device meanwhile.

namespace m2::ops {

// The units that multiply, by what they take. CPU: FP32 vectors, and the tile unit where the
// instruction set in use has one. GPU: tensor cores.
enum class Multiplier : uint8_t { fp32, bf16, fp8 };

// The fastest unit of the device that products of these weights may use.
Multiplier multiplier_of(Device device, DType weights);

// Bytes a second that the device reads from `memory` (dense, several times what its caches hold;
// the fastest of many windows or passes).
double read_rate(const Exec& exec, Tensor memory);

// Operations a second of that unit, a multiply-add counting two, on operands that are there
// already. Of the units of multiplier_of() only.
double multiply_rate(const Exec& exec, Multiplier unit);

}  // namespace m2::ops
