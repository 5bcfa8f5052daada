#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "base/thread_pool.h"

namespace m2::engine::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr TokenId kEos = 2;

std::vector<float> random_logits(size_t size, uint64_t seed, float spread = 3) {
  std::vector<float> row(size);
  for (size_t i = 0; i < size; ++i) {
    // A sum of four uniforms: a bell, roughly.
    float x = -2;
    for (uint64_t k = 0; k < 4; ++k)
      x += static_cast<float>(mix64(seed * 7919 + 4 * i + k) >> 40) * 0x1p-24f;
    row[i] = spread * x;
  }
  return row;
}

TokenCounts counts_of(const std::vector<TokenId>& prompt, const std::vector<TokenId>& output) {
  TokenCounts counts;
  counts.add_prompt(prompt);
  for (const TokenId id : output) counts.add_output(id);
  return counts;
}

// The contract's order in plain doubles: the probability of every id.
std::vector<double> reference(std::vector<float> row, const SamplingParams& params,
                              const std::vector<TokenId>& prompt,
                              const std::vector<TokenId>& output) {
  const size_t n = row.size();
  std::vector<double> x(row.begin(), row.end());
  const double masked = -std::numeric_limits<double>::infinity();
  if (!params.allowed_token_ids.empty()) {
    for (size_t i = 0; i < n; ++i) {
      const auto& allowed = params.allowed_token_ids;
      if (std::find(allowed.begin(), allowed.end(), static_cast<TokenId>(i)) == allowed.end())
        x[i] = masked;
    }
  }
  for (const auto& word : params.bad_words) {
    if (word.size() - 1 > output.size()) continue;
    bool completes = true;
    for (size_t i = 0; i + 1 < word.size(); ++i)
      completes &= output[output.size() - (word.size() - 1) + i] == word[i];
    if (completes) x[static_cast<size_t>(word.back())] = masked;
  }
  if (static_cast<int64_t>(output.size()) < params.min_tokens) {
    x[kEos] = masked;
    for (const TokenId id : params.stop_token_ids) x[static_cast<size_t>(id)] = masked;
  }
  for (const auto& [id, bias] : params.logit_bias)
    x[static_cast<size_t>(id)] += static_cast<double>(bias);
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<TokenId>(i);
    const auto in_output = std::count(output.begin(), output.end(), id);
    const bool in_prompt = std::count(prompt.begin(), prompt.end(), id) > 0;
    const double repetition = static_cast<double>(params.repetition_penalty);
    if (in_prompt || in_output > 0) x[i] = x[i] > 0 ? x[i] / repetition : x[i] * repetition;
    x[i] -= static_cast<double>(params.frequency_penalty) * static_cast<double>(in_output);
    if (in_output > 0) x[i] -= static_cast<double>(params.presence_penalty);
  }
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  std::vector<double> p(n, 0.0);
  if (params.temperature < 1e-5f) {
    p[order[0]] = 1;
    return p;
  }
  const double temperature = std::max(0.01, static_cast<double>(params.temperature));
  double total = 0;
  for (size_t rank = 0; rank < n; ++rank) {
    const double weight = std::exp((x[order[rank]] - x[order[0]]) / temperature);
    const bool kept = weight >= static_cast<double>(params.min_p) &&
                      (params.top_k == 0 || rank < static_cast<size_t>(params.top_k));
    p[order[rank]] = kept ? weight : 0;
    total += p[order[rank]];
  }
  double before = 0, after = 0;
  for (const size_t i : order) {
    const bool kept = before < static_cast<double>(params.top_p) * total;
    before += p[i];
    if (!kept) p[i] = 0;
    after += p[i];
  }
  for (double& value : p) value /= after;
  return p;
}

struct Case {
  const char* name;
  SamplingParams params;
};

// Pearson's statistic as a standard normal score (Wilson and Hilferty); bins under 5 are merged.
double chi_square_score(const std::vector<int>& observed, const std::vector<double>& p, int draws) {
  double statistic = 0, rest_expected = 0, rest_observed = 0;
  int bins = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * draws;
    if (expected < 5) {
      rest_expected += expected;
      rest_observed += observed[i];
      continue;
    }
    statistic += (observed[i] - expected) * (observed[i] - expected) / expected;
    ++bins;
  }
  if (rest_expected >= 5) {
    statistic += (rest_observed - rest_expected) * (rest_observed - rest_expected) / rest_expected;
    ++bins;
  }
  if (bins < 2) return 0;
  const double k = bins - 1;
  return (std::cbrt(statistic / k) - (1 - 2 / (9 * k))) / std::sqrt(2 / (9 * k));
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const char* name, auto change) {
    all.push_back({name, {}});
    change(all.back().params);
  };
  add("plain", [](auto&) {});
  add("cold", [](auto& p) { p.temperature = 0.3f; });
  add("hot", [](auto& p) { p.temperature = 1.8f; });
  add("colder than allowed", [](auto& p) { p.temperature = 0.005f; });
  add("top_k 1", [](auto& p) { p.top_k = 1; });
  add("top_k 5", [](auto& p) { p.top_k = 5; });
  add("top_k of all", [](auto& p) { p.top_k = 100000; });
  add("top_p 0.5", [](auto& p) { p.top_p = 0.5f; });
  add("top_p tiny", [](auto& p) { p.top_p = 1e-6f; });
  add("top_p 0.999", [](auto& p) { p.top_p = 0.999f; });
  add("min_p 0.1", [](auto& p) { p.min_p = 0.1f; });
  add("min_p 1", [](auto& p) { p.min_p = 1; });
  add("top_k and top_p", [](auto& p) { p.top_k = 20, p.top_p = 0.7f; });
  add("min_p, top_k and top_p", [](auto& p) { p.top_k = 30, p.top_p = 0.9f, p.min_p = 0.05f; });
  add("min_p and top_p", [](auto& p) { p.top_p = 0.8f, p.min_p = 0.2f; });
  add("top_k with temperature",
      [](auto& p) { p.top_k = 10, p.temperature = 0.5f, p.top_p = 0.95f; });
  add("repetition", [](auto& p) { p.repetition_penalty = 1.5f; });
  add("repetition reward", [](auto& p) { p.repetition_penalty = 0.7f; });
  add("frequency", [](auto& p) { p.frequency_penalty = 1.2f; });
  add("negative frequency", [](auto& p) { p.frequency_penalty = -0.8f; });
  add("presence", [](auto& p) { p.presence_penalty = 2; });
  add("all penalties and top_k", [](auto& p) {
    p.repetition_penalty = 1.2f, p.frequency_penalty = 0.5f, p.presence_penalty = -1, p.top_k = 8;
  });
  add("bias", [](auto& p) { p.logit_bias = {{3, 4.0f}, {9, -100.0f}, {kEos, 2.0f}}; });
  add("allowed", [](auto& p) { p.allowed_token_ids = {3, 1, 17, 40}; });
  add("allowed and top_p", [](auto& p) { p.allowed_token_ids = {3, 1, 17, 40}, p.top_p = 0.6f; });
  add("one bad word", [](auto& p) { p.bad_words = {{5}}; });
  add("longer bad words", [](auto& p) {
    p.bad_words = {{7, 9, 30}, {9, 31}, {8, 32}, {1, 2, 3, 4, 5, 33}, {9, 9, 34}};
  });
  add("min_tokens", [](auto& p) { p.min_tokens = 10, p.stop_token_ids = {11, 12}; });
  add("min_tokens reached", [](auto& p) { p.min_tokens = 5, p.stop_token_ids = {11, 12}; });
  return all;
}

const std::vector<TokenId> kPrompt = {1, 5, 5, 20, 33};
const std::vector<TokenId> kOutput = {3, 9, 3, 7, 9};

// Every parameter against the reference: no draw outside the support, and the frequencies fit.
// With fixed seeds the score is a fixed number; 4.75 is one in a million.
TEST(Sampler, DrawsFromTheReferenceDistribution) {
  constexpr int kDraws = 10000;
  for (const size_t vocab : {size_t{50}, size_t{700}}) {
    Sampler sampler(static_cast<TokenId>(vocab), {kEos}, 1);
    const auto logits = random_logits(vocab, vocab);
    const TokenCounts counts = counts_of(kPrompt, kOutput);
    for (const Case& test : cases()) {
      const auto p = reference(logits, test.params, kPrompt, kOutput);
      std::vector<int> observed(vocab);
      for (int draw = 0; draw < kDraws; ++draw) {
        auto row = logits;
        const Sampled sampled =
            sampler.sample(row, {test.params, kOutput, &counts, static_cast<uint64_t>(draw)}, 0);
        ASSERT_EQ(sampled.status, RowStatus::ok);
        ASSERT_GT(p[static_cast<size_t>(sampled.token)], 0) << test.name << " " << sampled.token;
        ++observed[static_cast<size_t>(sampled.token)];
      }
      EXPECT_LT(chi_square_score(observed, p, kDraws), 4.75) << test.name << ", vocab " << vocab;
    }
  }
}

// One seed, many positions: the positions of a request are independent draws too.
TEST(Sampler, PositionsAreIndependentDraws) {
  constexpr int kDraws = 20000;
  Sampler sampler(16, {}, 1);
  const auto logits = random_logits(16, 4);
  const auto p = reference(logits, {}, {}, {});
  std::vector<TokenId> output;
  std::vector<int> observed(16), pairs(256);
  std::vector<double> pair_p(256);
  const SamplingParams params;
  for (int draw = 0; draw < kDraws; ++draw) {
    auto row = logits;
    output.push_back(sampler.sample(row, {params, output, nullptr, 99}, 0).token);
    ++observed[static_cast<size_t>(output.back())];
    if (draw % 2) ++pairs[static_cast<size_t>(output[output.size() - 2] * 16 + output.back())];
  }
  for (size_t i = 0; i < 256; ++i) pair_p[i] = p[i / 16] * p[i % 16];
  EXPECT_LT(chi_square_score(observed, p, kDraws), 4.75);
  EXPECT_LT(chi_square_score(pairs, pair_p, kDraws / 2), 4.75);
}

// A wide, flat distribution makes the nucleus grow through all its stages.
TEST(Sampler, WideNucleusHasTheReferenceSupport) {
  constexpr size_t kVocab = 20000;
  Sampler sampler(kVocab, {}, 1);
  const auto logits = random_logits(kVocab, 5, 0.5f);
  SamplingParams params;
  for (const float top_p : {0.01f, 0.2f, 0.9f, 0.9999f}) {
    params.top_p = top_p;
    const auto p = reference(logits, params, {}, {});
    // The last kept id stands at a float's rounding from the next: a slack of one part in 10^4.
    params.top_p = top_p * 1.0001f;
    const auto wider = reference(logits, params, {}, {});
    params.top_p = top_p;
    std::set<TokenId> seen;
    for (uint64_t seed = 0; seed < 1000; ++seed) {
      auto row = logits;
      const TokenId id = sampler.sample(row, {params, {}, nullptr, seed}, 0).token;
      ASSERT_GT(wider[static_cast<size_t>(id)], 0) << top_p;
      seen.insert(id);
    }
    const auto support = std::count_if(p.begin(), p.end(), [](double x) { return x > 0; });
    EXPECT_GT(static_cast<double>(seen.size()), 0.1 * std::min<double>(1000, double(support)));
  }
}

TEST(Sampler, LargeTopKKeepsExactlyTheMostLikely) {
  constexpr size_t kVocab = 3000;  // 47 blocks: top_k is beyond them
  Sampler sampler(kVocab, {}, 1);
  const auto logits = random_logits(kVocab, 6, 0.2f);
  SamplingParams params;
  for (const int32_t top_k : {2, 46, 47, 48, 100, 2999}) {
    params.top_k = top_k;
    const auto p = reference(logits, params, {}, {});
    std::set<TokenId> seen;
    for (uint64_t seed = 0; seed < 2000; ++seed) {
      auto row = logits;
      const TokenId id = sampler.sample(row, {params, {}, nullptr, seed}, 0).token;
      ASSERT_GT(p[static_cast<size_t>(id)], 0) << top_k;
      seen.insert(id);
    }
    if (top_k > 100) continue;
    EXPECT_EQ(seen.size(), static_cast<size_t>(top_k));
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOfTies) {
  SamplingParams params;
  for (const float temperature : {0.0f, 9e-6f}) {
    params.temperature = temperature;
    for (const size_t vocab : {size_t{1}, size_t{2}, size_t{64}, size_t{65}, size_t{1000}}) {
      Sampler sampler(static_cast<TokenId>(vocab), {}, 1);
      for (size_t first = 0; first < vocab; first += 13) {
        std::vector<float> row(vocab, -1);
        for (size_t i = first; i < vocab; i += 7) row[i] = 2;
        EXPECT_EQ(sampler.sample(row, {params, {}, nullptr, 1}, 0).token,
                  static_cast<TokenId>(first));
      }
    }
  }
}

TEST(Sampler, TopKOneTakesTheLowestIdOfTies) {
  Sampler sampler(300, {}, 1);
  SamplingParams params;
  params.top_k = 1;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<float> row(300, 1);
    row[0] = 0;
    EXPECT_EQ(sampler.sample(row, {params, {}, nullptr, seed}, 0).token, 1);
  }
}

// Among equals the lower ids are in, on the ways for few and for many candidates alike.
TEST(Sampler, TiesAtTheEdgeAreCutExactly) {
  constexpr size_t kVocab = 4000;
  Sampler sampler(kVocab, {}, 1);
  const auto largest_of_draws = [&](const SamplingParams& params) {
    TokenId largest = 0;
    for (uint64_t seed = 0; seed < 8000; ++seed) {
      std::vector<float> row(kVocab, 0.5f);
      largest = std::max(largest, sampler.sample(row, {params, {}, nullptr, seed}, 0).token);
    }
    return largest;
  };
  for (const int32_t top_k : {10, 1000, 1500}) {
    SamplingParams params;
    params.top_k = top_k;
    EXPECT_EQ(largest_of_draws(params), top_k - 1);
    params.top_p = 0.5f;
    EXPECT_EQ(largest_of_draws(params), top_k / 2 - 1);
  }
  SamplingParams params;
  params.top_p = 0.25f;
  EXPECT_EQ(largest_of_draws(params), 999);
}

TEST(Sampler, PaddingColumnsTakePartInNothing) {
  Sampler sampler(61, {}, 1);
  for (const float padding : {1e30f, kInfinity, std::nanf("")}) {
    std::vector<float> row = random_logits(64, 7);
    for (size_t i = 61; i < 64; ++i) row[i] = padding;
    SamplingParams params;
    params.logprobs = 20;
    for (uint64_t seed = 0; seed < 200; ++seed) {
      auto copy = row;
      const Sampled sampled = sampler.sample(copy, {params, {}, nullptr, seed}, 0);
      ASSERT_EQ(sampled.status, RowStatus::ok);
      EXPECT_LT(sampled.token, 61);
      for (const TokenLogprob& top : sampled.logprobs->top) EXPECT_LT(top.id, 61);
    }
  }
}

TEST(Sampler, DamagedRowsAreRefused) {
  Sampler sampler(100, {}, 1);
  SamplingParams params;
  for (const float temperature : {0.0f, 1.0f}) {
    params.temperature = temperature;
    for (const float bad : {std::nanf(""), kInfinity}) {
      for (const size_t place : {size_t{0}, size_t{50}, size_t{99}}) {
        auto row = random_logits(100, 8);
        row[place] = bad;
        EXPECT_EQ(sampler.sample(row, {params, {}, nullptr, 1}, 0).status, RowStatus::not_finite);
        Logprobs logprobs;
        EXPECT_EQ(sampler.score(row, 1, 2, logprobs, 0), RowStatus::not_finite);
      }
    }
    std::vector<float> nothing(100, -kInfinity);
    EXPECT_EQ(sampler.sample(nothing, {params, {}, nullptr, 1}, 0).status, RowStatus::not_finite);
    nothing[42] = -5;
    EXPECT_EQ(sampler.sample(nothing, {params, {}, nullptr, 1}, 0).token, 42);
  }
}

TEST(Sampler, MasksThatLeaveNothingAreRefused) {
  Sampler sampler(100, {kEos}, 1);
  SamplingParams params;
  params.allowed_token_ids = {kEos, 5};
  params.min_tokens = 1;
  params.bad_words = {{5}};
  auto row = random_logits(100, 9);
  EXPECT_EQ(sampler.sample(row, {params, {}, nullptr, 1}, 0).status, RowStatus::all_masked);
}

TEST(Sampler, ExtremePenaltiesStayFinite) {
  Sampler sampler(10, {}, 1);
  SamplingParams params;
  const std::vector<TokenId> prompt = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const TokenCounts counts = counts_of(prompt, {});
  for (const float repetition : {1e-38f, 3e38f}) {
    for (const float temperature : {0.0f, 0.02f, 1.0f}) {
      params.repetition_penalty = repetition;
      params.temperature = temperature;
      auto row = random_logits(10, 10, 1e4f);
      const Sampled sampled = sampler.sample(row, {params, {}, &counts, 3}, 0);
      EXPECT_EQ(sampled.status, RowStatus::ok);
      EXPECT_GE(sampled.token, 0);
    }
  }
}

// Logprobs are of the raw row, whatever the request does to it afterwards.
TEST(Sampler, SpentThinkingBudgetForcesItsEndOnce) {
  constexpr TokenId kEnd = 7, kOtherEnd = 9;
  Sampler sampler(64, {kEos}, 1);
  SamplingParams params;
  params.temperature = 0;
  params.thinking_budget = 3;
  params.thinking_ends = {kEnd, kOtherEnd};
  params.bad_words = {{kEnd}};  // forced all the same
  params.logprobs = 1;
  const auto token_after = [&](const std::vector<TokenId>& output) {
    std::vector<float> row = random_logits(64, 5);
    row[20] = 50;
    const Sampled sampled = sampler.sample(row, {params, output}, 0);
    EXPECT_EQ(sampled.logprobs->chosen.id, sampled.token);
    EXPECT_EQ(sampled.logprobs->top[0].id, 20);
    return sampled.token;
  };
  EXPECT_EQ(token_after({20, 20}), 20);
  EXPECT_EQ(token_after({20, 20, 20}), kEnd);
  EXPECT_EQ(token_after({20, 20, 20, kEnd}), 20);
  EXPECT_EQ(token_after({20, kEnd, 20}), 20);
  EXPECT_EQ(token_after({kOtherEnd, 20, 20}), 20);
  params.thinking_budget = 0;
  EXPECT_EQ(token_after({}), kEnd);
  params.thinking_budget = -1;
  EXPECT_EQ(token_after({}), 20);
}

TEST(Sampler, LogprobsAreRawAndRanked) {
  constexpr size_t kVocab = 500;
  Sampler sampler(kVocab, {kEos}, 1);
  const auto logits = random_logits(kVocab, 11);
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x));
  SamplingParams params;
  params.logprobs = 20;
  params.temperature = 0.7f;
  params.repetition_penalty = 1.4f;
  params.logit_bias = {{77, 50.0f}};
  const TokenCounts counts = counts_of(kPrompt, kOutput);
  auto row = logits;
  const Sampled sampled = sampler.sample(row, {params, kOutput, &counts, 5}, 0);
  ASSERT_EQ(sampled.token, 77);
  ASSERT_TRUE(sampled.logprobs.has_value());

  auto sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  const auto expect = [&](const TokenLogprob& got) {
    const float logit = logits[static_cast<size_t>(got.id)];
    EXPECT_NEAR(static_cast<double>(got.logprob), static_cast<double>(logit) - std::log(total),
                2e-6 * std::log(total) + 1e-6);
    const auto rank = std::find(sorted.begin(), sorted.end(), logit) - sorted.begin() + 1;
    EXPECT_EQ(got.rank, rank);
  };
  EXPECT_EQ(sampled.logprobs->chosen.id, 77);
  expect(sampled.logprobs->chosen);
  ASSERT_EQ(sampled.logprobs->top.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(sampled.logprobs->top[i].rank, static_cast<int32_t>(i) + 1);
    expect(sampled.logprobs->top[i]);
  }
}

TEST(Sampler, LogprobsOfTheWholeVocabularySumToOne) {
  Sampler sampler(16, {}, 1);
  auto row = random_logits(16, 12, 5);
  row[3] = -kInfinity;
  Logprobs logprobs;
  ASSERT_EQ(sampler.score(row, 3, 20, logprobs, 0), RowStatus::ok);
  EXPECT_EQ(logprobs.chosen.logprob, -kInfinity);
  EXPECT_EQ(logprobs.chosen.rank, 16);
  EXPECT_EQ(logprobs.top.size(), 15u);
  double sum = 0;
  for (const TokenLogprob& top : logprobs.top) sum += std::exp(static_cast<double>(top.logprob));
  EXPECT_NEAR(sum, 1, 1e-6);
}

TEST(Sampler, LogprobsOnlyAsAsked) {
  Sampler sampler(50, {}, 1);
  SamplingParams params;
  auto row = random_logits(50, 13);
  EXPECT_FALSE(sampler.sample(row, {params, {}, nullptr, 1}, 0).logprobs.has_value());
  params.logprobs = 0;
  const Sampled sampled = sampler.sample(row, {params, {}, nullptr, 1}, 0);
  ASSERT_TRUE(sampled.logprobs.has_value());
  EXPECT_EQ(sampled.logprobs->chosen.id, sampled.token);
  EXPECT_TRUE(sampled.logprobs->top.empty());
}

// Rows sampled at once give what they give one after another, whatever the number of threads.
TEST(Sampler, ThreadsDoNotMatter) {
  constexpr size_t kVocab = 900, kRows = 64;
  const auto all = cases();
  const TokenCounts counts = counts_of(kPrompt, kOutput);
  std::vector<TokenId> first;
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    Sampler sampler(kVocab, {kEos}, threads);
    std::vector<TokenId> tokens(kRows);
    std::atomic<size_t> next{0};
    pool.run([&](int thread) {
      for (size_t i = next++; i < kRows; i = next++) {
        auto row = random_logits(kVocab, i);
        tokens[i] =
            sampler.sample(row, {all[i % all.size()].params, kOutput, &counts, i}, thread).token;
      }
    });
    if (first.empty()) first = tokens;
    EXPECT_EQ(tokens, first) << threads << " threads";
  }
}

}  // namespace
}  // namespace m2::engine::test
