#pragma once

#include <string>
#include <vector>

#include "engine/ranks.h"
#include "engine/rounds.h"
#include "engine/step_message.h"
#include "model/step_model.h"
#include "parallel/comm.h"

// An engine that schedules in one process while its ranks are in others: requests, scheduler and
// metrics of all engines stay behind one port. The seat hands plans to the engine's first rank and
// gets logits or samples back, over a group of the two.

namespace m2::engine {

// What the seat has to know of its engine's models: told by rank 1, once, when they are made.
struct SeatedModel {
  model::StepModel::Limits limits;
  int64_t samples;
};
Result<void> tell_of_model(parallel::Comm& comm, const model::StepModel& model);
Result<SeatedModel> hear_of_model(parallel::Comm& comm);

// Rank 0 of the group: the model that Engine runs. One thread.
class Seat : public model::StepModel {
 public:
  // All outlive this.
  Seat(parallel::Comm& comm, const SeatedModel& model, Rounds& rounds);

  Limits limits() const override { return limits_; }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override;
  bool samples() const override { return samples_; }
  void enqueue(const model::StepInput& input, const model::StepSampling& sampling) override;
  Result<model::StepResult> collect() override;
  Result<bool> idle() override;

  // Lets the engine's ranks go, as FirstRank::stop().
  void stop();

 private:
  parallel::Comm& comm_;
  const Limits limits_;
  const bool samples_;
  Rounds& rounds_;
  OrderSender orders_;
  Result<void> enqueued_;  // the first failure of enqueue()
  std::vector<float> logits_;
  std::vector<ops::SampledRow> rows_;
  std::vector<int32_t> top_ids_;
  std::vector<float> top_logprobs_;
};

// Rank 1: runs what the seat orders on the engine's first rank, on a thread of its own, until the
// seat stops (success) or a collective fails.
Result<void> relay(FirstRank& first, parallel::Comm& comm);

}  // namespace m2::engine
