#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace m2::text {

// The base tokens, by id and by bytes.
class Vocabulary {
 public:
  // Ids are below this, so that a pair of them and a rank fit one word (see bpe.cc).
  static constexpr TokenId kMaxIds = 1 << 20;

  // Makes room for `tokens` tokens of together `bytes` bytes.
  void reserve(size_t tokens, size_t bytes);

  // Adds a token. Fails on an id or bytes seen before, an id out of range, or no bytes.
  Result<void> add(std::string_view bytes, TokenId id);
  // The same for a token that stands for text but that bytes must not find.
  Result<void> add_hidden(std::string_view bytes, TokenId id);

  // The id of the token with these bytes, or -1.
  TokenId find(std::string_view bytes) const;
  // The bytes of a token; empty for an id without one.
  std::string_view bytes(TokenId id) const;

  TokenId size() const { return count_; }
  // One more than the largest id.
  TokenId id_limit() const { return static_cast<TokenId>(spans_.size()); }
  size_t longest() const { return longest_; }

 private:
  struct Span {
    uint32_t begin = 0;
    uint32_t size = 0;
  };
  struct Slot {
    uint32_t tag = 0;  // high half of the hash
    TokenId id = -1;   // -1: free
    Span span;         // the token's, here again to spare a look-up its cache miss
  };

  void grow(size_t slots);
  Slot& slot_for(std::string_view bytes, uint64_t hash);

  std::string text_;         // the bytes of all tokens, one after another
  std::vector<Span> spans_;  // by id
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
  TokenId count_ = 0;
  size_t longest_ = 0;
};

}  // namespace m2::text
