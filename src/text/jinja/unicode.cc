#include "text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

namespace m2::text::jinja {
namespace {

utf8proc_category_t category(char32_t point) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(point));
}

bool in(utf8proc_category_t value, utf8proc_category_t first, utf8proc_category_t last) {
  return value >= first && value <= last;
}

bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// Upper case that is more than one code point: Unicode's SpecialCasing, its common members.
std::string_view special_upper(char32_t point) {
  switch (point) {
    case 0x00DF:
      return "SS";
    case 0x0149:
      return "\u02BCN";
    case 0x01F0:
      return "J\u030C";
    case 0xFB00:
      return "FF";
    case 0xFB01:
      return "FI";
    case 0xFB02:
      return "FL";
    case 0xFB03:
      return "FFI";
    case 0xFB04:
      return "FFL";
    case 0xFB05:
    case 0xFB06:
      return "ST";
    default:
      return {};
  }
}

void append_upper(std::string& out, char32_t point) {
  if (const std::string_view special = special_upper(point); !special.empty()) {
    out += special;
  } else {
    append_point(out, static_cast<char32_t>(utf8proc_toupper(static_cast<int32_t>(point))));
  }
}

void append_title(std::string& out, char32_t point) {
  if (const std::string_view special = special_upper(point); !special.empty()) {
    out += special.substr(0, 1);
    return out += to_lower(special.substr(1)), void();
  }
  append_point(out, static_cast<char32_t>(utf8proc_totitle(static_cast<int32_t>(point))));
}

// A capital sigma ends a word if a letter stands before it and none behind it.
bool is_final_sigma(std::string_view text, size_t begin, size_t end) {
  size_t before = begin;
  while (before > 0 && is_continuation(text[--before])) {
  }
  if (begin == 0) return false;
  const bool after_letter = is_cased(next_point(text, before));
  const bool before_letter = end < text.size() && is_cased(next_point(text, end));
  return after_letter && !before_letter;
}

void append_lower(std::string& out, char32_t point, std::string_view text, size_t begin,
                  size_t end) {
  if (point == 0x0130) {
    out += "i\u0307";
  } else if (point == 0x03A3 && is_final_sigma(text, begin, end)) {
    append_point(out, 0x03C2);
  } else {
    append_point(out, static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(point))));
  }
}

}  // namespace

char32_t next_point(std::string_view text, size_t& at) {
  const auto first = static_cast<unsigned char>(text[at]);
  if (first < 0x80) return ++at, first;
  utf8proc_int32_t point = 0;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at);
  const auto left = static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - at, 4));
  const utf8proc_ssize_t used = utf8proc_iterate(bytes, left, &point);
  if (used <= 0) return ++at, U'\uFFFD';
  at += static_cast<size_t>(used);
  return static_cast<char32_t>(point);
}

void append_point(std::string& out, char32_t point) {
  if (point < 0x80) return out.push_back(static_cast<char>(point));
  utf8proc_uint8_t bytes[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(point), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

size_t count_points(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !is_continuation(c); }));
}

size_t byte_of_point(std::string_view text, size_t index) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (is_continuation(text[at])) continue;
    if (index-- == 0) return at;
  }
  return at;
}

bool is_space(char32_t point) {
  if (point < 0x80) return (point >= 9 && point <= 13) || (point >= 28 && point <= 32);
  return point == 0x85 || in(category(point), UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_ZP);
}

bool is_letter(char32_t point) {
  return in(category(point), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO);
}

bool is_decimal(char32_t point) {
  return category(point) == UTF8PROC_CATEGORY_ND;
}

bool is_digit(char32_t point) {
  // Numeric_Type=Digit of Unicode: superscripts, subscripts, digits in circles and the like.
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0x00B2, 0x00B3},   {0x00B9, 0x00B9},   {0x1369, 0x1371},   {0x19DA, 0x19DA},
      {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
      {0x2474, 0x247C},   {0x2488, 0x2490},   {0x24EA, 0x24EA},   {0x24F5, 0x24FD},
      {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},   {0x278A, 0x2792},
      {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A}};
  return is_decimal(point) ||
         std::any_of(std::begin(kRanges), std::end(kRanges), [&](const auto& range) {
           return point >= range.first && point <= range.second;
         });
}

bool is_numeric(char32_t point) {
  return in(category(point), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
}

bool is_upper(char32_t point) {
  return category(point) == UTF8PROC_CATEGORY_LU;
}
bool is_lower(char32_t point) {
  return category(point) == UTF8PROC_CATEGORY_LL;
}

bool is_cased(char32_t point) {
  return in(category(point), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LT);
}

bool is_printable(char32_t point) {
  if (point == ' ') return true;
  const utf8proc_category_t kind = category(point);
  return kind != UTF8PROC_CATEGORY_CN && !in(kind, UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_CO);
}

bool is_identifier(char32_t point) {
  if (point == '_') return true;
  const utf8proc_category_t kind = category(point);
  return in(kind, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_MC) || kind == UTF8PROC_CATEGORY_ND;
}

std::string to_upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) append_upper(out, next_point(text, at));
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t point = next_point(text, at);
    append_lower(out, point, text, begin, at);
  }
  return out;
}

std::string to_capitalized(std::string_view text, bool& begun) {
  if (text.empty()) return {};
  if (std::exchange(begun, true)) return to_lower(text);
  std::string out;
  size_t at = 0;
  append_title(out, next_point(text, at));
  return out + to_lower(text.substr(at));
}

std::string to_title(std::string_view text, bool& inside) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t point = next_point(text, at);
    if (inside) {
      append_lower(out, point, text, begin, at);
    } else {
      append_title(out, point);
    }
    inside = is_cased(point);
  }
  return out;
}

size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    size_t next = at;
    if (!is_space(next_point(text, next))) break;
    at = next;
  }
  return at;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t at = end - 1;
    while (at > 0 && is_continuation(text[at])) --at;
    size_t next = at;
    if (!is_space(next_point(text, next))) break;
    end = at;
  }
  return text.size() - end;
}

}  // namespace m2::text::jinja
