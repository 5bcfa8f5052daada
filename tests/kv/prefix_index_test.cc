#include "kv/prefix_index.h"

#include <gtest/gtest.h>

#include <array>

namespace m2::kv::test {
namespace {

using Ids = std::array<int32_t, 2>;

TEST(PrefixIndex, FindsWhatWasInserted) {
  PrefixIndex index(8, 2, 1);
  const auto root = index.root("");
  EXPECT_EQ(index.find(index.edge(root, Ids{1, 2}, "")), PrefixIndex::kNone);
  const auto first = index.insert(5, index.edge(root, Ids{1, 2}, ""));
  const auto second = index.insert(3, index.edge(first, Ids{1, 2}, ""));
  EXPECT_EQ(index.find(index.edge(root, Ids{1, 2}, "")), 5);
  EXPECT_EQ(index.find(index.edge(first, Ids{1, 2}, "")), 3);
  EXPECT_EQ(index.find(index.edge(second, Ids{1, 2}, "")), PrefixIndex::kNone);
  EXPECT_EQ(index.find(index.edge(root, Ids{2, 1}, "")), PrefixIndex::kNone);
  EXPECT_EQ(index.size(), 2);
  EXPECT_EQ(index.tokens(3)[1], 2);
}

TEST(PrefixIndex, SaltsAreWorldsApart) {
  PrefixIndex index(8, 2, 1);
  const auto mine = index.insert(0, index.edge(index.root("mine"), Ids{1, 2}, "mine"));
  EXPECT_EQ(index.find(index.edge(index.root("yours"), Ids{1, 2}, "yours")), PrefixIndex::kNone);
  EXPECT_EQ(index.find(index.edge(index.root(""), Ids{1, 2}, "")), PrefixIndex::kNone);
  EXPECT_EQ(index.find(index.edge(index.root("mine"), Ids{1, 2}, "mine")), 0);
  const auto yours = index.insert(1, index.edge(index.root("yours"), Ids{1, 2}, "yours"));
  index.insert(2, index.edge(mine, Ids{3, 4}, "mine"));
  EXPECT_EQ(index.find(index.edge(yours, Ids{3, 4}, "yours")), PrefixIndex::kNone);
}

TEST(PrefixIndex, ErasedBlocksAreGone) {
  PrefixIndex index(8, 2, 1);
  const auto root = index.root("");
  const auto parent = index.insert(0, index.edge(root, Ids{1, 2}, ""));
  index.insert(1, index.edge(parent, Ids{3, 4}, ""));
  index.erase(0);
  EXPECT_FALSE(index.contains(0));
  EXPECT_EQ(index.find(index.edge(root, Ids{1, 2}, "")), PrefixIndex::kNone);
  // The same prefix again, elsewhere: the old child is not its child.
  const auto again = index.insert(4, index.edge(root, Ids{1, 2}, ""));
  EXPECT_EQ(index.find(index.edge(again, Ids{3, 4}, "")), PrefixIndex::kNone);
  EXPECT_EQ(index.size(), 2);
}

// Every hash alike: whatever is found must still be the right prefix.
TEST(PrefixIndex, CollisionsCostTimeOnly) {
  for (const int bits : {0, 1, 3, 65}) {
    PrefixIndex index(400, 2, 1, bits);
    std::vector<PrefixIndex::Node> nodes = {index.root("")};
    for (int32_t i = 0; i < 300; ++i) {
      const auto& parent = nodes[static_cast<size_t>(i / 3)];
      const Ids ids = {i % 3, i % 2};
      ASSERT_EQ(index.find(index.edge(parent, ids, "")), PrefixIndex::kNone) << i;
      nodes.push_back(index.insert(i, index.edge(parent, ids, "")));
    }
    for (int32_t i = 0; i < 300; ++i)
      EXPECT_EQ(index.find(index.edge(nodes[static_cast<size_t>(i / 3)], Ids{i % 3, i % 2}, "")),
                i);
    EXPECT_EQ(index.find(index.edge(nodes[5], Ids{7, 7}, "")), PrefixIndex::kNone);
    for (int32_t i = 0; i < 300; i += 2) index.erase(i);
    for (int32_t i = 0; i < 300; ++i)
      EXPECT_EQ(index.find(index.edge(nodes[static_cast<size_t>(i / 3)], Ids{i % 3, i % 2}, "")),
                i % 2 ? i : PrefixIndex::kNone);
  }
}

TEST(PrefixIndex, HashesDependOnTheSeed) {
  const PrefixIndex a(4, 2, 1), b(4, 2, 2), c(4, 2, 1);
  EXPECT_NE(a.root("x").hash, b.root("x").hash);
  EXPECT_EQ(a.root("x").hash, c.root("x").hash);
}

}  // namespace
}  // namespace m2::kv::test
