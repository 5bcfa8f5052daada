#include "app/speculation_options.h"

#include <gtest/gtest.h>

#include "app/serve_options.h"

namespace m2::app {
namespace {

Result<std::optional<engine::SpeculationConfig>> read(const std::string& config) {
  static const Command command{"serve", "MODEL", "", "", serve_options()};
  std::vector<std::string> words;
  if (!config.empty()) words = {"--speculative-config", config};
  Result<Values> values =
      parse_command_line(command, words, [](const char*) -> const char* { return nullptr; });
  M2_CHECK(values.ok(), "{}", values.error().text);
  return read_speculation(*values);
}

std::string error_of(const std::string& config) {
  const auto out = read(config);
  return out.ok() ? "" : out.error().text;
}

TEST(SpeculationOptions, AreOffUnlessGiven) {
  const auto none = read("");
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->has_value());
  EXPECT_EQ(drafted_rows(*none, 256, 8192), 0);
}

TEST(SpeculationOptions, TakeWhatVllmCallsNgram) {
  const auto usual = read(R"({"method": "ngram"})");
  ASSERT_TRUE(usual.ok() && usual->has_value());
  EXPECT_EQ((*usual)->most_tokens, 15);
  EXPECT_EQ((*usual)->least_match, 3);
  EXPECT_EQ((*usual)->most_match, 32);
  const auto own = read(
      R"({"model": "[ngram]", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 6})");
  ASSERT_TRUE(own.ok() && own->has_value());
  EXPECT_EQ((*own)->most_tokens, 4);
  EXPECT_EQ((*own)->least_match, 2);
  EXPECT_EQ((*own)->most_match, 6);
  const auto short_ones = read(R"({"method": "ngram", "prompt_lookup_max": 2})");
  EXPECT_EQ((*short_ones)->least_match, 2);
  const auto long_ones = read(R"({"method": "ngram", "prompt_lookup_min": 40})");
  EXPECT_EQ((*long_ones)->most_match, 40);
}

TEST(SpeculationOptions, RefuseWhatTheyDoNotKnow) {
  EXPECT_EQ(error_of("{}"), "--speculative-config needs a method: {\"method\": \"ngram\"}");
  EXPECT_EQ(error_of(R"({"method": "eagle3", "model": "x/y"})"),
            "--speculative-config: the method eagle3 is not supported (chose from { ngram })");
  EXPECT_NE(error_of(R"({"method": "mtp"})").find("hold no MTP layers"), std::string::npos);
  EXPECT_EQ(error_of(R"({"method": 3})"),
            "--speculative-config: the method 3 is not supported (chose from { ngram })");
  EXPECT_NE(error_of(R"({"method": "ngram", "num_tokens": 3})").find("unknown key 'num_tokens'"),
            std::string::npos);
  for (const char* value : {"0", "-1", "1.5", "\"4\"", "99999999999", "true"})
    EXPECT_NE(error_of(R"({"method": "ngram", "num_speculative_tokens": )" + std::string(value) + "}")
                  .find("takes an integer from 1 to"),
              std::string::npos)
        << value;
  EXPECT_EQ(error_of(R"({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 4})"),
            "--speculative-config: prompt_lookup_min=5 must be <= prompt_lookup_max=4");
}

TEST(SpeculationOptions, LeaveRoomInAStep) {
  const engine::SpeculationConfig five{5, 3, 32}, many{100, 3, 32};
  EXPECT_EQ(drafted_rows(five, 4, 8192), 20);
  EXPECT_EQ(drafted_rows(many, 4, 8192), 60) << "a draft ends with its block";
  EXPECT_EQ(drafted_rows(five, 1024, 8192), 256);
  EXPECT_EQ(drafted_rows(five, 100, 128), 28);
  EXPECT_EQ(drafted_rows(five, 512, 512), 0);
}

}  // namespace
}  // namespace m2::app
