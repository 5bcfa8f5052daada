#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace m2::engine {

// Where the last tokens of a growing text stood in it before. Every position is in the chain of
// those whose `least` last tokens hash alike, the newest first. One thread.
class NgramIndex {
 public:
  // Matches of at least `least` tokens, and as long as counts: nobody looks further than `most`.
  // Preconditions: 1 <= least <= most.
  NgramIndex(int64_t least, int64_t most);

  // Of the text in all, so that extend() allocates nothing: 8 bytes a token.
  void reserve(int64_t tokens);

  int64_t size() const { return std::ssize(before_); }
  // Takes in what follows the first size() tokens, `limit` of them at most. Precondition: those are
  // what they were.
  void extend(std::span<const TokenId> tokens, int64_t limit);

  // The text's last `length` tokens end at `end`, too; length 0: at no place before.
  struct Match {
    int64_t length = 0;
    int64_t end = 0;
  };
  // The longest match among the newest places, the newest of equal ones. Precondition: the index
  // has taken in all of `tokens`.
  Match find(std::span<const TokenId> tokens) const;

 private:
  size_t bucket_of(std::span<const TokenId> ngram) const;

  const int64_t least_, most_;
  std::vector<int32_t> before_;  // by position of a last token: the one before in its chain, or -1
  std::vector<int32_t> newest_;  // of each chain
};

}  // namespace m2::engine
