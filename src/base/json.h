#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace m2 {

// The order of an object's keys is kept from input to output: clients are scored on it.
using Json = nlohmann::ordered_json;

struct JsonLimits {
  size_t max_bytes = 16u << 20;
  int max_depth = 128;
  size_t max_nodes = 1'000'000;
  bool allow_duplicate_keys = false;
};

// Parses one JSON text (RFC 8259) under limits. Fails, naming the cause, on bad syntax or UTF-8
// (with line and column), a duplicate key, a number that overflows a double, or a limit exceeded.
// Never recurses deeper than max_depth.
Result<Json> parse_json(std::string_view text, const JsonLimits& limits = {});

// Compact JSON with UTF-8 kept as it is. Invalid UTF-8 is replaced by U+FFFD, never an error.
std::string to_text(const Json& value);

}  // namespace m2
