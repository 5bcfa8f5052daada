// Covers: engine/token_list
#include "engine/token_list.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace m2::engine {
namespace {

// Against a vector: tokens added one at a time, read one by one or all together in any mixture.
TEST(TokenList, IsOneListHoweverItIsRead) {
  std::mt19937 random(1);
  for (int run = 0; run < 200; ++run) {
    std::vector<TokenId> expected(random() % 40);
    for (TokenId& token : expected) token = static_cast<TokenId>(random() % 1000);
    TokenList list;
    list = expected;
    list.reserve(200);
    const auto begin = std::ssize(expected);
    for (int i = 0; i < 150; ++i) {
      expected.push_back(static_cast<TokenId>(random() % 1000));
      list.push_back(expected.back());
      ASSERT_EQ(list.size(), std::ssize(expected));
      ASSERT_EQ(list.back(), expected.back());
      const auto at = static_cast<int64_t>(random() % expected.size());
      ASSERT_EQ(list[at], expected[static_cast<size_t>(at)]);
      ASSERT_TRUE(std::ranges::equal(list.first(begin), std::span(expected).first(begin)));
      if (random() % 7 == 0) {
        ASSERT_TRUE(std::ranges::equal(list.all(), expected));
      }
    }
    list = std::vector<TokenId>{1, 2};
    EXPECT_TRUE(std::ranges::equal(list.all(), std::vector<TokenId>{1, 2}));
  }
}

TEST(TokenList, StaysWhereItHasReservedMemory) {
  TokenList list;
  list = std::vector<TokenId>{1, 2, 3};
  list.reserve(100);
  const TokenId* memory = list.all().data();
  while (list.size() < 100) list.push_back(4);
  EXPECT_EQ(list.all().data(), memory);
}

}  // namespace
}  // namespace m2::engine
