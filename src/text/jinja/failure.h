#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

#include "base/result.h"

namespace m2::text::jinja {

// How parsing and rendering fail. Thrown and caught inside this folder only: ChatTemplate's methods
// turn it into an Error.
struct Failure {
  Code code;
  std::string text;
};

// The template or its variables are wrong; the text is the reference's where it has one.
template <class... Args>
[[noreturn]] void raise(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{Code::invalid_argument, fmt::format(format, std::forward<Args>(args)...)};
}

// A budget of the render is spent.
template <class... Args>
[[noreturn]] void exhausted(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{Code::resource_exhausted, fmt::format(format, std::forward<Args>(args)...)};
}

}  // namespace m2::text::jinja
