#pragma once

namespace m2::app {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace m2::app
