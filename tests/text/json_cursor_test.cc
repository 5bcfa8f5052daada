#include "text/json_cursor.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/json.h"

namespace m2::text {
namespace {

TEST(JsonCursor, WalksObjectsAndArrays) {
  JsonCursor cursor(R"( {"a": [1, 20] , "b":{}, "c" : [ ]} )");
  std::string seen;
  const auto done = cursor.object([&](std::string_view key) -> Result<void> {
    seen += key;
    if (key == "b") return cursor.object([](std::string_view) { return Result<void>(); });
    return cursor.array([&]() -> Result<void> {
      M2_TRY(const int32_t number, cursor.whole_number());
      seen += std::to_string(number);
      return {};
    });
  });
  EXPECT_TRUE(done.ok()) << done.error().text;
  EXPECT_TRUE(cursor.finish().ok());
  EXPECT_EQ(seen, "a120bc");
}

TEST(JsonCursor, ReadsStringsLikeTheJsonParser) {
  for (const char* text :
       {R"("")", R"("plain")", R"("\"\\\/\b\f\n\r\t")", R"("\u0041\u00e9\u4E2D\ud83d\ude00x")",
        R"("é中😀")", R"("\ud83d")", R"("\ude00")", R"("\ud83d\u0041")", R"("\ud83dx")", R"("\x")",
        R"("\u12g4")", R"("\u12)", R"("\)", R"("open)", "\"a\nb\"", "\"a\\n\nb\"", "x"}) {
    JsonCursor cursor(text);
    const auto ours = cursor.string();
    const auto theirs = parse_json(text);
    ASSERT_EQ(ours.ok(), theirs.ok()) << text;
    if (ours.ok()) {
      EXPECT_EQ(*ours, theirs->get<std::string>());
    }
  }
}

TEST(JsonCursor, TakesWholeNumbersOnly) {
  for (const char* good : {"0", "7", "2147483647"})
    EXPECT_EQ(std::to_string(JsonCursor(good).whole_number().value()), good);
  for (const char* bad : {"", "-1", "01", "2147483648", "99999999999999999999", "\"1\"", "null"})
    EXPECT_FALSE(JsonCursor(bad).whole_number().ok()) << bad;
}

TEST(JsonCursor, CutsOutValues) {
  for (const std::string value :
       {"1.5e3", "true", "null", "\"a]\\\"}\"", "[1, [2], {\"x\": \"]\"}]", "{}"}) {
    JsonCursor cursor("[" + value + " ,2]");
    std::vector<std::string> seen;
    const std::string json = "[" + value + " ,2]";
    JsonCursor reader(json);
    EXPECT_TRUE(reader
                    .array([&]() -> Result<void> {
                      M2_TRY(seen.emplace_back(), reader.raw());
                      return {};
                    })
                    .ok());
    EXPECT_EQ(seen, (std::vector<std::string>{value, "2"}));
  }
  for (const char* bad : {"", "]", "[", "[[1]", "\"x", "{\"a\""})
    EXPECT_FALSE(JsonCursor(bad).raw().ok()) << bad;
}

}  // namespace
}  // namespace m2::text
