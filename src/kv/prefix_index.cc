#include "kv/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/prefetch.h"

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

PrefixIndex::Edge PrefixIndex::edge(const Node& parent, std::span<const int32_t> tokens,
                                    std::string_view salt) const {
  M2_CHECK(static_cast<int64_t>(tokens.size()) == block_size_);
  std::memcpy(key_.data(), &parent.hash, sizeof(Hash128));
  std::memcpy(key_.data() + sizeof(Hash128), tokens.data(), tokens.size_bytes());
  return {parent, tokens, salt, hash(key_.data(), key_.size())};
}

bool PrefixIndex::holds(BlockId block, const Edge& edge) const {
  const Entry& entry = entries_[static_cast<size_t>(block)];
  return entry.hash == edge.hash && entry.parent == edge.parent.serial &&
         (edge.parent.serial != 0 || entry.salt == edge.salt) &&
         std::ranges::equal(tokens(block), edge.tokens);
}

BlockId PrefixIndex::find(const Edge& edge) const {
  BlockId block = buckets_[bucket(edge.hash)];
  while (block != kNone && !holds(block, edge)) block = entries_[static_cast<size_t>(block)].next;
  return block;
}

PrefixIndex::Node PrefixIndex::insert(BlockId block, const Edge& edge) {
  M2_CHECK(!contains(block), "block {} entered twice", block);
  Entry& entry = entries_[static_cast<size_t>(block)];
  entry.hash = edge.hash;
  entry.serial = ++last_serial_;
  entry.parent = edge.parent.serial;
  if (edge.parent.serial == 0) entry.salt = edge.salt;
  std::ranges::copy(edge.tokens, tokens_.begin() + block * block_size_);
  BlockId& first = buckets_[bucket(edge.hash)];
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

void PrefixIndex::prefetch(const Edge& edge, BlockId block) const {
  __builtin_prefetch(&buckets_[bucket(edge.hash)], 1);
  const Entry* entry = &entries_[static_cast<size_t>(block)];
  fetch_lines(entry, entry + 1);
  const int32_t* copy = tokens_.data() + block * block_size_;
  fetch_lines(copy, copy + block_size_);
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
