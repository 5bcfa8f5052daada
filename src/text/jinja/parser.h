#pragma once

#include <string_view>

#include "text/jinja/ast.h"

namespace m2::text::jinja {

// How deep a template's expressions and blocks may nest. The reference gives up earlier (at about
// 70 parentheses, when Python's stack ends).
inline constexpr int kMaxTemplateDepth = 128;

// Parses a template. Throws Failure, naming the line.
Program parse(std::string_view source);

}  // namespace m2::text::jinja
