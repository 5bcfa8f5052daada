#include "engine/sequence.h"

#include <algorithm>

namespace m2::engine {

Ending ending_of(const Sequence& sequence, std::span<const TokenId> eos_token_ids) {
  const SamplingParams& params = sequence.params;
  const TokenId last = sequence.tokens.back();
  const bool may_stop = sequence.known() - sequence.prompt_size >= params.min_tokens;
  if (may_stop && !params.ignore_eos && std::ranges::count(eos_token_ids, last) > 0)
    return {FinishReason::stop, -1};
  if (may_stop && std::ranges::count(params.stop_token_ids, last) > 0)
    return {FinishReason::stop, last};
  if (sequence.known() >= sequence.max_size) return {FinishReason::length, -1};
  return {};
}

}  // namespace m2::engine
