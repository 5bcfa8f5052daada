#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace m2::text {

// Looks for a request's stop strings in the text as it grows (contract.md 4.8). Linear in the text
// however hostile it is: an Aho-Corasick automaton. Text that may be the beginning of a stop string
// is held back, whole characters only.
class StopStrings {
 public:
  // Limits of reliability.md 6.6, enforced by make().
  static constexpr size_t kMaxStrings = 16;
  static constexpr size_t kMaxBytes = 256;

  // Fails on more than kMaxStrings strings, an empty one, or one longer than kMaxBytes.
  static Result<StopStrings> make(std::vector<std::string> strings, bool include_in_output = false);

  struct Step {
    std::string text;             // safe to send now; cut at the stop string if there is one
    std::optional<size_t> match;  // which string of the list; the text ends here
  };

  // Adds the text of one step. Of several strings that end within the same step, the first in the
  // list counts, and of it the first occurrence. The text is cut before it, or after it with
  // `include_in_output`. While not `armed` (min_tokens) the text grows, but nothing matches. After
  // a match nothing may be fed.
  Step feed(std::string_view text, bool armed = true);

  // What was held back. Call once, at the end of a text without a match.
  std::string finish();

  const std::string& string(size_t index) const { return strings_[index]; }

 private:
  StopStrings(std::vector<std::string> strings, bool include_in_output);

  // A node of the trie of all strings. At most kMaxStrings edges leave one, so a list does.
  struct Node {
    std::vector<std::pair<char, uint32_t>> edges;
    uint32_t failure = 0;  // the node of the longest proper suffix that has one
    uint32_t depth = 0;    // bytes from the root
    uint32_t matched = 0;  // bit i: string i is a suffix of this node's text
  };
  // One found occurrence: which string, and the bytes of the step's text up to its end.
  struct Found {
    size_t string;
    size_t end;
  };

  std::optional<uint32_t> edge(uint32_t node, char byte) const;
  uint32_t next_node(uint32_t node, char byte) const;
  void add_to_trie(size_t index);
  void link_failures();
  std::optional<Found> advance(std::string_view text);

  std::vector<std::string> strings_;
  bool include_in_output_;
  std::vector<Node> nodes_;
  uint32_t node_ = 0;  // of the longest suffix of the text that begins a stop string
  std::string held_;   // that suffix as far as it was not sent
};

}  // namespace m2::text
