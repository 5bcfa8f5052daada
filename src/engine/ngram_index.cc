#include "engine/ngram_index.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "engine/random.h"

namespace m2::engine {
namespace {

// Places looked at. A text that repeats itself fills chains with places that are all as good.
constexpr int kMostPlaces = 32;

}  // namespace

NgramIndex::NgramIndex(int64_t least, int64_t most) : least_(least), most_(most) {
  M2_CHECK(1 <= least && least <= most);
  reserve(1);
}

void NgramIndex::reserve(int64_t tokens) {
  M2_CHECK(before_.empty());
  before_.reserve(static_cast<size_t>(tokens));
  newest_.assign(std::bit_ceil(static_cast<size_t>(tokens)), -1);
}

size_t NgramIndex::bucket_of(std::span<const TokenId> ngram) const {
  uint64_t hash = 0;
  for (const TokenId token : ngram) hash = mix64(hash ^ static_cast<uint64_t>(token));
  return static_cast<size_t>(hash) & (newest_.size() - 1);
}

void NgramIndex::extend(std::span<const TokenId> tokens, int64_t limit) {
  const int64_t end = std::min(std::ssize(tokens), size() + limit);
  for (int64_t i = size(); i < end; ++i) {
    if (i + 1 < least_) {
      before_.push_back(-1);
      continue;
    }
    int32_t& newest = newest_[bucket_of(
        tokens.subspan(static_cast<size_t>(i + 1 - least_), static_cast<size_t>(least_)))];
    before_.push_back(newest);
    newest = static_cast<int32_t>(i);
  }
}

NgramIndex::Match NgramIndex::find(std::span<const TokenId> tokens) const {
  M2_CHECK(std::ssize(tokens) == size());
  Match best;
  if (tokens.empty()) return best;
  const auto last = tokens.rbegin();
  int32_t place = before_.back();
  for (int looked = 0; place >= 0 && looked < kMostPlaces; ++looked) {
    const auto longest = std::min<int64_t>(most_, place + 1);
    const auto there = tokens.rend() - (place + 1);
    const int64_t length = std::mismatch(there, there + longest, last).first - there;
    if (length >= least_ && length > best.length) best = {length, place + 1};
    if (length == most_) break;
    place = before_[static_cast<size_t>(place)];
  }
  return best;
}

}  // namespace m2::engine
