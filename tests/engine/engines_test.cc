// Covers: engine/engines, engine/affinity
#include "engine/engines.h"

#include <gtest/gtest.h>

#include "tests/engine/engine_fixture.h"

namespace m2::engine {
namespace {

using test::World;

// Engines that nobody runs: what is submitted waits.
struct Worlds {
  explicit Worlds(size_t count) {
    std::vector<Engine*> engines;
    for (size_t i = 0; i < count; ++i) {
      EngineConfig config = World::config();
      config.index = static_cast<int64_t>(i);
      worlds.push_back(std::make_unique<World>(config));
      engines.push_back(&worlds.back()->engine);
    }
    all = std::make_unique<Engines>(engines);
  }
  // The engine that took a request.
  int64_t take(Request request) {
    const Result<RequestId> id = all->submit(std::move(request));
    return id.ok() ? static_cast<int64_t>(*id >> kEngineShift) : -1;
  }
  std::vector<std::unique_ptr<World>> worlds;
  std::unique_ptr<Engines> all;
};

Request prompt_of(int64_t size, TokenId first) {
  return test::greedy_request(size, 4, first);
}

TEST(Engines, SpreadsWhatWaits) {
  Worlds worlds(3);
  std::vector<int64_t> taken(3, 0);
  for (int i = 0; i < 12; ++i) ++taken[static_cast<size_t>(worlds.take(prompt_of(5, 10 + i)))];
  EXPECT_EQ(taken, (std::vector<int64_t>{4, 4, 4}));
  EXPECT_EQ(worlds.worlds[0]->engine.load(), 16);
}

TEST(Engines, TakesTheOneThatIsNamed) {
  Worlds worlds(3);
  for (int i = 0; i < 4; ++i) {
    Request request = prompt_of(5, 10 + i);
    request.engine = 2;
    EXPECT_EQ(worlds.take(std::move(request)), 2);
  }
  EXPECT_EQ(worlds.worlds[2]->engine.load(), 16);
  Request request = prompt_of(5, 1);
  request.engine = 3;
  const Result<RequestId> id = worlds.all->submit(std::move(request));
  EXPECT_EQ(id.error().text, "data_parallel_rank 3 is out of range [0, 3).");
  EXPECT_EQ(id.error().code, Code::invalid_argument);
}

TEST(Engines, AConversationGoesBackUnlessItsEngineIsMuchBusier) {
  Worlds worlds(4);
  Request first = prompt_of(130, 3);
  first.engine = 1;
  EXPECT_EQ(worlds.take(first), 1);
  first.engine = -1;
  EXPECT_EQ(worlds.take(first), 1) << "4 more than the others";
  EXPECT_EQ(worlds.take(first), 1) << "8 more";
  EXPECT_NE(worlds.take(first), 1) << "12 more: the cache is not worth the wait";
  Request other = first;
  other.cache_salt = "another user's";
  worlds.take(other);
  Worlds fresh(2);
  EXPECT_EQ(fresh.all->stats().running, 0);
}

TEST(Engines, CancelFindsTheEngine) {
  Worlds worlds(2);
  Request request = prompt_of(5, 10);
  request.engine = 1;
  const RequestId id = *worlds.all->submit(std::move(request));
  worlds.all->cancel(id);
  worlds.worlds[1]->run_until_idle();
  EXPECT_EQ(worlds.worlds[1]->record(id).finish, FinishReason::abort);
  worlds.all->cancel(~RequestId{0});  // nobody's
}

TEST(Affinity, KnowsTheLongestBeginning) {
  Affinity affinity(1000);
  const std::vector<TokenId> a = prompt_of(200, 3).prompt;
  std::vector<TokenId> longer = a;
  longer.resize(300, 9);
  EXPECT_EQ(affinity.find(a, "").engine, -1);
  affinity.note(a, "", 5);
  EXPECT_EQ(affinity.find(a, "").tokens, 192);
  EXPECT_EQ(affinity.find(longer, "").engine, 5);
  affinity.note(longer, "", 6);
  EXPECT_EQ(affinity.find(longer, "").tokens, 256);
  EXPECT_EQ(affinity.find(longer, "").engine, 6);
  EXPECT_EQ(affinity.find(longer, "salt").engine, -1);
  EXPECT_EQ(affinity.find(std::span(a).first(63), "").engine, -1);
  std::vector<TokenId> changed = a;
  changed[70] = 1;
  EXPECT_EQ(affinity.find(changed, "").tokens, 64);
}

TEST(Affinity, ForgetsTheOldest) {
  Affinity affinity(10);
  const std::vector<TokenId> first = prompt_of(64, 1).prompt;
  affinity.note(first, "", 1);
  for (int i = 0; i < 10; ++i) affinity.note(prompt_of(64, 2 + i).prompt, "", 2);
  EXPECT_EQ(affinity.find(first, "").engine, -1);
  EXPECT_EQ(affinity.find(prompt_of(64, 11).prompt, "").engine, 2);
}

}  // namespace
}  // namespace m2::engine
