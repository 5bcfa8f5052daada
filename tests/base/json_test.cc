#include "base/json.h"

#include <gtest/gtest.h>

#include <ctime>

namespace m2 {
namespace {

std::string error_of(std::string_view text, const JsonLimits& limits = {}) {
  const Result<Json> result = parse_json(text, limits);
  return result.ok() ? "" : result.error().text;
}

TEST(Json, KeepsTheOrderOfKeys) {
  const Result<Json> json = parse_json(R"({"z":1,"a":[true,null,-2.5],"m":{"k":"v"}})");
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(to_text(*json), R"({"z":1,"a":[true,null,-2.5],"m":{"k":"v"}})");
}

TEST(Json, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_NE(error_of(R"({"a":1,"a":2})").find("duplicate key \"a\""), std::string::npos);
  EXPECT_NE(error_of(R"([{"b":{"a":1,"a":2}}])").find("duplicate key"), std::string::npos);
  EXPECT_EQ(error_of(R"({"a":{"a":1}})"), "");
}

TEST(Json, CountsDepthAndNodes) {
  JsonLimits limits;
  limits.max_depth = 3;
  EXPECT_EQ(error_of("[[[1]]]", limits), "");
  EXPECT_NE(error_of("[[[[1]]]]", limits).find("3 levels"), std::string::npos);
  limits.max_nodes = 4;
  EXPECT_EQ(error_of("[1,2,3]", limits), "");
  EXPECT_NE(error_of("[1,2,3,4]", limits).find("4 values"), std::string::npos);
}

TEST(Json, StopsAtAMillionBracketsWithoutRecursion) {
  EXPECT_NE(error_of(std::string(1'000'000, '[')).find("128 levels"), std::string::npos);
}

TEST(Json, LastOfDuplicateKeysWinsWhereTheyAreAllowed) {
  JsonLimits limits;
  limits.allow_duplicate_keys = true;
  EXPECT_EQ(to_text(*parse_json(R"({"a":1,"b":2,"a":[3]})", limits)), R"({"a":[3],"b":2})");
}

// 400,000 keys in one object: a second is far above what linear time needs and far below what
// quadratic time does (minutes).
TEST(Json, ManyKeysTakeLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 400'000; ++i) text += fmt::format("{}\"{}\":0", i ? "," : "", i);
  text += "}";
  const auto start = std::clock();
  const Result<Json> json = parse_json(text);
  const double taken = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->size(), 400'000u);
  EXPECT_LT(taken, 5.0);
}

TEST(Json, RefusesNumbersBeyondADouble) {
  EXPECT_NE(error_of("1e999").find("number overflow"), std::string::npos);
  EXPECT_EQ(error_of("1e308"), "");
}

TEST(Json, RefusesBadSyntaxAndBadUtf8) {
  for (const char* text : {"", "{", "[1,]", "{\"a\"}", "nul", "1 2", "\"\x01\"", "\"\xff\"", "NaN"})
    EXPECT_NE(error_of(text), "") << text;
}

TEST(Json, RefusesNulAndWhatStandsBehindIt) {
  EXPECT_NE(error_of(std::string_view("{}\0garbage", 10)), "");
  EXPECT_NE(error_of(std::string_view("\"a\0b\"", 5)), "");
  EXPECT_EQ(error_of(R"("a\u0000b")"), "");
}

TEST(Json, RefusesTooManyBytes) {
  JsonLimits limits;
  limits.max_bytes = 4;
  EXPECT_EQ(parse_json("[1,2]", limits).error().code, Code::resource_exhausted);
}

TEST(Json, PrintsBadUtf8AsReplacement) {
  EXPECT_EQ(to_text(Json("a\xff")), "\"a\xEF\xBF\xBD\"");
}

}  // namespace
}  // namespace m2
