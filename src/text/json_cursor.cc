#include "text/json_cursor.h"

#include <limits>

#include "text/unicode.h"

namespace m2::text {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20;
}

}  // namespace

char JsonCursor::peek() {
  while (at_ < json_.size() && is_space(json_[at_])) ++at_;
  return at_ < json_.size() ? json_[at_] : '\0';
}

bool JsonCursor::accept(char c) {
  if (peek() != c) return false;
  ++at_;
  return true;
}

Result<void> JsonCursor::expect(char c) {
  if (accept(c)) return {};
  return error(std::string("expected '") + c + "'");
}

Result<void> JsonCursor::finish() {
  if (peek() == '\0' && at_ == json_.size()) return {};
  return error("expected the end of the file");
}

Error JsonCursor::error(std::string_view what) const {
  return fail(Code::corrupt, "invalid JSON at byte {}: {}", at_, what);
}

Result<std::string_view> JsonCursor::string() {
  M2_TRY_VOID(expect('"'));
  const size_t begin = at_;
  for (; at_ < json_.size(); ++at_) {
    const char c = json_[at_];
    if (c == '"') return json_.substr(begin, at_++ - begin);
    if (c == '\\') return unescape(begin);
    if (is_control(c)) return error("control character in a string");
  }
  return error("unfinished string");
}

// The string that began at `begin`, from its first escape, where the cursor is, to its end.
Result<std::string_view> JsonCursor::unescape(size_t begin) {
  std::string out(json_.substr(begin, at_ - begin));
  while (at_ < json_.size()) {
    const char c = json_[at_++];
    if (c == '"') return std::string_view(unescaped_.emplace_back(std::move(out)));
    if (is_control(c)) return error("control character in a string");
    if (c != '\\')
      out += c;
    else
      M2_TRY_VOID(append_escape(out));
  }
  return error("unfinished string");
}

Result<void> JsonCursor::append_escape(std::string& out) {
  constexpr std::string_view kNames = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
  const char name = at_ < json_.size() ? json_[at_++] : '\0';
  if (const size_t i = kNames.find(name); i != std::string_view::npos) {
    out += kValues[i];
    return {};
  }
  if (name != 'u') return error("unknown escape in a string");
  M2_TRY(uint32_t unit, hex4());
  if (unit >= 0xd800 && unit < 0xdc00 && json_.substr(at_, 2) == "\\u") {
    at_ += 2;
    M2_TRY(const uint32_t low, hex4());
    if (low < 0xdc00 || low > 0xdfff) return error("lone surrogate in a string");
    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
  }
  if (unit >= 0xd800 && unit < 0xe000) return error("lone surrogate in a string");
  append_utf8(unit, out);
  return {};
}

Result<uint32_t> JsonCursor::hex4() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = at_ < json_.size() ? json_[at_++] : '\0';
    const char lower = static_cast<char>(c | 0x20);
    if (is_digit(c))
      value = value << 4 | static_cast<uint32_t>(c - '0');
    else if (lower >= 'a' && lower <= 'f')
      value = value << 4 | static_cast<uint32_t>(lower - 'a' + 10);
    else
      return error("bad \\u escape in a string");
  }
  return value;
}

Result<int32_t> JsonCursor::whole_number() {
  if (!is_digit(peek())) return error("expected a whole number");
  const bool leading_zero = json_[at_] == '0';
  const size_t begin = at_;
  int64_t value = 0;
  for (; at_ < json_.size() && is_digit(json_[at_]); ++at_) {
    value = value * 10 + (json_[at_] - '0');
    if (value > std::numeric_limits<int32_t>::max()) return error("number too large");
  }
  if (leading_zero && at_ - begin > 1) return error("number with a leading zero");
  return static_cast<int32_t>(value);
}

Result<std::string_view> JsonCursor::raw() {
  peek();
  const size_t begin = at_;
  size_t depth = 0;
  do {
    const char c = peek();
    if (c == '\0') return error("unfinished value");
    if (c == '"') {
      M2_TRY_VOID(string());
      continue;
    }
    ++at_;
    if (c == '{' || c == '[') {
      ++depth;
    } else if (c == '}' || c == ']') {
      if (depth-- == 0) return error("expected a value");
    } else if (c != ',' && c != ':') {
      // A number or a word.
      const size_t end = json_.find_first_of(",:]}[{\" \n\r\t", at_);
      at_ = end == std::string_view::npos ? json_.size() : end;
    }
  } while (depth != 0);
  return json_.substr(begin, at_ - begin);
}

}  // namespace m2::text
