#include "text/normalizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>

namespace m2::text {
namespace {

std::string nfc(std::string_view text) {
  std::string storage;
  return std::string(normalize(text, true, storage));
}

TEST(Normalize, ReturnsTheTextItselfWhereNothingChanges) {
  for (const std::string text : {"", "plain ASCII, long enough for words", "é 中文 각 😀"}) {
    std::string storage;
    EXPECT_EQ(normalize(text, true, storage).data(), text.data());
  }
}

TEST(Normalize, ComposesAndReorders) {
  EXPECT_EQ(nfc("e\u0301 x"), "\u00e9 x");
  EXPECT_EQ(nfc("a\u0323\u0302"), "\u1ead");
  EXPECT_EQ(nfc("a\u0302\u0323"), "\u1ead");
  EXPECT_EQ(nfc("\u0301\u0316z"), "\u0316\u0301z");
  EXPECT_EQ(nfc("\u212b\u2126"), "\u00c5\u03a9");
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093c");  // composition exclusion
  EXPECT_EQ(nfc("\u1112\u1161\u11ab"), "\ud55c");
  EXPECT_EQ(nfc("\uac00\u11a8"), "\uac01");
  EXPECT_EQ(nfc("<\u0338"), "\u226e");
  EXPECT_EQ(nfc("\u09c7\u09be"), "\u09cb");
}

TEST(Normalize, KnowsNoMarksSinceUnicode9) {
  EXPECT_EQ(nfc("q\u0898\u0301\u0316"), "q\u0898\u0316\u0301");
  EXPECT_EQ(nfc("q\u0301\u0898"), "q\u0301\u0898");
}

TEST(Normalize, ReplacesInvalidUtf8) {
  std::string storage;
  EXPECT_EQ(normalize("a\xff\xe4\xb8z", false, storage), "a\ufffd\ufffdz");
  EXPECT_EQ(nfc("\xff"
                "e\u0301\xe4"),
            "\ufffd\u00e9\ufffd");
}

TEST(Normalize, LeavesFormAloneWithoutNfc) {
  std::string storage;
  EXPECT_EQ(normalize("e\u0301", false, storage), "e\u0301");
}

TEST(Normalize, TakesLongRunsOfMarksInTheirStride) {
  std::string text, expected;
  for (int i = 0; i < 250000; ++i) text += "\u0301\u0316";
  for (int i = 0; i < 250000; ++i) expected += "\u0316";
  for (int i = 0; i < 250000; ++i) expected += "\u0301";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(nfc(text), expected);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

}  // namespace
}  // namespace m2::text
