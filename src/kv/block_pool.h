#pragma once

#include <cstddef>
#include <cstdint>

#include "base/huge_pages.h"

namespace m2::kv {

using BlockId = int32_t;

// The blocks of a paged cache, as integers 0..size-1. Each is in exactly one of three states:
//   owned  one or more references (tables of sequences that read it);
//   kept   no reference, but its contents may still serve: least recently released first;
//   free   contents worthless.
// Fixed arrays, no allocation after construction. One thread.
class BlockPool {
 public:
  explicit BlockPool(int64_t size);

  int64_t size() const { return static_cast<int64_t>(refs_.size()); }
  int64_t free_count() const { return static_cast<int64_t>(free_.size()); }
  int64_t kept_count() const { return kept_count_; }
  int64_t owned_count() const { return size() - free_count() - kept_count(); }
  // Blocks that take() can give, once kept ones are dropped.
  int64_t available() const { return free_count() + kept_count(); }
  int32_t refs(BlockId block) const { return refs_[index(block)]; }
  bool kept(BlockId block) const { return kept_[index(block)] != 0; }

  // A free block, now with one reference. Precondition: free_count() > 0.
  BlockId take();
  // One more reference to an owned or kept block.
  void retain(BlockId block);
  // One reference less. With the last one the block becomes the youngest kept block, or free.
  void release(BlockId block, bool keep);
  // The kept block released longest ago. Precondition: kept_count() > 0.
  BlockId oldest_kept() const;
  // A kept block becomes free.
  void drop(BlockId block);

  // Whether lists, flags and counts agree (I1). Linear; for tests and simulations.
  bool consistent() const;

 private:
  static size_t index(BlockId block) { return static_cast<size_t>(block); }
  void link_youngest(BlockId block);
  void unlink(BlockId block);

  LargeArray<int32_t> refs_;
  LargeArray<uint8_t> kept_;
  LargeArray<BlockId> free_;  // a stack
  // Ring of kept blocks in order of release; entry size() is its head.
  LargeArray<BlockId> older_, younger_;
  int64_t kept_count_ = 0;
};

}  // namespace m2::kv
