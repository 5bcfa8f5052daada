#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/dense_memory.h"
#include "base/prefetch.h"
#include "engine/drafter.h"
#include "engine/request.h"
#include "engine/token_counts.h"
#include "engine/token_list.h"
#include "kv/paged_cache.h"

namespace m2::engine {

// One request on its way through the engine. Owned by the engine's thread once submitted. What
// every step of every sequence reads and writes stands first and together: there are too many
// sequences for the caches to hold from step to step.
struct Sequence : Dense {
  RequestId id = 0;
  int32_t priority = 0;      // 0 for all under fcfs
  int32_t pending_row = -1;  // of the step under way: the one that chooses the first pending token

  TokenList tokens;     // the prompt, then the output, as far as it is known
  int64_t unknown = 0;  // tokens after those, which steps under way are computing
  int64_t prompt_size = 0;
  int64_t max_size = 0;    // tokens at which it ends with `length`
  int64_t computed = 0;    // leading tokens whose K and V are in the blocks
  int64_t scored = 0;      // of them known: they survive preemption
  uint64_t admission = 0;  // numbers each time it begins to run: until the next, `table` only grows
  Nanos first_token = -1;
  Nanos last_token = -1;
  uint64_t seed = 0;
  bool queued = true;  // never ran yet: counts towards the queue's limits
  bool running = false;
  bool damaged = false;                         // its K and V may not be what its tokens say
  bool announced = false;                       // an event was sent
  std::shared_ptr<TokenConstraint> constraint;  // has accepted exactly output(); null: none
  kv::BlockTable table;
  std::unique_ptr<Draft> draft;  // null: none is ever made
  SamplingParams params;

  // Now and then.
  std::string cache_salt;
  TokenCounts counts;                     // if the request has penalties
  int64_t cached_tokens = 0;              // of the prompt, found at first admission
  std::vector<Logprobs> prompt_logprobs;  // [prompt_size - 1] if asked for
  Nanos arrived = 0;
  Nanos scheduled = -1;  // first admission

  int64_t known() const { return tokens.size(); }
  int64_t size() const { return tokens.size() + unknown; }
  int64_t output_size() const { return size() - prompt_size; }
  int64_t pending() const { return size() - computed; }
  // Nothing but the last token is left to compute: one more token each step.
  bool decoding() const { return pending() == 1 && size() > prompt_size; }
  // Tokens drafted for the step planned, or under way: each has a row of its own in it.
  int64_t drafted() const { return draft ? draft->size : 0; }
  std::span<const TokenId> prompt() const { return tokens.first(prompt_size); }
  // Its last step is planned: nothing is left to enqueue, only to collect.
  bool complete() const { return size() >= max_size; }
  // What is known of it; no other thread may read the tokens meanwhile.
  std::span<const TokenId> output() {
    return tokens.all().subspan(static_cast<size_t>(prompt_size));
  }
  kv::Prefix prefix() { return {tokens.all(), cache_salt}; }
  // Prompt logprobs come from the rows of the prompt, so those must be computed, not found.
  bool reads_cache() const { return params.prompt_logprobs < 0; }
};

// Asks for what a step needs of a sequence (or null) that a loop over them will soon work on.
inline void prefetch(const Sequence* sequence) {
  if (sequence) fetch_lines(sequence, &sequence->cache_salt);
}

// Who goes first: smaller priority, then earlier arrival (ids grow with arrival).
struct RunsBefore {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return a->priority != b->priority ? a->priority < b->priority : a->id < b->id;
  }
};

// How a sequence ends with its last known token, if it does (contract.md 4.8).
struct Ending {
  FinishReason reason = FinishReason::none;
  TokenId stop_token = -1;
};
Ending ending_of(const Sequence& sequence, std::span<const TokenId> eos_token_ids);

}  // namespace m2::engine
