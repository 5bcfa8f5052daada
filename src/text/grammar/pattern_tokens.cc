#include "text/grammar/pattern_tokens.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "base/check.h"

namespace m2::text {
namespace {

constexpr size_t kListed = 2048;  // tokens, at most, that are a list instead of bits
constexpr int32_t kUnknown = -2;
constexpr size_t kMostBytes = 32 << 20;    // of one pattern's groups
constexpr size_t kMostSteps = 40'000'000;  // bytes of tokens followed through one pattern
constexpr size_t kMostSets = 16'000;       // sets of nodes that tokens lead to
constexpr size_t kFewGroups = 24;          // by sets of nodes; more are made by single nodes
constexpr auto kMostBits = static_cast<int>(TokenCharacters::kFew);  // characters, of those as bits

bool has(std::span<const uint64_t> words, size_t bit) {
  return bit / 64 < words.size() && (words[bit / 64] >> (bit % 64) & 1u) != 0;
}

void set(std::span<uint32_t> words, int32_t id) {
  words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<size_t>(id) % 32);
}

bool covers(std::span<const uint64_t> window, const std::vector<uint64_t>& counts) {
  for (size_t w = 0; w < counts.size(); ++w)
    if ((counts[w] & ~window[w]) != 0) return false;
  return true;
}

bool meets(std::span<const uint64_t> window, const std::vector<uint64_t>& counts) {
  for (size_t w = 0; w < counts.size(); ++w)
    if ((counts[w] & window[w]) != 0) return true;
  return false;
}

template <class Value>
uint64_t hash_of(std::span<const Value> values) {
  uint64_t out = 14695981039346656037u;
  for (const Value value : values) out = (out ^ static_cast<uint64_t>(value)) * 1099511628211u;
  return out;
}

constexpr size_t kMostWindow = TokenCharacters::kMany / 64 + 1;  // words

}  // namespace

struct PatternTokens::Making {
  std::map<Nodes, int32_t> names;
  std::vector<const Nodes*> sets;               // by name
  std::vector<std::array<int32_t, 256>> after;  // by name and byte; kUnknown
  std::unordered_multimap<uint64_t, std::shared_ptr<const TokenSet>> token_sets;
  std::map<Nodes, std::shared_ptr<const Words>> lengths;
  size_t steps = 0;
};

PatternTokens::PatternTokens(RemainingLengths lengths, CountedAs as, const Vocabulary& vocabulary,
                             std::shared_ptr<const TokenCharacters> tokens)
    : lengths_(std::move(lengths)),
      as_(as),
      vocabulary_(vocabulary),
      tokens_(std::move(tokens)),
      making_(std::make_shared<Making>()) {
  M2_CHECK(lengths_.window_words() <= kMostWindow);
}

int32_t PatternTokens::name(Nodes nodes) {
  if (nodes.empty()) return -1;
  const auto [found, is_new] =
      making_->names.try_emplace(std::move(nodes), static_cast<int32_t>(making_->sets.size()));
  if (is_new) {
    making_->sets.push_back(&found->first);
    making_->after.emplace_back().fill(kUnknown);
  }
  return found->second;
}

// -1: none.
int32_t PatternTokens::set_after(int32_t set, uint8_t byte) {
  ++making_->steps;
  const auto from = static_cast<size_t>(set);
  if (const int32_t known = making_->after[from][byte]; known != kUnknown) return known;
  making_->steps += making_->sets[from]->size();
  const int32_t to = name(lengths_.step(*making_->sets[from], byte));
  return making_->after[from][byte] = to;
}

std::shared_ptr<const PatternTokens::TokenSet> PatternTokens::token_set(
    const std::vector<int32_t>& ids, uint8_t escape) {
  TokenSet out;
  out.counts.resize(lengths_.window_words());
  const std::span<const uint8_t> characters = tokens_->characters(as_, escape);
  // Masks by number of characters are of texts read from outside an escape.
  const bool listed = ids.size() <= kListed || escape != 0;
  if (!listed) out.bits.resize((tokens_->ids() + 31) / 32);
  for (const int32_t id : ids) {
    const uint8_t count = characters[static_cast<size_t>(id)];
    out.counts[count / 64] |= uint64_t{1} << (count % 64);
    if (listed || count >= kMostBits)
      out.listed.emplace_back(id, count);
    else
      set(out.bits, id);
  }
  std::ranges::sort(out.listed);
  const uint64_t hash = hash_of(std::span<const uint32_t>(out.bits)) + out.listed.size() +
                        (ids.empty() ? 0 : static_cast<uint64_t>(ids.front()) * 977);
  const auto [first, last] = making_->token_sets.equal_range(hash);
  for (auto at = first; at != last; ++at)
    if (*at->second == out) return at->second;
  bytes_ += out.bits.size() * 4 + out.listed.size() * 8 + 128;
  auto made = std::make_shared<const TokenSet>(std::move(out));
  making_->token_sets.emplace(hash, made);
  return made;
}

std::shared_ptr<const PatternTokens::Words> PatternTokens::lengths_of(const Nodes& nodes) {
  std::shared_ptr<const Words>& out = making_->lengths[nodes];
  if (!out) {
    out = std::make_shared<const Words>(lengths_.lengths(nodes));
    bytes_ += out->size() * 8 + 64;
  }
  return out;
}

bool PatternTokens::add(int32_t node, const std::vector<int32_t>& accepted) {
  Place& place = places_[node];
  const uint8_t escape = lengths_.escape_of(node);
  const std::span<const uint8_t> characters = tokens_->characters(as_, escape);
  const int32_t start = name({node});
  std::vector<int32_t> path = {start};  // sets, by bytes of the token
  std::string_view followed;
  std::unordered_map<int32_t, std::vector<int32_t>> by_set;
  std::vector<int32_t> all;
  for (const int32_t index : accepted) {
    const auto& [id, text] = vocabulary_[static_cast<size_t>(index)];
    const auto shared =
        static_cast<size_t>(std::ranges::mismatch(followed, text).in1 - followed.begin());
    if (path.size() > shared + 1) path.resize(shared + 1);
    followed = text;
    while (path.size() <= text.size() && path.back() >= 0)
      path.push_back(set_after(path.back(), static_cast<uint8_t>(text[path.size() - 1])));
    if (path.size() <= text.size() || path.back() < 0 ||
        characters[static_cast<size_t>(id)] == TokenCharacters::kMany) {
      place.leaving.push_back(index);
      continue;
    }
    by_set[path.back()].push_back(id);
    all.push_back(id);
    if (making_->steps > kMostSteps || making_->sets.size() > kMostSets) return false;
  }
  place.size = all.size();
  place.all = token_set(all, escape);
  std::unordered_map<int32_t, std::vector<int32_t>> by_node;
  if (by_set.size() > kFewGroups)
    for (const auto& [set, ids] : by_set)
      for (const int32_t one : *making_->sets[static_cast<size_t>(set)]) {
        std::vector<int32_t>& of = by_node[one];
        of.insert(of.end(), ids.begin(), ids.end());
        making_->steps += ids.size();
        if (making_->steps > kMostSteps) return false;
      }
  const bool by_nodes = by_set.size() > kFewGroups && by_node.size() < by_set.size();
  for (auto& [key, ids] : by_nodes ? by_node : by_set) {
    std::ranges::sort(ids);
    place.groups.push_back(
        {token_set(ids, escape),
         lengths_of(by_nodes ? Nodes{key} : *making_->sets[static_cast<size_t>(key)]), ids.size()});
    bytes_ += sizeof(Group);
    if (bytes_ > kMostBytes) return false;
  }
  std::ranges::stable_sort(place.groups, std::ranges::greater{}, &Group::size);
  bytes_ += place.leaving.size() * 4 + sizeof(Place);
  return true;
}

void PatternTokens::finish() {
  making_.reset();
}

bool PatternTokens::is_free(int32_t node, int64_t length) const {
  const auto found = places_.find(node);
  if (found == places_.end()) return true;
  std::array<uint64_t, kMostWindow> words;
  const auto window = std::span(words).first(lengths_.window_words());
  return std::ranges::all_of(found->second.groups, [&](const Group& group) {
    lengths_.window(*group.lengths, length, window);
    return covers(window, group.tokens->counts);
  });
}

size_t PatternTokens::add_all(const TokenSet& tokens, std::span<uint32_t> words) {
  for (size_t w = 0; w < tokens.bits.size(); ++w) words[w] |= tokens.bits[w];
  for (const auto& [id, count] : tokens.listed) set(words, id);
  return tokens.bits.size() + tokens.listed.size();
}

// Those whose number of characters is in the window.
size_t PatternTokens::add_where(const TokenSet& tokens, std::span<const uint64_t> window,
                                std::span<uint32_t> words) const {
  for (const auto& [id, count] : tokens.listed)
    if (has(window, count)) set(words, id);
  size_t looked_at = tokens.listed.size();
  if (tokens.bits.empty()) return looked_at;
  // In runs; of counts that no token has it does not matter.
  for (int first = 0; first < kMostBits; ++first) {
    const auto may = [&](int n) {
      const auto count = static_cast<size_t>(n);
      return has(window, count) || !has(tokens.counts, count);
    };
    if (!may(first)) continue;
    int last = first;
    bool any = false;
    for (; last < kMostBits && may(last); ++last)
      any = any || has(tokens.counts, static_cast<size_t>(last));
    if (any) {
      looked_at += tokens.bits.size();
      const std::span<const uint32_t> up_to = tokens_->up_to(last - 1, as_);
      if (first == 0) {
        for (size_t w = 0; w < up_to.size(); ++w) words[w] |= tokens.bits[w] & up_to[w];
      } else {
        const std::span<const uint32_t> below = tokens_->up_to(first - 1, as_);
        for (size_t w = 0; w < up_to.size(); ++w) words[w] |= tokens.bits[w] & up_to[w] & ~below[w];
      }
    }
    first = last;
  }
  return looked_at;
}

size_t PatternTokens::fill(int32_t node, int64_t length, std::span<uint32_t> words) const {
  const auto found = places_.find(node);
  if (found == places_.end()) return 0;
  const Place& place = found->second;
  if (is_free(node, length)) return add_all(*place.all, words);
  std::array<uint64_t, kMostWindow> room;
  const auto window = std::span(room).first(lengths_.window_words());
  size_t looked_at = place.groups.size();
  for (const Group& group : place.groups) {
    lengths_.window(*group.lengths, length, window);
    if (covers(window, group.tokens->counts)) {
      looked_at += add_all(*group.tokens, words);
      if (group.size == place.size) return looked_at;  // the others hold no more
    } else if (meets(window, group.tokens->counts)) {
      looked_at += add_where(*group.tokens, window, words);
    }
  }
  return looked_at;
}

std::span<const int32_t> PatternTokens::leaving(int32_t node) const {
  const auto found = places_.find(node);
  return found == places_.end() ? std::span<const int32_t>() : found->second.leaving;
}

size_t PatternTokens::bytes() const {
  return bytes_ + lengths_.bytes();
}

}  // namespace m2::text
