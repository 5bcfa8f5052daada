// Covers: engine/step_sampling.h, engine/engine.cc where the model samples
#include "engine/step_sampling.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <tuple>

#include "tests/engine/engine_fixture.h"
#include "tests/engine/sampling_model.h"

// An engine whose model samples, and runs a step ahead, against the engine that samples its logits
// itself: the same requests must end in the same tokens, logprobs and reasons.

namespace m2::engine {
namespace {

using test::HistoryModel;
using test::RecordingSink;
using test::SamplingModel;
using test::World;

// An engine over either model.
template <class Model>
struct Setting {
  template <class... Args>
  explicit Setting(const EngineConfig& config, const model::StepModel::Limits& limits,
                   const Args&... args)
      : model(limits, config.id_limit, args...),
        pool(1),
        engine(config, model, pool, clock, sink, metrics) {}

  ManualClock clock;
  Model model;
  ThreadPool pool;
  RecordingSink sink;
  Metrics metrics;
  Engine engine;
};

TokenId some_id(std::mt19937& random) {
  return static_cast<TokenId>(random() % World::kIdLimit);
}

// `few`: now and then of few ids, so that texts repeat themselves.
Request random_request(std::mt19937& random, bool few = false) {
  Request out;
  const size_t size = 1 + random() % 40;
  for (size_t i = 0; i < size; ++i) out.prompt.push_back(some_id(random));
  SamplingParams& params = out.params;
  params.seed = random();
  params.max_tokens = 1 + random() % 30;
  if (random() % 3 == 0) params.temperature = 0;
  if (random() % 3 == 0) params.top_k = 1 + static_cast<int32_t>(random() % 20);
  if (random() % 3 == 0) params.top_p = 0.5f + static_cast<float>(random() % 50) / 100;
  if (random() % 5 == 0) params.min_p = 0.1f;
  if (random() % 4 == 0)
    params.min_tokens = static_cast<int64_t>(random()) % (params.max_tokens + 1);
  if (random() % 4 == 0) params.logprobs = static_cast<int32_t>(random() % 5);
  if (random() % 8 == 0) params.prompt_logprobs = static_cast<int32_t>(random() % 3);
  if (random() % 6 == 0) params.stop_token_ids = {some_id(random)};
  if (random() % 6 == 0) params.logit_bias = {{some_id(random), 3.0f}, {some_id(random), -2.0f}};
  if (random() % 8 == 0) params.allowed_token_ids = {1, 2, 5, 7, 9, 30, 31, 32, 33, 40, 59, 60};
  if (random() % 8 == 0) params.repetition_penalty = 1.3f;
  if (random() % 8 == 0) params.frequency_penalty = 0.4f;
  if (random() % 8 == 0) params.presence_penalty = -0.3f;
  if (random() % 8 == 0) params.bad_words = {{some_id(random)}, {some_id(random), some_id(random)}};
  if (random() % 8 == 0) {
    params.thinking_budget = static_cast<int64_t>(random() % 6);
    params.thinking_ends = {some_id(random)};
  }
  if (few && random() % 2 == 0) {
    params.allowed_token_ids = {some_id(random), some_id(random)};
    params.max_tokens = 60;
  }
  return out;
}

// Allows a third or more of the ids, which ones depends on all tokens so far; now and then it says
// that all may come; may run dry.
class Winding : public TokenConstraint {
 public:
  Winding(uint32_t seed, size_t length) : state_(seed), length_(length) {}
  bool fill(std::span<uint32_t> words) override {
    EXPECT_EQ(words.size(), mask_words(World::kIdLimit));
    if (state_ % 11 == 0) return false;
    std::ranges::fill(words, 0u);
    for (TokenId id = 0; accepted_ < length_ && id < World::kIdLimit; ++id)
      if ((static_cast<uint32_t>(id) * 2654435761u ^ state_) % 5 < 3)
        words[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
    return true;
  }
  void accept(int32_t token) override {
    state_ = state_ * 1664525u + static_cast<uint32_t>(token) + 1013904223u;
    ++accepted_;
  }
  void begin_trial() override { own_ = {state_, accepted_}; }
  void end_trial() override { std::tie(state_, accepted_) = own_; }
  bool complete() const override { return accepted_ % 2 == 0; }

 private:
  uint32_t state_;
  const size_t length_;
  size_t accepted_ = 0;
  std::pair<uint32_t, size_t> own_;  // of the output, in a trial
};

void expect_same(const RecordingSink::Record& ahead, const RecordingSink::Record& plain,
                 RequestId id) {
  ASSERT_EQ(ahead.tokens, plain.tokens) << id;
  EXPECT_EQ(ahead.finish, plain.finish) << id;
  EXPECT_EQ(ahead.stop_token, plain.stop_token) << id;
  EXPECT_EQ(ahead.error, plain.error) << id;
  const auto same = [&](const TokenLogprob& a, const TokenLogprob& b) {
    EXPECT_EQ(a.id, b.id) << id;
    EXPECT_EQ(a.rank, b.rank) << id;
    EXPECT_NEAR(a.logprob, b.logprob, 1e-4) << id;
  };
  const auto same_all = [&](const Logprobs& a, const Logprobs& b) {
    same(a.chosen, b.chosen);
    ASSERT_EQ(a.top.size(), b.top.size()) << id;
    for (size_t i = 0; i < a.top.size(); ++i) same(a.top[i], b.top[i]);
  };
  ASSERT_EQ(ahead.events.size(), plain.events.size()) << id;
  for (size_t i = 0; i < ahead.events.size(); ++i) {
    const Event &a = ahead.events[i], &b = plain.events[i];
    ASSERT_EQ(a.logprobs() != nullptr, b.logprobs() != nullptr) << id;
    if (a.logprobs()) same_all(*a.logprobs(), *b.logprobs());
    ASSERT_EQ(a.prompt_logprobs().size(), b.prompt_logprobs().size()) << id;
    for (size_t k = 0; k < a.prompt_logprobs().size(); ++k)
      same_all(a.prompt_logprobs()[k], b.prompt_logprobs()[k]);
  }
}

int64_t came_of(const EngineStats& stats) {
  return std::reduce(stats.drafted_came.begin(), stats.drafted_came.end());
}

// Requests come in between the steps, some are cancelled, some meet NaN; blocks are so few that
// sequences are preempted.
template <class Model, class... Args>
void run_both(int64_t blocks, const std::optional<SpeculationConfig>& speculation,
              uint64_t nan_every, unsigned seed, const Args&... args) {
  EngineConfig config = World::config();
  const model::StepModel::Limits limits = World::limits(blocks);
  Setting<HistoryModel> plain(config, limits);
  config.speculation = speculation;
  Setting<Model> ahead(config, limits, args...);
  ahead.model.set_nan_every(nan_every);
  plain.model.set_nan_every(nan_every);
  std::mt19937 random(seed);
  std::set<RequestId> cancelled;
  for (int round = 0; round < 400; ++round) {
    if (random() % 4 == 0) {
      Request request = random_request(random, speculation.has_value()), same = request;
      if (random() % 6 == 0) {
        const auto how = static_cast<uint32_t>(random());
        const size_t length = random() % 3 == 0 ? 1 + random() % 20 : SIZE_MAX;
        request.constraint = std::make_shared<Winding>(how, length);
        same.constraint = std::make_shared<Winding>(how, length);
      }
      const Result<RequestId> a = ahead.engine.submit(request), b = plain.engine.submit(same);
      ASSERT_TRUE(a.ok()) << a.error().text;
      ASSERT_TRUE(b.ok() && *a == *b);
      if (random() % 10 == 0) cancelled.insert(*a);
    }
    if (random() % 20 == 0)
      for (const RequestId id : cancelled) {
        ahead.engine.cancel(id);
        plain.engine.cancel(id);
      }
    ahead.engine.step();
    plain.engine.step();
    const Result<void> good = ahead.engine.audit();
    ASSERT_TRUE(good.ok()) << good.error().text;
  }
  for (int i = 0; ahead.engine.step() && i < 10000; ++i) {
  }
  for (int i = 0; plain.engine.step() && i < 10000; ++i) {
  }
  EXPECT_EQ(ahead.model.fault(), "");
  ASSERT_EQ(ahead.sink.records.size(), plain.sink.records.size());
  size_t compared = 0;
  for (auto& [id, record] : plain.sink.records) {
    ASSERT_NE(ahead.sink.records[id].finish, FinishReason::none) << id;
    if (cancelled.count(id)) continue;  // when a cancelled request ends is a matter of timing
    expect_same(ahead.sink.records[id], record, id);
    ++compared;
  }
  EXPECT_GT(compared, 50u);
  if constexpr (std::is_same_v<Model, SamplingModel>) {
    if (!speculation) {
      EXPECT_EQ(ahead.model.most_under_way(), 2u);
    }
  }
  if (blocks < 60) {
    EXPECT_GT(ahead.engine.stats().preemptions, 0);
  }
  if (speculation) {
    const EngineStats stats = ahead.engine.stats();
    EXPECT_GT(came_of(stats), 50);
    EXPECT_LT(came_of(stats), stats.drafted_tokens);
    EXPECT_LT(stats.steps, plain.engine.stats().steps);
  }
}

TEST(StepSampling, RunningAheadGivesTheSameTokens) {
  run_both<SamplingModel>(64, {}, 0, 1, 1 << 20);
  run_both<SamplingModel>(64, {}, 0, 2, 1 << 20);
}

TEST(StepSampling, RunningAheadThroughPreemptions) {
  run_both<SamplingModel>(52, {}, 0, 3, 1 << 20);
}

TEST(StepSampling, RunningAheadPastBrokenLogits) {
  run_both<SamplingModel>(64, {}, 37, 4, 1 << 20);
}

TEST(StepSampling, TheHostSamplesWhatIsTooMuchForTheDevice) {
  run_both<SamplingModel>(64, {}, 0, 5, 100);
  run_both<SamplingModel>(64, {}, 0, 6, 60);
}

constexpr SpeculationConfig kEager{5, 1, 8};

TEST(StepSampling, DraftsGiveTheSameTokens) {
  run_both<SamplingModel>(64, kEager, 0, 7, 1 << 20);
  run_both<HistoryModel>(64, kEager, 0, 7);
  run_both<SamplingModel>(64, SpeculationConfig{1, 2, 2}, 0, 8, 1 << 20);
  run_both<HistoryModel>(64, SpeculationConfig{20, 2, 4}, 0, 8);
}

TEST(StepSampling, DraftsThroughPreemptions) {
  run_both<SamplingModel>(52, kEager, 0, 9, 1 << 20);
  run_both<HistoryModel>(52, kEager, 0, 9);
}

TEST(StepSampling, DraftsPastBrokenLogits) {
  run_both<SamplingModel>(64, kEager, 37, 10, 1 << 20);
  run_both<HistoryModel>(64, kEager, 37, 10);
}

TEST(StepSampling, DraftsWhereTheHostSamplesWhatIsTooMuch) {
  run_both<SamplingModel>(64, kEager, 0, 11, 60);
}

// A step that fails under way ends the engine, and every request hears of it once.
TEST(StepSampling, AFailedStepEndsTheEngine) {
  const EngineConfig config = World::config();
  Setting<SamplingModel> world(config, World::limits(), 1 << 20);
  const Result<RequestId> id = world.engine.submit(test::greedy_request(9, 20));
  ASSERT_TRUE(id.ok());
  for (int i = 0; i < 5; ++i) world.engine.step();
  world.model.break_next_step();
  for (int i = 0; i < 5; ++i) world.engine.step();
  EXPECT_EQ(world.sink.records[*id].finish, FinishReason::error);
  EXPECT_TRUE(world.engine.stats().dead);
  EXPECT_FALSE(world.engine.submit(test::greedy_request(9, 20)).ok());
}

}  // namespace
}  // namespace m2::engine
