#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace m2::text {

struct AddedToken {
  std::string text;
  TokenId id = 0;
  bool special = false;
};

// Finds added tokens in text: a trie walked from every byte that begins one.
class AddedTokenMatcher {
 public:
  // Bounds the time a position can take.
  static constexpr size_t kMaxTokenBytes = 256;

  struct Match {
    size_t begin = 0;
    size_t end = 0;
    TokenId id = 0;
  };

  // `tokens` have different texts of 1 to kMaxTokenBytes bytes.
  explicit AddedTokenMatcher(std::span<const AddedToken> tokens);

  // The leftmost match at or after `from`, the longest at its place, among those for which
  // allowed(special, begin, end) is true. It is asked with growing `begin`.
  template <class Allowed>
  std::optional<Match> find(std::string_view text, size_t from, Allowed allowed) const {
    for (size_t begin = from; begin < text.size(); ++begin) {
      int32_t node = first_[static_cast<unsigned char>(text[begin])];
      std::optional<Match> longest;
      for (size_t end = begin + 1; node >= 0; ++end) {
        const Node& at = nodes_[static_cast<size_t>(node)];
        if (at.token >= 0 && allowed(at.special, begin, end)) longest = {begin, end, at.token};
        node = end < text.size() ? child(at, static_cast<unsigned char>(text[end])) : -1;
      }
      if (longest) return longest;
    }
    return std::nullopt;
  }

 private:
  struct Node {
    unsigned char byte = 0;
    bool special = false;
    TokenId token = -1;  // that ends here, or -1
    int32_t first_child = -1;
    int32_t sibling = -1;
  };

  int32_t child(const Node& node, unsigned char byte) const;
  int32_t add_node(unsigned char byte);

  std::vector<Node> nodes_;
  std::array<int32_t, 256> first_;  // children of the root
};

}  // namespace m2::text
