#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/grammar/text_limits.h"

namespace xgrammar {
class Grammar;
}

namespace m2::text {

// For a text that must fit a pattern and lengths at once: at which lengths it can still be finished
// from every node of the pattern's automaton. A node is a state of it within an escape or outside.
// Immutable.
class RemainingLengths {
 public:
  using Nodes = std::vector<int32_t>;       // ascending
  using Words = std::vector<uint64_t>;      // bit n of word n / 64: a length of n characters
  static constexpr int64_t kMost = 10'000;  // finite bounds of the limit, at most

  // `rule` of an optimized grammar, whose body is one Regex(). Errors: resource_exhausted (nodes
  // times lengths are too many to be judged), invalid_argument (no text fits both).
  static Result<RemainingLengths> make(const xgrammar::Grammar& grammar, int32_t rule,
                                       const TextLimit& limit, int64_t longest_token);

  // The node of a state of the automaton, of the last character what `escape` says
  // (CharacterCount); -1: no text gets there.
  int32_t node(int32_t state, uint8_t escape) const;
  int32_t start() const { return start_; }
  int32_t state_of(int32_t node) const { return names_[static_cast<size_t>(node)].first; }
  uint8_t escape_of(int32_t node) const { return names_[static_cast<size_t>(node)].second; }
  size_t nodes() const { return names_.size(); }

  // The nodes that this byte leads to.
  Nodes step(const Nodes& from, uint8_t byte) const;

  // Whether a text at this node that has `length` characters can still become one within the limit.
  bool can_end(int32_t node, int64_t length) const;
  // The lengths at which a text can that is at any of these nodes.
  Words lengths(const Nodes& nodes) const;
  // Of a text of `length` characters: bit n says whether `lengths` hold n more, as far as a token
  // goes. Writes all of `out` [window_words()].
  void window(const Words& lengths, int64_t length, std::span<uint64_t> out) const;
  size_t window_words() const { return static_cast<size_t>(longest_ / 64 + 1); }

  size_t bytes() const;

 private:
  struct Edge {
    uint8_t first, last;  // bytes
    bool begins;          // a character, all of them
    int32_t to;
  };

  RemainingLengths(const TextLimit& limit, int64_t longest_token);
  int32_t add_node(int32_t state, uint8_t escape);
  bool find_nodes(const xgrammar::Grammar& grammar, int32_t rule);
  void add_edges(int32_t from, uint8_t first, uint8_t last, int32_t state);
  bool find_closures();
  void find_lengths(const xgrammar::Grammar& grammar, int32_t rule);
  // The edges backwards, by node: where no character begins, or where one does.
  struct Ways {
    std::vector<Nodes> same, next;
  };
  Ways ways_back() const;
  std::vector<Words> lengths_to_end(Nodes ends) const;
  void set_lengths(const std::vector<Words>& to_end);
  size_t length_words() const { return static_cast<size_t>((counted_ + longest_) / 64 + 2); }

  bool in_json_;
  int64_t least_, most_;
  int64_t counted_;  // characters told apart; where `most` is any, this many stands for more too
  int64_t longest_;
  int32_t start_ = 0;
  std::unordered_map<int64_t, int32_t> by_name_;
  std::vector<std::pair<int32_t, uint8_t>> names_;  // by node
  std::vector<std::vector<Edge>> edges_;            // by node
  std::vector<Nodes> free_;                         // by node: where no byte is needed, itself too
  std::vector<Words> can_end_;                      // by node
};

}  // namespace m2::text
