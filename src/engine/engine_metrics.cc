#include "engine/engine_metrics.h"

#include <string>
#include <vector>

namespace m2::engine {
namespace {

const std::vector<double> kTtftBounds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                         1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
const std::vector<double> kTokenTimeBounds = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                              .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
const std::vector<double> kRequestTimeBounds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                                30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
const std::vector<double> kIterationBounds = {1,   8,    16,   32,   64,   128,  256,
                                              512, 1024, 2048, 4096, 8192, 16384};

// 1, 2, 5, 10, 20, 50, ... up to `limit`.
std::vector<double> decades(int64_t limit) {
  std::vector<double> bounds;
  for (int64_t decade = 1; decade <= limit; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) {
      if (step * decade <= limit) bounds.push_back(static_cast<double>(step * decade));
    }
  }
  return bounds;
}

std::string with(const std::string& labels, const std::string& extra) {
  return labels.empty() ? extra : labels + "," + extra;
}

constexpr const char* kWaitingHelp = "Requests waiting to be processed, by what they wait for.";

}  // namespace

// Registers series under the contract's prefix and one set of labels.
struct EngineMetrics::Register {
  Metrics& metrics;
  const std::string& labels;

  Gauge& gauge(const char* name, const char* help, const std::string& extra = {}) {
    return metrics.gauge(std::string("vllm:") + name, help,
                         extra.empty() ? labels : with(labels, extra));
  }
  Counter& counter(const char* name, const char* help, const std::string& extra = {}) {
    return metrics.counter(std::string("vllm:") + name + "_total", help,
                           extra.empty() ? labels : with(labels, extra));
  }
  Histogram& histogram(const char* name, const char* help, const std::vector<double>& bounds) {
    return metrics.histogram(std::string("vllm:") + name, help, labels, bounds);
  }
};

EngineMetrics::EngineMetrics(Metrics& metrics, const std::string& labels,
                             const std::string& cache_info, int64_t max_model_len,
                             int64_t most_drafted)
    : EngineMetrics(Register{metrics, labels}, decades(max_model_len)) {
  register_fixed(Register{metrics, labels}, cache_info);
  if (most_drafted > 0) register_drafts(Register{metrics, labels}, most_drafted);
}

void EngineMetrics::register_drafts(Register series, int64_t most_drafted) {
  drafts_ = &series.counter("spec_decode_num_drafts", "Drafts.");
  drafted_tokens_ = &series.counter("spec_decode_num_draft_tokens", "Drafted tokens.");
  drafted_came_ = &series.counter("spec_decode_num_accepted_tokens", "Drafted tokens that came.");
  for (int64_t i = 0; i < most_drafted; ++i)
    drafted_came_at_.push_back(&series.counter("spec_decode_num_accepted_tokens_per_pos",
                                               "Drafted tokens that came, by place in the draft.",
                                               fmt::format("position=\"{}\"", i)));
}

void EngineMetrics::show_drafts(const EngineStats& stats) {
  drafts_->add(static_cast<double>(stats.drafts - last_.drafts));
  drafted_tokens_->add(static_cast<double>(stats.drafted_tokens - last_.drafted_tokens));
  for (size_t i = 0; i < drafted_came_at_.size(); ++i) {
    const auto came = static_cast<double>(stats.drafted_came[i] - last_.drafted_came[i]);
    drafted_came_->add(came);
    drafted_came_at_[i]->add(came);
  }
}

// Series that dashboards of this family ask for and that nothing here moves: there is no sleep
// mode, no cache outside the device, no media, and a hit never covers a whole prompt.
void EngineMetrics::register_fixed(Register series, const std::string& cache_info) {
  series.gauge("cache_config_info", "The KV cache's shape, in labels.", cache_info).set(1);
  for (const char* state : {"awake", "weights_offloaded", "discard_all"})
    series
        .gauge("engine_sleep_state", "1 for the state the engine is in.",
               fmt::format("sleep_state=\"{}\"", state))
        .set(std::string_view(state) == "awake");
  for (const char* name : {"external_prefix_cache_queries", "external_prefix_cache_hits",
                           "mm_cache_queries", "mm_cache_hits", "prompt_tokens_recomputed"})
    series.counter(name, "Always 0: there is no such cache.");
  series.counter("prompt_tokens_by_source", "Prompt tokens by source.",
                 "source=\"external_kv_transfer\"");
  series.gauge("num_requests_waiting_by_reason", kWaitingHelp, "reason=\"deferred\"");
}

EngineMetrics::EngineMetrics(Register series, const std::vector<double>& lengths)
    : running_(series.gauge("num_requests_running", "Requests in execution.")),
      waiting_(series.gauge("num_requests_waiting", "Requests waiting to be processed.")),
      waiting_for_room_(
          series.gauge("num_requests_waiting_by_reason", kWaitingHelp, "reason=\"capacity\"")),
      kv_usage_(series.gauge("kv_cache_usage_perc", "KV cache usage, 1 means 100 percent.")),
      prefix_queries_(series.counter("prefix_cache_queries", "Tokens looked up in the cache.")),
      prefix_hits_(series.counter("prefix_cache_hits", "Tokens found in the prefix cache.")),
      preemptions_(series.counter("num_preemptions", "Preemptions of running requests.")),
      prompt_tokens_(series.counter("prompt_tokens", "Prompt tokens processed.")),
      prompt_computed_(series.counter("prompt_tokens_by_source", "Prompt tokens by source.",
                                      "source=\"local_compute\"")),
      prompt_found_(series.counter("prompt_tokens_by_source", "Prompt tokens by source.",
                                   "source=\"local_cache_hit\"")),
      prompt_cached_(series.counter("prompt_tokens_cached", "Prompt tokens from the cache.")),
      generation_tokens_(series.counter("generation_tokens", "Generated tokens.")),
      corrupted_(series.counter("corrupted_requests", "Requests that met NaN in their logits.")),
      iteration_tokens_(
          series.histogram("iteration_tokens_total", "Tokens per engine step.", kIterationBounds)),
      prompt_size_(series.histogram("request_prompt_tokens", "Prompt tokens.", lengths)),
      generation_size_(series.histogram("request_generation_tokens", "Generated tokens.", lengths)),
      max_generation_size_(series.histogram("request_max_num_generation_tokens",
                                            "Most tokens a request asked to generate.", lengths)),
      max_tokens_(
          series.histogram("request_params_max_tokens", "The max_tokens parameter.", lengths)),
      computed_size_(series.histogram("request_prefill_kv_computed_tokens",
                                      "Prompt tokens computed, not found in the cache.", lengths)),
      ttft_(
          series.histogram("time_to_first_token_seconds", "Arrival to first token.", kTtftBounds)),
      inter_token_(series.histogram("inter_token_latency_seconds", "Token to next token.",
                                    kTokenTimeBounds)),
      per_token_(series.histogram("request_time_per_output_token_seconds",
                                  "Mean time per token after the first.", kTokenTimeBounds)),
      e2e_(series.histogram("e2e_request_latency_seconds", "Arrival to finish.",
                            kRequestTimeBounds)),
      queue_(series.histogram("request_queue_time_seconds", "Arrival to first schedule.",
                              kRequestTimeBounds)),
      prefill_(series.histogram("request_prefill_time_seconds", "Schedule to first token.",
                                kRequestTimeBounds)),
      decode_(series.histogram("request_decode_time_seconds", "First to last token.",
                               kRequestTimeBounds)),
      inference_(series.histogram("request_inference_time_seconds", "Schedule to last token.",
                                  kRequestTimeBounds)) {
  constexpr std::array kReasons = {"stop", "length", "abort", "error"};
  for (size_t i = 0; i < kReasons.size(); ++i) {
    success_[i] = &series.counter("request_success", "Requests finished, by reason.",
                                  fmt::format("finished_reason=\"{}\"", kReasons[i]));
  }
}

void EngineMetrics::on_step(const EngineStats& stats, int64_t step_tokens) {
  running_.set(static_cast<double>(stats.running));
  waiting_.set(static_cast<double>(stats.waiting));
  waiting_for_room_.set(static_cast<double>(stats.waiting));
  kv_usage_.set(static_cast<double>(stats.kv_blocks_used) /
                static_cast<double>(stats.kv_blocks_total));
  prefix_queries_.add(static_cast<double>(stats.prefix_queries - last_.prefix_queries));
  prefix_hits_.add(static_cast<double>(stats.prefix_hits - last_.prefix_hits));
  preemptions_.add(static_cast<double>(stats.preemptions - last_.preemptions));
  if (drafts_) show_drafts(stats);
  show_waits();
  if (step_tokens > 0) iteration_tokens_.observe(static_cast<double>(step_tokens));
  last_ = stats;
}

void EngineMetrics::on_prompt_done(const Sequence& sequence) {
  const auto prompt = static_cast<double>(sequence.prompt_size);
  const auto cached = static_cast<double>(sequence.cached_tokens);
  prompt_tokens_.add(prompt);
  prompt_computed_.add(prompt - cached);
  prompt_found_.add(cached);
  prompt_cached_.add(cached);
  generation_tokens_.add();
  ttft_.observe(seconds(sequence.first_token - sequence.arrived));
}

void EngineMetrics::on_token(Nanos since_last) {
  if (since_last != waited_) show_waits();
  waited_ = since_last;
  ++waited_tokens_;
}

void EngineMetrics::show_waits() {
  if (waited_tokens_ == 0) return;
  generation_tokens_.add(static_cast<double>(waited_tokens_));
  inter_token_.observe(seconds(waited_), waited_tokens_);
  waited_tokens_ = 0;
}

void EngineMetrics::on_finish(const Sequence& sequence, FinishReason reason, Nanos now) {
  const auto tokens = static_cast<double>(sequence.output_size());
  success_[static_cast<size_t>(reason) - 1]->add();
  prompt_size_.observe(static_cast<double>(sequence.prompt_size));
  generation_size_.observe(tokens);
  max_generation_size_.observe(static_cast<double>(sequence.max_size - sequence.prompt_size));
  max_tokens_.observe(static_cast<double>(sequence.params.max_tokens));
  e2e_.observe(seconds(now - sequence.arrived));
  if (sequence.scheduled < 0) return;
  queue_.observe(seconds(sequence.scheduled - sequence.arrived));
  if (sequence.first_token < 0) return;
  computed_size_.observe(static_cast<double>(sequence.prompt_size - sequence.cached_tokens));
  prefill_.observe(seconds(sequence.first_token - sequence.scheduled));
  decode_.observe(seconds(sequence.last_token - sequence.first_token));
  inference_.observe(seconds(sequence.last_token - sequence.scheduled));
  if (tokens > 1)
    per_token_.observe(seconds(sequence.last_token - sequence.first_token) / (tokens - 1));
}

}  // namespace m2::engine
