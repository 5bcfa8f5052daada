#include "api/json_text.h"

#include <array>
#include <charconv>
#include <cmath>

namespace m2::api {
namespace {

constexpr bool needs_escape(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\';
}

void append_escape(std::string& out, char c) {
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    default:
      break;
  }
  constexpr char kHex[] = "0123456789abcdef";
  out += "\\u00";
  out += kHex[static_cast<unsigned char>(c) >> 4];
  out += kHex[c & 15];
}

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  size_t plain = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!needs_escape(text[i])) continue;
    out.append(text, plain, i - plain);
    append_escape(out, text[i]);
    plain = i + 1;
  }
  out.append(text, plain);
  out += '"';
}

void append_json_integer(std::string& out, int64_t value) {
  std::array<char, 24> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  out.append(digits.data(), end);
}

void append_json_number(std::string& out, double value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  const std::string_view text(digits.data(), static_cast<size_t>(end - digits.data()));
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

Json own_json(std::string_view text) {
  Json out = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  M2_CHECK(!out.is_discarded(), "this program has printed {} bytes that are not JSON", text.size());
  return out;
}

void append_json_array(std::string& out, std::span<const int32_t> values) {
  out += '[';
  for (size_t i = 0; i < values.size(); ++i) {
    if (i > 0) out += ',';
    append_json_integer(out, values[i]);
  }
  out += ']';
}

void JsonObjectText::add(std::string_view name, const Json& value) {
  add_text(name, to_text(value));
}

void JsonObjectText::add_text(std::string_view name, std::string_view json) {
  text_ += text_.empty() ? '{' : ',';
  append_json_string(text_, name);
  text_ += ':';
  text_ += json.empty() ? "null" : json;
}

std::string JsonObjectText::take() {
  if (text_.empty()) text_ = '{';
  return std::move(text_ += '}');
}

}  // namespace m2::api
