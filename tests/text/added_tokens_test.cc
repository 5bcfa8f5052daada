#include "text/added_tokens.h"

#include <gtest/gtest.h>

namespace m2::text {
namespace {

const auto kAll = [](bool, size_t, size_t) { return true; };

TEST(AddedTokenMatcher, FindsLeftmostThenLongest) {
  const AddedToken tokens[] = {{"ab", 1, false}, {"abcd", 2, true}, {"b", 3, false}};
  const AddedTokenMatcher matcher(tokens);
  const auto first = matcher.find("xxabcdb", 0, kAll);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->begin, 2u);
  EXPECT_EQ(first->end, 6u);
  EXPECT_EQ(first->id, 2);
  EXPECT_EQ(matcher.find("xxabcdb", 6, kAll)->id, 3);
  EXPECT_EQ(matcher.find("xxabc", 0, kAll)->id, 1);
  EXPECT_FALSE(matcher.find("xxacd", 0, kAll).has_value());
  EXPECT_FALSE(matcher.find("", 0, kAll).has_value());
}

TEST(AddedTokenMatcher, SkipsWhatIsNotAllowed) {
  const AddedToken tokens[] = {{"ab", 1, false}, {"abcd", 2, true}};
  const AddedTokenMatcher matcher(tokens);
  const auto match = matcher.find("abcd", 0, [](bool special, size_t, size_t) { return !special; });
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(match->id, 1);
  EXPECT_FALSE(matcher.find("abcd", 0, [](bool, size_t, size_t) { return false; }).has_value());
}

TEST(AddedTokenMatcher, WorksWithoutTokens) {
  EXPECT_FALSE(AddedTokenMatcher({}).find("abc", 0, kAll).has_value());
}

}  // namespace
}  // namespace m2::text
