#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "base/log.h"
#include "tests/engine/engine_fixture.h"
#include "tests/engine/sampling_model.h"

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

// ---- How requests end -------------------------------------------------------------------------

// The greedy output of a prompt, and a token of it that has not come before its place.
struct Script {
  Request request = greedy_request(6, 30);
  std::vector<TokenId> output = greedy_output(request.prompt, 30);
  size_t place = 5;
  Script() {
    while (std::count(output.begin(), output.begin() + std::ptrdiff_t(place), output[place]))
      ++place;
  }
  TokenId token() const { return output[place]; }
  std::vector<TokenId> until() const {
    return {output.begin(), output.begin() + std::ptrdiff_t(place) + 1};
  }
};

TEST(Engine, EosEndsWithStop) {
  Script script;
  EngineConfig config = World::config();
  config.eos_token_ids = {3, script.token()};
  World world(config);
  script.request.params.ignore_eos = false;
  script.request.params.stop_token_ids = {script.token()};  // eos comes first
  const RequestId id = world.submit(script.request);
  world.run_until_idle();
  EXPECT_EQ(world.record(id).tokens, script.until());
  EXPECT_EQ(world.record(id).finish, FinishReason::stop);
  EXPECT_EQ(world.record(id).stop_token, -1);
}

TEST(Engine, IgnoredEosMayStillBeAStopId) {
  Script script;
  EngineConfig config = World::config();
  config.eos_token_ids = {script.token()};
  World world(config);
  const RequestId ignoring = world.submit(script.request);
  script.request.params.stop_token_ids = {script.token()};
  const RequestId stopping = world.submit(script.request);
  world.run_until_idle();
  EXPECT_EQ(world.record(ignoring).tokens, script.output);
  EXPECT_EQ(world.record(stopping).tokens, script.until());
  EXPECT_EQ(world.record(stopping).stop_token, script.token());
}

TEST(Engine, MinTokensHoldsBackStops) {
  Script script;
  World world;
  script.request.params.stop_token_ids = {script.token()};
  script.request.params.min_tokens = 20;
  const RequestId id = world.submit(script.request);
  world.run_until_idle();
  const auto& tokens = world.record(id).tokens;
  EXPECT_GE(tokens.size(), 20u);
  EXPECT_EQ(std::count(tokens.begin(), tokens.begin() + 20, script.token()), 0);
  EXPECT_EQ(std::count(tokens.begin(), tokens.begin() + 20, World::kEos), 0);
}

TEST(Engine, LengthIsTheLeastOfAskedContextAndPool) {
  {
    World world(World::config(), World::limits(64, 4, 50));
    const RequestId id = world.submit(greedy_request(10, 1'000'000));
    world.run_until_idle();
    EXPECT_EQ(world.record(id).tokens.size(), 40u);
    EXPECT_EQ(world.record(id).finish, FinishReason::length);
  }
  {
    World world(World::config(), World::limits(5, 4, 200));  // room for 20 tokens' K and V
    const RequestId id = world.submit(greedy_request(10, 1'000'000));
    const RequestId other = world.submit(greedy_request(3, 1'000'000));
    world.run_until_idle();
    EXPECT_EQ(world.record(id).tokens, greedy_output(greedy_request(10, 1).prompt, 11));
    EXPECT_EQ(world.record(other).tokens, greedy_output(greedy_request(3, 1).prompt, 18));
    EXPECT_EQ(world.record(id).finish, FinishReason::length);
  }
}

TEST(Engine, RefusesWhatItCannotServe) {
  World world(World::config(), World::limits(10, 4, 60));
  const auto refused = [&](const Request& request) {
    const auto id = world.engine.submit(request);
    return !id.ok() && id.error().code == Code::invalid_argument && !id.error().text.empty();
  };
  EXPECT_TRUE(refused(Request{}));
  EXPECT_TRUE(refused(greedy_request(60, 1)));
  EXPECT_TRUE(refused(greedy_request(41, 1)));  // the pool holds 40
  EXPECT_FALSE(refused(greedy_request(40, 1)));
  const auto with = [&](auto change) {
    Request request = greedy_request(4, 4);
    change(request);
    return refused(request);
  };
  EXPECT_FALSE(with([](Request&) {}));
  EXPECT_TRUE(with([](Request& r) { r.prompt[1] = -1; }));
  EXPECT_TRUE(with([](Request& r) { r.prompt[1] = World::kIdLimit; }));
  EXPECT_TRUE(with([](Request& r) { r.params.temperature = -0.1f; }));
  EXPECT_TRUE(with([](Request& r) { r.params.temperature = std::nanf(""); }));
  EXPECT_TRUE(with([](Request& r) { r.params.temperature = 1.0f / 0.0f; }));
  EXPECT_TRUE(with([](Request& r) { r.params.top_p = 0; }));
  EXPECT_TRUE(with([](Request& r) { r.params.top_p = 1.1f; }));
  EXPECT_TRUE(with([](Request& r) { r.params.top_p = std::nanf(""); }));
  EXPECT_TRUE(with([](Request& r) { r.params.top_k = -1; }));
  EXPECT_TRUE(with([](Request& r) { r.params.min_p = 1.1f; }));
  EXPECT_TRUE(with([](Request& r) { r.params.presence_penalty = 2.5f; }));
  EXPECT_TRUE(with([](Request& r) { r.params.frequency_penalty = std::nanf(""); }));
  EXPECT_TRUE(with([](Request& r) { r.params.repetition_penalty = 0; }));
  EXPECT_TRUE(with([](Request& r) { r.params.max_tokens = 0; }));
  EXPECT_TRUE(with([](Request& r) { r.params.min_tokens = 5; }));
  EXPECT_TRUE(with([](Request& r) { r.params.min_tokens = -1; }));
  EXPECT_TRUE(with([](Request& r) { r.params.logprobs = 21; }));
  EXPECT_TRUE(with([](Request& r) { r.params.logprobs = -2; }));
  EXPECT_TRUE(with([](Request& r) { r.params.prompt_logprobs = 21; }));
  EXPECT_TRUE(with([](Request& r) { r.params.stop_token_ids = {61}; }));
  EXPECT_TRUE(with([](Request& r) { r.params.allowed_token_ids = {-1}; }));
  EXPECT_TRUE(with([](Request& r) { r.params.logit_bias = {{61, 1.0f}}; }));
  EXPECT_TRUE(with([](Request& r) { r.params.logit_bias = {{1, 101.0f}}; }));
  EXPECT_TRUE(with([](Request& r) { r.params.bad_words = {{}}; }));
  EXPECT_TRUE(with([](Request& r) { r.params.bad_words = {{1, 61}}; }));
}

TEST(Engine, QueueIsBoundedByRequestsAndTokens) {
  EngineConfig config = World::config();
  config.max_queued_requests = 3;
  config.max_queued_tokens = 200;
  World world(config);
  const auto code = [&](int64_t size) {
    const auto id = world.engine.submit(greedy_request(size, 2));
    return id.ok() ? std::optional<Code>() : id.error().code;
  };
  EXPECT_EQ(code(150), std::nullopt);
  EXPECT_EQ(code(51), Code::resource_exhausted);
  EXPECT_EQ(code(50), std::nullopt);
  world.run_until_idle();
  EXPECT_EQ(code(199), std::nullopt);
  world.run_until_idle();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(code(1), std::nullopt);
  EXPECT_EQ(code(1), Code::resource_exhausted);
  world.engine.drain();
  EXPECT_EQ(code(1), Code::unavailable);
  world.run_until_idle();
  for (const auto& [id, record] : world.sink.records)
    EXPECT_EQ(record.finish, FinishReason::length) << "draining ends nothing";
}

TEST(Engine, CancelEndsWithinOneStep) {
  EngineConfig config = World::config();
  config.max_num_seqs = 1;
  World world(config);
  const RequestId running = world.submit(greedy_request(6, 100));
  const RequestId waiting = world.submit(greedy_request(6, 100));
  for (int i = 0; i < 5; ++i) world.engine.step();
  EXPECT_EQ(world.engine.stats().running, 1);
  EXPECT_EQ(world.engine.stats().waiting, 1);
  world.engine.cancel(running);
  world.engine.cancel(waiting);
  world.engine.cancel(running);
  world.engine.cancel(999);
  world.engine.step();
  EXPECT_EQ(world.record(running).finish, FinishReason::abort);
  EXPECT_EQ(world.record(running).tokens.size(), 5u);
  EXPECT_EQ(world.record(waiting).finish, FinishReason::abort);
  EXPECT_EQ(world.record(waiting).events.size(), 1u);
  EXPECT_EQ(world.record(waiting).cached_tokens, 0);
  EXPECT_EQ(world.engine.stats().kv_blocks_used, 0);
  EXPECT_FALSE(world.engine.step());
  EXPECT_FALSE(world.sink.records.contains(999));
}

TEST(Engine, AFailedStepEndsEverythingOnce) {
  spdlog::set_level(spdlog::level::off);
  EngineConfig config = World::config();
  config.max_num_seqs = 2;
  World world(config);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(world.submit(greedy_request(6, 100)));
  world.engine.step();
  world.model.break_next_step();
  ids.push_back(world.submit(greedy_request(6, 100)));
  world.engine.step();
  for (const RequestId id : ids) {
    EXPECT_EQ(world.record(id).finish, FinishReason::error);
    EXPECT_NE(world.record(id).error.find("the device fell over"), std::string::npos);
  }
  EXPECT_TRUE(world.engine.stats().dead);
  EXPECT_EQ(world.engine.stats().kv_blocks_used, 0);
  EXPECT_FALSE(world.engine.step());
  const auto late = world.engine.submit(greedy_request(6, 1));
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, Code::unavailable);
}

// NaN is the fault of its request: neighbours go on, its blocks are not cached, it is counted.
TEST(Engine, NanEndsItsRequestAlone) {
  World world;
  const Request victim = greedy_request(9, 5);
  uint64_t history = kEmptyHistory;
  for (int64_t i = 0; i < 9; ++i) history = extend(history, victim.prompt[size_t(i)], i);
  world.model.set_nan_every(history);
  const Request other = greedy_request(9, 5, 11);
  const RequestId bad = world.submit(victim);
  const RequestId good = world.submit(other);
  world.run_until_idle();
  EXPECT_EQ(world.record(bad).finish, FinishReason::error);
  EXPECT_TRUE(world.record(bad).tokens.empty());
  EXPECT_EQ(world.record(good).tokens, greedy_output(other.prompt, 5));
  EXPECT_NE(world.metrics.render().find("vllm:corrupted_requests_total 1.0\n"), std::string::npos);
  world.model.set_nan_every(0);
  const RequestId again = world.submit(victim);
  world.run_until_idle();
  EXPECT_EQ(world.record(again).cached_tokens, 0);
  EXPECT_EQ(world.record(again).tokens, greedy_output(victim.prompt, 5));
}

// NaN in a later token: what the request had put into the cache by then is taken out again.
TEST(Engine, LateNanTakesItsBlocksOutOfTheCache) {
  World world;
  const Request request = greedy_request(9, 5);
  const auto output = greedy_output(request.prompt, 5);
  uint64_t history = kEmptyHistory;
  for (int64_t i = 0; i < 9; ++i) history = extend(history, request.prompt[size_t(i)], i);
  for (int64_t i = 0; i < 2; ++i) history = extend(history, output[size_t(i)], 9 + i);
  world.model.set_nan_every(history);
  const RequestId bad = world.submit(request);
  world.run_until_idle();
  EXPECT_EQ(world.record(bad).finish, FinishReason::error);
  EXPECT_EQ(world.record(bad).tokens.size(), 2u);
  world.model.set_nan_every(0);
  const RequestId again = world.submit(request);
  world.run_until_idle();
  EXPECT_EQ(world.record(again).cached_tokens, 0);
  EXPECT_EQ(world.record(again).tokens, output);
}

TEST(Engine, ImpossibleConstraintsEndTheirRequestAlone) {
  World world;
  Request request = greedy_request(9, 5);
  request.params.allowed_token_ids = {7};
  request.params.bad_words = {{7}};
  const RequestId bad = world.submit(request);
  const RequestId good = world.submit(greedy_request(9, 5));
  world.run_until_idle();
  EXPECT_EQ(world.record(bad).finish, FinishReason::error);
  EXPECT_FALSE(world.record(bad).error.empty());
  EXPECT_EQ(world.record(good).tokens.size(), 5u);
  EXPECT_NE(world.metrics.render().find("vllm:corrupted_requests_total 0.0\n"), std::string::npos);
}

// ---- Prefix cache -----------------------------------------------------------------------------

TEST(Engine, PrefixHitsAreFullBlocksShortOfTheLastToken) {
  for (const int64_t size : {1, 3, 4, 5, 8, 9, 23}) {
    World world;
    const Request request = greedy_request(size, 3);
    const RequestId cold = world.submit(request);
    world.run_until_idle();
    const RequestId warm = world.submit(request);
    world.run_until_idle();
    EXPECT_EQ(world.record(cold).cached_tokens, 0);
    EXPECT_EQ(world.record(warm).cached_tokens, (size - 1) / 4 * 4) << size;
    EXPECT_EQ(world.record(warm).tokens, world.record(cold).tokens);
    EXPECT_EQ(world.engine.stats().prefix_queries, 2 * size);
    EXPECT_EQ(world.engine.stats().prefix_hits, (size - 1) / 4 * 4);
  }
}

TEST(Engine, TheNextTurnFindsTheOutputToo) {
  World world;
  Request request = greedy_request(6, 20);
  const RequestId first = world.submit(request);
  world.run_until_idle();
  const auto& output = world.record(first).tokens;
  request.prompt.insert(request.prompt.end(), output.begin(), output.end());
  request.prompt.push_back(5);
  const RequestId second = world.submit(request);
  world.run_until_idle();
  // 26 tokens, of which the last was sampled but never computed: 25 stored, 6 full blocks.
  EXPECT_EQ(world.record(second).cached_tokens, 24);
  EXPECT_EQ(world.record(second).tokens, greedy_output(request.prompt, 20));
}

TEST(Engine, SaltsPromptLogprobsAndTheSwitchKeepTheCacheOut) {
  World world;
  Request request = greedy_request(12, 2);
  const auto cached = [&](World& where) {
    const RequestId id = where.submit(request);
    where.run_until_idle();
    return where.record(id).cached_tokens;
  };
  EXPECT_EQ(cached(world), 0);
  EXPECT_EQ(cached(world), 8);
  request.cache_salt = "tenant";
  EXPECT_EQ(cached(world), 0);
  EXPECT_EQ(cached(world), 8);
  request.params.prompt_logprobs = 1;
  EXPECT_EQ(cached(world), 0);
  request.params.prompt_logprobs = -1;
  EngineConfig config = World::config();
  config.prefix_caching = false;
  World off(config);
  EXPECT_EQ(cached(off), 0);
  EXPECT_EQ(cached(off), 0);
}

TEST(Engine, IdenticalPromptsAtOnce) {
  World world;
  std::vector<RequestId> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(world.submit(greedy_request(13, 10)));
  world.run_until_idle();
  const auto expected = greedy_output(greedy_request(13, 1).prompt, 10);
  for (const RequestId id : ids) EXPECT_EQ(world.record(id).tokens, expected);
  EXPECT_EQ(world.model.fault(), "");
}

// The choices of one prompt: the others wait for the first to compute it, then share all of it.
TEST(Engine, SiblingsComputeTheirPromptOnce) {
  for (const bool holding : {false, true}) {
    EngineConfig config = World::config();
    config.shared_prefill_tokens = holding ? 8 : 0;
    World world(config);
    std::vector<RequestId> ids;
    for (int i = 0; i < 4; ++i) ids.push_back(world.submit(greedy_request(61, 10)));
    const RequestId stranger = world.submit(greedy_request(5, 10, 3));
    ASSERT_TRUE(world.run_until_idle());
    const auto expected = greedy_output(greedy_request(61, 1).prompt, 10);
    for (const RequestId id : ids) EXPECT_EQ(world.record(id).tokens, expected);
    EXPECT_EQ(world.record(stranger).tokens.size(), 10u);
    const int64_t hits = world.engine.stats().prefix_hits;
    EXPECT_EQ(hits == 3 * 60, holding) << hits;
  }
}

// ---- What a step holds ------------------------------------------------------------------------

TEST(Engine, LongPromptsAreChunkedAndDecodesGoOn) {
  World world;  // 32 tokens a step
  const RequestId talker = world.submit(greedy_request(4, 50));
  world.engine.step();
  const RequestId reader = world.submit(greedy_request(120, 5));
  const size_t before = world.record(talker).tokens.size();
  int steps = 0;
  while (world.record(reader).tokens.empty() && steps < 20) {
    world.engine.step();
    EXPECT_LE(world.model.tokens(), 32);
    ++steps;
  }
  EXPECT_EQ(steps, 4);  // 31 + 31 + 31 + 27
  EXPECT_EQ(world.record(talker).tokens.size(), before + 4);
}

// A prompt that comes first in order must not starve those who decode.
TEST(Engine, AnUrgentLongPromptDoesNotStopDecodes) {
  EngineConfig config = World::config();
  config.policy = SchedulingPolicy::priority;
  World world(config);
  const RequestId talker = world.submit(greedy_request(4, 50));
  world.engine.step();
  Request urgent = greedy_request(120, 5);
  urgent.priority = -5;
  world.submit(urgent);
  for (size_t i = 0; i < 4; ++i) {
    world.engine.step();
    EXPECT_EQ(world.record(talker).tokens.size(), 2 + i);
  }
}

TEST(Engine, LongPrefillThresholdLeavesRoomForOthers) {
  EngineConfig config = World::config();
  config.long_prefill_token_threshold = 10;
  World world(config);
  world.submit(greedy_request(100, 5));
  const RequestId quick = world.submit(greedy_request(8, 5));
  world.engine.step();
  EXPECT_EQ(world.model.tokens(), 18);
  EXPECT_EQ(world.record(quick).tokens.size(), 1u);
}

TEST(Engine, WithoutChunkingPromptsThatFitAreWhole) {
  EngineConfig config = World::config();
  config.chunked_prefill = false;
  World world(config);
  world.submit(greedy_request(20, 5));
  world.submit(greedy_request(20, 5, 3));
  world.engine.step();
  EXPECT_EQ(world.model.tokens(), 20);
  world.engine.step();
  EXPECT_EQ(world.model.tokens(), 21);
  const RequestId longer = world.submit(greedy_request(40, 5, 4));  // more than any step holds
  EXPECT_TRUE(world.run_until_idle());
  EXPECT_EQ(world.record(longer).tokens.size(), 5u);
}

// Requests finish in this order when one runs at a time.
std::vector<int> order_of_service(SchedulingPolicy policy, const std::vector<int32_t>& priorities) {
  EngineConfig config = World::config();
  config.max_num_seqs = 1;
  config.policy = policy;
  World world(config);
  std::vector<RequestId> ids;
  for (const int32_t priority : priorities) {
    Request request = greedy_request(4, 2);
    request.priority = priority;
    ids.push_back(world.submit(request));
  }
  std::vector<int> order;
  std::set<size_t> done;
  while (done.size() < ids.size()) {
    world.engine.step();
    for (size_t i = 0; i < ids.size(); ++i) {
      if (world.finished(ids[i]) && done.insert(i).second) order.push_back(static_cast<int>(i));
    }
  }
  return order;
}

TEST(Engine, PolicyOrdersTheQueue) {
  const std::vector<int32_t> priorities = {3, 1, 2, 1, -1};
  EXPECT_EQ(order_of_service(SchedulingPolicy::fcfs, priorities),
            (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_EQ(order_of_service(SchedulingPolicy::priority, priorities),
            (std::vector<int>{4, 1, 3, 2, 0}));
}

// Two sequences outgrow the pool: the victim is the last (fcfs) or the least urgent (priority), and
// nobody is admitted in that step, though the victim's blocks would do for a small request (which
// under priority stands before the victim in the queue).
TEST(Engine, PreemptionTakesTheLastAndAdmitsNobody) {
  for (const bool by_priority : {false, true}) {
    EngineConfig config = World::config();
    config.policy = by_priority ? SchedulingPolicy::priority : SchedulingPolicy::fcfs;
    World world(config, World::limits(6));
    Request request = greedy_request(8, 12);
    request.priority = 1;
    const RequestId first = world.submit(request);
    request.prompt[0] = 1;
    request.priority = 0;
    const RequestId second = world.submit(request);
    world.engine.step();
    EXPECT_EQ(world.engine.stats().running, 2);
    std::vector<RequestId> small;
    const auto served = [&] {
      return std::ranges::count_if(small, [&](RequestId id) { return world.finished(id); });
    };
    std::ptrdiff_t before = 0;
    while (world.engine.stats().preemptions == 0) {
      small.push_back(world.submit(greedy_request(1, 1)));
      before = served();
      world.engine.step();
    }
    EXPECT_EQ(served(), before);
    const RequestId survivor = by_priority ? second : first;
    const RequestId victim = by_priority ? first : second;
    EXPECT_EQ(world.record(survivor).tokens.size(), world.record(victim).tokens.size() + 1);
    EXPECT_EQ(world.engine.stats().running, 1);
    world.run_until_idle();
    EXPECT_EQ(world.record(victim).tokens.size(), 12u);
    EXPECT_EQ(world.model.fault(), "");
  }
}

TEST(Engine, LogitsMayComeInSlices) {
  for (const int64_t slice : {1, 2, 5}) {
    World world(World::config(), World::limits(), 3);
    world.model.set_slice(slice);
    Request request = greedy_request(30, 5);
    request.params.prompt_logprobs = 2;
    const RequestId id = world.submit(request);
    const RequestId other = world.submit(greedy_request(10, 5));
    world.run_until_idle();
    EXPECT_EQ(world.record(id).tokens, greedy_output(request.prompt, 5));
    EXPECT_EQ(world.record(other).tokens.size(), 5u);
    const auto& first = world.record(id).events.front();
    ASSERT_EQ(first.prompt_logprobs().size(), 29u);
    for (size_t i = 0; i < 29; ++i) {
      EXPECT_EQ(first.prompt_logprobs()[i].chosen.id, request.prompt[i + 1]);
      EXPECT_EQ(first.prompt_logprobs()[i].top.size(), 2u);
    }
  }
}

TEST(Engine, RequestsWithoutASeedDifferAndEnginesWithOneSeedAgree) {
  Request request = greedy_request(5, 20);
  request.params.temperature = 1;
  std::vector<std::vector<TokenId>> outputs;
  for (int run = 0; run < 2; ++run) {
    World world;
    const RequestId a = world.submit(request), b = world.submit(request);
    world.run_until_idle();
    outputs.push_back(world.record(a).tokens);
    outputs.push_back(world.record(b).tokens);
  }
  EXPECT_EQ(outputs[0], outputs[2]);
  EXPECT_EQ(outputs[1], outputs[3]);
  EXPECT_NE(outputs[0], outputs[1]);
}

// ---- Metrics ----------------------------------------------------------------------------------

TEST(Engine, MetricsTellTheStory) {
  EngineConfig config = World::config();
  config.metric_labels = "model_name=\"m\",engine=\"0\"";
  World world(config);
  const RequestId a = world.submit(greedy_request(10, 5));
  world.run_until_idle();
  world.submit(greedy_request(10, 7));
  const RequestId cancelled = world.submit(greedy_request(10, 50));
  world.engine.step();
  world.engine.cancel(cancelled);
  world.run_until_idle();
  EXPECT_TRUE(world.finished(a));
  const std::string text = world.metrics.render();
  const auto has = [&](const std::string& line) {
    EXPECT_NE(text.find("\n" + line + "\n"), std::string::npos) << line << "\n" << text;
  };
  const std::string labels = "{model_name=\"m\",engine=\"0\"} ";
  const std::string open = "{model_name=\"m\",engine=\"0\",";
  has("vllm:num_requests_running" + labels + "0.0");
  has("vllm:num_requests_waiting" + labels + "0.0");
  has("vllm:kv_cache_usage_perc" + labels + "0.0");
  has("vllm:prefix_cache_queries_total" + labels + "30.0");
  has("vllm:prefix_cache_hits_total" + labels + "16.0");
  has("vllm:num_preemptions_total" + labels + "0.0");
  has("vllm:prompt_tokens_total" + labels + "30.0");
  has("vllm:prompt_tokens_by_source_total" + open + "source=\"local_compute\"} 14.0");
  has("vllm:prompt_tokens_by_source_total" + open + "source=\"local_cache_hit\"} 16.0");
  has("vllm:prompt_tokens_cached_total" + labels + "16.0");
  has("vllm:generation_tokens_total" + labels + "13.0");
  has("vllm:request_success_total" + open + "finished_reason=\"length\"} 2.0");
  has("vllm:request_success_total" + open + "finished_reason=\"abort\"} 1.0");
  has("vllm:request_success_total" + open + "finished_reason=\"stop\"} 0.0");
  has("vllm:request_success_total" + open + "finished_reason=\"error\"} 0.0");
  has("vllm:time_to_first_token_seconds_count" + labels + "3.0");
  has("vllm:inter_token_latency_seconds_count" + labels + "10.0");
  has("vllm:e2e_request_latency_seconds_count" + labels + "3.0");
  has("vllm:request_queue_time_seconds_count" + labels + "3.0");
  has("vllm:request_prefill_time_seconds_count" + labels + "3.0");
  has("vllm:request_decode_time_seconds_count" + labels + "3.0");
  has("vllm:request_inference_time_seconds_count" + labels + "3.0");
  has("vllm:request_time_per_output_token_seconds_count" + labels + "2.0");
  has("vllm:request_prompt_tokens_sum" + labels + "30.0");
  has("vllm:request_generation_tokens_sum" + labels + "13.0");
  has("vllm:request_params_max_tokens_sum" + labels + "62.0");
  has("vllm:request_max_num_generation_tokens_sum" + labels + "62.0");
  has("vllm:request_prefill_kv_computed_tokens_sum" + labels + "14.0");
  has("vllm:iteration_tokens_total_sum" + labels + "24.0");
  has("vllm:request_prompt_tokens_bucket" + open + "le=\"200.0\"} 3.0");
  // Lengths have buckets up to the context of 200 tokens, no further.
  EXPECT_EQ(text.find("vllm:request_prompt_tokens_bucket" + open + "le=\"500.0\"}"),
            std::string::npos);
}

TEST(Engine, TimesAreMeasuredFromArrival) {
  World world;
  world.submit(greedy_request(4, 3));
  world.clock.advance(2 * kSecond);
  world.engine.step();  // first token at 2 s
  world.clock.advance(kSecond);
  world.engine.step();
  world.clock.advance(kSecond);
  world.engine.step();
  const std::string text = world.metrics.render();
  const auto has = [&](const char* line) { EXPECT_NE(text.find(line), std::string::npos) << line; };
  has("vllm:time_to_first_token_seconds_sum 2.0\n");
  has("vllm:inter_token_latency_seconds_sum 2.0\n");
  has("vllm:e2e_request_latency_seconds_sum 4.0\n");
  has("vllm:request_queue_time_seconds_sum 2.0\n");
  has("vllm:request_decode_time_seconds_sum 2.0\n");
  has("vllm:request_inference_time_seconds_sum 2.0\n");
  has("vllm:request_time_per_output_token_seconds_sum 1.0\n");
}

// ---- The end of run() -------------------------------------------------------------------------

// Who owns the model may end it, or its ranks, as soon as run() returns.
TEST(Engine, RunLeavesNoStepUnderWay) {
  struct StopAtFirstToken : RecordingSink {
    void on_events(std::vector<Event>&& events) override {
      RecordingSink::on_events(std::move(events));
      stop.request_stop();
    }
    std::stop_source stop;
  } sink;
  SteadyClock clock;
  SamplingModel model(World::limits(), World::kIdLimit, 1 << 20);
  ThreadPool pool(1);
  Metrics metrics;
  Engine engine(World::config(), model, pool, clock, sink, metrics);
  const auto id = engine.submit(greedy_request(6, 100));
  ASSERT_TRUE(id.ok());
  engine.run(sink.stop.get_token());
  EXPECT_EQ(model.most_under_way(), 2u);  // it has run ahead
  EXPECT_EQ(model.under_way(), 0u);
  EXPECT_EQ(sink.records[*id].finish, FinishReason::abort);
}

// ---- Threads ----------------------------------------------------------------------------------

class CountingSink : public EventSink {
 public:
  void on_events(std::vector<Event>&& events) override {
    std::lock_guard lock(mutex_);
    for (const Event& event : events) {
      if (event.finish != FinishReason::none) ++ends_[event.id];
    }
  }
  std::map<RequestId, int> ends() const {
    std::lock_guard lock(mutex_);
    return ends_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<RequestId, int> ends_;
};

// A world that runs on a thread of its own, in real time.
struct LiveWorld {
  explicit LiveWorld(int threads)
      : pool(threads), engine(World::config(), model, pool, clock, sink, metrics) {
    thread = std::jthread([this](std::stop_token stop) { engine.run(stop); });
  }
  SteadyClock clock;
  HistoryModel model{World::limits(24), World::kIdLimit};
  ThreadPool pool;
  CountingSink sink;
  Metrics metrics;
  Engine engine;
  std::jthread thread;
};

TEST(EngineThreads, ManySubmittersOneEndEach) {
  spdlog::set_level(spdlog::level::off);
  LiveWorld world(2);
  std::mutex mutex;
  std::set<RequestId> ids;
  std::vector<std::jthread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 100; ++i) {
        const auto id = world.engine.submit(greedy_request(1 + (i * 7 + client) % 40, 1 + i % 15));
        if (!id.ok()) continue;
        {
          std::lock_guard lock(mutex);
          EXPECT_TRUE(ids.insert(*id).second);
        }
        if (i % 5 == 0) world.engine.cancel(*id);
        EXPECT_LE(world.engine.stats().running, 8);
        (void)world.metrics.render();
      }
    });
  }
  clients.clear();
  while (world.sink.ends().size() < ids.size()) std::this_thread::yield();
  world.thread.request_stop();
  world.thread.join();
  for (const auto& [id, ends] : world.sink.ends()) {
    EXPECT_EQ(ends, 1);
    EXPECT_TRUE(ids.contains(id));
  }
  EXPECT_EQ(world.model.fault(), "");
}

// Whoever was let in before the stop gets an end; whoever comes later is told so.
TEST(EngineThreads, StopEndsEveryRequest) {
  for (int round = 0; round < 20; ++round) {
    LiveWorld world(1);
    std::set<RequestId> ids;
    std::jthread client([&] {
      while (true) {
        const auto id = world.engine.submit(greedy_request(20, 150));
        if (id.ok()) ids.insert(*id);
        if (!id.ok() && id.error().code == Code::unavailable) return;
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    world.thread.request_stop();
    world.thread.join();
    client.join();
    const auto ends = world.sink.ends();
    EXPECT_EQ(ends.size(), ids.size());
    for (const auto& [id, count] : ends) EXPECT_EQ(count, 1);
  }
}

TEST(EngineThreads, AnIdleEngineTicksAndWakesAtOnce) {
  LiveWorld world(1);
  const auto tick = [&] { return world.engine.stats().last_tick; };
  const Nanos deadline = world.clock.now() + 5 * kSecond;
  for (int i = 0; i < 2; ++i) {
    const Nanos seen = tick();
    while (tick() == seen && world.clock.now() < deadline) std::this_thread::yield();
    EXPECT_GT(tick(), seen);
  }
  const auto id = world.engine.submit(greedy_request(4, 1));
  ASSERT_TRUE(id.ok());
  while (world.sink.ends().empty() && world.clock.now() < deadline) std::this_thread::yield();
  EXPECT_EQ(world.sink.ends().count(*id), 1u);
}

}  // namespace
}  // namespace m2::engine::test
