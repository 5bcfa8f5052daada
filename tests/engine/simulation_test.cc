// Covers: engine/engine, engine/scheduler, kv/paged_cache
// Random worlds: the real engine, scheduler and paged cache over a model whose logits are a hash of
// the history it finds in its paged storage (history_model.h). After every step the invariants of
// reliability.md 6.4 that make sense for one rank are checked (I1-I6, I8-I12, I15; I7 as
// "everything ends within a bound"), and every token, logprob and end is compared with a solo run.
//
// Mutation check. Each of these bugs was put in by hand, alone, and Simulation.ManyWorlds was run.
// Caught, most of them within the first worlds:
//   kv      release() skips the first block; retain() does not count a second holder; blocks_for()
//           rounds down; eviction leaves the index entry; unlinking forgets the count of kept
//           blocks; a match reaches into a block that is not full; publish() enters the neighbour's
//           block; release() keeps blocks the index does not know; a block's parent is neither
//           hashed nor compared.
//   plan    a hit may cover the whole prompt; a victim keeps its blocks; a victim stays in the
//   plan;
//           a waiting sequence keeps its progress (found after the audit learned to look); running
//           sequences out of order; kept blocks counted twice at admission; a chunk ignores the
//           budget.
//   batch   a token's slot is its predecessor's; rows of the block table one entry too narrow; a
//           sample at the end of any chunk.
//   engine  blocks published one token early; noise that depends on the row; length one token late;
//           output not counted for penalties; an aborted request stays in the queue's count; prompt
//           logprobs asked for again after a preemption; cancelling what runs ignored; a last event
//           sent twice; cached_tokens on every event; a dead engine keeps its requests; the sampler
//           reads padding columns.
// Not caught, because nothing changes: min_tokens off by one in ending_of() (the sampler's mask
// forbids stops before it already), and a block's hash without its parent's (identity is compared).
// Not visible here, so tried against the unit tests instead, and caught: salts ignored, ids not
// compared behind a hash, damaged blocks staying in the cache, the head of a prefix evicted before
// its end, admission in a step that preempted, decodes behind prefills.
#include "tests/engine/simulation.h"

#include <gtest/gtest.h>

#include <iostream>

#include "base/log.h"

namespace m2::engine::test {
namespace {

// The thread sanitizer makes a world ten times slower, and a simulation has one thread.
#ifdef __SANITIZE_THREAD__
constexpr uint64_t kWorlds = 50;
#else
constexpr uint64_t kWorlds = 500;
#endif

TEST(Simulation, ManyWorlds) {
  spdlog::set_level(spdlog::level::off);  // broken steps are part of the plan
  SimulationResult total;
  for (uint64_t seed = 1; seed <= kWorlds; ++seed) {
    const SimulationResult result = simulate(seed, 2000);
    ASSERT_EQ(result.failure, "") << "seed " << seed;
    total.steps += result.steps;
    total.requests += result.requests;
    total.tokens += result.tokens;
    total.preemptions += result.preemptions;
    total.cached_tokens += result.cached_tokens;
    total.drafted_came += result.drafted_came;
    total.aborted += result.aborted;
    total.failed += result.failed;
    total.deaths += result.deaths;
  }
  std::cout << total.steps << " steps, " << total.requests << " requests, " << total.tokens
            << " tokens, " << total.preemptions << " preemptions, " << total.cached_tokens
            << " cached tokens, " << total.drafted_came << " tokens of drafts, " << total.aborted << " aborted, " << total.failed << " failed, "
            << total.deaths << " deaths\n";
  EXPECT_GT(total.drafted_came, 0);
}

TEST(Simulation, ReplaysExactly) {
  for (uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_EQ(simulate(seed, 500).trace, simulate(seed, 500).trace) << seed;
}

}  // namespace
}  // namespace m2::engine::test
