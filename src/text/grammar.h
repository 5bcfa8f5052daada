#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "text/grammar/text_limits.h"
#include "text/tokenizer.h"

// Grammars over token ids: what the sampler may choose so that the text stays within a language.
// Languages are given as xgrammar's EBNF, lengths of texts beside it; text/grammar/ makes them from
// schemas, patterns and tools. Whatever the grammar says, what comes out is well-formed UTF-8.

namespace m2::text {

struct GrammarLimits {
  size_t max_ebnf_bytes = 1 << 20;
  // States of the automata, weighed by how much of the vocabulary can be read from each, in how
  // many ways at once, which is the time that compiling takes: one in which any text may come
  // weighs 1, about 20 ms. An estimate, above the truth rather than below it.
  double max_cost = 100;
  size_t max_cached = 1024;  // grammars kept
  size_t max_cached_bytes = 256 << 20;
};

// Words of a mask over `ids` token ids: bit i % 32 of word i / 32 is id i.
constexpr size_t mask_words(size_t ids) {
  return (ids + 31) / 32;
}

// A grammar compiled for one vocabulary. Immutable; shared by any number of matchers.
class Grammar {
 public:
  struct Compiled;  // xgrammar's
  explicit Grammar(std::unique_ptr<const Compiled> compiled);
  ~Grammar();
  Grammar(const Grammar&) = delete;
  Grammar& operator=(const Grammar&) = delete;

  const Compiled& compiled() const { return *compiled_; }
  size_t bytes() const;   // of memory, about
  size_t states() const;  // of its automata, at which a byte may come

 private:
  std::unique_ptr<const Compiled> compiled_;
};

// How far one output has come in a grammar. One per output; not thread-safe.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar);
  ~GrammarMatcher();
  GrammarMatcher(GrammarMatcher&&) noexcept;

  // Sets the bits of the ids that may come next, and clears all others. The stop ids are among them
  // once the text is complete. `words` [mask_words(ids of the vocabulary)].
  void fill(std::span<uint32_t> words);

  // Takes the next token. False, and nothing changes, if it may not come here.
  bool accept(TokenId token);
  // The same for bytes of text.
  bool accept_text(std::string_view text);

  // What is accepted between the two is taken back by the second. Not one in another.
  void begin_trial();
  void end_trial();

  // Whether the text so far is a sentence of the language.
  bool complete() const;

  // Whether the text was given up, since the grammar can read it in too many ways: nothing may come
  // any more.
  bool spent() const;
  // What the last fill() or accept() cost, counted in states of the parser.
  int64_t work() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Compiles grammars, and keeps those used last. Thread-safe.
class GrammarCompiler {
 public:
  // Base tokens stand for their bytes; of the added tokens only those in `spelled` may appear in a
  // text. `stop_ids` end one. Ids from the tokenizer's id_limit() on are never allowed.
  GrammarCompiler(std::shared_ptr<const Tokenizer> tokenizer, std::vector<TokenId> stop_ids,
                  std::span<const TokenId> spelled, GrammarLimits limits = {});
  ~GrammarCompiler();

  // Errors: invalid_argument (not a grammar, or one with attributes of rules), resource_exhausted
  // (more than the limits allow).
  Result<std::shared_ptr<const Grammar>> compile(const GrammarText& text);

  // What compile() says before the work of compiling begins: in milliseconds, where that may take
  // seconds.
  Result<void> check(const GrammarText& text) const;

  // Ids of the vocabulary: masks have mask_words() of them.
  size_t ids() const;
  size_t cached() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace m2::text
