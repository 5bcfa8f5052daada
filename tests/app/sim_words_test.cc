// Covers: app/bench/sim_words
#include "app/bench/sim_words.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/text/toy_tokenizer.h"

namespace m2::app::bench {
namespace {

constexpr Nanos kMicro = 1000, kMilli = 1000 * kMicro;

std::shared_ptr<const text::Tokenizer> tokenizer() {
  auto out = text::load_text(text::toy_tokenizer_json().dump());
  EXPECT_TRUE(out.ok());
  return *out;
}

std::string chunk(const std::string& word) {
  return "data: {\"id\":\"x\",\"text\":\"" + word + "\",\"more\":1}\n\n";
}

TEST(StepWords, EachWordTellsWhenItsStepEnded) {
  const auto toy = tokenizer();
  StepWords words(*toy);
  ASSERT_GE(words.tokens().size(), 3u);
  for (size_t i = 0; i < words.tokens().size(); ++i) {
    const std::string word(toy->bytes(words.tokens()[i]));
    EXPECT_EQ(words.ended(word), 0) << word;
    words.set_ended(i, static_cast<Nanos>(i + 1), 1);
  }
  for (size_t i = 0; i < words.tokens().size(); ++i)
    EXPECT_EQ(words.ended(toy->bytes(words.tokens()[i])), static_cast<Nanos>(i + 1));
  EXPECT_EQ(words.ended("unheard"), 0);
  EXPECT_EQ(words.ended("muchlongerthanaword"), 0);
  EXPECT_EQ(words.ended(""), 0);
}

TEST(AddedLatency, IsFoundInPiecesOfAStream) {
  const auto toy = tokenizer();
  StepWords words(*toy);
  const std::string one(toy->bytes(words.tokens()[0])), other(toy->bytes(words.tokens()[1]));
  words.set_ended(0, kMilli, 2);
  words.set_ended(1, 2 * kMilli, 1);
  AddedLatency added(words, "\"text\":\"");
  EXPECT_EQ(added.count(), 0);
  EXPECT_EQ(added.percentile_ms(99), 0);
  EXPECT_EQ(added.record("HTTP/1.1 200 OK\r\n\r\n" + chunk(""), 5 * kMilli), 0u);
  EXPECT_EQ(added.record(chunk(one) + chunk(one) + chunk(other), 5 * kMilli), 3u);
  EXPECT_EQ(added.record("data: [DONE]\n\n", 5 * kMilli), 0u);
  EXPECT_EQ(added.count(), 3);
  EXPECT_NEAR(added.percentile_ms(1), 3, 0.003);  // the other's
  EXPECT_NEAR(added.percentile_ms(50), 4, 0.004);
}

// Against a sorted list, whatever the threads and the sizes.
TEST(AddedLatency, PercentilesAreToOnePartInAThousand) {
  const auto toy = tokenizer();
  StepWords words(*toy);
  const std::string word(toy->bytes(words.tokens()[0]));
  words.set_ended(0, 1, 1);
  AddedLatency added(words, "");
  constexpr int kThreads = 3, kEach = 20'000;
  std::vector<std::vector<double>> own(kThreads);
  {
    std::vector<std::jthread> threads;
    for (unsigned t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        for (int i = 0; i < kEach; ++i) {
          const double micros = std::exp2(std::uniform_real_distribution(0.0, 23.0)(random));
          const auto nanos = static_cast<Nanos>(micros * kMicro);
          own[t].push_back(static_cast<double>(nanos) * 1e-6);
          ASSERT_TRUE(added.record_word(word, 1 + nanos));
        }
      });
    }
  }
  std::vector<double> all;
  for (const auto& part : own) all.insert(all.end(), part.begin(), part.end());
  std::ranges::sort(all);
  EXPECT_EQ(added.count(), kThreads * kEach);
  for (const double percent : {0.0, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
    const double exact =
        all[static_cast<size_t>(percent / 100 * static_cast<double>(all.size() - 1))];
    EXPECT_NEAR(added.percentile_ms(percent) / exact, 1, 1e-3) << percent;
  }
  // What is shorter or longer than it tells apart counts as its shortest and longest.
  EXPECT_TRUE(added.record_word(word, 1));
  EXPECT_TRUE(added.record_word(word, 1 + 100 * kSecond));
  EXPECT_EQ(added.count(), kThreads * kEach + 2);
  EXPECT_GT(added.percentile_ms(100), 16'000);
}

}  // namespace
}  // namespace m2::app::bench
