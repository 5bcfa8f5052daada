#pragma once

#include "text/jinja/value.h"

namespace m2::text::jinja {

// json.dumps of a template's value. Texts keep their origins. Raises for what JSON cannot hold.
struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // one level of it; absent: everything on one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
void write_json(TextWriter& out, const Value& value, const JsonStyle& style);

}  // namespace m2::text::jinja
