// What the engine itself costs a decode step: everything but the model and the sampler's pass over
// the vocabulary (here 64 ids). Sequences decode at a context of 8,192 tokens in blocks of 16.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "base/log.h"
#include "engine/engine.h"

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
    ->Unit(benchmark::kMicrosecond)
    ->Iterations(4000);

}  // namespace
}  // namespace m2::engine

BENCHMARK_MAIN();
