// What the engine itself costs a decode step: everything but the model and the sampler's pass over
// the vocabulary (here 64 ids). Sequences decode at a context of 8,192 tokens in blocks of 16.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/log.h"
#include "engine/engine.h"
#include "engine/scheduler.h"

namespace m2::engine {
namespace {

constexpr int64_t kVocab = 64;

class NoModel : public model::StepModel {
 public:
  explicit NoModel(int64_t sequences)
      : limits_{kVocab, 2048 * sequences, 16, 32768, 16384, sequences},
        logits_(static_cast<size_t>(sequences * kVocab)) {}
  Limits limits() const override { return limits_; }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override {
    const auto rows = static_cast<int64_t>(input.logit_rows.size());
    std::fill(logits_.begin(), logits_.end(), 0.0f);
    if (rows > 0) sink.on_logits(0, Tensor(logits_.data(), DType::f32, {rows, kVocab}));
    return {};
  }

 private:
  const Limits limits_;
  std::vector<float> logits_;
};

class NoSink : public EventSink {
 public:
  void on_events(std::vector<Event>&& events) override { events.clear(); }
};

// Fills an engine with sequences that decode for long.
void BM_DecodeStep(benchmark::State& state) {
  const int64_t sequences = state.range(0);
  NoModel model(sequences);
  NoSink sink;
  ThreadPool pool(1);
  SteadyClock clock;
  Metrics metrics;
  EngineConfig config;
  config.max_num_seqs = sequences;
  config.max_num_batched_tokens = 16384;
  config.max_queued_tokens = 1'000'000'000;
  Engine engine(config, model, pool, clock, sink, metrics);
  for (int64_t i = 0; i < sequences; ++i) {
    Request request;
    request.prompt.assign(8192, static_cast<TokenId>(i % kVocab));
    request.prompt[0] = static_cast<TokenId>(i / kVocab);
    request.params.temperature = 0;
    request.params.ignore_eos = true;
    request.params.max_tokens = 24000;
    (void)engine.submit(std::move(request));
  }
  while (engine.stats().generation_tokens < sequences) engine.step();
  for (auto _ : state) engine.step();
  state.SetItemsProcessed(state.iterations() * sequences);
}
BENCHMARK(BM_DecodeStep)
    ->Arg(1)
    ->Arg(16)
    ->Arg(64)
    ->Arg(256)
    ->Arg(1024)
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(4000);

// The scheduler alone: so many sequences decode, so many wait for a place.
void BM_Plan(benchmark::State& state) {
  const int64_t running = state.range(0), waiting = state.range(1);
  constexpr int64_t kPrompt = 256, kBlock = 16;
  kv::PagedCache cache({running * 64, kBlock, true, 1});
  Scheduler scheduler({running, 16384, 16384, true, 256}, cache);
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int64_t i = 0; i < running + waiting; ++i) {
    Sequence& sequence = *sequences.emplace_back(std::make_unique<Sequence>());
    sequence.id = static_cast<RequestId>(i + 1);
    std::vector<TokenId> prompt(kPrompt, static_cast<TokenId>(i % kVocab));
    prompt[0] = static_cast<TokenId>(i);
    sequence.tokens = std::move(prompt);
    sequence.tokens.reserve(16384);
    sequence.table.blocks.reserve(1024);
    sequence.prompt_size = kPrompt;
    sequence.max_size = 16384;
    scheduler.add(&sequence);
  }
  int64_t steps = 0;
  const auto step = [&] {
    for (const Scheduler::Share& share : scheduler.plan(0)) {
      share.sequence->computed += share.tokens;
      if (share.sequence->pending() == 0) share.sequence->tokens.push_back(1);
    }
    ++steps;
  };
  while (std::ssize(scheduler.running()) < running) step();
  for (auto _ : state) step();
}
BENCHMARK(BM_Plan)
    ->Args({64, 0})
    ->Args({1024, 0})
    ->Args({1024, 10000})
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(500);

// Three words of each of so many sequences, one sequence after the other: a measure for a step's
// time that is of the same machine and moment.
void BM_Touch(benchmark::State& state) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (int64_t i = 0; i < state.range(0); ++i) sequences.push_back(std::make_unique<Sequence>());
  for (auto _ : state) {
    for (const auto& sequence : sequences) {
      for (int64_t* field : {&sequence->computed, &sequence->last_token, &sequence->scheduled})
        benchmark::DoNotOptimize(++*field);
    }
  }
}
BENCHMARK(BM_Touch)->Arg(64)->Arg(1024)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace m2::engine

BENCHMARK_MAIN();
