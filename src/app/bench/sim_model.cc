#include "app/bench/sim_model.h"

#include <sys/prctl.h>
#include <time.h>

#include <algorithm>

namespace m2::app::bench {
namespace {

constexpr size_t kExpectedSteps = 1 << 20;

void sleep_until(Nanos moment) {
  const timespec time{moment / kSecond, moment % kSecond};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0) {
  }
}

}  // namespace

Nanos thread_cpu_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec * kSecond + time.tv_nsec;
}

SimModel::SimModel(Limits limits, const RooflineCase& at, StepWords& words, double scale)
    : limits_(limits), at_(at), words_(words), scale_(scale) {
  results_.reserve(static_cast<size_t>(limits.max_step_tokens));
  steps_.reserve(kExpectedSteps);
  pieces_.reserve(static_cast<size_t>(limits.max_sequences));
}

// Decoding sequences share one pass over the weights, and the pieces of prompts another beside it
// (as roofline.py's closed loop has it).
Nanos SimModel::duration(const model::StepInput& input) {
  double decoding = 0, context = 0, total = 0;
  pieces_.clear();
  for (size_t i = 0; i < input.context_lens.size(); ++i) {
    const int32_t tokens = input.query_starts[i + 1] - input.query_starts[i];
    if (tokens == 1) {
      decoding += 1;
      context += input.context_lens[i];
    } else {
      pieces_.push_back(
          {static_cast<double>(tokens), static_cast<double>(input.context_lens[i] - tokens)});
    }
  }
  if (!pieces_.empty()) total += prefill_cost(at_, pieces_).reachable_seconds;
  if (decoding > 0) {
    const DecodeCost cost = decode_cost(at_, decoding, context / decoding);
    total += cost.reachable_seconds + cost.sync_seconds;
  }
  return static_cast<Nanos>(total * scale_ * 1e9);
}

Result<void> SimModel::step(const model::StepInput&, model::LogitsSink&) {
  return fail(Code::unsupported, "a simulated step has no logits");
}

void SimModel::enqueue(const model::StepInput& input, const model::StepSampling&) {
  const SteadyClock clock;
  const Nanos now = clock.now();
  if (free_at_ == 0) {
    free_at_ = now;
    left_cpu_ = thread_cpu_time();
    prctl(PR_SET_TIMERSLACK, 1UL);  // the GPU ends when it ends
  }
  SimStep& step = steps_.emplace_back();
  step.sequences = static_cast<int64_t>(input.context_lens.size());
  step.tokens = static_cast<int64_t>(input.token_ids.size());
  step.idle = std::max<Nanos>(now - free_at_, 0);
  step.gpu = duration(input);
  free_at_ = std::max(now, free_at_) + step.gpu;
  flights_.push_back({input.logit_rows.size(), free_at_});
}

Result<model::StepResult> SimModel::collect() {
  const Flight flight = flights_.front();
  flights_.pop_front();
  steps_[collected_].host = thread_cpu_time() - left_cpu_;
  sleep_until(flight.end);
  left_cpu_ = thread_cpu_time();
  const size_t word = collected_++ % words_.tokens().size();
  words_.set_ended(word, flight.end, flight.rows);
  results_.assign(flight.rows, {ops::SampleStatus::ok, words_.tokens()[word], 0, 0});
  return model::StepResult{results_, {}, {}, 0};
}

}  // namespace m2::app::bench
