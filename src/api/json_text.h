#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/json.h"

// JSON written by hand, for the chunks of a stream: no tree is built per token.

namespace m2::api {

// Appends `text` as a JSON string with its quotes. Control characters are escaped, other UTF-8 is
// kept. Precondition: valid UTF-8.
void append_json_string(std::string& out, std::string_view text);

void append_json_integer(std::string& out, int64_t value);

// Shortest text that reads back as the same double; not finite: null.
void append_json_number(std::string& out, double value);

// The value of JSON that this program printed itself: no limits, since none of it came from
// outside.
Json own_json(std::string_view text);

void append_json_array(std::string& out, std::span<const int32_t> values);

}  // namespace m2::api
