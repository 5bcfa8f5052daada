#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kv/block_pool.h"
#include "kv/prefix_index.h"

namespace m2::kv {

// The blocks of one sequence, in order of position. Filled and emptied by PagedCache alone.
struct BlockTable {
  std::vector<BlockId> blocks;
  BlockId last = PrefixIndex::kNone;  // of them, again: all that most steps need to know
  int64_t published = 0;              // leading blocks that the prefix index knows
  PrefixIndex::Node tip;              // where the last of them stands
};

// A sequence's tokens and where its blocks may be shared.
struct Prefix {
  std::span<const int32_t> tokens;
  std::string_view salt;
};

// Paged memory with a prefix cache: which block holds which tokens of which sequence, and which
// blocks still hold a prefix somebody may come back for. Bookkeeping only. One thread.
class PagedCache {
 public:
  struct Options {
    int64_t num_blocks;
    int64_t block_size;   // tokens
    bool caching = true;  // off: nothing is ever found or kept
    uint64_t seed = 0;    // of the hashes; random per process
    int hash_bits = 128;  // fewer: for tests that want collisions
  };
  explicit PagedCache(const Options& options);

  // The longest cached prefix.
  struct Match {
    std::vector<BlockId> blocks;
    int64_t kept = 0;  // blocks among them that nobody owns: they count as available until attached
    PrefixIndex::Node tip;
  };

  int64_t block_size() const { return options_.block_size; }
  int64_t blocks_for(int64_t tokens) const {
    return (tokens + options_.block_size - 1) / options_.block_size;
  }
  int64_t available() const { return pool_.available(); }
  const BlockPool& pool() const { return pool_; }
  const PrefixIndex& index() const { return index_; }

  // Looks up the full blocks within the first `limit` tokens. Changes nothing; the reference is
  // good until the next match().
  const Match& match(const Prefix& prefix, int64_t limit);

  // Begins a table with the matched blocks. Preconditions: the table is empty, and nothing was
  // taken since the match.
  void attach(BlockTable& table, const Match& match);

  // Makes room for positions below `tokens`, evicting kept blocks if need be. False, with nothing
  // changed, if there are not enough blocks.
  bool grow(BlockTable& table, int64_t tokens);

  // Enters the table's full blocks of the first `computed` tokens into the prefix index. Where an
  // equal block is known already, that one stays and the table's own is private.
  void publish(BlockTable& table, const Prefix& prefix, int64_t computed);
  // The same for many tables, each with something unpublished, one after the other. The index is
  // larger than the caches: what all need of it is asked for first.
  struct Publication {
    BlockTable* table;
    Prefix prefix;
    int64_t computed;
  };
  void publish(std::span<const Publication> all);
  // Whether publish() would enter any.
  bool has_unpublished(const BlockTable& table, int64_t computed) const {
    return options_.caching && (table.published + 1) * options_.block_size <= computed;
  }

  // Gives all blocks back, the last first, so that the far end of a prefix is evicted before its
  // beginning.
  void release(BlockTable& table);

  // The same for blocks whose contents are damaged: they leave the prefix index first.
  void discard(BlockTable& table);

  // Recounts everything from the live tables: states (I1), references (I2), every published block's
  // tokens (I4). Linear; for tests and simulations.
  struct Holder {
    const BlockTable* table;
    Prefix prefix;
  };
  Result<void> audit(std::span<const Holder> holders) const;

 private:
  BlockId take();
  void publish_first(BlockTable& table, const PrefixIndex::Edge& edge);
  PrefixIndex::Edge first_unpublished(const BlockTable& table, const Prefix& prefix) const;
  Result<void> audit_tokens(const Holder& holder) const;

  const Options options_;
  BlockPool pool_;
  PrefixIndex index_;
  Match match_;
  std::vector<PrefixIndex::Edge> edges_;  // of publish()
};

}  // namespace m2::kv
