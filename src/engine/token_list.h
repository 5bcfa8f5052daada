#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/request.h"

namespace m2::engine {

// A sequence's tokens. The newest stand in the list itself, and join the others in memory of their
// own a few at a time: each step adds a token to a thousand sequences, and that memory is a page of
// its own for each of them, in no cache and in no cache of addresses.
class TokenList {
 public:
  TokenList& operator=(std::vector<TokenId> tokens) {
    settled_ = std::move(tokens);
    count_ = 0;
    return *this;
  }
  // Of what it will hold in all, so that push_back() allocates nothing.
  void reserve(int64_t size) { settled_.reserve(static_cast<size_t>(size)); }

  int64_t size() const { return std::ssize(settled_) + count_; }
  TokenId operator[](int64_t index) const {
    const int64_t newer = index - std::ssize(settled_);
    return newer < 0 ? settled_[static_cast<size_t>(index)] : newest_[static_cast<size_t>(newer)];
  }
  TokenId back() const { return (*this)[size() - 1]; }

  void push_back(TokenId token) {
    if (count_ == kNewest) settle();
    newest_[static_cast<size_t>(count_++)] = token;
  }

  // All of them in one piece; good until the next push_back(). No other thread may read meanwhile.
  std::span<const TokenId> all() {
    if (count_ > 0) settle();
    return settled_;
  }
  // The first `size`, for which all() was called, or which the list began with.
  std::span<const TokenId> first(int64_t size) const {
    return std::span(settled_).first(static_cast<size_t>(size));
  }

 private:
  static constexpr int32_t kNewest = 16;

  void settle() {
    settled_.insert(settled_.end(), newest_.begin(), newest_.begin() + count_);
    count_ = 0;
  }

  std::vector<TokenId> settled_;
  std::array<TokenId, kNewest> newest_;
  int32_t count_ = 0;  // of newest_
};

}  // namespace m2::engine
