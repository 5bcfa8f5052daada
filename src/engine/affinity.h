#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/request.h"

namespace m2::engine {

// Which of several engines was given prompts that begin like this one: its prefix cache likely
// still holds them. Remembers hashes only, of a bounded number of prefixes. Thread-safe.
class Affinity {
 public:
  static constexpr int64_t kChunk = 64;  // tokens; prefixes are known by whole chunks

  explicit Affinity(size_t capacity = 1 << 16) : capacity_(capacity) {}

  // The engine that had the longest known beginning of the prompt, and that beginning's tokens.
  // {-1, 0} if none is known. Prompts of different salts share nothing.
  struct Match {
    int64_t engine = -1;
    int64_t tokens = 0;
  };
  Match find(std::span<const TokenId> prompt, std::string_view salt) const;
  void note(std::span<const TokenId> prompt, std::string_view salt, int64_t engine);

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, int64_t> engines_;
  std::deque<uint64_t> order_;  // keys of engines_, oldest first
};

}  // namespace m2::engine
