#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "engine/request.h"

namespace m2::engine {

// Which ids a request has seen, for penalties: in its prompt, and how often in its output. Kept
// only for requests that ask for a penalty; allocates when an id is new to the request.
class TokenCounts {
 public:
  struct Seen {
    bool in_prompt = false;
    int32_t in_output = 0;
  };

  void add_prompt(std::span<const TokenId> prompt) {
    for (const TokenId id : prompt) seen_[id].in_prompt = true;
  }
  void add_output(TokenId id) { ++seen_[id].in_output; }

  // Each id once, in no particular order: what is done with one must not depend on another.
  const std::unordered_map<TokenId, Seen>& seen() const { return seen_; }

 private:
  std::unordered_map<TokenId, Seen> seen_;
};

// Whether the request needs counts at all.
inline bool has_penalties(const SamplingParams& params) {
  return params.repetition_penalty != 1 || params.frequency_penalty != 0 ||
         params.presence_penalty != 0;
}

}  // namespace m2::engine
