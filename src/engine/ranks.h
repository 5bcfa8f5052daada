#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "model/step_model.h"
#include "parallel/comm.h"
#include "parallel/topology.h"

// One engine on several ranks, and several engines in step. The first rank of an engine schedules
// and samples; it hands every step's plan to the others of its engine, and all run it. Engines that
// share experts step together: before each step they tell each other how many tokens they bring,
// and an idle one brings none.

namespace m2::engine {

// The groups here carry host memory.
struct StepRanks {
  parallel::Groups groups;
  parallel::Topology topology;
};

// The first rank of an engine as a StepModel: what Engine runs. Not thread-safe but for want().
class FirstRank : public model::StepModel {
 public:
  // `own`: this rank's model. `call_others(round)`: makes all other engines' first ranks want()
  // that round, if engines share experts. All outlive this.
  FirstRank(model::StepModel& own, const StepRanks& ranks,
            std::function<void(uint64_t round)> call_others);

  Limits limits() const override { return own_.limits(); }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override;

  // With engines in step: joins the round the others are in, if they are, and once a second in any
  // case. With one engine: makes sure, once a second, that its ranks are there. True if some engine
  // had work: the next round follows at once.
  Result<bool> idle() override;

  // Another engine has begun `round` and waits for us. Any thread; calls `on_want` of set_wake().
  void want(uint64_t round);
  // What wakes the engine's thread out of its idle wait.
  void set_wake(std::function<void()> wake) { wake_ = std::move(wake); }

  // Lets the engine's other ranks go. After the last step, on the engine's thread. Engines in step
  // leave together: until the last one does, this one runs empty steps.
  void stop();

 private:
  bool engines_in_step() const { return ranks_.groups.engines != nullptr; }
  Result<void> announce(int64_t kind, const model::StepInput& input);
  Result<int64_t> meet(int64_t tokens);
  Result<void> run_empty_step();
  Result<bool> leave();

  model::StepModel& own_;
  const StepRanks ranks_;
  const std::function<void(uint64_t)> call_others_;
  std::function<void()> wake_;
  std::atomic<uint64_t> wanted_{0};
  uint64_t round_ = 0;      // of the last meeting
  int64_t last_total_ = 0;  // tokens of all engines in it
  Nanos last_meeting_ = 0;
  bool all_leave_ = false;  // as of the last meeting
  std::vector<int64_t> engine_tokens_, rank_tokens_;
  std::vector<int32_t> payload_;
};

// Runs on every other rank of an engine, on a thread of its own: takes plans and runs them on `own`
// until the first rank stops (success), or a collective fails.
Result<void> follow(model::StepModel& own, const StepRanks& ranks);

}  // namespace m2::engine
