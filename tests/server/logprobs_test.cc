#include "server/logprobs.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/json.h"
#include "tests/text/toy_tokenizer.h"

namespace m2::server {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

struct Printed {
  std::shared_ptr<const text::Tokenizer> tokenizer =
      *text::load_text(to_text(text::toy_tokenizer_json()));
  LogprobStyle style{*tokenizer};
};

// Ids are bytes: 65 is A. The chosen one is among the most likely, or follows them.
const engine::Logprobs kAmongTop{{66, -1.5f, 2}, {{65, -0.25f, 1}, {66, -1.5f, 2}}};
const engine::Logprobs kBehindTop{{34, kImpossible, 9}, {{65, -0.25f, 1}, {66, -1.5f, 2}}};

TEST(Logprobs, OfAPromptAreByIdAndTheChosenOneIsNotRepeated) {
  const Printed it;
  const std::vector<engine::Logprobs> positions = {kAmongTop, kBehindTop};
  const Json expected = *parse_json(R"([null,
      {"66": {"logprob": -1.5, "rank": 2, "decoded_token": "B"},
       "65": {"logprob": -0.25, "rank": 1, "decoded_token": "A"}},
      {"34": {"logprob": -9999.0, "rank": 9, "decoded_token": "\""},
       "65": {"logprob": -0.25, "rank": 1, "decoded_token": "A"},
       "66": {"logprob": -1.5, "rank": 2, "decoded_token": "B"}}])");
  EXPECT_EQ(prompt_logprobs_json(positions, it.style), to_text(expected));
  EXPECT_EQ(prompt_logprobs_json({}, it.style), "[null]");
}

TEST(Logprobs, OfACompletionAreListsThatGoOnWhereTheLastOnesEnded) {
  const Printed it;
  CompletionLogprobs logprobs(2);
  EXPECT_TRUE(logprobs.empty());
  logprobs.add(67, nullptr, it.style);
  logprobs.add(66, &kAmongTop, it.style);
  EXPECT_FALSE(logprobs.empty());
  EXPECT_EQ(logprobs.take(), to_text(*parse_json(R"({
      "text_offset": [0, 1], "token_logprobs": [null, -1.5], "tokens": ["C", "B"],
      "top_logprobs": [null, {"B": -1.5, "A": -0.25}]})")));
  EXPECT_TRUE(logprobs.empty());
  logprobs.add(34, &kBehindTop, it.style);
  EXPECT_EQ(logprobs.take(), to_text(*parse_json(R"({
      "text_offset": [2], "token_logprobs": [-9999.0], "tokens": ["\""],
      "top_logprobs": [{"\"": -9999.0, "A": -0.25, "B": -1.5}]})")));
}

// Halves of characters all look alike: a name may stand in an object once.
TEST(Logprobs, OfTokensWithOneTextTheFirstCounts) {
  const Printed it;
  const engine::Logprobs halves{{0x80, -1, 1}, {{0x80, -1, 1}, {0x81, -2, 2}, {65, -3, 3}}};
  CompletionLogprobs logprobs(5);
  logprobs.add(0x80, &halves, it.style);
  EXPECT_EQ((*parse_json(logprobs.take()))["top_logprobs"][0],
            *parse_json("{\"\uFFFD\": -1.0, \"A\": -3.0}"));
}

}  // namespace
}  // namespace m2::server
