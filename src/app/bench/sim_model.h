#pragma once

#include <deque>
#include <vector>

#include "app/bench/roofline.h"
#include "app/bench/sim_words.h"
#include "base/clock.h"
#include "model/step_model.h"

namespace m2::app::bench {

// CPU time this thread has used so far.
Nanos thread_cpu_time();

// What a SimModel saw of one step. Nanoseconds.
struct SimStep {
  int64_t sequences = 0;
  int64_t tokens = 0;
  Nanos gpu = 0;   // the virtual GPU was busy
  Nanos idle = 0;  // before that, since the end of the step before
  Nanos host = 0;  // CPU time of the engine's thread from one collected step to the next
};

// A model that computes nothing: a step takes as long as the roofline says it would on the given
// GPUs. Like them it samples by itself and works through the steps enqueued while the host goes
// on; collect() sleeps until the oldest one's end. Every row of a step gets the same token, the
// next of `words`, who learn when the step ended.
class SimModel : public model::StepModel {
 public:
  // `scale` multiplies every step's time.
  SimModel(Limits limits, const RooflineCase& at, StepWords& words, double scale);

  Limits limits() const override { return limits_; }
  bool samples() const override { return true; }
  // Refused: whoever asks for logits (penalties, long lists of logit edits) is not simulated.
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override;
  void enqueue(const model::StepInput& input, const model::StepSampling& sampling) override;
  Result<model::StepResult> collect() override;

  // After the engine has stopped. The time between two collected steps that is no step's (an engine
  // without requests) counts as idle too.
  const std::vector<SimStep>& steps() const { return steps_; }

 private:
  Nanos duration(const model::StepInput& input);

  struct Flight {
    size_t rows;
    Nanos end;
  };

  const Limits limits_;
  const RooflineCase at_;
  StepWords& words_;
  const double scale_;
  std::vector<ops::SampledRow> results_;
  std::vector<PromptPiece> pieces_;  // of the step at hand
  std::deque<Flight> flights_;       // enqueued, not collected
  std::vector<SimStep> steps_;
  size_t collected_ = 0;
  Nanos free_at_ = 0;   // the end of the last step enqueued
  Nanos left_cpu_ = 0;  // when the last step was collected
};

}  // namespace m2::app::bench
