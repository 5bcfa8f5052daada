#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/grammar/remaining_lengths.h"
#include "text/grammar/text_limits.h"

namespace m2::text {

// Which tokens may come within a text that has a pattern and lengths, by where in the pattern it is
// and how many characters it has.
//
// A token is right if one of the nodes it leads to can end at the length it leads to. Tokens of a
// node that lead alike are a group; whether it may come is a question of lengths alone, and a mask
// a pass over the vocabulary's bits for each group, a few where some of its lengths are wrong. No
// token is tried. Where a node's tokens lead to too many sets of nodes (a pattern of several
// readings), the groups are by single nodes, each token in the groups of all nodes it leads to.
// Immutable.
class PatternTokens {
 public:
  using Vocabulary = std::vector<std::pair<int32_t, std::string>>;  // ids and texts, in order

  PatternTokens(RemainingLengths lengths, CountedAs as, const Vocabulary& vocabulary,
                std::shared_ptr<const TokenCharacters> tokens);

  // Takes note of the tokens that may come at this node by the pattern alone: `accepted` (indices
  // in the vocabulary, ascending). False: there is no end of groups.
  bool add(int32_t node, const std::vector<int32_t>& accepted);
  bool knows(int32_t node) const { return places_.contains(node); }
  // When all nodes are there.
  void finish();

  // Sets the bits of those that may come at a node of a text of `length` characters. How many words
  // and tokens it looked at.
  size_t fill(int32_t node, int64_t length, std::span<uint32_t> words) const;
  // Of those accepted the ones that leave the text: they are to be tried.
  std::span<const int32_t> leaving(int32_t node) const;
  // Whether at this length and all that a token may lead to, tokens come by the pattern alone.
  bool is_free(int32_t node, int64_t length) const;

  const RemainingLengths& lengths() const { return lengths_; }
  size_t bytes() const;

 private:
  using Words = RemainingLengths::Words;
  using Nodes = RemainingLengths::Nodes;

  // Tokens, as bits if they are many; those of many characters are listed in any case.
  struct TokenSet {
    std::vector<uint32_t> bits;
    std::vector<std::pair<int32_t, uint8_t>> listed;  // ids and their characters
    Words counts;                                     // bit n: some token has n characters
    bool operator==(const TokenSet&) const = default;
  };
  struct Group {
    std::shared_ptr<const TokenSet> tokens;
    std::shared_ptr<const Words> lengths;  // after the token
    size_t size;
  };
  struct Place {
    std::shared_ptr<const TokenSet> all;
    std::vector<Group> groups;  // the largest first
    std::vector<int32_t> leaving;
    size_t size = 0;  // of `all`
  };

  int32_t set_after(int32_t set, uint8_t byte);
  int32_t name(Nodes nodes);
  std::shared_ptr<const TokenSet> token_set(const std::vector<int32_t>& ids, uint8_t escape);
  std::shared_ptr<const Words> lengths_of(const Nodes& nodes);
  size_t add_where(const TokenSet& set, std::span<const uint64_t> window,
                   std::span<uint32_t> words) const;
  static size_t add_all(const TokenSet& set, std::span<uint32_t> words);

  const RemainingLengths lengths_;
  const CountedAs as_;
  const Vocabulary& vocabulary_;
  const std::shared_ptr<const TokenCharacters> tokens_;
  std::unordered_map<int32_t, Place> places_;  // by node

  // While it is made:
  struct Making;
  std::shared_ptr<Making> making_;
  size_t bytes_ = 0;
};

}  // namespace m2::text
