#include "kv/block_pool.h"

#include <limits>

#include "base/check.h"

namespace m2::kv {

BlockPool::BlockPool(int64_t size)
    : refs_(static_cast<size_t>(size)),
      kept_(static_cast<size_t>(size)),
      older_(static_cast<size_t>(size) + 1),
      younger_(static_cast<size_t>(size) + 1) {
  M2_CHECK(size > 0 && size < std::numeric_limits<BlockId>::max(), "a pool of {} blocks", size);
  const auto head = static_cast<BlockId>(size);
  older_[index(head)] = younger_[index(head)] = head;
  free_.reserve(static_cast<size_t>(size));
  for (BlockId block = head - 1; block >= 0; --block) free_.push_back(block);
}

BlockId BlockPool::take() {
  M2_CHECK(!free_.empty());
  const BlockId block = free_.back();
  free_.pop_back();
  refs_[index(block)] = 1;
  return block;
}

void BlockPool::retain(BlockId block) {
  if (kept(block)) {
    unlink(block);
  } else {
    M2_CHECK(refs(block) > 0, "block {} retained while free", block);
  }
  ++refs_[index(block)];
}

void BlockPool::release(BlockId block, bool keep) {
  M2_CHECK(refs(block) > 0, "block {} released without a reference", block);
  if (--refs_[index(block)] > 0) return;
  if (keep) {
    link_youngest(block);
  } else {
    free_.push_back(block);
  }
}

BlockId BlockPool::oldest_kept() const {
  M2_CHECK(kept_count_ > 0);
  return younger_[static_cast<size_t>(size())];
}

void BlockPool::drop(BlockId block) {
  M2_CHECK(kept(block), "block {} dropped while not kept", block);
  unlink(block);
  free_.push_back(block);
}

void BlockPool::link_youngest(BlockId block) {
  const auto head = static_cast<BlockId>(size());
  const BlockId last = older_[index(head)];
  older_[index(block)] = last;
  younger_[index(block)] = head;
  younger_[index(last)] = block;
  older_[index(head)] = block;
  kept_[index(block)] = 1;
  ++kept_count_;
}

void BlockPool::unlink(BlockId block) {
  younger_[index(older_[index(block)])] = younger_[index(block)];
  older_[index(younger_[index(block)])] = older_[index(block)];
  kept_[index(block)] = 0;
  --kept_count_;
}

bool BlockPool::consistent() const {
  std::vector<uint8_t> seen(refs_.size());
  for (const BlockId block : free_) {
    if (seen[index(block)]++ || refs(block) != 0 || kept(block)) return false;
  }
  const auto head = static_cast<BlockId>(size());
  int64_t walked = 0;
  for (BlockId block = younger_[index(head)]; block != head; block = younger_[index(block)]) {
    if (seen[index(block)]++ || refs(block) != 0 || !kept(block)) return false;
    if (older_[index(younger_[index(block)])] != block) return false;
    ++walked;
  }
  if (walked != kept_count_) return false;
  for (BlockId block = 0; block < head; ++block) {
    if (!seen[index(block)] && refs(block) <= 0) return false;
  }
  return true;
}

}  // namespace m2::kv
