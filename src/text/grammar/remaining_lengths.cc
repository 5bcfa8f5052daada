#include "text/grammar/remaining_lengths.h"

#include <grammar_impl.h>  // xgrammar's own: a rule's automaton

#include <algorithm>
#include <utility>

namespace m2::text {
namespace {

// Nodes times lengths: 8 MiB of bits, some tenths of a second.
constexpr int64_t kMostJudged = 64 << 20;
constexpr size_t kMostFree = 1 << 20;  // ways without a byte

bool has(const RemainingLengths::Words& words, int64_t bit) {
  return (words[static_cast<size_t>(bit / 64)] >> (bit % 64) & 1u) != 0;
}

void set(RemainingLengths::Words& words, int64_t bit) {
  words[static_cast<size_t>(bit / 64)] |= uint64_t{1} << (bit % 64);
}

}  // namespace

RemainingLengths::RemainingLengths(const TextLimit& limit, int64_t longest_token)
    : in_json_(limit.as == CountedAs::json_characters),
      least_(limit.least),
      most_(limit.most),
      counted_(most_ == TextLimit::kAny ? least_ : most_),
      longest_(longest_token) {}

Result<RemainingLengths> RemainingLengths::make(const xgrammar::Grammar& grammar, int32_t rule,
                                                const TextLimit& limit, int64_t longest_token) {
  RemainingLengths out(limit, longest_token);
  if (!out.find_nodes(grammar, rule) || !out.find_closures())
    return fail(Code::resource_exhausted,
                "its states and the lengths beside it multiply to more than {}", kMostJudged);
  out.find_lengths(grammar, rule);
  if (!out.can_end(out.start_, 0))
    return fail(Code::invalid_argument, "it and the lengths beside it exclude each other");
  return out;
}

int32_t RemainingLengths::add_node(int32_t state, uint8_t escape) {
  const auto [found, is_new] =
      by_name_.try_emplace(int64_t{state} * 8 + escape, static_cast<int32_t>(names_.size()));
  if (is_new) {
    names_.emplace_back(state, escape);
    edges_.emplace_back();
    free_.emplace_back();
  }
  return found->second;
}

int32_t RemainingLengths::node(int32_t state, uint8_t escape) const {
  const auto found = by_name_.find(int64_t{state} * 8 + (in_json_ ? escape : 0));
  return found == by_name_.end() ? -1 : found->second;
}

// Edges but those of bytes and of nothing lead nowhere: a Regex() has none. False: too many nodes.
bool RemainingLengths::find_nodes(const xgrammar::Grammar& grammar, int32_t rule) {
  const auto& automaton = grammar->per_rule_fsms[static_cast<size_t>(rule)]->GetFsm();
  start_ = add_node(automaton.GetStart(), 0);
  for (int32_t at = 0; at < static_cast<int32_t>(names_.size()); ++at) {
    if (static_cast<int64_t>(at) * (counted_ + longest_) > kMostJudged) return false;
    const auto [state, escape] = names_[static_cast<size_t>(at)];
    for (const xgrammar::FSMEdge& edge : automaton.GetFsm().GetEdges(state)) {
      if (edge.IsEpsilon()) {
        const int32_t to = add_node(edge.target, escape);
        free_[static_cast<size_t>(at)].push_back(to);
      } else if (edge.IsCharRange()) {
        add_edges(at, static_cast<uint8_t>(edge.min), static_cast<uint8_t>(edge.max), edge.target);
      }
    }
  }
  return true;
}

// One for each run of bytes that count alike.
void RemainingLengths::add_edges(int32_t from, uint8_t first, uint8_t last, int32_t state) {
  const uint8_t escape = escape_of(from);
  for (int byte = first; byte <= last; ++byte) {
    CharacterCount count{.escape = escape};
    count.add(static_cast<unsigned char>(byte));
    const bool begins = (in_json_ ? count.json : count.code_points) > 0;
    const int32_t to = add_node(state, in_json_ ? count.escape : 0);
    std::vector<Edge>& edges = edges_[static_cast<size_t>(from)];
    if (byte > first && edges.back().begins == begins && edges.back().to == to)
      edges.back().last = static_cast<uint8_t>(byte);
    else
      edges.push_back({static_cast<uint8_t>(byte), static_cast<uint8_t>(byte), begins, to});
  }
}

// False: too many, of nodes that nothing lies between.
bool RemainingLengths::find_closures() {
  std::vector<Nodes> closed(free_.size());
  std::vector<int32_t> met_from(free_.size(), -1);
  size_t all = 0;
  for (size_t node = 0; node < free_.size(); ++node) {
    const auto from = static_cast<int32_t>(node);
    Nodes& met = closed[node];
    met = {from};
    met_from[node] = from;
    for (size_t i = 0; i < met.size(); ++i)
      for (const int32_t to : free_[static_cast<size_t>(met[i])])
        if (std::exchange(met_from[static_cast<size_t>(to)], from) != from) met.push_back(to);
    std::ranges::sort(met);
    if ((all += met.size()) > kMostFree) return false;
  }
  free_ = std::move(closed);
  return true;
}

RemainingLengths::Ways RemainingLengths::ways_back() const {
  const size_t count = names_.size();
  Ways out{std::vector<Nodes>(count), std::vector<Nodes>(count)};
  for (size_t node = 0; node < count; ++node) {
    const auto from = static_cast<int32_t>(node);
    for (const int32_t to : free_[node])
      if (to != from) out.same[static_cast<size_t>(to)].push_back(from);
    for (const Edge& edge : edges_[node]) {
      Nodes& ways = (edge.begins ? out.next : out.same)[static_cast<size_t>(edge.to)];
      if (ways.empty() || ways.back() != from) ways.push_back(from);
    }
  }
  return out;
}

// After how many more characters, from 0 on, each node can end; `layer`: those that can at once.
std::vector<RemainingLengths::Words> RemainingLengths::lengths_to_end(Nodes layer) const {
  const size_t count = names_.size();
  const Ways back = ways_back();
  std::vector<int64_t> met_at(count, -1);  // the last step a node was met at
  const auto meet = [&](const std::vector<Nodes>& ways, int32_t node, int64_t step, Nodes& met) {
    for (const int32_t from : ways[static_cast<size_t>(node)])
      if (std::exchange(met_at[static_cast<size_t>(from)], step) != step) met.push_back(from);
  };
  const auto spread = [&](Nodes& nodes, int64_t step) {
    for (size_t i = 0; i < nodes.size(); ++i) meet(back.same, nodes[i], step, nodes);
  };
  for (const int32_t node : layer) met_at[static_cast<size_t>(node)] = 0;
  spread(layer, 0);
  std::vector<Words> out(count, Words(static_cast<size_t>(counted_ / 64 + 1)));
  Nodes next;
  for (int64_t after = 0; after <= counted_; ++after) {
    if (after == counted_ && most_ == TextLimit::kAny)  // this many or more
      for (size_t i = 0; i < layer.size(); ++i)
        for (const auto* ways : {&back.same, &back.next}) meet(*ways, layer[i], after, layer);
    for (const int32_t node : layer) set(out[static_cast<size_t>(node)], after);
    next.clear();
    for (const int32_t node : layer) meet(back.next, node, after + 1, next);
    std::swap(layer, next);
    spread(layer, after + 1);
  }
  return out;
}

// A text of n characters can end after those from max(least - n, 0) on, up to most - n.
void RemainingLengths::set_lengths(const std::vector<Words>& to_end) {
  const size_t count = names_.size();
  can_end_.assign(count, Words(length_words()));
  std::vector<int64_t> nearest(static_cast<size_t>(counted_) + 2);  // end from here on
  constexpr int64_t kNever = TextLimit::kAny;
  for (size_t node = 0; node < count; ++node) {
    nearest.back() = kNever;
    for (int64_t after = counted_; after >= 0; --after)
      nearest[static_cast<size_t>(after)] =
          has(to_end[node], after) ? after : nearest[static_cast<size_t>(after) + 1];
    for (int64_t length = 0; length <= counted_; ++length) {
      const int64_t first = nearest[static_cast<size_t>(std::max<int64_t>(least_ - length, 0))];
      const int64_t last = most_ == TextLimit::kAny ? counted_ : most_ - length;
      if (first != kNever && first <= last) set(can_end_[node], length);
    }
    if (most_ == TextLimit::kAny && has(can_end_[node], counted_))
      for (int64_t more = 1; more <= longest_; ++more) set(can_end_[node], counted_ + more);
  }
}

void RemainingLengths::find_lengths(const xgrammar::Grammar& grammar, int32_t rule) {
  const auto& automaton = grammar->per_rule_fsms[static_cast<size_t>(rule)]->GetFsm();
  Nodes ends;
  for (size_t node = 0; node < names_.size(); ++node)
    if (automaton.IsEndState(names_[node].first)) ends.push_back(static_cast<int32_t>(node));
  set_lengths(lengths_to_end(std::move(ends)));
}

RemainingLengths::Nodes RemainingLengths::step(const Nodes& from, uint8_t byte) const {
  Nodes out;
  for (const int32_t node : from)
    for (const Edge& edge : edges_[static_cast<size_t>(node)])
      if (edge.first <= byte && byte <= edge.last) {
        const Nodes& reached = free_[static_cast<size_t>(edge.to)];
        out.insert(out.end(), reached.begin(), reached.end());
      }
  if (out.size() > 1) {
    std::ranges::sort(out);
    out.erase(std::unique(out.begin(), out.end()), out.end());
  }
  return out;
}

bool RemainingLengths::can_end(int32_t node, int64_t length) const {
  if (node < 0 || (length > counted_ && most_ != TextLimit::kAny)) return false;
  return has(can_end_[static_cast<size_t>(node)], std::min(length, counted_));
}

RemainingLengths::Words RemainingLengths::lengths(const Nodes& nodes) const {
  Words out(length_words());
  for (const int32_t node : nodes)
    for (size_t w = 0; w < out.size(); ++w) out[w] |= can_end_[static_cast<size_t>(node)][w];
  return out;
}

void RemainingLengths::window(const Words& lengths, int64_t length, std::span<uint64_t> out) const {
  std::ranges::fill(out, uint64_t{0});
  if (length > counted_ && most_ != TextLimit::kAny) return;
  const int64_t from = std::min(length, counted_);
  const auto word = static_cast<size_t>(from / 64);
  const auto shift = static_cast<unsigned>(from % 64);
  for (size_t w = 0; w < out.size(); ++w) {
    const auto at = [&](size_t i) { return i < lengths.size() ? lengths[i] : uint64_t{0}; };
    const uint64_t high = shift == 0 ? 0 : at(word + w + 1) << (64 - shift);
    out[w] = at(word + w) >> shift | high;
  }
}

size_t RemainingLengths::bytes() const {
  size_t out = can_end_.size() * length_words() * sizeof(uint64_t);
  for (const auto& edges : edges_) out += edges.size() * sizeof(Edge) + 64;
  return out;
}

}  // namespace m2::text
