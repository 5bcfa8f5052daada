#include "engine/ngram_index.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace m2::engine {
namespace {

// By looking at every place.
NgramIndex::Match naive(const std::vector<TokenId>& text, int64_t least, int64_t most) {
  NgramIndex::Match best;
  const int64_t size = std::ssize(text);
  for (int64_t end = size - 1; end > 0; --end) {
    int64_t length = 0;
    while (length < std::min(most, end) && text[static_cast<size_t>(end - 1 - length)] ==
                                               text[static_cast<size_t>(size - 1 - length)])
      ++length;
    if (length >= least && length > best.length) best = {length, end};
  }
  return best;
}

// Texts of few tokens and no more places than are looked at, taken in a few tokens at a time.
TEST(NgramIndex, FindsTheLongestMatchAndTheNewestOfThose) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const int64_t least = 1 + static_cast<int64_t>(random() % 4);
    const int64_t most = least + static_cast<int64_t>(random() % 6);
    const size_t size = random() % 30;
    const auto ids = static_cast<uint32_t>(1 + random() % 4);
    NgramIndex index(least, most);
    index.reserve(40);
    std::vector<TokenId> text;
    for (size_t i = 0; i < size; ++i) {
      text.push_back(static_cast<TokenId>(random() % ids));
      if (random() % 3 == 0) index.extend(text, 1 + static_cast<int64_t>(random() % 5));
    }
    index.extend(text, 100);
    ASSERT_EQ(index.size(), std::ssize(text));
    const NgramIndex::Match found = index.find(text), wanted = naive(text, least, most);
    EXPECT_EQ(found.length, wanted.length);
    EXPECT_EQ(found.end, wanted.end);
  }
}

TEST(NgramIndex, TakesInNoMoreThanItIsTold) {
  const std::vector<TokenId> text(100, 7);
  NgramIndex index(2, 8);
  index.reserve(100);
  index.extend(text, 30);
  EXPECT_EQ(index.size(), 30);
  index.extend(text, 1000);
  EXPECT_EQ(index.size(), 100);
  const NgramIndex::Match match = index.find(text);
  EXPECT_EQ(match.length, 8);
  EXPECT_EQ(match.end, 99);
}

TEST(NgramIndex, FindsNothingInATextThatNeverRepeatsItself) {
  std::vector<TokenId> text;
  NgramIndex index(1, 8);
  index.reserve(1000);
  for (TokenId id = 0; id < 1000; ++id) {
    text.push_back(id);
    index.extend(text, 1);
    EXPECT_EQ(index.find(text).length, 0);
  }
}

}  // namespace
}  // namespace m2::engine
