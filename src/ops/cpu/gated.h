#pragma once

#include <cstdint>

namespace m2::ops::cpu {

// out[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + exp(-g)).
void silu_multiply(const float* gate, const float* up, int64_t count, float* out);

}  // namespace m2::ops::cpu
