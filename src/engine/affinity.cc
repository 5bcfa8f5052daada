#include "engine/affinity.h"

#include <functional>
#include <string_view>

#include "engine/random.h"

namespace m2::engine {
namespace {

// Hashes of the prompt's first chunk, first two chunks, ...
std::vector<uint64_t> chain(std::span<const TokenId> prompt, std::string_view salt) {
  std::vector<uint64_t> out;
  uint64_t hash = std::hash<std::string_view>()(salt);
  const auto chunk = static_cast<size_t>(Affinity::kChunk);
  for (size_t begin = 0; begin + chunk <= prompt.size(); begin += chunk) {
    for (const TokenId id : prompt.subspan(begin, chunk))
      hash = mix64(hash ^ (static_cast<uint64_t>(id) + 0x9e3779b97f4a7c15u));
    out.push_back(hash);
  }
  return out;
}

}  // namespace

Affinity::Match Affinity::find(std::span<const TokenId> prompt, std::string_view salt) const {
  const std::vector<uint64_t> hashes = chain(prompt, salt);
  std::lock_guard lock(mutex_);
  for (size_t i = hashes.size(); i > 0; --i) {
    const auto found = engines_.find(hashes[i - 1]);
    if (found != engines_.end()) return {found->second, static_cast<int64_t>(i) * kChunk};
  }
  return {};
}

void Affinity::note(std::span<const TokenId> prompt, std::string_view salt, int64_t engine) {
  const std::vector<uint64_t> hashes = chain(prompt, salt);
  std::lock_guard lock(mutex_);
  for (const uint64_t hash : hashes) {
    const auto [at, is_new] = engines_.insert_or_assign(hash, engine);
    if (is_new) order_.push_back(hash);
  }
  for (; order_.size() > capacity_; order_.pop_front()) engines_.erase(order_.front());
}

}  // namespace m2::engine
