#pragma once

#include <string_view>
#include <vector>

#include "base/result.h"

namespace m2::ops {

// Which instructions the operations on the CPU use: one choice for the process, made before the
// first operation and not while one runs. Names, best first:
//   amx        AMX tiles for products with FP8 and BF16 weights (ops/cpu/tiles.h), AVX-512 for the
//   rest avx512     AVX-512 avx2       AVX2 with fused multiply-add neon       Arm baseline   what
//   every processor of the architecture has
// avx512, avx2 and neon compute the same bytes as each other. amx differs, since it rounds the
// inputs of products to BF16; baseline differs, since x86 without AVX2 has no fused multiply-add.

// Those that this build, processor and kernel have, best first.
std::vector<std::string_view> instruction_sets();
// The one in use; the best until something else is chosen.
std::string_view instruction_set();
// A name of instruction_sets(), or "auto" for the best. Error: unsupported, with what there is.
Result<void> choose_instruction_set(std::string_view name);

namespace cpu {
// Whether products with FP8 and BF16 weights run on tiles.
bool use_tiles();
}  // namespace cpu

}  // namespace m2::ops
