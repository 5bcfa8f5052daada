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

// An object written member by member, in this order: for replies with parts so large (the logprobs
// of a long answer) that a tree of them would take gigabytes, and its thread for seconds.
class JsonObjectText {
 public:
  void add(std::string_view name, const Json& value);
  // `json` is JSON already; empty: null.
  void add_text(std::string_view name, std::string_view json);
  // The object; nothing may be added any more.
  std::string take();

 private:
  std::string text_;
};

}  // namespace m2::api
