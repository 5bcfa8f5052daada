#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace m2::engine {

// Words of a mask over `ids` token ids: bit i % 32 of word i / 32 stands for id i.
constexpr size_t mask_words(size_t ids) {
  return (ids + 31) / 32;
}

// What a request's output must look like, asked for token by token: a grammar, as a rule. The
// engine calls fill() before it chooses a token and accept() with what was chosen, each token once:
// a request that is preempted and computed again keeps its state. One per sequence; never called
// from two threads at once. Must not fail or block.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  // Writes which ids may come next, all of `words` [mask_words(id_limit)]; what stands in the bits
  // from id_limit on does not matter. False, with `words` in any state: every id may.
  virtual bool fill(std::span<uint32_t> words) = 0;

  // The next token. One that fill() did not allow can come only where something above the masks
  // decides (a spent thinking budget).
  virtual void accept(int32_t token) = 0;

  // What is accepted between the two is a trial: behind it all is as it was before. fill() and the
  // others answer as if it were the output. Not one in another.
  virtual void begin_trial() = 0;
  virtual void end_trial() = 0;

  // Why no token is left to choose, where that is not the output's fault; empty: it is.
  virtual std::string_view failure() const { return {}; }

  // Whether the output so far is whole. Where it is and no token is left to choose, the request
  // ends with `stop`.
  virtual bool complete() const = 0;
};

// Calls behind(i) with the first i + 1 of these tokens accepted, one after another, on trial. They
// may be tokens that may not come: then nobody looks at what was said behind them.
template <class Behind>
void on_trial(TokenConstraint& constraint, std::span<const int32_t> tokens, const Behind& behind) {
  constraint.begin_trial();
  for (size_t i = 0; i < tokens.size(); ++i) {
    constraint.accept(tokens[i]);
    behind(i);
  }
  constraint.end_trial();
}

}  // namespace m2::engine
