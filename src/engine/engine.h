#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "engine/drafter.h"
#include "engine/request.h"
#include "model/step_model.h"

namespace m2::engine {

enum class SchedulingPolicy : uint8_t { fcfs, priority };

// A request's id has its engine's index above this bit, so that ids differ over engines.
constexpr int kEngineShift = 48;

struct EngineConfig {
  int64_t index = 0;                      // of several engines
  int64_t max_num_seqs = 256;             // sequences running at once
  int64_t max_num_batched_tokens = 512;   // tokens of one step
  int64_t max_queued_requests = 1024;     // waiting; more are refused
  int64_t max_queued_tokens = 2'000'000;  // prompt tokens waiting
  bool prefix_caching = true;
  std::string cache_dtype = "auto";  // of the KV, for vllm:cache_config_info
  bool chunked_prefill = true;
  int64_t long_prefill_token_threshold = 0;  // 0: no limit below the step's
  // A waiting request lets a running prefill finish first if it can then take over at least so many
  // tokens from the prefix cache (the n choices of one prompt). 0: never.
  int64_t shared_prefill_tokens = 256;
  SchedulingPolicy policy = SchedulingPolicy::fcfs;
  // Tokens are drafted where a step has room for their rows: a model that takes more sequences than
  // max_num_seqs has some at any load.
  std::optional<SpeculationConfig> speculation;
  std::vector<TokenId> eos_token_ids;  // the first is the model's eos
  TokenId id_limit = 0;                // ids from here on are never sampled (padding rows)
  uint64_t seed = 0;                   // for requests without a seed of their own
  int32_t max_logprobs = 20;
  std::string metric_labels;          // e.g. model_name="m",engine="0"
  Nanos log_interval = 10 * kSecond;  // between run()'s statistics lines; 0: none
};

// A snapshot for health checks, /load and the log line. Written after each step or idle wait.
struct EngineStats {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t kv_blocks_used = 0;  // held by running requests
  int64_t kv_blocks_total = 0;
  int64_t prompt_tokens = 0;      // since start
  int64_t generation_tokens = 0;  // since start
  int64_t preemptions = 0;
  int64_t prefix_queries = 0;  // tokens looked up in the prefix cache
  int64_t prefix_hits = 0;     // tokens found
  int64_t steps = 0;
  int64_t drafts = 0;  // whose rows were computed
  int64_t drafted_tokens = 0;
  std::array<int64_t, kMostDraft> drafted_came{};  // of how many drafts the i-th token came
  Nanos last_tick = 0;  // the clock when the engine last finished a step or an idle wait
  bool dead = false;    // a step failed; nothing more will run
};

// Many token requests into few model steps: continuous batching, chunked prefill, paged KV with a
// prefix cache, preemption by recompute, sampling. One thread runs it; submit(), cancel() and
// stats() are thread-safe.
class Engine {
 public:
  // All references outlive the engine. `pool` is for sampling and may be the model's.
  Engine(EngineConfig config, model::StepModel& model, ThreadPool& pool, const Clock& clock,
         EventSink& sink, Metrics& metrics);
  ~Engine();

  // Queues a request and returns its id; its events follow on the sink, ending with exactly one
  // that has `finish` set. Fails with resource_exhausted if the queue is full, unavailable if the
  // engine is dead or draining, invalid_argument if the request can never fit.
  Result<RequestId> submit(Request request);

  // Ends a request within one step: its last event has FinishReason::abort. Unknown or finished
  // ids are ignored.
  void cancel(RequestId id);

  // Runs until `stop` is requested, then refuses new requests and ends all others with abort; no
  // step of the model is under way when it returns. Call on the engine's own thread.
  void run(std::stop_token stop);

  // One iteration: takes what was queued, plans, runs and samples one step, sends its events.
  // Returns false if there was nothing to do. For run() and for simulations.
  bool step();

  // Refuses new requests from now on; what is queued and running goes on. Thread-safe.
  void drain();

  EngineStats stats() const;

  // How busy it is: waiting * 4 + running, of what was submitted until now. Thread-safe.
  int64_t load() const;

  // Ends an idle wait: the model wants to be asked. Thread-safe.
  void wake();

  // Checks the bookkeeping (reliability.md 6.4: I1, I2, I4, list membership, queue counts) against
  // a recount. Linear in blocks; on the engine's thread; for tests and simulations.
  Result<void> audit() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace m2::engine
