#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

namespace m2::text {

// One entry of the merge list: these neighbours become that token.
struct Merge {
  TokenId left;
  TokenId right;
  TokenId result;
};

// Ranks of pairs of neighbours: a hash map with one 64-bit word per merge, because these look-ups
// are what encoding spends its time on.
class MergeRanks {
 public:
  static constexpr uint32_t kNone = (1u << 24) - 1;

  // Merges are given in order; the first has rank 0. Fails on a pair listed twice or too many.
  static Result<MergeRanks> build(std::span<const Merge> merges);

  // The rank of the pair, or kNone.
  uint32_t find(TokenId left, TokenId right) const {
    const uint64_t key = pack(left, right);
    const uint64_t* const words = words_.data();
    for (uint64_t i = start(key);; i = (i + 1) & mask_) {
      if (words[i] >> 24 == key) return static_cast<uint32_t>(words[i] & kNone);
      if (words[i] == kFree) return kNone;
    }
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};

  static uint64_t pack(TokenId left, TokenId right) {
    return static_cast<uint64_t>(left) << 20 | static_cast<uint64_t>(right);
  }
  uint64_t start(uint64_t key) const { return key * 0x9e3779b97f4a7c15 >> shift_; }

  std::vector<uint64_t> words_;  // left:20 right:20 rank:24, or kFree; a power of two
  uint64_t mask_ = 0;
  int shift_ = 63;
};

// Byte pair encoding: a word starts as its bytes; the pair of neighbours that comes first in the
// merge list is replaced, leftmost first, until no pair is in the list (Sennrich et al. 2016).
class Bpe {
 public:
  // Every byte must be a token. With `whole_words_first` (the file's ignore_merges) a word that is
  // a token is that token, whatever the merges say.
  static Result<Bpe> build(Vocabulary vocabulary, std::vector<Merge> merges,
                           bool whole_words_first);

  // Appends the ids of one pre-token. O(n log n).
  void encode(std::string_view word, std::vector<TokenId>& out) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  Bpe() = default;
  void find_whole_words();
  void merge(std::string_view word, std::vector<TokenId>& out) const;
  void merge_short(std::string_view word, std::vector<TokenId>& out) const;
  void merge_long(std::string_view word, std::vector<TokenId>& out) const;
  TokenId byte_token(char byte) const { return byte_tokens_[static_cast<unsigned char>(byte)]; }
  uint32_t byte_pair_rank(const char* pair) const {
    return byte_pair_ranks_
        .data()[static_cast<unsigned char>(pair[0]) << 8 | static_cast<unsigned char>(pair[1])];
  }
  TokenId result(uint32_t rank) const { return results_.data()[rank]; }

  Vocabulary vocabulary_;
  MergeRanks ranks_;
  std::vector<TokenId> results_;  // by rank
  std::array<TokenId, 256> byte_tokens_{};
  std::vector<uint32_t> byte_pair_ranks_;  // by first byte * 256 + second
  std::vector<uint8_t> is_whole_word_;     // by id: merging the token's bytes gives the token
};

}  // namespace m2::text
