#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "text/grammar/text_limits.h"

namespace xgrammar {
class Grammar;
}

namespace m2::text {

// For a text that must fit a pattern and lengths at once: after how many more characters it may
// end, at every state of the pattern's automaton. Immutable.
class RemainingLengths {
 public:
  static constexpr int64_t kMost = 10'000;  // finite bounds of the limit, at most

  // `rule` of an optimized grammar, whose body is one Regex().
  RemainingLengths(const xgrammar::Grammar& grammar, int32_t rule, const TextLimit& limit);

  // Whether a text at this state that has `length` characters, and of the last one what `escape`
  // says (CharacterCount), can still become one within the limit.
  bool can_end(int32_t state, uint8_t escape, int64_t length) const;
  // A text of `length` characters can end wherever it gets to with up to so many in all. Less than
  // `length`: it may be beyond hope already.
  int64_t safe_until(int64_t length) const;
  // Whether any text fits both.
  bool satisfiable() const { return can_end(start_, 0, 0); }
  size_t bytes() const;

 private:
  // A state of the automaton within an escape.
  using Nodes = std::vector<int32_t>;
  struct Ways {
    std::vector<Nodes> same,
        next;  // by node: where no character begins on the way, and where one does
  };
  using Words = std::vector<uint64_t>;

  Ways find_nodes(const xgrammar::Grammar& grammar, int32_t rule);
  int32_t node(int32_t state, uint8_t escape, std::vector<std::pair<int32_t, uint8_t>>& nodes);
  void find_ends(const Nodes& ends, const Ways& back);
  void find_safe(const Ways& ways);
  bool node_can_end(int32_t node, int64_t length) const;

  const bool in_json_;
  const int64_t least_, most_;
  const int64_t
      counted_;  // characters told apart; where `most` is any, this many stands for more too
  int32_t start_ = 0;
  std::unordered_map<int64_t, int32_t> nodes_;
  std::vector<Words> ends_;          // by node: bit n, it may end after n more
  std::vector<int64_t> safe_until_;  // by length
};

}  // namespace m2::text
