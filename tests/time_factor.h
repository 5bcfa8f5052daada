#pragma once

namespace m2 {

// Sanitizers slow programs down: limits on time in tests are multiplied by this.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kTimeFactor = 10;
#else
constexpr double kTimeFactor = 1;
#endif

}  // namespace m2
