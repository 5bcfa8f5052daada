#include "text/unicode.h"

#include <utf8proc.h>

#include <cstring>
#include <iterator>

namespace m2::text {
namespace {

struct Range {
  char32_t first, last;
};

struct ClassRange {
  CharClass char_class;
  Range range;
};

// Characters of Unicode 15.1 and 16 that the splitter must know even where the installed utf8proc
// does not (Debian 12 has 15.0).
constexpr ClassRange kUnicode16[] = {
    {CharClass::upper, {0x1C89, 0x1C89}},    {CharClass::upper, {0xA7CB, 0xA7CC}},
    {CharClass::upper, {0xA7DA, 0xA7DA}},    {CharClass::upper, {0xA7DC, 0xA7DC}},
    {CharClass::upper, {0x10D50, 0x10D65}},  {CharClass::lower, {0x1C8A, 0x1C8A}},
    {CharClass::lower, {0xA7CD, 0xA7CD}},    {CharClass::lower, {0xA7DB, 0xA7DB}},
    {CharClass::lower, {0x10D70, 0x10D85}},  {CharClass::letter, {0x10D4E, 0x10D4E}},
    {CharClass::letter, {0x10D6F, 0x10D6F}}, {CharClass::letter, {0x16D40, 0x16D42}},
    {CharClass::letter, {0x16D6B, 0x16D6C}}, {CharClass::letter, {0x105C0, 0x105F3}},
    {CharClass::letter, {0x10D4A, 0x10D4D}}, {CharClass::letter, {0x10D4F, 0x10D4F}},
    {CharClass::letter, {0x10EC2, 0x10EC4}}, {CharClass::letter, {0x11380, 0x11389}},
    {CharClass::letter, {0x1138B, 0x1138B}}, {CharClass::letter, {0x1138E, 0x1138E}},
    {CharClass::letter, {0x11390, 0x113B5}}, {CharClass::letter, {0x113B7, 0x113B7}},
    {CharClass::letter, {0x113D1, 0x113D1}}, {CharClass::letter, {0x113D3, 0x113D3}},
    {CharClass::letter, {0x11BC0, 0x11BE0}}, {CharClass::letter, {0x13460, 0x143FA}},
    {CharClass::letter, {0x16100, 0x1611D}}, {CharClass::letter, {0x16D43, 0x16D6A}},
    {CharClass::letter, {0x18CFF, 0x18CFF}}, {CharClass::letter, {0x1E5D0, 0x1E5ED}},
    {CharClass::letter, {0x1E5F0, 0x1E5F0}}, {CharClass::letter, {0x2EBF0, 0x2EE5D}},
    {CharClass::mark, {0x0897, 0x0897}},     {CharClass::mark, {0x10D69, 0x10D6D}},
    {CharClass::mark, {0x10EFC, 0x10EFC}},   {CharClass::mark, {0x113B8, 0x113C0}},
    {CharClass::mark, {0x113C2, 0x113C2}},   {CharClass::mark, {0x113C5, 0x113C5}},
    {CharClass::mark, {0x113C7, 0x113CA}},   {CharClass::mark, {0x113CC, 0x113D0}},
    {CharClass::mark, {0x113D2, 0x113D2}},   {CharClass::mark, {0x113E1, 0x113E2}},
    {CharClass::mark, {0x11F5A, 0x11F5A}},   {CharClass::mark, {0x1611E, 0x1612F}},
    {CharClass::mark, {0x1E5EE, 0x1E5EF}},   {CharClass::number, {0x10D40, 0x10D49}},
    {CharClass::number, {0x116D0, 0x116E3}}, {CharClass::number, {0x11BF0, 0x11BF9}},
    {CharClass::number, {0x16130, 0x16139}}, {CharClass::number, {0x16D70, 0x16D79}},
    {CharClass::number, {0x1CCF0, 0x1CCF9}}, {CharClass::number, {0x1E5F1, 0x1E5FA}},
};

// Characters encoded after Unicode 9 that now reorder or compose: to the reference they are plain.
constexpr Range kReorderSinceUnicode10[] = {
    {0x07FD, 0x07FD},   {0x0898, 0x089F},   {0x08CA, 0x08D3},   {0x09FE, 0x09FE},
    {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},   {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
    {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99},
    {0x11D42, 0x11D42}, {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42},
    {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
};

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

CharClass classify(char32_t c, utf8proc_category_t category) {
  if (c == '\r' || c == '\n') return CharClass::newline;
  if (is_white_space(c)) return CharClass::space;
  switch (category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
      return CharClass::upper;
    case UTF8PROC_CATEGORY_LL:
      return CharClass::lower;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return CharClass::letter;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return CharClass::mark;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return CharClass::number;
    default:
      return CharClass::other;
  }
}

}  // namespace

const CharTable& CharTable::get() {
  static const CharTable table;
  return table;
}

CharTable::CharTable() {
  bits_.fill(static_cast<uint8_t>(CharClass::other) | kInert);
  // Planes 4 to 13 are unassigned, 15 and 16 private: nothing there differs from the default.
  for (const char32_t plane : {0, 1, 2, 3, 14})
    for (char32_t c = plane << 16; c < (plane + 1) << 16; ++c) {
      const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
      const auto category = static_cast<utf8proc_category_t>(property->category);
      const auto kind = static_cast<uint8_t>(classify(c, category));
      bits_[c] = static_cast<uint8_t>((bits_[c] & kInert) | kind);
      if (property->combining_class != 0) bits_[c] &= static_cast<uint8_t>(~kInert);
      if (property->decomp_seqindex != UINT16_MAX || category == UTF8PROC_CATEGORY_LO)
        add_character(c);
    }
  apply_reference_versions();
}

// Takes from c's canonical decomposition what the normaliser must know: a character that changes
// under NFC is not inert, nor is any that can be the second half of a composed one.
void CharTable::add_character(char32_t c) {
  utf8proc_int32_t parts[32];
  int boundary = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts,
                                             static_cast<utf8proc_ssize_t>(std::size(parts)),
                                             UTF8PROC_DECOMPOSE, &boundary);
  if (count <= 0 || (count == 1 && parts[0] == static_cast<utf8proc_int32_t>(c))) return;
  for (utf8proc_ssize_t i = 1; i < count; ++i) bits_[parts[i]] &= static_cast<uint8_t>(~kInert);
  const auto composed = utf8proc_normalize_utf32(
      parts, count, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  if (composed != 1 || parts[0] != static_cast<utf8proc_int32_t>(c))
    bits_[c] &= static_cast<uint8_t>(~kInert);
}

void CharTable::apply_reference_versions() {
  for (const auto& [char_class, range] : kUnicode16)
    for (char32_t c = range.first; c <= range.last; ++c)
      bits_[c] = static_cast<uint8_t>((bits_[c] & kInert) | static_cast<uint8_t>(char_class));
  for (const Range& range : kReorderSinceUnicode10)
    for (char32_t c = range.first; c <= range.last; ++c) bits_[c] |= kInert;
}

Utf8Step read_utf8(const char* begin, const char* end) {
  const auto byte = [begin](size_t i) { return static_cast<unsigned char>(begin[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  if (lead < 0xc2 || lead > 0xf4) return {0, 1, false, false};

  const uint8_t size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // Overlong forms, surrogates and values above U+10FFFF show in the second byte.
  const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  char32_t c = lead & (0x7f >> size);
  for (uint8_t i = 1; i < size; ++i) {
    if (begin + i == end) return {0, i, false, true};
    const bool good = i == 1 ? byte(1) >= low && byte(1) <= high : (byte(i) & 0xc0) == 0x80;
    if (!good) return {0, i, false, false};
    c = c << 6 | (byte(i) & 0x3f);
  }
  return {c, size, true, false};
}

void append_utf8(char32_t c, std::string& out) {
  const auto tail = [&](int shift) { out += static_cast<char>(0x80 | (c >> shift & 0x3f)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xc0 | c >> 6);
    tail(0);
  } else if (c < 0x10000) {
    out += static_cast<char>(0xe0 | c >> 12);
    tail(6), tail(0);
  } else {
    out += static_cast<char>(0xf0 | c >> 18);
    tail(12), tail(6), tail(0);
  }
}

bool is_valid_utf8(std::string_view bytes) {
  const char* const end = bytes.data() + bytes.size();
  for (const char* p = bytes.data(); p < end;) {
    p += ascii_prefix({p, end});
    if (p == end) break;
    const Utf8Step step = read_utf8(p, end);
    if (!step.valid) return false;
    p += step.size;
  }
  return true;
}

void append_replacing_invalid(std::string_view bytes, std::string& out) {
  const char* const end = bytes.data() + bytes.size();
  const char* good = bytes.data();  // start of the valid stretch not yet copied
  for (const char* p = good; p < end;) {
    const Utf8Step step = read_utf8(p, end);
    if (!step.valid) {
      out.append(good, p);
      out += "\xef\xbf\xbd";
      good = p + step.size;
    }
    p += step.size;
  }
  out.append(good, end);
}

size_t unfinished_tail(std::string_view bytes) {
  const char* const end = bytes.data() + bytes.size();
  for (size_t back = 1; back <= 3 && back <= bytes.size(); ++back) {
    const auto byte = static_cast<unsigned char>(end[-static_cast<ptrdiff_t>(back)]);
    if ((byte & 0xc0) == 0x80) continue;
    const Utf8Step step = read_utf8(end - back, end);
    return step.unfinished ? back : 0;
  }
  return 0;
}

size_t ascii_prefix(std::string_view text) {
  size_t i = 0;
  for (uint64_t word; i + sizeof word <= text.size(); i += sizeof word) {
    std::memcpy(&word, text.data() + i, sizeof word);
    if ((word & 0x8080808080808080) != 0) break;
  }
  while (i < text.size() && static_cast<unsigned char>(text[i]) < 0x80) ++i;
  return i;
}

}  // namespace m2::text
