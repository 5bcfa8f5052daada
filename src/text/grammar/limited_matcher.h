#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/grammar/text_limits.h"

namespace xgrammar {
class CompiledGrammar;
}

namespace m2::text {

class LimitedParser;

// A compiled grammar, some of whose rules may have lengths. Immutable; shared by its matchers.
//
// A mask, and the taking of a token, cost so much at most: a text that the grammar can read in too
// many ways is given up. The mask of equal states is not made again.
//
// xgrammar knows for every state of a grammar which tokens it takes, refuses, or cannot tell
// without the states around it. Lengths change that in three places only. A token that stays within
// a counted text is taken while its characters fit: a mask by number of characters. A token that
// enters one may hold too much or too little of it: such tokens are few, and found here, once. A
// token that leaves one is among those that are tried, and is tried with the lengths in force.
// Where a pattern holds the counted text too, it is known for every token what places of the
// pattern it leads to, and from which lengths those can end (PatternTokens): again masks, none is
// tried.
class LimitedGrammar {
 public:
  // `tokens` of the vocabulary it was compiled for. Errors: invalid_argument (no text fits both its
  // pattern and its lengths), resource_exhausted (a pattern of too many readings), internal (a rule
  // with a length is not in the compiled grammar).
  static Result<std::unique_ptr<const LimitedGrammar>> make(
      const xgrammar::CompiledGrammar& compiled, std::vector<TextLimit> limits,
      std::shared_ptr<const TokenCharacters> tokens);
  ~LimitedGrammar();

  size_t bytes() const;  // of memory, about, beside the compiled grammar's

  struct Tables;
  const Tables& tables() const { return *tables_; }

 private:
  explicit LimitedGrammar(std::unique_ptr<const Tables> tables);
  std::unique_ptr<const Tables> tables_;
};

// How far one output has come in such a grammar, which must outlive it.
class LimitedMatcher {
 public:
  explicit LimitedMatcher(const LimitedGrammar& grammar);
  ~LimitedMatcher();

  // Sets the bits of the tokens that may come next, and clears all others. The end of the text and
  // UTF-8 are left to the caller.
  void fill(std::span<uint32_t> words);
  // False, and nothing changes, if this may not come here.
  bool accept(std::string_view bytes);
  // What is accepted between the two is taken back by the second. Not one in another.
  void begin_trial();
  void end_trial();
  bool complete() const;
  // Whether a text of too many readings, as a grammar that is ambiguous makes them, was given up:
  // nothing may come any more.
  bool spent() const;
  // What the last fill() or accept() cost: states of the parser looked at.
  int64_t work() const;

 private:
  std::unique_ptr<LimitedParser> parser_;
};

}  // namespace m2::text
