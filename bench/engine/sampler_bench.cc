// Time to sample one row of MiniMax-M2's vocabulary on one core. Sampling changes the row, so each
// iteration starts from a copy: BM_CopyRow is that copy alone, to subtract, and also the bound's
// measure, since every way of sampling reads the 800 KB at least once.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <vector>

#include "engine/sampler.h"

namespace m2::engine {
namespace {

constexpr size_t kVocab = 200'064;

// A bell of logits. With a `spread` of 5 hundreds of ids share the probability, more than a
// language model gives as a rule; near 0 all are alike, the worst case for a nucleus.
std::vector<float> logits(float spread) {
  std::vector<float> row(kVocab);
  for (size_t i = 0; i < kVocab; ++i) {
    float x = 0;
    for (uint64_t k = 0; k < 6; ++k) x += static_cast<float>(mix64(6 * i + k) >> 40) * 0x1p-24f;
    row[i] = spread * (x - 3);
  }
  return row;
}

void sample_rows(benchmark::State& state, const SamplingParams& params, float spread,
                 int64_t history = 0) {
  Sampler sampler(kVocab, {200'020}, 1);
  std::vector<TokenId> output;
  TokenCounts counts;
  for (int64_t i = 0; i < history; ++i) {
    output.push_back(static_cast<TokenId>(mix64(static_cast<uint64_t>(i)) % kVocab));
    counts.add_output(output.back());
  }
  const std::vector<float> original = logits(spread);
  std::vector<float> row = original;
  uint64_t seed = 0;
  for (auto _ : state) {
    std::ranges::copy(original, row.begin());
    benchmark::DoNotOptimize(sampler.sample(row, {params, output, &counts, ++seed}, 0).token);
  }
}

void BM_CopyRow(benchmark::State& state) {
  const std::vector<float> original = logits(5);
  std::vector<float> row = original;
  for (auto _ : state) {
    std::ranges::copy(original, row.begin());
    benchmark::DoNotOptimize(row.data());
  }
}
BENCHMARK(BM_CopyRow)->Unit(benchmark::kMicrosecond);

void BM_Greedy(benchmark::State& state) {
  SamplingParams params;
  params.temperature = 0;
  sample_rows(state, params, 5);
}
BENCHMARK(BM_Greedy)->Unit(benchmark::kMicrosecond);

void BM_TopK40TopP95(benchmark::State& state) {
  SamplingParams params;
  params.top_k = 40;
  params.top_p = 0.95f;
  sample_rows(state, params, 5);
}
BENCHMARK(BM_TopK40TopP95)->Unit(benchmark::kMicrosecond);

void BM_TopP95(benchmark::State& state) {
  SamplingParams params;
  params.top_p = 0.95f;
  sample_rows(state, params, 5);
}
BENCHMARK(BM_TopP95)->Unit(benchmark::kMicrosecond);

void BM_TopP95Flat(benchmark::State& state) {
  SamplingParams params;
  params.top_p = 0.95f;
  sample_rows(state, params, 0.2f);
}
BENCHMARK(BM_TopP95Flat)->Unit(benchmark::kMicrosecond);

void BM_TopK100000Flat(benchmark::State& state) {
  SamplingParams params;
  params.top_k = 100'000;
  sample_rows(state, params, 0.2f);
}
BENCHMARK(BM_TopK100000Flat)->Unit(benchmark::kMicrosecond);

void BM_Temperature(benchmark::State& state) {
  sample_rows(state, {}, 5);
}
BENCHMARK(BM_Temperature)->Unit(benchmark::kMicrosecond);

void BM_Penalties10kHistory(benchmark::State& state) {
  SamplingParams params;
  params.temperature = 0;
  params.frequency_penalty = 1e-6f;
  sample_rows(state, params, 5, 10'000);
}
BENCHMARK(BM_Penalties10kHistory)->Unit(benchmark::kMicrosecond);

void BM_Greedy20Logprobs(benchmark::State& state) {
  SamplingParams params;
  params.temperature = 0;
  params.logprobs = 20;
  sample_rows(state, params, 5);
}
BENCHMARK(BM_Greedy20Logprobs)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace m2::engine

BENCHMARK_MAIN();
