#include "engine/ranks.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <thread>

namespace m2::engine {
namespace {

using model::StepInput;
using parallel::Comm;

// What an engine that leaves brings to a step instead of tokens.
constexpr int64_t kLeaves = -1;

const Exec& host() {
  static const Exec exec{};
  return exec;
}

// Every rank of every engine says how many tokens its engine brings. True if all engines leave.
bool meet_engines(const StepRanks& ranks, int64_t tokens, std::vector<int64_t>& rank_tokens,
                  std::vector<int64_t>& engine_tokens) {
  Comm& all = *ranks.groups.engines;
  const auto size = static_cast<size_t>(all.size());
  rank_tokens.resize(size);
  const std::vector<int64_t> ones(size, 1);
  all.all_gather(host(), Tensor(&tokens, DType::i64, {1}), ones,
                 Tensor(rank_tokens.data(), DType::i64, {all.size()}));
  engine_tokens.clear();
  for (size_t rank = 0; rank < size; rank += static_cast<size_t>(ranks.topology.tensor_size))
    engine_tokens.push_back(std::max<int64_t>(0, rank_tokens[rank]));
  return std::ranges::all_of(rank_tokens, [](int64_t n) { return n == kLeaves; });
}

int64_t sum(const std::vector<int64_t>& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
}

// Ranks without the logits sample nothing.
class NoLogits : public model::LogitsSink {
  void on_logits(int64_t, Tensor) override { M2_CHECK(false, "logits on a rank that follows"); }
};

}  // namespace

FirstRank::FirstRank(model::StepModel& own, const StepRanks& ranks, Rounds& rounds,
                     StepWatch& watch)
    : own_(own), ranks_(ranks), rounds_(rounds), watch_(watch), orders_(ranks.groups.tensor) {
  M2_CHECK(ranks.groups.tensor.rank() == 0);
}

Result<void> FirstRank::step(const StepInput& input, model::LogitsSink& sink) {
  M2_TRY(const StepInput step, begin(Order::step, input));
  return run(step, sink);
}

// Failures are told by collect().
void FirstRank::enqueue(const StepInput& input, const model::StepSampling& sampling) {
  if (!enqueued_.ok()) return;
  const Result<StepInput> step = begin(Order::enqueue, input);
  if (!step.ok()) {
    enqueued_ = step.error();
    return;
  }
  watch_.begin();
  own_.enqueue(*step, sampling);
  watch_.end();
}

Result<model::StepResult> FirstRank::collect() {
  M2_TRY_VOID(enqueued_);
  watch_.begin();
  Result<model::StepResult> result = own_.collect();
  watch_.end();
  return result;
}

Result<bool> FirstRank::idle() {
  if (!rounds_.due()) return false;
  M2_TRY(const int64_t total, join());
  return total > 0;
}

Result<int64_t> FirstRank::join() {
  M2_TRY_VOID(announce(Order::idle));
  M2_TRY(const int64_t total, meet(0));
  if (total > 0) M2_TRY_VOID(run_empty_step());
  return total;
}

Result<bool> FirstRank::leave() {
  M2_TRY_VOID(announce(Order::leave));
  M2_TRY(const int64_t total, meet(kLeaves));
  if (total > 0) M2_TRY_VOID(run_empty_step());
  // Nobody has work, and others stay: no need to ask them without a pause.
  if (total == 0 && !all_leave_) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return all_leave_;
}

void FirstRank::stop() {
  if (!ranks_.groups.tensor.status().ok()) return;
  if (engines_in_step()) {
    for (Result<bool> left = false; left.ok() && !*left;) left = leave();
  } else if (ranks_.groups.tensor.size() > 1) {
    [[maybe_unused]] const Result<void> sent = orders_.send(Order::stop);
  }
}

Result<void> FirstRank::announce(Order order) {
  return ranks_.groups.tensor.size() > 1 ? orders_.send(order) : Result<void>();
}

// Makes everyone begin a step; returns this rank's.
Result<StepInput> FirstRank::begin(Order order, const StepInput& input) {
  if (ranks_.groups.tensor.size() > 1) M2_TRY_VOID(orders_.send(order, input));
  M2_TRY([[maybe_unused]] const int64_t total, meet(static_cast<int64_t>(input.token_ids.size())));
  StepInput step = input;
  if (engines_in_step()) step.engine_tokens = engine_tokens_;
  return step;
}

// Returns the tokens of all engines.
Result<int64_t> FirstRank::meet(int64_t tokens) {
  if (!engines_in_step()) {
    rounds_.end(0);
    return 0;
  }
  rounds_.begin();
  all_leave_ = meet_engines(ranks_, tokens, rank_tokens_, engine_tokens_);
  M2_TRY_VOID(ranks_.groups.engines->status());
  rounds_.end(sum(engine_tokens_));
  return sum(engine_tokens_);
}

Result<void> FirstRank::run(const StepInput& input, model::LogitsSink& sink) {
  watch_.begin();
  Result<void> done = own_.step(input, sink);
  watch_.end();
  return done;
}

Result<void> FirstRank::run_empty_step() {
  StepInput step = no_tokens();
  step.engine_tokens = engine_tokens_;
  NoLogits none;
  return run(step, none);
}

namespace {

class Follower {
 public:
  Follower(model::StepModel& own, const StepRanks& ranks, StepWatch& watch)
      : own_(own), ranks_(ranks), watch_(watch), orders_(ranks.groups.tensor, own.limits()) {}

  // Takes one order and runs it. False if it was the last.
  Result<bool> next() {
    M2_TRY(StepMessage message, orders_.receive());
    if (message.order == Order::stop) return false;
    const bool has_plan = message.order == Order::step || message.order == Order::enqueue;
    if (ranks_.groups.engines) {
      const auto tokens = static_cast<int64_t>(message.input.token_ids.size());
      const bool all_leave = meet_engines(ranks_, message.order == Order::leave ? kLeaves : tokens,
                                          rank_tokens_, engine_tokens_);
      M2_TRY_VOID(ranks_.groups.engines->status());
      if (all_leave) return false;
      if (sum(engine_tokens_) == 0) return true;
      message.input.engine_tokens = engine_tokens_;
    } else if (!has_plan) {
      return true;
    }
    M2_TRY_VOID(message.order == Order::enqueue ? enqueue(message.input) : step(message.input));
    return true;
  }

  // Waits for steps under way until no more than `most` are.
  Result<void> land(int most) {
    Result<void> out;
    watch_.begin();
    for (; under_way_ > most && out.ok(); --under_way_)
      if (Result<model::StepResult> one = own_.collect(); !one.ok()) out = one.error();
    watch_.end();
    return out;
  }

 private:
  // Nothing is sampled here: the rows only have to be there.
  Result<void> enqueue(const StepInput& input) {
    if (!own_.samples()) return fail(Code::corrupt, "the first rank's model samples, this one not");
    M2_TRY_VOID(land(model::StepModel::kMostInFlight - 1));
    rows_.resize(input.logit_rows.size());
    watch_.begin();
    own_.enqueue(input, {rows_, {}, {}});
    watch_.end();
    ++under_way_;
    return {};
  }

  Result<void> step(const StepInput& input) {
    M2_TRY_VOID(land(0));
    NoLogits none;
    watch_.begin();
    Result<void> done = own_.step(input, none);
    watch_.end();
    return done;
  }

  model::StepModel& own_;
  const StepRanks ranks_;
  StepWatch& watch_;
  OrderReceiver orders_;
  std::vector<int64_t> rank_tokens_, engine_tokens_;
  std::vector<ops::SampleRow> rows_;
  int under_way_ = 0;
};

}  // namespace

Result<void> follow(model::StepModel& own, const StepRanks& ranks, StepWatch& watch) {
  Follower follower(own, ranks, watch);
  while (true) {
    M2_TRY(const bool more, follower.next());
    if (!more) return follower.land(0);
  }
}

}  // namespace m2::engine
