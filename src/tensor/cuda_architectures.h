#pragma once

#include <string_view>

namespace m2 {

// Whether code compiled for these architectures, as CMake lists them but with commas ("80-real,
// 90a-real"), runs on a GPU of compute capability major.minor. Machine code ("-real") runs on the
// same major number from its own minor on, that of "a" architectures on exactly theirs; code for
// later compilation ("-virtual", or no suffix) on everything newer too.
bool runs_on_gpu(std::string_view architectures, int major, int minor);

}  // namespace m2
