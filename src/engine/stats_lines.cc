#include "engine/stats_lines.h"

#include <fmt/ranges.h>

#include <vector>

namespace m2::engine {
namespace {

double percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

}  // namespace

bool is_idle(const EngineStats& now, const EngineStats& before) {
  return now.prompt_tokens == before.prompt_tokens &&
         now.generation_tokens == before.generation_tokens && now.running == 0 && now.waiting == 0;
}

std::string throughput_line(int64_t index, const EngineStats& now, const EngineStats& before,
                            double elapsed) {
  const auto rate = [&](int64_t EngineStats::*counter) {
    return static_cast<double>(now.*counter - before.*counter) / elapsed;
  };
  const int64_t preemptions = now.preemptions - before.preemptions;
  return fmt::format(
      "Engine {:03}: Avg prompt throughput: {:.1f} tokens/s, Avg generation throughput: {:.1f} "
      "tokens/s, Running: {} reqs, Waiting: {} reqs, {}GPU KV cache usage: {:.1f}%, Prefix cache "
      "hit rate: {:.1f}%",
      index, rate(&EngineStats::prompt_tokens), rate(&EngineStats::generation_tokens), now.running,
      now.waiting, preemptions > 0 ? fmt::format("Preemptions: {}, ", preemptions) : "",
      percent(now.kv_blocks_used, now.kv_blocks_total),
      percent(now.prefix_hits, now.prefix_queries));
}

std::string drafts_line(const EngineStats& now, const EngineStats& before, double elapsed) {
  const int64_t drafts = now.drafts - before.drafts;
  const int64_t drafted = now.drafted_tokens - before.drafted_tokens;
  int64_t came = 0;
  std::vector<std::string> rates;
  for (size_t i = 0; i < now.drafted_came.size(); ++i) {
    const int64_t here = now.drafted_came[i] - before.drafted_came[i];
    came += here;
    rates.push_back(fmt::format("{:.3f}", percent(here, drafts) / 100));
  }
  while (rates.size() > 1 && rates.back() == "0.000") rates.pop_back();
  return fmt::format(
      "SpecDecoding metrics: Mean acceptance length: {:.2f}, Accepted throughput: {:.2f} tokens/s, "
      "Drafted throughput: {:.2f} tokens/s, Accepted: {} tokens, Drafted: {} tokens, Per-position "
      "acceptance rate: {}, Avg Draft acceptance rate: {:.1f}%",
      1 + percent(came, drafts) / 100, static_cast<double>(came) / elapsed,
      static_cast<double>(drafted) / elapsed, came, drafted, fmt::join(rates, ", "),
      percent(came, drafted));
}

}  // namespace m2::engine
