#include "kv/paged_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <random>
#include <string>

namespace m2::kv::test {
namespace {

std::vector<int32_t> count_up(int32_t size, int32_t first = 0) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < size; ++i) tokens.push_back(first + i);
  return tokens;
}

PagedCache::Options options(int64_t blocks, int64_t block_size, bool caching = true,
                            int hash_bits = 128) {
  return {blocks, block_size, caching, 7, hash_bits};
}

// Computes a whole sequence and gives it back; returns how many of its tokens were cached.
int64_t visit(PagedCache& cache, const std::vector<int32_t>& tokens, const std::string& salt = "") {
  BlockTable table;
  const Prefix prefix{tokens, salt};
  cache.attach(table, cache.match(prefix, static_cast<int64_t>(tokens.size()) - 1));
  const auto cached = static_cast<int64_t>(table.blocks.size()) * cache.block_size();
  EXPECT_TRUE(cache.grow(table, static_cast<int64_t>(tokens.size())));
  cache.publish(table, prefix, static_cast<int64_t>(tokens.size()));
  cache.release(table);
  return cached;
}

TEST(PagedCache, HitsAreFullBlocksShortOfTheLastToken) {
  for (const int32_t size : {1, 3, 4, 5, 7, 8, 9, 12, 13}) {
    PagedCache cache(options(16, 4));
    EXPECT_EQ(visit(cache, count_up(size)), 0);
    EXPECT_EQ(visit(cache, count_up(size)), (size - 1) / 4 * 4) << size;
  }
}

TEST(PagedCache, PartialPrefixesHit) {
  PagedCache cache(options(32, 4));
  visit(cache, count_up(20));
  auto other = count_up(20);
  other[9] = 99;
  EXPECT_EQ(visit(cache, other), 8);
  EXPECT_EQ(visit(cache, count_up(6)), 4);
  EXPECT_EQ(visit(cache, count_up(40)), 20);
}

TEST(PagedCache, SaltsShareNothing) {
  PagedCache cache(options(32, 4));
  visit(cache, count_up(20), "a");
  EXPECT_EQ(visit(cache, count_up(20), "b"), 0);
  EXPECT_EQ(visit(cache, count_up(20)), 0);
  EXPECT_EQ(visit(cache, count_up(20), "a"), 16);
}

TEST(PagedCache, OffMeansOff) {
  PagedCache cache(options(32, 4, false));
  visit(cache, count_up(20));
  EXPECT_EQ(visit(cache, count_up(20)), 0);
  EXPECT_EQ(cache.pool().kept_count(), 0);
}

TEST(PagedCache, EvictsTheFarEndFirst) {
  PagedCache cache(options(5, 4));
  visit(cache, count_up(20));
  visit(cache, count_up(8, 100));  // takes two blocks: the last two of the first
  EXPECT_EQ(visit(cache, count_up(20)), 12);
}

TEST(PagedCache, EvictsTheLeastRecentlyUsedSequence) {
  PagedCache cache(options(6, 4));
  visit(cache, count_up(8));
  visit(cache, count_up(8, 100));
  visit(cache, count_up(9));        // uses the first again, and the two free blocks are one less
  visit(cache, count_up(12, 200));  // needs the second's
  EXPECT_EQ(visit(cache, count_up(9)), 8);
  EXPECT_EQ(visit(cache, count_up(9, 100)), 0);
}

TEST(PagedCache, GrowIsAllOrNothing) {
  PagedCache cache(options(4, 4));
  BlockTable a, b;
  EXPECT_TRUE(cache.grow(a, 9));
  EXPECT_FALSE(cache.grow(b, 5));
  EXPECT_TRUE(b.blocks.empty());
  EXPECT_TRUE(cache.grow(b, 4));
  EXPECT_FALSE(cache.grow(a, 13));
  EXPECT_EQ(a.blocks.size(), 3u);
  cache.release(b);
  EXPECT_TRUE(cache.grow(a, 13));
}

TEST(PagedCache, SharedBlocksOutliveTheirFirstOwner) {
  PagedCache cache(options(4, 4));
  const auto tokens = count_up(9);
  const Prefix prefix{tokens, ""};
  BlockTable a, b;
  cache.attach(a, cache.match(prefix, 8));
  ASSERT_TRUE(cache.grow(a, 9));
  cache.publish(a, prefix, 9);
  cache.attach(b, cache.match(prefix, 8));
  EXPECT_EQ(b.blocks, (std::vector<BlockId>{a.blocks[0], a.blocks[1]}));
  EXPECT_EQ(cache.match(prefix, 8).kept, 0);
  cache.release(a);
  EXPECT_EQ(cache.available(), 2);
  const PagedCache::Holder holder{&b, prefix};
  EXPECT_TRUE(cache.audit({&holder, 1}).ok());
  cache.release(b);
  EXPECT_EQ(cache.match(prefix, 8).kept, 2);
}

TEST(PagedCache, TablesPublishedTogetherAreAsOneByOne) {
  PagedCache together(options(32, 2)), alone(options(32, 2));
  const std::vector<std::vector<int32_t>> texts = {
      count_up(6), count_up(4), count_up(6), {0, 1, 9, 9}, count_up(2, 50)};
  std::vector<BlockTable> a(texts.size()), b(texts.size());
  std::vector<PagedCache::Publication> all;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto size = std::ssize(texts[i]);
    ASSERT_TRUE(together.grow(a[i], size) && alone.grow(b[i], size));
    all.push_back({&a[i], {texts[i], ""}, size});
    alone.publish(b[i], {texts[i], ""}, size);
  }
  together.publish(all);
  EXPECT_EQ(together.index().size(), alone.index().size());
  EXPECT_EQ(together.index().size(), 3 + 1 + 1);  // equal prefixes are entered once
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(a[i].published, b[i].published);
    EXPECT_EQ(a[i].tip.serial, b[i].tip.serial);
    EXPECT_EQ(together.match({texts[i], ""}, 6).blocks, alone.match({texts[i], ""}, 6).blocks);
  }
}

TEST(PagedCache, DamagedBlocksAreForgotten) {
  PagedCache cache(options(8, 4));
  const auto tokens = count_up(12);
  const Prefix prefix{tokens, ""};
  visit(cache, tokens);
  BlockTable table;
  cache.attach(table, cache.match(prefix, 11));
  ASSERT_EQ(table.blocks.size(), 2u);
  cache.discard(table);
  EXPECT_EQ(visit(cache, tokens), 0);
  EXPECT_EQ(visit(cache, tokens), 8);
}

// Random sequences come, grow, share and go. A model of the contents, block by block, says what
// every hit really holds.
void random_life(uint64_t seed, int hash_bits) {
  std::mt19937_64 random(seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % uint64_t(n)); };
  const int64_t block_size = 1 + below(4), blocks = 4 + below(40);
  PagedCache cache(options(blocks, block_size, true, hash_bits));
  struct Live {
    std::vector<int32_t> tokens;
    std::string salt;
    BlockTable table;
    int64_t computed = 0;
  };
  std::vector<std::unique_ptr<Live>> lives;
  std::map<BlockId, std::vector<int32_t>> contents;  // the whole prefix up to the block's end
  const auto write = [&](Live& live) {
    for (int64_t i = live.computed / block_size; i < std::ssize(live.table.blocks); ++i) {
      const auto end = std::min<int64_t>((i + 1) * block_size, std::ssize(live.tokens));
      contents[live.table.blocks[size_t(i)]] = {live.tokens.begin(), live.tokens.begin() + end};
    }
    live.computed = std::ssize(live.tokens);
  };
  for (int round = 0; round < 2000; ++round) {
    if (lives.size() < 6 && below(2) == 0) {
      auto live = std::make_unique<Live>();
      live->salt = below(3) == 0 ? "s" : "";
      for (int64_t i = 1 + below(16); i > 0; --i) live->tokens.push_back(int32_t(below(2)));
      const Prefix prefix{live->tokens, live->salt};
      const auto& match = cache.match(prefix, std::ssize(live->tokens) - 1);
      const int64_t missing = cache.blocks_for(std::ssize(live->tokens)) - std::ssize(match.blocks);
      if (missing > cache.available() - match.kept) continue;
      cache.attach(live->table, match);
      for (int64_t i = 0; i < std::ssize(live->table.blocks); ++i) {
        const std::vector<int32_t> expected(live->tokens.begin(),
                                            live->tokens.begin() + (i + 1) * block_size);
        ASSERT_EQ(contents[live->table.blocks[size_t(i)]], expected) << "a hit holds other tokens";
      }
      live->computed = std::ssize(live->table.blocks) * block_size;
      ASSERT_TRUE(cache.grow(live->table, std::ssize(live->tokens)));
      write(*live);
      cache.publish(live->table, prefix, live->computed);
      lives.push_back(std::move(live));
    } else if (!lives.empty()) {
      const auto pick = lives.begin() + below(std::ssize(lives));
      Live& live = **pick;
      const int64_t action = below(4);
      if (action > 0 && cache.grow(live.table, std::ssize(live.tokens) + 1)) {
        live.tokens.push_back(int32_t(below(2)));
        write(live);
        cache.publish(live.table, {live.tokens, live.salt}, live.computed);
      } else {
        below(8) == 0 ? cache.discard(live.table) : cache.release(live.table);
        lives.erase(pick);
      }
    }
    std::vector<PagedCache::Holder> holders;
    for (const auto& live : lives) holders.push_back({&live->table, {live->tokens, live->salt}});
    const Result<void> audit = cache.audit(holders);
    ASSERT_TRUE(audit.ok()) << audit.error().text;
  }
  for (const auto& live : lives) cache.release(live->table);
  EXPECT_EQ(cache.available(), blocks);
}

TEST(PagedCache, RandomLives) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    random_life(seed, 128);
    if (HasFatalFailure()) return;
  }
}

TEST(PagedCache, RandomLivesWithCollidingHashes) {
  for (uint64_t seed = 100; seed < 140; ++seed) {
    SCOPED_TRACE(seed);
    random_life(seed, static_cast<int>(seed % 3));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace m2::kv::test
