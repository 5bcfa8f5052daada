// Covers: engine/ranks, engine/seat, engine/rounds, engine/step_message
#include "engine/ranks.h"

#include <gtest/gtest.h>

#include <thread>

#include "engine/seat.h"
#include "parallel/shared_comm.h"
#include "parallel/world.h"
#include "tests/engine/engine_fixture.h"
#include "tests/engine/sampling_model.h"

namespace m2::engine {
namespace {

using test::HistoryModel;
using test::RecordingSink;
using test::World;

constexpr int64_t kMostEdits = 1000;

// A model that notes the tokens of all engines in each of its steps, and hands over logits on first
// ranks alone, as the real one does. It may sample.
class NotingModel : public model::StepModel {
 public:
  explicit NotingModel(bool first, bool samples = false)
      : first_(first), samples_(samples), inner_(World::limits(), World::kIdLimit, kMostEdits) {}

  Limits limits() const override { return samples_ ? inner_.limits() : World::limits(); }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override {
    rounds.emplace_back(input.engine_tokens.begin(), input.engine_tokens.end());
    if (input.token_ids.empty()) return {};
    tokens.insert(tokens.end(), input.token_ids.begin(), input.token_ids.end());
    if (first_) return inner_.step(input, sink);
    Ignored ignored;
    return inner_.step(input, ignored);
  }

  bool samples() const override { return samples_; }
  void enqueue(const model::StepInput& input, const model::StepSampling& sampling) override {
    ++enqueued;
    rounds.emplace_back(input.engine_tokens.begin(), input.engine_tokens.end());
    tokens.insert(tokens.end(), input.token_ids.begin(), input.token_ids.end());
    inner_.enqueue(input, sampling);
    most_under_way = std::max(most_under_way, inner_.most_under_way());
  }
  Result<model::StepResult> collect() override { return inner_.collect(); }

  std::vector<std::vector<int64_t>> rounds;
  std::vector<int32_t> tokens;
  int64_t enqueued = 0;
  size_t most_under_way = 0;
  const std::string& fault() const { return inner_.fault(); }
  void break_next_step() { inner_.break_next_step(); }

 private:
  struct Ignored : model::LogitsSink {
    void on_logits(int64_t, Tensor) override {}
  };
  const bool first_, samples_;
  test::SamplingModel inner_;
};

struct FleetOptions {
  bool samples = false;  // models do
  bool seats = false;    // all engines but the first schedule away from their ranks
};

// Engines of several ranks each, on threads, as `m2 serve` runs them.
class Fleet {
 public:
  Fleet(int64_t tensor, int64_t data, FleetOptions options = {}) {
    parallel::Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    locals_ = parallel::make_local_ranks(shape);
    for (auto& local : locals_) {
      const StepRanks ranks{local.groups(), local.topology};
      const bool first = local.topology.tensor_rank == 0;
      models.push_back(std::make_unique<NotingModel>(first, options.samples));
      watches_.push_back(std::make_unique<StepWatch>());
      if (first) {
        add_head(*models.back(), ranks, options);
        continue;
      }
      followers_.emplace_back(
          [model = models.back().get(), ranks, watch = watches_.back().get(), this] {
            const Result<void> ended = follow(*model, ranks, *watch);
            if (!ended.ok()) ++failed_followers;
          });
    }
    for (size_t i = 0; i < heads_.size(); ++i) {
      EngineConfig config = World::config();
      config.index = static_cast<int64_t>(i);
      config.metric_labels = fmt::format("engine=\"{}\"", i);
      config.log_interval = 0;
      sinks_.push_back(std::make_unique<RecordingSink>());
      pools_.push_back(std::make_unique<ThreadPool>(1));
      engines.push_back(std::make_unique<Engine>(config, *heads_[i]->model, *pools_[i], clock_,
                                                 *sinks_[i], metrics_));
      heads_[i]->rounds->set_wake([engine = engines.back().get()] { engine->wake(); });
    }
  }

  void run() {
    for (size_t i = 0; i < engines.size(); ++i)
      threads_.emplace_back([this, i](std::stop_token stop) {
        engines[i]->run(stop);
        heads_[i]->seat ? heads_[i]->seat->stop() : heads_[i]->first->stop();
      });
  }

  // Waits until all submitted have finished, then stops everyone.
  void finish() {
    const auto busy = [&] {
      for (const auto& engine : engines)
        if (engine->load() > 0 || engine->stats().waiting > 0) return true;
      return false;
    };
    while (busy()) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    stop();
  }
  void stop() {
    for (auto& thread : threads_) thread.request_stop();
    threads_.clear();
    followers_.clear();
  }

  void abort(const char* why) {
    for (auto& local : locals_) {
      local.tensor->abort({Code::internal, why, {}});
      if (local.engines) local.engines->abort({Code::internal, why, {}});
    }
  }

  RecordingSink::Record& record(RequestId id) {
    return sinks_[static_cast<size_t>(id >> kEngineShift)]->records[id];
  }

  std::vector<std::unique_ptr<NotingModel>> models;  // of every rank
  std::vector<std::unique_ptr<Engine>> engines;
  std::atomic<int> failed_followers{0};

 private:
  struct Head {
    std::unique_ptr<Rounds> rounds, relay_rounds;
    std::unique_ptr<FirstRank> first;
    std::vector<std::unique_ptr<parallel::Comm>> pair;  // of the seat and the first rank
    std::unique_ptr<Seat> seat;
    model::StepModel* model = nullptr;  // of the engine
  };

  void add_head(NotingModel& own, const StepRanks& ranks, FleetOptions options) {
    Head& head = *heads_.emplace_back(std::make_unique<Head>());
    head.rounds = std::make_unique<Rounds>([this, self = &head](uint64_t round) {
      for (const auto& other : heads_)
        if (other.get() != self) other->rounds->want(round);
    });
    const bool seated = options.seats && heads_.size() > 1;
    if (seated) head.relay_rounds = std::make_unique<Rounds>(nullptr);
    head.first = std::make_unique<FirstRank>(own, ranks, seated ? *head.relay_rounds : *head.rounds,
                                             *watches_.back());
    head.model = head.first.get();
    if (!seated) return;
    head.pair = parallel::make_thread_comms(2);
    head.seat = std::make_unique<Seat>(*head.pair[0], SeatedModel{own.limits(), own.samples()},
                                       *head.rounds);
    head.model = head.seat.get();
    followers_.emplace_back([this, &head] {
      const Result<void> ended = relay(*head.first, *head.pair[1]);
      if (ended.ok()) return;
      ++failed_followers;
      head.pair[1]->abort(ended.error());
    });
  }

  SteadyClock clock_;
  std::vector<std::unique_ptr<ThreadPool>> pools_;
  Metrics metrics_;
  std::vector<parallel::LocalRank> locals_;
  std::vector<std::unique_ptr<StepWatch>> watches_;
  std::vector<std::unique_ptr<Head>> heads_;
  std::vector<std::unique_ptr<RecordingSink>> sinks_;
  std::vector<std::jthread> followers_;
  std::vector<std::jthread> threads_;
};

std::vector<TokenId> alone(const Request& request) {
  World world;
  const RequestId id = world.submit(request);
  world.run_until_idle();
  return world.record(id).tokens;
}

// Four requests to the first engine, until they have ended.
void expect_answers_as_alone(Fleet& fleet) {
  fleet.run();
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i)
    ids.push_back(*fleet.engines[0]->submit(test::greedy_request(20 + i, 9, 10 + i)));
  fleet.finish();
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(fleet.record(ids[static_cast<size_t>(i)]).tokens,
              alone(test::greedy_request(20 + i, 9, 10 + i)));
}

TEST(Ranks, FollowersRunTheFirstRanksSteps) {
  Fleet fleet(3, 1);
  expect_answers_as_alone(fleet);
  EXPECT_FALSE(fleet.models[0]->tokens.empty());
  for (const auto& model : fleet.models) {
    EXPECT_EQ(model->fault(), "");
    EXPECT_EQ(model->tokens, fleet.models[0]->tokens);
  }
  EXPECT_EQ(fleet.failed_followers, 0);
}

// Where models sample, every rank runs ahead with the first one.
TEST(Ranks, FollowersRunAheadWithAModelThatSamples) {
  Fleet fleet(3, 1, {.samples = true});
  expect_answers_as_alone(fleet);
  for (const auto& model : fleet.models) {
    EXPECT_EQ(model->fault(), "");
    EXPECT_EQ(model->tokens, fleet.models[0]->tokens);
    EXPECT_GT(model->enqueued, 9);
    EXPECT_EQ(model->most_under_way, 2u);
  }
  EXPECT_EQ(fleet.failed_followers, 0);
}

// Engines that schedule away from their ranks write what others write, in the same rounds.
TEST(Ranks, SeatsWriteWhatFirstRanksWrite) {
  for (const bool samples : {false, true}) {
    Fleet fleet(2, 3, {samples, true});
    fleet.run();
    std::vector<RequestId> ids;
    for (int wave = 0; wave < 9; ++wave) {
      Request request = test::greedy_request(15 + wave, 12, 20 + wave);
      if (wave % 2 == 1) request.params.logprobs = 3;
      if (wave == 4) request.params.logit_bias = {{7, 100.0f}};
      ids.push_back(*fleet.engines[static_cast<size_t>(wave % 3)]->submit(std::move(request)));
      std::this_thread::sleep_for(std::chrono::milliseconds(wave * 2));
    }
    fleet.finish();
    for (int wave = 0; wave < 9; ++wave) {
      const auto& record = fleet.record(ids[static_cast<size_t>(wave)]);
      if (wave == 4) {
        EXPECT_EQ(record.tokens, std::vector<TokenId>(12, 7));
        continue;
      }
      EXPECT_EQ(record.tokens, alone(test::greedy_request(15 + wave, 12, 20 + wave)));
      for (const auto& event : record.events)
        if (event.token >= 0) {
          ASSERT_EQ(event.logprobs() != nullptr, wave % 2 == 1);
        }
    }
    for (const auto& model : fleet.models) {
      EXPECT_EQ(model->fault(), "");
      EXPECT_EQ(model->rounds, fleet.models[0]->rounds);
      EXPECT_EQ(model->enqueued > 0, samples);
    }
    EXPECT_EQ(fleet.failed_followers, 0);
  }
}

// What fails on the rank is told at the seat, with its words, and ends nobody silently.
TEST(Ranks, ASeatTellsWhatFailed) {
  for (const bool samples : {false, true}) {
    Fleet fleet(1, 2, {samples, true});
    fleet.run();
    fleet.models[1]->break_next_step();
    const RequestId id = *fleet.engines[1]->submit(test::greedy_request(5, 20));
    const SteadyClock clock;
    const Nanos until = clock.now() + 10 * kSecond;
    while (!fleet.engines[1]->stats().dead && clock.now() < until)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_TRUE(fleet.engines[1]->stats().dead);
    fleet.abort("over");
    fleet.stop();
    EXPECT_EQ(fleet.record(id).finish, FinishReason::error);
    EXPECT_NE(fleet.record(id).error.find("the device fell over"), std::string::npos)
        << fleet.record(id).error;
  }
}

struct NoRows : model::LogitsSink {
  void on_logits(int64_t, Tensor) override { ADD_FAILURE() << "rows that were not asked for"; }
};

// Whatever numbers come from the rank's process, the seat's arrays hold them or it says no.
TEST(Ranks, ASeatRefusesRowsBeyondItsPlan) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const std::array<std::array<int64_t, 2>, 5> replies{
      {{kMost, kMost}, {1, kMost}, {kMost, 1}, {0, 2}, {-1, 1}}};
  for (const auto& [first, rows] : replies) {
    const auto pair = parallel::make_thread_comms(2);
    NotingModel model(true);
    Rounds rounds(nullptr);
    Seat seat(*pair[0], SeatedModel{model.limits(), model.samples()}, rounds);
    std::jthread other([&, first = first, rows = rows] {
      OrderReceiver orders(*pair[1], model.limits());
      EXPECT_TRUE(orders.receive().ok());
      std::array<int64_t, 3> logits{1, first, rows};
      pair[1]->broadcast(Exec{}, Tensor(logits.data(), DType::i64, {3}), 1);
    });
    const std::array<int32_t, 1> token{5}, position{0}, slot{8}, length{1}, table{2}, row{0};
    const std::array<int32_t, 2> starts{0, 1};
    model::StepInput step;
    step.token_ids = token;
    step.positions = position;
    step.slots = slot;
    step.query_starts = starts;
    step.context_lens = length;
    step.block_tables = table;
    step.max_blocks_per_sequence = 1;
    step.logit_rows = row;
    NoRows sink;
    const Result<void> done = seat.step(step, sink);
    ASSERT_FALSE(done.ok());
    EXPECT_NE(done.error().text.find("out of turn"), std::string::npos) << done.error().text;
  }
}

// Reliability I14: every rank of every engine runs the same rounds, engines without work too.
TEST(Ranks, EnginesStepTogether) {
  Fleet fleet(2, 3);
  fleet.run();
  std::vector<RequestId> ids;
  for (int wave = 0; wave < 5; ++wave) {
    ids.push_back(*fleet.engines[static_cast<size_t>(wave % 2)]->submit(
        test::greedy_request(15 + wave, 12, 20 + wave)));
    std::this_thread::sleep_for(std::chrono::milliseconds(wave * 3));
  }
  fleet.finish();
  for (int wave = 0; wave < 5; ++wave)
    EXPECT_EQ(fleet.record(ids[static_cast<size_t>(wave)]).tokens,
              alone(test::greedy_request(15 + wave, 12, 20 + wave)));
  for (const auto& model : fleet.models) {
    EXPECT_EQ(model->fault(), "");
    EXPECT_EQ(model->rounds, fleet.models[0]->rounds);
  }
  ASSERT_FALSE(fleet.models[0]->rounds.empty());
  for (const auto& round : fleet.models[0]->rounds) {
    EXPECT_EQ(round.size(), 3u);
    EXPECT_EQ(round[2], 0) << "nobody asked the third engine";
    EXPECT_GT(round[0] + round[1], 0) << "a round of nothing is not a step";
  }
  EXPECT_EQ(fleet.failed_followers, 0);
}

// An idle engine is called into the others' round at once, not at its next second.
TEST(Ranks, AnIdleEngineDoesNotHoldUpTheOthers) {
  Fleet fleet(1, 4);
  fleet.run();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const SteadyClock clock;
  const Nanos start = clock.now();
  const RequestId id = *fleet.engines[3]->submit(test::greedy_request(5, 20));
  fleet.finish();
  EXPECT_EQ(fleet.record(id).tokens.size(), 20u);
  EXPECT_LT(seconds(clock.now() - start), 5.0) << "twenty rounds at a second each are twenty";
}

// What comes from another process cannot reach beyond this rank's memory.
TEST(Ranks, FollowersRefusePlansThatDoNotFit) {
  const auto try_plan =
      [&](const std::function<void(std::vector<int64_t>&, std::vector<int32_t>&)>& spoil) {
        const auto pair = parallel::make_thread_comms(2);
        NotingModel model(false);
        parallel::Topology shape;
        shape.tensor_size = 2;
        Result<void> ended;
        std::thread follower([&] {
          StepWatch watch;
          ended = follow(model, {{*pair[1]}, parallel::with_rank(shape, 1)}, watch);
          pair[1]->abort({Code::internal, "over", {}});
        });
        // kStep, one token, one sequence, one block, one row; then token, position, slot, two
        // starts, length, table, row.
        std::vector<int64_t> header{3, 1, 1, 1, 1, 0, 0, 0};
        std::vector<int32_t> words{5, 0, 8, 0, 1, 1, 2, 0};
        spoil(header, words);
        const Exec host{};
        pair[0]->broadcast(host, Tensor(header.data(), DType::i64, {8}), 0);
        pair[0]->broadcast(host, Tensor(words.data(), DType::i32, {8}), 0);
        std::vector<int64_t> stop(8, 0);
        pair[0]->broadcast(host, Tensor(stop.data(), DType::i64, {8}), 0);
        follower.join();
        return ended.ok();
      };
  EXPECT_TRUE(try_plan([](auto&, auto&) {}));
  for (const auto& [word, value] : {std::pair{0, 64},
                                    {0, -1},
                                    {1, 200},
                                    {2, 256},
                                    {2, -1},
                                    {3, 1},
                                    {4, 2},
                                    {5, 0},
                                    {5, 5},
                                    {6, 64},
                                    {6, -1},
                                    {7, 1},
                                    {7, -1}})
    EXPECT_FALSE(try_plan([&](auto&, auto& words) { words[static_cast<size_t>(word)] = value; }))
        << word << " " << value;
  for (const auto& [word, value] : {std::pair{1, 65},
                                    {1, 0},
                                    {2, 17},
                                    {3, 51},
                                    {3, 0},
                                    {4, 2},
                                    {4, -1},
                                    {0, 6},
                                    {0, -1},
                                    {5, 2},
                                    {6, 1},
                                    {7, 1}})
    EXPECT_FALSE(try_plan([&](auto& header, auto&) { header[static_cast<size_t>(word)] = value; }))
        << word << " " << value;
}

}  // namespace
}  // namespace m2::engine
