#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

namespace m2 {

// Prints the failed condition, its place, the message and a stack trace to stderr; aborts.
[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               const std::string& message);

template <class... Args>
std::string check_message(fmt::format_string<Args...> format, Args&&... args) {
  return fmt::format(format, std::forward<Args>(args)...);
}
inline std::string check_message() { return {}; }

}  // namespace m2

// For bugs only, never for input: a failed check ends the process.
// M2_CHECK(n > 0) or M2_CHECK(n > 0, "n is {}", n). Kept in release builds.
#define M2_CHECK(condition, ...)                                                            \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      ::m2::check_failed(#condition, __FILE__, __LINE__, ::m2::check_message(__VA_ARGS__)); \
  } while (0)
