#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"

namespace m2::app {

// The name under which the model that comes with the program is served.
inline constexpr const char* kMicroName = "m2-micro";

// Where that model is: $M2_MICRO, else models/m2-micro beside the program or one folder above it,
// else share/m2/m2-micro of the prefix the program is installed in. It is what commands take that
// were given no MODEL. The error says where it was looked for.
Result<std::filesystem::path> micro_model();

// The same for a program at `program`, without the environment.
Result<std::filesystem::path> micro_model_near(const std::filesystem::path& program);

}  // namespace m2::app
