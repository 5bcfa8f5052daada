#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace m2::text {
namespace {

using Words = std::vector<std::string>;

Words split(std::string_view text, SplitPattern pattern = SplitPattern::o200k) {
  Words words;
  Pretokenizer pretokens(pattern, text);
  for (auto word = pretokens.next(); !word.empty(); word = pretokens.next())
    words.emplace_back(word);
  return words;
}

// The expected splits below were printed by Oniguruma through the `tokenizers` package.

TEST(O200kSplit, WordsTakeOneCharacterBeforeThem) {
  EXPECT_EQ(split("Hello, world!"), (Words{"Hello", ",", " world", "!"}));
  EXPECT_EQ(split("(a)\tb\xc2\xa0"
                  "c"),
            (Words{"(a", ")", "\tb",
                   "\xc2\xa0"
                   "c"}));
  EXPECT_EQ(split("a\nb"), (Words{"a", "\n", "b"}));
}

TEST(O200kSplit, CapitalsBeginAWordOnlyBeforeLowerCase) {
  EXPECT_EQ(split("HTMLParser camelCase ABCdEF"),
            (Words{"HTMLParser", " camel", "Case", " ABCd", "EF"}));
  EXPECT_EQ(split("OK"), (Words{"OK"}));
}

TEST(O200kSplit, CaselessLettersAreGivenBackFromTheRunOfCapitals) {
  // U* takes "A中B", finds no lower case after it, and gives back to the last caseless letter.
  EXPECT_EQ(split("A中B!"), (Words{"A中", "B", "!"}));
  EXPECT_EQ(split("中ABc"), (Words{"中ABc"}));
}

TEST(O200kSplit, AMarkBeforeCapitalsStandsAlone) {
  EXPECT_EQ(split("\u0301A"), (Words{"\u0301", "A"}));
  EXPECT_EQ(split("\u0301a"), (Words{"\u0301a"}));
  EXPECT_EQ(split("\u0301'sA"), (Words{"\u0301's", "A"}));
}

TEST(O200kSplit, ContractionsEndAWordInAnyCase) {
  EXPECT_EQ(split("don't DON'T I'VE we'll it's"),
            (Words{"don't", " DON'T", " I'VE", " we'll", " it's"}));
  EXPECT_EQ(split("it'\u017f they'r 'll 1's"),
            (Words{"it'\u017f", " they", "'r", " '", "ll", " ", "1", "'s"}));
}

TEST(O200kSplit, NumbersComeInThrees) {
  EXPECT_EQ(split("1234567 1\u00bd"), (Words{"123", "456", "7", " ", "1\u00bd"}));
}

TEST(O200kSplit, SymbolsTakeASpaceBeforeAndLineEndsAndSlashesAfter) {
  EXPECT_EQ(split("a ==\r\n/\n/x"), (Words{"a", " ==\r\n/\n/", "x"}));
  EXPECT_EQ(split("http://x"), (Words{"http", "://", "x"}));
}

TEST(O200kSplit, WhiteSpaceEndsAtItsLastNewlineOrLeavesOneForTheWord) {
  EXPECT_EQ(split("a  \n \n  b"), (Words{"a", "  \n \n", " ", " b"}));
  EXPECT_EQ(split("a   1"), (Words{"a", "  ", " ", "1"}));
  EXPECT_EQ(split("a   "), (Words{"a", "   "}));
  EXPECT_EQ(split(""), (Words{}));
}

TEST(Gpt2Split, FollowsItsPattern) {
  EXPECT_EQ(
      split("I've  been 'told 'RE 1234\n\nx  ", SplitPattern::gpt2),
      (Words{"I", "'ve", " ", " been", " '", "told", " '", "RE", " 1234", "\n", "\n", "x", "  "}));
}

TEST(Pretokenizer, CoversEveryText) {
  for (const SplitPattern pattern : {SplitPattern::o200k, SplitPattern::gpt2}) {
    std::string text, joined;
    for (char32_t c = 0; c < 0x3000; c += 7) append_utf8(c, text);
    for (const std::string& word : split(text, pattern)) joined += word;
    EXPECT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace m2::text
