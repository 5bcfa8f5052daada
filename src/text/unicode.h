#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// Characters as the split patterns and the normaliser see them, and strict UTF-8.

namespace m2::text {

// The classes the split patterns tell apart (general category in parentheses).
enum class CharClass : uint8_t {
  other,
  space,    // White_Space but CR and LF
  newline,  // CR, LF
  upper,    // Lu, Lt
  lower,    // Ll
  letter,   // Lm, Lo
  mark,     // Mn, Mc, Me
  number,   // Nd, Nl, No
  end,      // not a character: the end of the text
};

constexpr char32_t kCodePoints = 0x110000;

// What this room needs to know of every character. Categories are those of Unicode 16 and
// normalisation is that of Unicode 9, because these are what the reference (the `tokenizers`
// package, 0.20 to 0.23) applies: Oniguruma's tables to split, its own older ones to normalise.
class CharTable {
 public:
  // The one table; built on first use (a few milliseconds).
  static const CharTable& get();

  CharClass char_class(char32_t c) const {
    return static_cast<CharClass>(bits_.data()[c] & kClassMask);
  }

  // NFC neither changes this character nor lets it change one before it: text in which every
  // character is inert is NFC already, and every inert character begins a new piece of work.
  bool nfc_inert(char32_t c) const { return (bits_[c] & kInert) != 0; }

 private:
  static constexpr uint8_t kClassMask = 0x0f;
  static constexpr uint8_t kInert = 0x10;

  CharTable();
  void add_character(char32_t c);
  void apply_reference_versions();

  std::array<uint8_t, kCodePoints> bits_;
};

// One step of reading UTF-8.
struct Utf8Step {
  char32_t code_point = 0;  // meaningless unless valid
  uint8_t size = 0;         // bytes of the character, or of the ill-formed sequence to replace
  bool valid = false;
  bool unfinished = false;  // not valid only because the text ends too early
};

// Reads the character or ill-formed sequence at `begin`. Ill-formed sequences are the "maximal
// subparts" of Unicode 3.9 (table 3-7), which Rust, Python and WHATWG each replace by one U+FFFD.
// Precondition: begin < end.
Utf8Step read_utf8(const char* begin, const char* end);

// The character at `p` of text known to be valid, and its size.
inline char32_t decode_valid(const char* p, int& size) {
  const auto byte = [p](int i) { return static_cast<char32_t>(static_cast<unsigned char>(p[i])); };
  if (byte(0) < 0x80) return size = 1, byte(0);
  if (byte(0) < 0xe0) return size = 2, (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
  if (byte(0) < 0xf0)
    return size = 3, (byte(0) & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return size = 4,
         (byte(0) & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

// Precondition: c is a Unicode scalar value.
void append_utf8(char32_t c, std::string& out);

bool is_valid_utf8(std::string_view bytes);

// Appends `bytes` with every ill-formed sequence replaced by U+FFFD.
void append_replacing_invalid(std::string_view bytes, std::string& out);

// How many bytes at the end (0 to 3) begin a character that is not complete.
size_t unfinished_tail(std::string_view bytes);

// The length of the longest prefix made of ASCII characters alone.
size_t ascii_prefix(std::string_view text);

}  // namespace m2::text
