#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.h"
#include "engine/row_ops.h"
#include "engine/token_counts.h"

namespace m2::engine {

struct Candidate {
  float logit;
  TokenId id;
};

enum class RowStatus : uint8_t {
  ok,
  not_finite,  // NaN, +infinity or nothing above -infinity in the model's logits
  all_masked,  // the request's own masks leave no token
};

// What the next token of a request depends on, beside the logits.
struct SampleInput {
  const SamplingParams& params;
  std::span<const TokenId> output;      // so far
  const TokenCounts* counts = nullptr;  // needed if has_penalties(params)
  uint64_t seed = 0;                    // of the request; the position is output.size() + ahead
  TokenConstraint* constraint = nullptr;
  int64_t ahead = 0;                    // tokens of a draft that stand between output and this one
  std::span<const uint32_t> mask = {};  // then what a constraint allows behind them; empty: any id
};

// The token that a spent thinking budget forces here, or -1.
TokenId forced_token(const SampleInput& input);

// Whether the word's last token would complete it after this output.
bool completes(const std::vector<TokenId>& word, std::span<const TokenId> output);

struct Sampled {
  RowStatus status = RowStatus::ok;
  TokenId token = -1;
  std::optional<Logprobs> logprobs;
};

// Logits to token, in the order of contract.md 4.9 and in FP32; a spent thinking budget comes
// before all of it:
//   the constraint's mask;
//   log-softmax for the reported logprobs, from what it leaves;
//   allowed ids, bad words, min_tokens, logit bias, penalties;
//   greedy rows: argmax, the lowest id wins ties;
//   temperature, min_p, top_k, top_p, then argmax(p / Exp(1)) with counter-based noise.
// Ids from id_limit on (padding rows of the head) take part in nothing, logprobs included.
// Rows may be sampled at once from several threads, each with a `thread` index of its own; the
// result depends on the arguments alone. Allocates for logprobs, and when a thread's scratch meets
// its largest row so far: allowed ids, or more than a thousand candidates.
class Sampler {
 public:
  Sampler(TokenId id_limit, std::vector<TokenId> eos_token_ids, int threads);

  // Chooses the next token. `row` [>= id_limit] is changed in place. Precondition: ids in params
  // are in [0, id_limit).
  Sampled sample(std::span<float> row, const SampleInput& input, int thread);

  // Logprobs of `token` and the `top` most likely ids, from raw logits. Sets `out` if ok.
  RowStatus score(std::span<const float> row, TokenId token, int32_t top, Logprobs& out,
                  int thread);

 private:
  // One thread's working memory.
  struct alignas(64) Scratch {
    std::vector<float> maxima;          // per kRowBlock ids
    std::vector<float> order;           // to find the k-th largest of them
    std::vector<Candidate> candidates;  // the most likely first
    std::vector<float> values;          // any copy of logits
    std::vector<float> raw;             // the row before it was changed, for its logprobs
    std::vector<uint32_t> words;        // the constraint's mask
  };
  using Row = std::span<float>;
  using ConstRow = std::span<const float>;

  void process(Row row, const SampleInput& input, Scratch& scratch) const;
  TokenId argmax(ConstRow row, float max, const Scratch& scratch) const;
  TokenId draw(Row row, float max, const SampleInput& input, Scratch& scratch) const;
  void select(ConstRow row, int64_t count, Scratch& scratch) const;
  float cut_at_rank(Row row, int64_t count, Scratch& scratch) const;
  float cut_at_weight(Row row, float max, float scale, float cutoff, double wanted,
                      Scratch& scratch) const;

  const int64_t id_limit_;
  const std::vector<TokenId> eos_token_ids_;
  std::vector<Scratch> scratch_;  // per thread
};

}  // namespace m2::engine
