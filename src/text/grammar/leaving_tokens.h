#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/grammar/text_limits.h"

namespace xgrammar {
class CompactFSMWithStartEnd;
}

namespace m2::text {

// The tokens that can leave a terminal from one state of its automaton, by how they leave it.
//
// In a text that goes on and on, as a string's does, most of them begin with more of the text that
// leads back to the same state, `abc",`, and what follows that, `",`, is what decides: at once it
// leaves the terminal. It needs to be tried once for all tokens that end so, after any of their
// beginnings: as long as nothing that follows the terminal takes a byte that such a beginning can
// go on with, no other reading is left of it.
struct LeavingTokens {
  using Vocabulary = std::vector<std::pair<int32_t, std::string>>;  // ids and texts, in order

  std::string beginning;     // one of them, the shortest
  int64_t characters = 0;    // of it
  std::bitset<256> goes_on;  // bytes that the state takes
  struct Ending {
    std::string text;
    std::vector<std::pair<int32_t, uint8_t>> tokens;  // ids, and the characters of their beginnings
  };
  std::vector<Ending> endings;  // in order
  std::vector<int32_t> others;  // indices of tokens without such a beginning

  // Of the tokens `uncertain` (indices in the vocabulary); their characters are counted as `as`
  // says, from outside an escape. Nothing: they are too few for it to be worth it, or the automaton
  // is no terminal's.
  static std::optional<LeavingTokens> find(const xgrammar::CompactFSMWithStartEnd& automaton,
                                           int32_t state, const std::vector<int32_t>& uncertain,
                                           const Vocabulary& vocabulary, CountedAs as);
  size_t bytes() const;
};

}  // namespace m2::text
