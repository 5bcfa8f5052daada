#include "kv/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace m2::kv {
namespace {

uint64_t low_bits(uint64_t value, int bits) {
  return bits >= 64 ? value : value & ((uint64_t{1} << bits) - 1);
}

}  // namespace

PrefixIndex::PrefixIndex(int64_t num_blocks, int64_t block_size, uint64_t seed, int hash_bits)
    : block_size_(block_size),
      seed_(seed),
      hash_bits_(hash_bits),
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks * block_size)),
      buckets_(std::bit_ceil(static_cast<size_t>(num_blocks) * 2), kNone),
      key_(sizeof(Hash128) + static_cast<size_t>(block_size) * sizeof(int32_t)) {
  M2_CHECK(block_size > 0 && hash_bits >= 0 && hash_bits <= 128);
}

PrefixIndex::Node PrefixIndex::root(std::string_view salt) const {
  return Node{hash(salt.data(), salt.size()), 0};
}

Hash128 PrefixIndex::hash(const void* bytes, size_t count) const {
  const XXH128_hash_t full = XXH3_128bits_withSeed(bytes, count, seed_);
  return {low_bits(full.low64, hash_bits_), low_bits(full.high64, std::max(0, hash_bits_ - 64))};
}

Hash128 PrefixIndex::child_hash(const Node& parent, std::span<const int32_t> tokens) const {
  std::memcpy(key_.data(), &parent.hash, sizeof(Hash128));
  std::memcpy(key_.data() + sizeof(Hash128), tokens.data(), tokens.size_bytes());
  return hash(key_.data(), key_.size());
}

bool PrefixIndex::holds(BlockId block, const Hash128& hash, const Node& parent,
                        std::span<const int32_t> tokens, std::string_view salt) const {
  const Entry& entry = entries_[static_cast<size_t>(block)];
  return entry.hash == hash && entry.parent == parent.serial &&
         (parent.serial != 0 || entry.salt == salt) &&
         std::ranges::equal(this->tokens(block), tokens);
}

BlockId PrefixIndex::find(const Node& parent, std::span<const int32_t> tokens,
                          std::string_view salt) const {
  M2_CHECK(static_cast<int64_t>(tokens.size()) == block_size_);
  const Hash128 hash = child_hash(parent, tokens);
  BlockId block = buckets_[bucket(hash)];
  while (block != kNone && !holds(block, hash, parent, tokens, salt))
    block = entries_[static_cast<size_t>(block)].next;
  return block;
}

PrefixIndex::Node PrefixIndex::insert(BlockId block, const Node& parent,
                                      std::span<const int32_t> tokens, std::string_view salt) {
  M2_CHECK(!contains(block), "block {} entered twice", block);
  M2_CHECK(static_cast<int64_t>(tokens.size()) == block_size_);
  Entry& entry = entries_[static_cast<size_t>(block)];
  entry.hash = child_hash(parent, tokens);
  entry.serial = ++last_serial_;
  entry.parent = parent.serial;
  if (parent.serial == 0) entry.salt = salt;
  std::ranges::copy(tokens, tokens_.begin() + block * block_size_);
  BlockId& first = buckets_[bucket(entry.hash)];
  entry.next = first;
  first = block;
  ++size_;
  return node(block);
}

void PrefixIndex::erase(BlockId block) {
  M2_CHECK(contains(block), "block {} erased but not entered", block);
  Entry& entry = entries_[static_cast<size_t>(block)];
  BlockId* link = &buckets_[bucket(entry.hash)];
  while (*link != block) link = &entries_[static_cast<size_t>(*link)].next;
  *link = entry.next;
  entry.serial = 0;
  entry.salt.clear();
  --size_;
}

PrefixIndex::Node PrefixIndex::node(BlockId block) const {
  const Entry& entry = entries_[static_cast<size_t>(block)];
  return Node{entry.hash, entry.serial};
}

std::span<const int32_t> PrefixIndex::tokens(BlockId block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block * block_size_),
                                    static_cast<size_t>(block_size_));
}

}  // namespace m2::kv
