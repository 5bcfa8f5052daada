#include "kv/paged_cache.h"

#include <algorithm>

#include "base/check.h"

namespace m2::kv {
namespace {

std::span<const int32_t> block_of(const Prefix& prefix, int64_t block, int64_t block_size) {
  return prefix.tokens.subspan(static_cast<size_t>(block * block_size),
                               static_cast<size_t>(block_size));
}

}  // namespace

PagedCache::PagedCache(const Options& options)
    : options_(options),
      pool_(options.num_blocks),
      index_(options.num_blocks, options.block_size, options.seed, options.hash_bits) {
  match_.blocks.reserve(static_cast<size_t>(options.num_blocks));
}

const PagedCache::Match& PagedCache::match(const Prefix& prefix, int64_t limit) {
  match_.blocks.clear();
  match_.kept = 0;
  match_.tip = index_.root(prefix.salt);
  if (!options_.caching) return match_;
  for (int64_t i = 0; i < limit / options_.block_size; ++i) {
    const BlockId block =
        index_.find(index_.edge(match_.tip, block_of(prefix, i, options_.block_size), prefix.salt));
    if (block == PrefixIndex::kNone) break;
    match_.blocks.push_back(block);
    match_.kept += pool_.kept(block);
    match_.tip = index_.node(block);
  }
  return match_;
}

void PagedCache::attach(BlockTable& table, const Match& match) {
  M2_CHECK(table.blocks.empty(), "a match attached to a table in use");
  for (const BlockId block : match.blocks) {
    pool_.retain(block);
    table.blocks.push_back(table.last = block);
  }
  table.published = static_cast<int64_t>(match.blocks.size());
  table.tip = match.tip;
}

bool PagedCache::grow(BlockTable& table, int64_t tokens) {
  if (tokens <= std::ssize(table.blocks) * options_.block_size) return true;  // as a rule
  const int64_t missing = blocks_for(tokens) - static_cast<int64_t>(table.blocks.size());
  if (missing > pool_.available()) return false;
  for (int64_t i = 0; i < missing; ++i) table.blocks.push_back(table.last = take());
  return true;
}

BlockId PagedCache::take() {
  if (pool_.free_count() == 0) {
    const BlockId oldest = pool_.oldest_kept();
    index_.erase(oldest);
    pool_.drop(oldest);
  }
  return pool_.take();
}

void PagedCache::publish(BlockTable& table, const Prefix& prefix, int64_t computed) {
  while (has_unpublished(table, computed)) publish_first(table, first_unpublished(table, prefix));
}

void PagedCache::publish(std::span<const Publication> all) {
  edges_.clear();
  for (const Publication& one : all) {
    const PrefixIndex::Edge& edge = edges_.emplace_back(first_unpublished(*one.table, one.prefix));
    index_.prefetch(edge, one.table->blocks[static_cast<size_t>(one.table->published)]);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    publish_first(*all[i].table, edges_[i]);
    publish(*all[i].table, all[i].prefix, all[i].computed);
  }
}

PrefixIndex::Edge PagedCache::first_unpublished(const BlockTable& table,
                                                const Prefix& prefix) const {
  return index_.edge(table.tip, block_of(prefix, table.published, options_.block_size),
                     prefix.salt);
}

void PagedCache::publish_first(BlockTable& table, const PrefixIndex::Edge& edge) {
  const BlockId known = index_.find(edge);
  const BlockId own = table.blocks[static_cast<size_t>(table.published)];
  table.tip = known != PrefixIndex::kNone ? index_.node(known) : index_.insert(own, edge);
  ++table.published;
}

void PagedCache::release(BlockTable& table) {
  for (auto block = table.blocks.rbegin(); block != table.blocks.rend(); ++block)
    pool_.release(*block, index_.contains(*block));
  table.blocks.clear();
  table.last = PrefixIndex::kNone;
  table.published = 0;
}

void PagedCache::discard(BlockTable& table) {
  for (const BlockId block : table.blocks) {
    if (index_.contains(block)) index_.erase(block);
  }
  release(table);
}

Result<void> PagedCache::audit(std::span<const Holder> holders) const {
  if (!pool_.consistent()) return fail(Code::internal, "block states contradict each other");
  std::vector<int32_t> refs(static_cast<size_t>(pool_.size()));
  for (const Holder& holder : holders) {
    for (const BlockId block : holder.table->blocks) ++refs[static_cast<size_t>(block)];
    M2_TRY_VOID(audit_tokens(holder));
  }
  int64_t known = 0;
  for (BlockId block = 0; block < pool_.size(); ++block) {
    if (pool_.refs(block) != refs[static_cast<size_t>(block)])
      return fail(Code::internal, "block {} has {} references but {} tables hold it", block,
                  pool_.refs(block), refs[static_cast<size_t>(block)]);
    if (pool_.kept(block) && !index_.contains(block))
      return fail(Code::internal, "block {} is kept but not in the index", block);
    if (pool_.refs(block) == 0 && !pool_.kept(block) && index_.contains(block))
      return fail(Code::internal, "block {} is free but in the index", block);
    known += index_.contains(block);
  }
  if (known != index_.size()) return fail(Code::internal, "the index lost count of its blocks");
  return {};
}

Result<void> PagedCache::audit_tokens(const Holder& holder) const {
  const BlockTable& table = *holder.table;
  if (table.published > static_cast<int64_t>(table.blocks.size()))
    return fail(Code::internal, "more blocks published than held");
  for (size_t i = 0; i < table.blocks.size(); ++i) {
    if (!index_.contains(table.blocks[i])) continue;
    const auto own = block_of(holder.prefix, static_cast<int64_t>(i), options_.block_size);
    if (static_cast<int64_t>(i) >= table.published ||
        !std::ranges::equal(own, index_.tokens(table.blocks[i])))
      return fail(Code::internal, "block {} is indexed under tokens its holder does not have",
                  table.blocks[i]);
  }
  return {};
}

}  // namespace m2::kv
