#pragma once

#include <atomic>
#include <vector>

#include "base/clock.h"
#include "engine/rounds.h"
#include "engine/step_message.h"
#include "model/step_model.h"
#include "parallel/comm.h"
#include "parallel/topology.h"

// One engine on several ranks, and several engines in step. The first rank of an engine hands every
// step's plan to the others of its engine, and all run it. Engines that share experts step
// together: before each step they tell each other how many tokens they bring, and an idle one
// brings none.

namespace m2::engine {

// The groups here carry host memory.
struct StepRanks {
  parallel::Groups groups;
  parallel::Topology topology;
};

// Since when a rank waits for its device to finish a step. On devices collectives have no deadline
// of their own: who watches gives the groups up. Any thread.
class StepWatch {
 public:
  void begin() { since_.store(SteadyClock().now(), std::memory_order_relaxed); }
  void end() { since_.store(0, std::memory_order_relaxed); }
  // How long until now; 0: it does not wait.
  Nanos waited(Nanos now) const {
    const Nanos since = since_.load(std::memory_order_relaxed);
    return since == 0 ? 0 : now - since;
  }

 private:
  std::atomic<Nanos> since_{0};
};

// The first rank of an engine as a StepModel: what Engine runs, or a relay for an engine that
// schedules elsewhere (engine/seat.h). It samples, and runs ahead, if its own model does. One
// thread.
class FirstRank : public model::StepModel {
 public:
  // All outlive this. `rounds` is only asked by idle() and stop().
  FirstRank(model::StepModel& own, const StepRanks& ranks, Rounds& rounds, StepWatch& watch);

  Limits limits() const override { return own_.limits(); }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override;
  bool samples() const override { return own_.samples(); }
  void enqueue(const model::StepInput& input, const model::StepSampling& sampling) override;
  Result<model::StepResult> collect() override;

  // join(), if a round is due. True if some engine had work: the next round follows at once.
  Result<bool> idle() override;

  // A round without work. With one engine: makes sure that its ranks are there. Returns the tokens
  // of all engines.
  Result<int64_t> join();
  // The same of an engine that wants to end. True if all do: it was the last round.
  Result<bool> leave();

  // Lets the engine's other ranks go. After the last step. Engines in step leave together: until
  // the last one does, this one runs empty steps.
  void stop();

 private:
  bool engines_in_step() const { return ranks_.groups.engines != nullptr; }
  Result<void> announce(Order order);
  Result<model::StepInput> begin(Order order, const model::StepInput& input);
  Result<int64_t> meet(int64_t tokens);
  Result<void> run(const model::StepInput& input, model::LogitsSink& sink);
  Result<void> run_empty_step();

  model::StepModel& own_;
  const StepRanks ranks_;
  Rounds& rounds_;
  StepWatch& watch_;
  OrderSender orders_;
  bool all_leave_ = false;  // as of the last meeting
  std::vector<int64_t> engine_tokens_, rank_tokens_;
  Result<void> enqueued_;  // the first failure of enqueue()
};

// Runs on every other rank of an engine, on a thread of its own: takes plans and runs them on `own`
// until the first rank stops (success), or a collective fails. Of models that sample, only the
// first rank's results count.
Result<void> follow(model::StepModel& own, const StepRanks& ranks, StepWatch& watch);

}  // namespace m2::engine
