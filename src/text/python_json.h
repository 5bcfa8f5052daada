#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

// JSON and numbers as Python prints them. Chat templates were written against Python's json.dumps,
// and models were trained on its exact bytes.

namespace m2::text {

// json.dumps(value, ensure_ascii=ensure_ascii, indent=indent or None if negative): separators ", "
// and ": " (with an indent, "," and a new line), keys in their own order, floats in their shortest
// form that reads back, Infinity and NaN as Python prints them. Precondition: strings are UTF-8.
std::string python_json(const Json& value, bool ensure_ascii = false, int indent = -1);

// repr(value) of a float: "1.0", "1e+16", "0.1", "inf", "nan".
std::string python_float(double value);

// json.dumps of a float: python_float, but "Infinity", "-Infinity", "NaN".
std::string python_json_float(double value);

// Appends `text` to `out` as a JSON string with its quotes.
void append_json_string(std::string& out, std::string_view text, bool ensure_ascii);

}  // namespace m2::text
