#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "engine/token_constraint.h"

// What crosses the wall between the engine and those who ask it: token ids and numbers, never text.

namespace m2::engine {

using TokenId = int32_t;
using RequestId = uint64_t;  // made by the engine, never reused, never taken from a client

// How the next token is chosen (contract.md 4.5, 4.9). Validated before it gets here: the engine
// checks ranges again only as M2_CHECKs.
struct SamplingParams {
  float temperature = 1;         // < 1e-5: greedy
  float top_p = 1;               // (0, 1]
  int32_t top_k = 0;             // 0: off
  float min_p = 0;               // [0, 1]
  float presence_penalty = 0;    // [-2, 2], over output
  float frequency_penalty = 0;   // [-2, 2], over output
  float repetition_penalty = 1;  // > 0, over prompt and output
  std::optional<uint64_t> seed;
  int64_t max_tokens = 16;  // >= 1
  int64_t min_tokens = 0;   // eos and stop ids are masked before
  bool ignore_eos = false;
  std::vector<TokenId> stop_token_ids;                // beside the model's eos ids
  std::vector<std::pair<TokenId, float>> logit_bias;  // within +-100
  std::vector<TokenId> allowed_token_ids;             // empty: all
  std::vector<std::vector<TokenId>> bad_words;        // token sequences that must not be completed
  // After so many output tokens without one of `thinking_ends` among them, the first of those is
  // the next token, whatever else is asked; -1: never.
  int64_t thinking_budget = -1;
  std::vector<TokenId> thinking_ends;
  int32_t logprobs = -1;         // how many top logprobs with each token; -1: none at all
  int32_t prompt_logprobs = -1;  // the same for prompt positions
};

struct Request {
  std::vector<TokenId> prompt;  // not empty
  SamplingParams params;
  int32_t priority = 0;    // smaller runs first under the priority policy
  std::string cache_salt;  // prefix-cache entries are shared only within one salt
  int64_t engine = -1;     // which of several engines; -1: the server's choice
  std::shared_ptr<TokenConstraint> constraint;  // of the output, of this request alone; null: none
};

struct TokenLogprob {
  TokenId id;
  float logprob;
  int32_t rank;  // 1 = most likely
};

// Logprobs of one position: the token that stands there, then the most likely ones.
struct Logprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};

enum class FinishReason : uint8_t { none, stop, length, abort, error };

// What few events have.
struct EventDetail {
  std::optional<Logprobs> logprobs;  // of the token, if asked for
  std::string error;                 // finish error: why
  bool unsatisfiable = false;        // finish error: the request's own constraints are why
  // On the event that ends the prompt, if asked for: positions 1.. of the prompt.
  std::vector<Logprobs> prompt_logprobs;
};

// What happened to one request in one step. A thousand go from thread to thread at each step: one
// cache line each.
struct Event {
  RequestId id = 0;
  TokenId token = -1;          // the sampled token, or -1 if this event carries none
  TokenId stop_token = -1;     // finish stop: the stop_token_ids member met; -1 for eos
  int64_t cached_tokens = -1;  // on the request's first event: of its prompt, from the prefix cache
  std::shared_ptr<const EventDetail> detail;  // null: there is none
  FinishReason finish = FinishReason::none;   // anything but none: the request's last event

  const Logprobs* logprobs() const {
    return detail && detail->logprobs ? &*detail->logprobs : nullptr;
  }
  std::span<const Logprobs> prompt_logprobs() const {
    return detail ? std::span(detail->prompt_logprobs) : std::span<const Logprobs>();
  }
};
static_assert(sizeof(Event) <= 64);

// Receives every step's events at once, on the engine's thread, which waits if it must: for a
// reader that is many steps behind, never for a client.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void on_events(std::vector<Event>&& events) = 0;
};

}  // namespace m2::engine
