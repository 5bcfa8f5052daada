#include "tests/engine/simulation.h"

#include <gtest/gtest.h>

#include <iostream>

#include "base/log.h"

namespace m2::engine::test {
namespace {

TEST(Simulation, ManyWorlds) {
  spdlog::set_level(spdlog::level::off);  // broken steps are part of the plan
  SimulationResult total;
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    const SimulationResult result = simulate(seed, 2000);
    ASSERT_EQ(result.failure, "") << "seed " << seed;
    total.steps += result.steps;
    total.requests += result.requests;
    total.tokens += result.tokens;
    total.preemptions += result.preemptions;
    total.cached_tokens += result.cached_tokens;
    total.aborted += result.aborted;
    total.failed += result.failed;
    total.deaths += result.deaths;
  }
  std::cout << total.steps << " steps, " << total.requests << " requests, " << total.tokens
            << " tokens, " << total.preemptions << " preemptions, " << total.cached_tokens
            << " cached tokens, " << total.aborted << " aborted, " << total.failed << " failed, "
            << total.deaths << " deaths\n";
}

TEST(Simulation, ReplaysExactly) {
  for (uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_EQ(simulate(seed, 500).trace, simulate(seed, 500).trace) << seed;
}

}  // namespace
}  // namespace m2::engine::test
