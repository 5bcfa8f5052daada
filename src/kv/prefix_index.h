#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/huge_pages.h"
#include "kv/block_pool.h"

namespace m2::kv {

struct Hash128 {
  uint64_t low = 0, high = 0;
  bool operator==(const Hash128&) const = default;
};

// Which block holds the K and V of which prefix: a tree whose edges are full blocks of token ids,
// stored as one hash table over fixed arrays. A block's hash is chained, XXH3-128 of its parent's
// hash and its ids, seeded per process; the hash only finds candidates. What is found is compared
// by identity of the parent, ids and (below the root) salt, so a collision costs a miss, never
// another prefix's contents. One thread.
class PrefixIndex {
 public:
  // A place in the tree. Serial numbers are never reused, so a node outlives its block safely: a
  // child of an erased node is never found again.
  struct Node {
    Hash128 hash;
    uint64_t serial = 0;  // 0: the root
  };

  static constexpr BlockId kNone = -1;

  // `hash_bits` < 128 serves tests that want collisions.
  PrefixIndex(int64_t num_blocks, int64_t block_size, uint64_t seed, int hash_bits = 128);

  // Where the prefixes of one salt begin.
  Node root(std::string_view salt) const;

  // How `parent` goes on, with exactly `tokens` (block_size of them), which the edge refers to as
  // it does to `salt`: the one the tree was entered with.
  struct Edge {
    Node parent;
    std::span<const int32_t> tokens;
    std::string_view salt;
    Hash128 hash;
  };
  Edge edge(const Node& parent, std::span<const int32_t> tokens, std::string_view salt) const;

  // The block at the end of this edge, or kNone.
  BlockId find(const Edge& edge) const;

  // Enters `block` as the end of this edge. Precondition: the block is not in the index, and find()
  // does not know the edge.
  Node insert(BlockId block, const Edge& edge);
  void erase(BlockId block);

  // Asks for the memory that find() of this edge and insert() of this block there will need.
  void prefetch(const Edge& edge, BlockId block) const;

  bool contains(BlockId block) const { return entries_[static_cast<size_t>(block)].serial != 0; }
  // Precondition: contains(block).
  Node node(BlockId block) const;
  std::span<const int32_t> tokens(BlockId block) const;
  int64_t size() const { return size_; }

 private:
  struct Entry {
    Hash128 hash;
    uint64_t serial = 0;   // 0: not in the index
    uint64_t parent = 0;   // serial of the parent
    BlockId next = kNone;  // in the same bucket
    std::string salt;      // of children of the root
  };

  Hash128 hash(const void* bytes, size_t count) const;
  bool holds(BlockId block, const Edge& edge) const;
  size_t bucket(const Hash128& hash) const { return hash.low & (buckets_.size() - 1); }

  const int64_t block_size_;
  const uint64_t seed_;
  const int hash_bits_;
  LargeArray<Entry> entries_;           // per block
  LargeArray<int32_t> tokens_;          // [num_blocks, block_size]
  LargeArray<BlockId> buckets_;         // first block of each chain
  mutable std::vector<std::byte> key_;  // scratch: parent's hash, then ids
  uint64_t last_serial_ = 0;
  int64_t size_ = 0;
};

}  // namespace m2::kv
