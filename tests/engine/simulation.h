#pragma once

#include <cstdint>
#include <string>

namespace m2::engine::test {

struct SimulationResult {
  std::string failure;  // empty: every invariant held
  int64_t steps = 0;
  int64_t requests = 0;
  int64_t tokens = 0;
  int64_t preemptions = 0;
  int64_t cached_tokens = 0;
  int64_t drafted_came = 0;  // tokens that were drafted and came
  int64_t aborted = 0, failed = 0, deaths = 0;
  uint64_t trace = 0;  // hash of every event, for replay
};

// Runs one random world for about `steps` engine steps. A pure function of its arguments.
SimulationResult simulate(uint64_t seed, int64_t steps);

}  // namespace m2::engine::test
