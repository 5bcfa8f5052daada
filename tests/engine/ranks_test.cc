#include "engine/ranks.h"

#include <gtest/gtest.h>

#include <thread>

#include "parallel/shared_comm.h"
#include "parallel/world.h"
#include "tests/engine/engine_fixture.h"

namespace m2::engine {
namespace {

using test::HistoryModel;
using test::RecordingSink;
using test::World;

// A model that notes the tokens of all engines in each of its steps, and hands over logits on first
// ranks alone, as the real one does.
class NotingModel : public model::StepModel {
 public:
  explicit NotingModel(bool first) : first_(first), inner_(World::limits(), World::kIdLimit) {}
  Limits limits() const override { return inner_.limits(); }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override {
    rounds.emplace_back(input.engine_tokens.begin(), input.engine_tokens.end());
    if (input.token_ids.empty()) return {};
    tokens.insert(tokens.end(), input.token_ids.begin(), input.token_ids.end());
    if (first_) return inner_.step(input, sink);
    Ignored ignored;
    return inner_.step(input, ignored);
  }

  std::vector<std::vector<int64_t>> rounds;
  std::vector<int32_t> tokens;
  const std::string& fault() const { return inner_.fault(); }

 private:
  struct Ignored : model::LogitsSink {
    void on_logits(int64_t, Tensor) override {}
  };
  const bool first_;
  HistoryModel inner_;
};

// Engines of several ranks each, on threads, as `m2 serve` runs them.
class Fleet {
 public:
  Fleet(int64_t tensor, int64_t data) {
    parallel::Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    locals_ = parallel::make_local_ranks(shape, 1, 0, nullptr);
    for (auto& local : locals_) {
      const StepRanks ranks{local.groups(), local.topology};
      const bool first = local.topology.tensor_rank == 0;
      models.push_back(std::make_unique<NotingModel>(first));
      if (!first) {
        followers_.emplace_back([model = models.back().get(), ranks, this] {
          const Result<void> ended = follow(*model, ranks);
          if (!ended.ok()) ++failed_followers;
        });
        continue;
      }
      firsts_.push_back(std::make_unique<FirstRank>(*models.back(), ranks,
                                                    [this, self = firsts_.size()](uint64_t round) {
                                                      for (size_t i = 0; i < firsts_.size(); ++i)
                                                        if (i != self) firsts_[i]->want(round);
                                                    }));
    }
    for (size_t i = 0; i < firsts_.size(); ++i) {
      EngineConfig config = World::config();
      config.index = static_cast<int64_t>(i);
      config.metric_labels = fmt::format("engine=\"{}\"", i);
      config.log_interval = 0;
      sinks_.push_back(std::make_unique<RecordingSink>());
      engines.push_back(
          std::make_unique<Engine>(config, *firsts_[i], pool_, clock_, *sinks_[i], metrics_));
      firsts_[i]->set_wake([engine = engines.back().get()] { engine->wake(); });
    }
  }

  void run() {
    for (size_t i = 0; i < engines.size(); ++i)
      threads_.emplace_back([this, i](std::stop_token stop) {
        engines[i]->run(stop);
        firsts_[i]->stop();
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
    for (auto& thread : threads_) thread.request_stop();
    threads_.clear();
    followers_.clear();
  }

  RecordingSink::Record& record(RequestId id) {
    return sinks_[static_cast<size_t>(id >> kEngineShift)]->records[id];
  }

  std::vector<std::unique_ptr<NotingModel>> models;  // of every rank
  std::vector<std::unique_ptr<Engine>> engines;
  std::atomic<int> failed_followers{0};

 private:
  SteadyClock clock_;
  ThreadPool pool_{1};
  Metrics metrics_;
  std::vector<parallel::LocalRank> locals_;
  std::vector<std::unique_ptr<FirstRank>> firsts_;
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

TEST(Ranks, FollowersRunTheFirstRanksSteps) {
  Fleet fleet(3, 1);
  fleet.run();
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i)
    ids.push_back(*fleet.engines[0]->submit(test::greedy_request(20 + i, 9, 10 + i)));
  fleet.finish();
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(fleet.record(ids[static_cast<size_t>(i)]).tokens,
              alone(test::greedy_request(20 + i, 9, 10 + i)));
  EXPECT_FALSE(fleet.models[0]->tokens.empty());
  for (const auto& model : fleet.models) {
    EXPECT_EQ(model->fault(), "");
    EXPECT_EQ(model->tokens, fleet.models[0]->tokens);
  }
  EXPECT_EQ(fleet.failed_followers, 0);
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
          ended = follow(model, {{*pair[1]}, parallel::with_rank(shape, 1)});
          pair[1]->abort({Code::internal, "over", {}});
        });
        // kStep, one token, one sequence, one block, one row; then token, position, slot, two
        // starts, length, table, row.
        std::vector<int64_t> header{3, 1, 1, 1, 1};
        std::vector<int32_t> words{5, 0, 8, 0, 1, 1, 2, 0};
        spoil(header, words);
        const Exec host{};
        pair[0]->broadcast(host, Tensor(header.data(), DType::i64, {5}), 0);
        pair[0]->broadcast(host, Tensor(words.data(), DType::i32, {8}), 0);
        std::vector<int64_t> stop{0, 0, 0, 0, 0};
        pair[0]->broadcast(host, Tensor(stop.data(), DType::i64, {5}), 0);
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
  for (const auto& [word, value] :
       {std::pair{1, 65}, {1, 0}, {2, 17}, {3, 51}, {3, 0}, {4, 2}, {4, -1}})
    EXPECT_FALSE(try_plan([&](auto& header, auto&) { header[static_cast<size_t>(word)] = value; }))
        << word << " " << value;
}

}  // namespace
}  // namespace m2::engine
