#pragma once

#include "ops/ceilings.h"

namespace m2::ops::cpu {

double read_rate(const Exec& exec, Tensor memory);
double multiply_rate(const Exec& exec, Multiplier unit);

}  // namespace m2::ops::cpu
