#include "text/unicode.h"

#include <gtest/gtest.h>

#include <string>

namespace m2::text {
namespace {

std::string replaced(std::string_view bytes) {
  std::string out;
  append_replacing_invalid(bytes, out);
  return out;
}

TEST(Utf8, RoundTripsEveryScalarValue) {
  for (char32_t c = 0; c < kCodePoints; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    append_utf8(c, text);
    const Utf8Step step = read_utf8(text.data(), text.data() + text.size());
    int size = 0;
    ASSERT_TRUE(step.valid);
    ASSERT_EQ(step.code_point, c);
    ASSERT_EQ(step.size, text.size());
    ASSERT_EQ(decode_valid(text.data(), size), c);
    ASSERT_EQ(size, static_cast<int>(text.size()));
  }
}

// The examples of the Unicode standard, tables 3-8 to 3-11.
TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string r = "\ufffd";
  EXPECT_EQ(replaced("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replaced("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replaced("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(replaced("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), r + r + r + r + "A");
  EXPECT_EQ(replaced("a\xe4\xb8"), "a" + r);
  EXPECT_EQ(replaced("\xe4\xb8\xad"), "中");
}

TEST(Utf8, KnowsAnUnfinishedTail) {
  EXPECT_EQ(unfinished_tail(""), 0u);
  EXPECT_EQ(unfinished_tail("abc"), 0u);
  EXPECT_EQ(unfinished_tail("a\xe4"), 1u);
  EXPECT_EQ(unfinished_tail("a\xe4\xb8"), 2u);
  EXPECT_EQ(unfinished_tail("a\xe4\xb8\xad"), 0u);
  EXPECT_EQ(unfinished_tail("\xf0\x9f\x98"), 3u);
  EXPECT_EQ(unfinished_tail("\xf0\x9f\x98\x80"), 0u);
  EXPECT_EQ(unfinished_tail("\xed\xa0"), 0u);  // a surrogate: never completes
  EXPECT_EQ(unfinished_tail("\x80\x80\x80\x80"), 0u);
  EXPECT_EQ(unfinished_tail("\xff"), 0u);
}

TEST(Utf8, MeasuresAsciiPrefixes) {
  for (size_t n = 0; n < 40; ++n) {
    const std::string ascii(n, 'x');
    EXPECT_EQ(ascii_prefix(ascii), n);
    EXPECT_EQ(ascii_prefix(ascii + "é" + ascii), n);
  }
}

TEST(CharTable, ClassifiesAsUnicode16) {
  const CharTable& table = CharTable::get();
  const auto kind = [&](char32_t c) { return table.char_class(c); };
  EXPECT_EQ(kind('a'), CharClass::lower);
  EXPECT_EQ(kind('A'), CharClass::upper);
  EXPECT_EQ(kind(0x1c5), CharClass::upper);   // Lt
  EXPECT_EQ(kind(0x2b0), CharClass::letter);  // Lm
  EXPECT_EQ(kind(0x4e2d), CharClass::letter);
  EXPECT_EQ(kind(0x301), CharClass::mark);
  EXPECT_EQ(kind(0x20dd), CharClass::mark);  // Me
  EXPECT_EQ(kind(0xbd), CharClass::number);
  EXPECT_EQ(kind(0x2167), CharClass::number);
  EXPECT_EQ(kind('\r'), CharClass::newline);
  EXPECT_EQ(kind(0x85), CharClass::space);
  EXPECT_EQ(kind(0x200b), CharClass::other);  // not White_Space
  EXPECT_EQ(kind(0x1c89), CharClass::upper);  // since Unicode 16
  EXPECT_EQ(kind(0x10ffff), CharClass::other);
}

TEST(CharTable, KnowsWhatNfcLeavesAlone) {
  const CharTable& table = CharTable::get();
  for (const char32_t c : {U'a', U'é', U'中', U'각', U'😀', char32_t{0x898}})
    EXPECT_TRUE(table.nfc_inert(c)) << static_cast<uint32_t>(c);
  // A mark, a singleton (Kelvin), an exclusion, a compatibility ideograph, Hangul vowel and tail.
  for (const char32_t c : {0x301, 0x212a, 0x958, 0xf900, 0x1161, 0x11a8})
    EXPECT_FALSE(table.nfc_inert(c)) << static_cast<uint32_t>(c);
}

}  // namespace
}  // namespace m2::text
