#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <ctime>
#include <random>

namespace m2::text {
namespace {

StopStrings stops(std::vector<std::string> strings, bool include = false) {
  return StopStrings::make(std::move(strings), include).value();
}

struct Outcome {
  std::string text;
  std::optional<size_t> match;
  bool operator==(const Outcome&) const = default;
};

Outcome run(StopStrings& automaton, const std::vector<std::string>& steps) {
  Outcome outcome;
  for (const std::string& step : steps) {
    StopStrings::Step result = automaton.feed(step);
    outcome.text += result.text;
    outcome.match = result.match;
    if (outcome.match) return outcome;
  }
  outcome.text += automaton.finish();
  return outcome;
}

// The rule of contract.md 4.8 word by word: after each step the strings are looked for in list
// order, in the new text and enough before it.
Outcome by_the_rule(const std::vector<std::string>& strings, bool include,
                    const std::vector<std::string>& steps) {
  std::string text;
  for (const std::string& step : steps) {
    text += step;
    for (size_t i = 0; i < strings.size(); ++i) {
      const size_t window = std::min(text.size(), step.size() + strings[i].size() - 1);
      const size_t at = text.find(strings[i], text.size() - window);
      if (at == std::string::npos) continue;
      return {text.substr(0, include ? at + strings[i].size() : at), i};
    }
  }
  return {text, std::nullopt};
}

TEST(StopStrings, HoldsBackOnlyWhatMayBeAStopString) {
  StopStrings automaton = stops({"STOP"});
  EXPECT_EQ(automaton.feed("abc").text, "abc");
  EXPECT_EQ(automaton.feed("xST").text, "x");
  EXPECT_EQ(automaton.feed("S").text, "ST");
  EXPECT_EQ(automaton.feed("TO").text, "");
  const StopStrings::Step last = automaton.feed("P!");
  EXPECT_EQ(last.text, "");
  EXPECT_EQ(last.match, 0u);
}

TEST(StopStrings, IncludesTheStringWhereAskedTo) {
  StopStrings automaton = stops({"STOP"}, true);
  EXPECT_EQ(automaton.feed("xST").text, "xST");
  const StopStrings::Step last = automaton.feed("OP!");
  EXPECT_EQ(last.text, "OP");
  EXPECT_EQ(last.match, 0u);
}

TEST(StopStrings, ListOrderDecidesWithinAStep) {
  StopStrings late_first = stops({"b", "a"});
  EXPECT_EQ(late_first.feed("xaxb").text, "xax");
  StopStrings early_first = stops({"a", "b"});
  EXPECT_EQ(early_first.feed("xaxb").text, "x");
  StopStrings by_step = stops({"b", "a"});
  EXPECT_EQ(by_step.feed("xa").match, 1u);
  StopStrings suffixes = stops({"c", "abc", "bc"});
  EXPECT_EQ(suffixes.feed("xabc").text, "xab");
}

TEST(StopStrings, ReleasesWhatWasHeld) {
  StopStrings automaton = stops({"\n\nUser:"});
  EXPECT_EQ(automaton.feed("a\n\nUs").text, "a");
  EXPECT_EQ(automaton.finish(), "\n\nUs");
  EXPECT_EQ(automaton.finish(), "");
}

TEST(StopStrings, NothingMatchesUntilArmed) {
  StopStrings automaton = stops({"ab"});
  EXPECT_EQ(automaton.feed("xab", false).match, std::nullopt);
  EXPECT_EQ(automaton.feed("y").text, "aby");
  EXPECT_EQ(automaton.feed("a", false).text, "");
  EXPECT_EQ(automaton.feed("b").match, 0u);
}

TEST(StopStrings, HoldsWholeCharacters) {
  StopStrings automaton = stops({"é。停"});
  EXPECT_EQ(automaton.feed("xé").text, "x");
  EXPECT_EQ(automaton.feed("。").text, "");
  EXPECT_EQ(automaton.feed("。é").text, "é。。");
  EXPECT_EQ(automaton.feed("。停").match, 0u);
}

TEST(StopStrings, WithoutStringsAllTextPasses) {
  StopStrings automaton = stops({});
  EXPECT_EQ(automaton.feed("abc").text, "abc");
  EXPECT_EQ(automaton.finish(), "");
}

TEST(StopStrings, Limits) {
  EXPECT_TRUE(StopStrings::make(std::vector<std::string>(16, std::string(256, 'a'))).ok());
  EXPECT_FALSE(StopStrings::make(std::vector<std::string>(17, "a")).ok());
  EXPECT_FALSE(StopStrings::make({std::string(257, 'a')}).ok());
  EXPECT_EQ(StopStrings::make({"a", ""}).error().text, "stop cannot contain an empty string.");
}

TEST(StopStrings, FollowsTheRuleOnRandomText) {
  std::mt19937 random(4);
  auto word = [&](size_t longest, size_t letters) {
    std::string out;
    for (size_t size = 1 + random() % longest; size > 0; --size)
      out += static_cast<char>('a' + random() % letters);
    return out;
  };
  for (int i = 0; i < 200'000; ++i) {
    const size_t letters = 1 + random() % 3;
    std::vector<std::string> strings(1 + random() % 4);
    for (std::string& string : strings) string = word(5, letters);
    std::vector<std::string> steps(random() % 8);
    for (std::string& step : steps) step = word(4, letters + random() % 2);
    const bool include = random() % 2 != 0;
    StopStrings automaton = stops(strings, include);
    const Outcome outcome = run(automaton, steps);
    ASSERT_EQ(outcome, by_the_rule(strings, include, steps)) << i;
  }
}

TEST(StopStrings, TimeIsLinearInHostileText) {
  std::vector<std::string> strings;
  for (size_t i = 0; i < 16; ++i) strings.push_back(std::string(255 - i, 'a') + "b");
  auto seconds = [&](size_t size) {
    double best = 1e9;
    for (int i = 0; i < 3; ++i) {
      StopStrings automaton = stops(strings);
      const std::clock_t begin = std::clock();
      for (size_t at = 0; at < size; at += 4) (void)automaton.feed("aaaa");
      best = std::min(best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
    }
    return best;
  };
  const double quarter = seconds(256 << 10);
  const double whole = seconds(1 << 20);
  EXPECT_LE(whole, 1.0);
  EXPECT_LE(whole, 2.3 * 2.3 * quarter + 0.05);
}

}  // namespace
}  // namespace m2::text
