#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/engine/simulation.h"

namespace m2::engine::test {
namespace {

// Ten times the default suite, with seeds of its own.
TEST(SimulationLong, ManyMoreWorlds) {
  spdlog::set_level(spdlog::level::off);
  for (uint64_t seed = 100'001; seed <= 105'000; ++seed) {
    const SimulationResult result = simulate(seed, 2000);
    ASSERT_EQ(result.failure, "") << "seed " << seed;
  }
}

}  // namespace
}  // namespace m2::engine::test
