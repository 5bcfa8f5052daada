#include "engine/drafter.h"

#include <algorithm>

#include "base/check.h"
#include "engine/sequence.h"
#include "engine/token_counts.h"

namespace m2::engine {
namespace {

// Shares of drafted tokens that come, until a sequence has its own figures.
constexpr std::array<float, Draft::kClasses> kExpected = {0.4F, 0.6F, 0.8F};
constexpr float kLearned = 0.1F;        // of a share, by each token looked at
constexpr float kForgotten = 0.02F;     // of what is learned, whenever nothing is drafted for it
constexpr double kWorth = 1.1;          // what a token must promise, times what its row costs
constexpr double kLeastHope = 0.1;      // below which no token is drafted at any price
constexpr int64_t kTokensAStep = 8192;  // of a long prompt, taken into its index

int32_t class_of(int64_t length) {
  return length >= 8 ? 2 : length >= 4 ? 1 : 0;
}

}  // namespace

Drafter::Drafter(const SpeculationConfig& config, int64_t block_size)
    : config_(config), block_size_(block_size) {
  M2_CHECK(config.most_tokens >= 1);
}

void Drafter::admit(Sequence& sequence) const {
  constexpr size_t kLight = 32;  // changed logits, of each row
  const SamplingParams& params = sequence.params;
  const bool by_tokens_alone = !has_penalties(params) && params.bad_words.empty();
  const bool light = params.logit_bias.size() + params.stop_token_ids.size() <= kLight;
  // Where both are asked, the host samples.
  const bool on_device = !sequence.constraint || params.logprobs < 0;
  if (sequence.draft || !by_tokens_alone || !light || !on_device) return;
  sequence.draft = std::make_unique<Draft>(config_);
  sequence.draft->index.reserve(sequence.max_size);
  sequence.draft->hits = kExpected;
}

// Tokens that may be drafted behind those known and under way.
int64_t Drafter::most_of(const Sequence& sequence) const {
  const int64_t last = sequence.size() - 1;
  int64_t most = std::min({config_.most_tokens, kMostDraft, block_size_ - 1 - last % block_size_,
                           sequence.max_size - sequence.size() - 1});
  // A spent budget forces a token, whatever was sampled.
  const int64_t left = sequence.params.thinking_budget - sequence.output_size();
  if (sequence.params.thinking_budget >= 0 && left >= 0) most = std::min(most, left - 1);
  return std::max<int64_t>(most, 0);
}

// Where the tokens known end, before their end. Brings the index up to date on the way; none while
// it is not.
NgramIndex::Match Drafter::match_of(Sequence& sequence) const {
  NgramIndex& index = sequence.draft->index;
  const std::span<const TokenId> tokens = sequence.tokens.all();
  index.extend(tokens, kTokensAStep);
  return index.size() < std::ssize(tokens) ? NgramIndex::Match() : index.find(tokens);
}

bool Drafter::wants(Sequence& sequence, int64_t rows) const {
  if (!sequence.draft || sequence.unknown != 1) return false;
  if (most_of(sequence) == 0) return false;
  const NgramIndex::Match match = match_of(sequence);
  if (match.length == 0) return false;
  const double hit = sequence.draft->hits[static_cast<size_t>(class_of(match.length))];
  const auto others = static_cast<double>(rows);
  return hit * hit > std::max(kLeastHope, kWorth * others * costs_.of_another_row(others));
}

void Drafter::draft(std::span<Sequence* const> running, int64_t room) {
  auto rows = static_cast<double>(running.size());
  double promised = rows;  // tokens of the step
  for (Sequence* const sequence : running) {
    if (!sequence->draft) continue;
    Draft& draft = *sequence->draft;
    draft.size = 0;
    if (sequence->unknown > 0 || !sequence->decoding() || sequence->complete()) continue;
    const int64_t most = std::min(most_of(*sequence), room);
    if (most <= 0) continue;
    const NgramIndex::Match match = match_of(*sequence);
    if (match.length == 0) continue;
    draft.match = class_of(match.length);
    float& hit = draft.hits[static_cast<size_t>(draft.match)];
    const int64_t known = sequence->known();
    double hope = 1;
    for (; draft.size < most; ++draft.size, --room, ++rows, promised += hope) {
      hope *= static_cast<double>(hit);
      const double least = kWorth * promised * costs_.of_another_row(rows);
      if (hope < std::max(kLeastHope, least)) break;
      // Behind the text's end what was drafted goes on: it repeats itself.
      const int64_t from = match.end + draft.size;
      draft.tokens[static_cast<size_t>(draft.size)] =
          from < known ? sequence->tokens[from] : draft.tokens[static_cast<size_t>(from - known)];
    }
    if (draft.size == 0) {
      const float expected = kExpected[static_cast<size_t>(draft.match)];
      hit += kForgotten * (expected - hit);
    }
  }
}

void Drafter::note(Sequence& sequence, int64_t came) {
  Draft& draft = *sequence.draft;
  float& hit = draft.hits[static_cast<size_t>(draft.match)];
  for (int64_t i = 0; i < std::min<int64_t>(came + 1, draft.size); ++i)
    hit += kLearned * ((i < came ? 1.0F : 0.0F) - hit);
}

}  // namespace m2::engine
