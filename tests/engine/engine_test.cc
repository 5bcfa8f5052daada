#include "engine/engine.h"

#include <gtest/gtest.h>

#include "tests/engine/engine_fixture.h"

namespace m2::engine::test {
namespace {

// What greedy decoding of a history gives, computed without the engine.
std::vector<TokenId> greedy_output(const std::vector<TokenId>& prompt, int64_t count) {
  uint64_t history = kEmptyHistory;
  int64_t position = 0;
  for (const TokenId token : prompt) history = extend(history, token, position++);
  std::vector<TokenId> output;
  std::vector<float> row(World::kVocab);
  for (int64_t i = 0; i < count; ++i) {
    history_logits(history, World::kIdLimit, row);
    const auto best = std::max_element(row.begin(), row.begin() + World::kIdLimit);
    output.push_back(static_cast<TokenId>(best - row.begin()));
    history = extend(history, output.back(), position++);
  }
  return output;
}

TEST(Engine, GeneratesWhatTheModelSays) {
  World world;
  const Request request = greedy_request(10, 20);
  const RequestId id = world.submit(request);
  ASSERT_TRUE(world.run_until_idle());
  EXPECT_EQ(world.record(id).tokens, greedy_output(request.prompt, 20));
  EXPECT_EQ(world.record(id).finish, FinishReason::length);
  EXPECT_EQ(world.model.fault(), "");
}

TEST(Engine, BatchesManyRequests) {
  World world;
  std::vector<RequestId> ids;
  std::vector<Request> requests;
  for (int i = 0; i < 20; ++i) {
    requests.push_back(greedy_request(1 + 3 * i, 10 + i, 5 + i));
    ids.push_back(world.submit(requests.back()));
  }
  ASSERT_TRUE(world.run_until_idle());
  for (size_t i = 0; i < ids.size(); ++i)
    EXPECT_EQ(world.record(ids[i]).tokens,
              greedy_output(requests[i].prompt, requests[i].params.max_tokens))
        << i;
  EXPECT_EQ(world.model.fault(), "");
  EXPECT_EQ(world.engine.stats().kv_blocks_used, 0);
}

TEST(Engine, SmallPoolPreemptsAndStillFinishes) {
  World world(World::config(), World::limits(12));
  std::vector<RequestId> ids;
  std::vector<Request> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(greedy_request(8, 30, 5 + i));
    ids.push_back(world.submit(requests.back()));
  }
  ASSERT_TRUE(world.run_until_idle());
  EXPECT_GT(world.engine.stats().preemptions, 0);
  for (size_t i = 0; i < ids.size(); ++i)
    EXPECT_EQ(world.record(ids[i]).tokens, greedy_output(requests[i].prompt, 30)) << i;
  EXPECT_EQ(world.model.fault(), "");
}

}  // namespace
}  // namespace m2::engine::test
