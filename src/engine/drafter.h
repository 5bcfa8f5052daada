#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/ngram_index.h"
#include "engine/request.h"
#include "engine/step_costs.h"

namespace m2::engine {

struct Sequence;

// Speculation by n-grams, as vLLM's --speculative-config calls it: what followed the last tokens
// where they stood before in the request's own text is what may follow now.
struct SpeculationConfig {
  int64_t most_tokens = 15;  // of one draft, >= 1
  int64_t least_match = 3;   // last tokens that must have stood there, >= 1
  int64_t most_match = 32;   // and as many as count, >= least_match
};

// Tokens of one draft: its rows share the KV block of the sequence's last token, so that what they
// write needs no room of its own and reaches no row by a block that another has just filled.
constexpr int64_t kMostDraft = 15;

// What a sequence has for it.
struct Draft {
  static constexpr size_t kClasses = 3;  // of matches, by their length

  explicit Draft(const SpeculationConfig& config)
      : index(config.least_match, config.most_match) {}

  NgramIndex index;
  std::array<TokenId, kMostDraft> tokens;  // that are taken to follow the last one known
  int32_t size = 0;                        // of those in the step planned, or under way
  int32_t match = 0;                       // class of the match they come from
  std::array<float, kClasses> hits;        // share of drafted tokens that came, by class, of late

  std::span<const TokenId> drafted() const {
    return std::span(tokens).first(static_cast<size_t>(size));
  }
};

// Drafts tokens for decoding sequences: a step then computes a row for each of them, as if they
// were there, and the sampler chooses behind each. As far as what it chose is what was drafted, the
// rows were right, and the sequence has come on by several tokens in one step; the tokens are those
// that single steps would have chosen. A row more makes a step longer, so tokens are drafted only
// while what they promise, by what became of drafts before, is worth it. One thread.
class Drafter {
 public:
  Drafter(const SpeculationConfig& config, int64_t block_size);

  // A sequence that begins to run. It gets a draft if it may have one: each of its rows must be
  // able to be sampled knowing nothing but the tokens in front of it.
  void admit(Sequence& sequence) const;

  // Whether the sequence, whose next token is under way, would have a draft if that were what is
  // expected: it is worth waiting for it, among `rows` others in a step.
  bool wants(Sequence& sequence, int64_t rows) const;

  // Drafts for those who decode and whose tokens are all known, at most `room` tokens in all. Every
  // other draft is emptied.
  void draft(std::span<Sequence* const> running, int64_t room);

  // Of `sequence`'s draft so many came; one more was looked at if there was one.
  void note(Sequence& sequence, int64_t came);
  // A step of decoding alone took so long.
  void note_step(int64_t rows, Nanos took) { costs_.note(rows, took); }

 private:
  NgramIndex::Match match_of(Sequence& sequence) const;
  int64_t most_of(const Sequence& sequence) const;

  const SpeculationConfig config_;
  const int64_t block_size_;
  StepCosts costs_;
};

}  // namespace m2::engine
