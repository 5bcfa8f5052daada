#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <set>

namespace m2::kv::test {
namespace {

TEST(BlockPool, GivesEachBlockOnce) {
  BlockPool pool(5);
  std::set<BlockId> blocks;
  while (pool.free_count() > 0) blocks.insert(pool.take());
  EXPECT_EQ(blocks, (std::set<BlockId>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.owned_count(), 5);
  EXPECT_TRUE(pool.consistent());
}

TEST(BlockPool, CountsReferences) {
  BlockPool pool(2);
  const BlockId block = pool.take();
  pool.retain(block);
  EXPECT_EQ(pool.refs(block), 2);
  pool.release(block, false);
  EXPECT_EQ(pool.owned_count(), 1);
  pool.release(block, false);
  EXPECT_EQ(pool.owned_count(), 0);
  EXPECT_EQ(pool.free_count(), 2);
}

TEST(BlockPool, KeptBlocksLeaveInOrderOfRelease) {
  BlockPool pool(4);
  for (int i = 0; i < 4; ++i) pool.take();
  for (const BlockId block : {2, 0, 3, 1}) pool.release(block, true);
  EXPECT_EQ(pool.available(), 4);
  EXPECT_EQ(pool.free_count(), 0);
  pool.retain(0);  // used again: out of the queue, and at its end afterwards
  pool.release(0, true);
  for (const BlockId expected : {2, 3, 1, 0}) {
    EXPECT_EQ(pool.oldest_kept(), expected);
    EXPECT_TRUE(pool.kept(expected));
    pool.drop(expected);
    EXPECT_TRUE(pool.consistent());
  }
  EXPECT_EQ(pool.free_count(), 4);
}

TEST(BlockPoolDeathTest, MisuseIsABug) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.release(0, false), "without a reference");
  EXPECT_DEATH(pool.retain(0), "while free");
  EXPECT_DEATH(pool.drop(0), "not kept");
  pool.take();
  EXPECT_DEATH(pool.take(), "empty");
}

}  // namespace
}  // namespace m2::kv::test
