#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "engine/engine.h"
#include "engine/sequence.h"

namespace m2::engine {

// The engine's Prometheus series (contract.md 8). Written on the engine's thread.
class EngineMetrics {
 public:
  // `cache_info`: labels that tell the cache's shape, for vllm:cache_config_info. `most_drafted`:
  // tokens of a draft; 0: nothing is drafted, and there are no series of it.
  EngineMetrics(Metrics& metrics, const std::string& labels, const std::string& cache_info,
                int64_t max_model_len, int64_t most_drafted);

  // After each step or idle wait (0 tokens); counters grow by what changed since the last call.
  void on_step(const EngineStats& stats, int64_t step_tokens);
  void on_prompt_done(const Sequence& sequence);  // with its first token, first_token set
  void on_token(Nanos since_last);                // with each later one; shown by on_step()
  void on_corrupted() { corrupted_.add(); }
  void on_finish(const Sequence& sequence, FinishReason reason, Nanos now);

 private:
  void show_waits();
  struct Register;
  static void register_fixed(Register series, const std::string& cache_info);
  EngineMetrics(Register series, const std::vector<double>& lengths);
  void register_drafts(Register series, int64_t most_drafted);
  void show_drafts(const EngineStats& stats);

  Gauge &running_, &waiting_, &waiting_for_room_, &kv_usage_;
  Counter &prefix_queries_, &prefix_hits_, &preemptions_;
  Counter &prompt_tokens_, &prompt_computed_, &prompt_found_, &prompt_cached_;
  Counter &generation_tokens_, &corrupted_;
  std::array<Counter*, 4> success_;  // stop, length, abort, error
  Histogram& iteration_tokens_;
  Histogram &prompt_size_, &generation_size_, &max_generation_size_, &max_tokens_, &computed_size_;
  Histogram &ttft_, &inter_token_, &per_token_;
  Histogram &e2e_, &queue_, &prefill_, &decode_, &inference_;
  Counter *drafts_ = nullptr, *drafted_tokens_ = nullptr, *drafted_came_ = nullptr;
  std::vector<Counter*> drafted_came_at_;  // by place in the draft
  EngineStats last_;                       // as of the last call
  // Most tokens of a step waited equally long: those are counted first, and observed at once.
  Nanos waited_ = 0;
  uint64_t waited_tokens_ = 0;
};

}  // namespace m2::engine
