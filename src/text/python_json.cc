#include "text/python_json.h"

#include <array>
#include <charconv>
#include <cmath>

#include "text/jinja/unicode.h"

namespace m2::text {
namespace {

void append_u_escape(std::string& out, uint32_t unit) {
  fmt::format_to(std::back_inserter(out), "\\u{:04x}", unit);
}

void append_ascii_escape(std::string& out, char32_t point) {
  if (point < 0x10000) return append_u_escape(out, static_cast<uint32_t>(point));
  const auto above = static_cast<uint32_t>(point) - 0x10000;
  append_u_escape(out, 0xD800 + (above >> 10));
  append_u_escape(out, 0xDC00 + (above & 0x3FF));
}

// The two-character escape of a byte, or 0.
char short_escape(char c) {
  switch (c) {
    case '"':
      return '"';
    case '\\':
      return '\\';
    case '\n':
      return 'n';
    case '\r':
      return 'r';
    case '\t':
      return 't';
    case '\f':
      return 'f';
    case '\b':
      return 'b';
    default:
      return 0;
  }
}

class Printer {
 public:
  Printer(bool ensure_ascii, int indent) : ensure_ascii_(ensure_ascii), indent_(indent) {}

  void print(const Json& value, int level) {
    if (value.is_object()) return print_object(value, level);
    if (value.is_array()) return print_array(value, level);
    if (value.is_string())
      return append_json_string(out, value.get_ref<const std::string&>(), ensure_ascii_);
    if (value.is_number_float()) {
      out += python_json_float(value.get<double>());
    } else {
      out += value.dump();  // null, booleans and integers print alike
    }
  }

  std::string out;

 private:
  void print_object(const Json& value, int level) {
    if (value.empty()) return void(out += "{}");
    out += '{';
    bool first = true;
    for (const auto& [key, item] : value.items()) {
      separate(first, level + 1);
      append_json_string(out, key, ensure_ascii_);
      out += ": ";
      print(item, level + 1);
    }
    new_line(level);
    out += '}';
  }

  void print_array(const Json& value, int level) {
    if (value.empty()) return void(out += "[]");
    out += '[';
    bool first = true;
    for (const Json& item : value) {
      separate(first, level + 1);
      print(item, level + 1);
    }
    new_line(level);
    out += ']';
  }

  void separate(bool& first, int level) {
    if (!first) out += indent_ < 0 ? ", " : ",";
    first = false;
    new_line(level);
  }

  void new_line(int level) {
    if (indent_ < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(level) * static_cast<size_t>(indent_), ' ');
  }

  bool ensure_ascii_;
  int indent_;
};

}  // namespace

std::string python_json(const Json& value, bool ensure_ascii, int indent) {
  Printer printer(ensure_ascii, indent);
  printer.print(value, 0);
  return std::move(printer.out);
}

std::string python_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 40> buffer;
  auto form = std::chars_format::scientific;
  const double size = std::fabs(value);
  // Python turns to an exponent below 1e-4 and from 1e16 on.
  if (value == 0 || (size >= 1e-4 && size < 1e16)) form = std::chars_format::fixed;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, form).ptr;
  std::string text(buffer.data(), end);
  if (form == std::chars_format::fixed && text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string python_json_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return python_float(value);
}

void append_json_string(std::string& out, std::string_view text, bool ensure_ascii) {
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    const auto byte = static_cast<unsigned char>(c);
    if (const char escape = short_escape(c); escape != 0) {
      out += '\\';
      out += escape;
      ++at;
    } else if (byte < 0x20 || (byte == 0x7F && ensure_ascii)) {
      append_u_escape(out, byte);
      ++at;
    } else if (byte < 0x80 || !ensure_ascii) {
      out += c;
      ++at;
    } else {
      append_ascii_escape(out, jinja::next_point(text, at));
    }
  }
  out += '"';
}

}  // namespace m2::text
