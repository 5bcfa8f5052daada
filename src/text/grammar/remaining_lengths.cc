#include "text/grammar/remaining_lengths.h"

#include <grammar_impl.h>  // xgrammar's own: a rule's automaton

#include <algorithm>
#include <bit>
#include <set>

namespace m2::text {
namespace {

// The nodes met from `from` on by these ways, themselves included.
std::vector<int32_t> closure(std::vector<int32_t> from,
                             std::initializer_list<const std::vector<std::vector<int32_t>>*> ways) {
  std::set<int32_t> met(from.begin(), from.end());
  for (size_t i = 0; i < from.size(); ++i)
    for (const auto* way : ways)
      for (const int32_t to : (*way)[static_cast<size_t>(from[i])])
        if (met.insert(to).second) from.push_back(to);
  return {met.begin(), met.end()};
}

std::vector<int32_t> step(const std::vector<int32_t>& from,
                          const std::vector<std::vector<int32_t>>& way) {
  std::set<int32_t> met;
  for (const int32_t node : from)
    met.insert(way[static_cast<size_t>(node)].begin(), way[static_cast<size_t>(node)].end());
  return {met.begin(), met.end()};
}

std::vector<std::vector<int32_t>> reversed(const std::vector<std::vector<int32_t>>& ways) {
  std::vector<std::vector<int32_t>> out(ways.size());
  for (size_t from = 0; from < ways.size(); ++from)
    for (const int32_t to : ways[from])
      out[static_cast<size_t>(to)].push_back(static_cast<int32_t>(from));
  return out;
}

// Whether a bit from `first` to `last` is set.
bool any_bit(const std::vector<uint64_t>& words, int64_t first, int64_t last) {
  for (int64_t at = first; at <= last;) {
    const uint64_t word = words[static_cast<size_t>(at / 64)] >> (at % 64);
    if (word != 0) return at + std::countr_zero(word) <= last;
    at += 64 - at % 64;
  }
  return false;
}

}  // namespace

RemainingLengths::RemainingLengths(const xgrammar::Grammar& grammar, int32_t rule,
                                   const TextLimit& limit)
    : in_json_(limit.as == CountedAs::json_characters),
      least_(limit.least),
      most_(limit.most),
      counted_(most_ == TextLimit::kAny ? least_ : most_) {
  const Ways ways = find_nodes(grammar, rule);
  const auto& automaton = grammar->per_rule_fsms[static_cast<size_t>(rule)]->GetFsm();
  Nodes ends;
  for (const auto& [key, node] : nodes_)
    if (automaton.IsEndState(static_cast<int32_t>(key / 8))) ends.push_back(node);
  find_ends(ends, Ways{reversed(ways.same), reversed(ways.next)});
  find_safe(ways);
}

int32_t RemainingLengths::node(int32_t state, uint8_t escape,
                               std::vector<std::pair<int32_t, uint8_t>>& nodes) {
  const auto [found, is_new] =
      nodes_.try_emplace(int64_t{state} * 8 + escape, static_cast<int32_t>(nodes.size()));
  if (is_new) nodes.emplace_back(state, escape);
  return found->second;
}

// Edges but those of bytes and of nothing lead nowhere: a Regex() has none.
RemainingLengths::Ways RemainingLengths::find_nodes(const xgrammar::Grammar& grammar,
                                                    int32_t rule) {
  const auto& automaton = grammar->per_rule_fsms[static_cast<size_t>(rule)]->GetFsm();
  Ways ways;
  std::vector<std::pair<int32_t, uint8_t>> nodes;
  start_ = automaton.GetStart();
  node(start_, 0, nodes);
  for (size_t at = 0; at < nodes.size(); ++at) {
    const auto [state, escape] = nodes[at];
    std::set<int32_t> same, next;
    for (const xgrammar::FSMEdge& edge : automaton.GetFsm().GetEdges(state)) {
      if (edge.IsEpsilon()) same.insert(node(edge.target, escape, nodes));
      if (!edge.IsCharRange()) continue;
      for (int byte = edge.min; byte <= edge.max; ++byte) {
        CharacterCount count{.escape = escape};
        count.add(static_cast<unsigned char>(byte));
        const bool begins = (in_json_ ? count.json : count.code_points) > 0;
        (begins ? next : same).insert(node(edge.target, in_json_ ? count.escape : 0, nodes));
      }
    }
    ways.same.emplace_back(same.begin(), same.end());
    ways.next.emplace_back(next.begin(), next.end());
  }
  return ways;
}

void RemainingLengths::find_ends(const Nodes& ends, const Ways& back) {
  ends_.assign(back.same.size(), Words(static_cast<size_t>(counted_ / 64 + 1)));
  Nodes layer = closure(ends, {&back.same});
  for (int64_t count = 0; count <= counted_ && !layer.empty(); ++count) {
    if (count == counted_ && most_ == TextLimit::kAny)
      layer = closure(std::move(layer), {&back.same, &back.next});
    for (const int32_t node : layer)
      ends_[static_cast<size_t>(node)][static_cast<size_t>(count / 64)] |= uint64_t{1}
                                                                           << (count % 64);
    layer = closure(step(layer, back.next), {&back.same});
  }
}

void RemainingLengths::find_safe(const Ways& ways) {
  const int64_t beyond = most_ == TextLimit::kAny ? TextLimit::kAny : most_;
  std::vector<bool> safe;
  Nodes layer = closure({0}, {&ways.same});
  for (int64_t length = 0; length <= counted_; ++length) {
    if (length == counted_ && most_ == TextLimit::kAny)
      layer = closure(std::move(layer), {&ways.same, &ways.next});
    safe.push_back(
        std::ranges::all_of(layer, [&](int32_t node) { return node_can_end(node, length); }));
    layer = closure(step(layer, ways.next), {&ways.same});
  }
  safe_until_.resize(safe.size());
  int64_t until = beyond;
  for (int64_t length = counted_; length >= 0; --length) {
    if (!safe[static_cast<size_t>(length)]) until = length - 1;
    safe_until_[static_cast<size_t>(length)] = until;
  }
}

bool RemainingLengths::node_can_end(int32_t node, int64_t length) const {
  const int64_t first = std::max<int64_t>(least_ - length, 0);
  const int64_t last = most_ == TextLimit::kAny ? counted_ : most_ - length;
  return any_bit(ends_[static_cast<size_t>(node)], first, last);
}

bool RemainingLengths::can_end(int32_t state, uint8_t escape, int64_t length) const {
  const auto found = nodes_.find(int64_t{state} * 8 + (in_json_ ? escape : 0));
  return found != nodes_.end() && node_can_end(found->second, length);
}

int64_t RemainingLengths::safe_until(int64_t length) const {
  if (length > counted_ && most_ != TextLimit::kAny) return length - 1;
  return safe_until_[static_cast<size_t>(std::min(length, counted_))];
}

size_t RemainingLengths::bytes() const {
  return ends_.size() * static_cast<size_t>(counted_ / 8 + 64) + safe_until_.size() * 8;
}

}  // namespace m2::text
