#include "text/grammar/limited_matcher.h"

#include <compiled_grammar_impl.h>  // xgrammar's own: its parser, and the masks of its states
#include <earley_parser.h>
#include <tokenizer_info_impl.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/log.h"
#include "text/grammar/pattern_tokens.h"

namespace m2::text {

using xgrammar::AdaptiveTokenMask;
using xgrammar::ParserState;

// Tokens are named by their index in xgrammar's sorted vocabulary, as its masks name them.
struct LimitedGrammar::Tables {
  // Of a state's tokens, those that a length forbids, and those it depends on the states around.
  struct Doubts {
    std::vector<int32_t> never, maybe;
  };

  const std::vector<std::pair<int32_t, std::string>>& vocabulary() const {
    return info.GetSortedDecodedVocab();
  }
  bool takes(const AdaptiveTokenMask& mask, int32_t index) const;

  Tables(const xgrammar::CompiledGrammar& the_compiled, std::vector<TextLimit> the_limits,
         std::shared_ptr<const TokenCharacters> the_tokens)
      : compiled(the_compiled),
        info(the_compiled.GetTokenizerInfo()),
        limits(std::move(the_limits)),
        tokens(std::move(the_tokens)) {}

  Result<void> fill();
  Result<void> find_rules();
  void find_closes();
  Result<void> find_patterns();
  Result<void> find_pattern(size_t limit);
  void find_ids();
  std::vector<int32_t> accepted_by(const AdaptiveTokenMask& mask) const;
  bool may_hold(size_t limit, std::string_view begun) const;
  std::vector<int32_t> suspects() const;
  void find_doubts();
  void find_endings();

  xgrammar::CompiledGrammar compiled;
  xgrammar::TokenizerInfo info;
  std::vector<TextLimit> limits;
  std::shared_ptr<const TokenCharacters> tokens;

  std::vector<int16_t> limit_of_rule;  // -1: none
  std::vector<int16_t>
      close_of_state;          // by state: the limit whose text ends right before it, or -1
  std::vector<int32_t> rules;  // by limit
  std::vector<std::unique_ptr<PatternTokens>> patterns;  // by limit; null: it has none
  bool any_patterned = false;
  std::unordered_map<int32_t, Doubts> doubts;  // by state
  // By limit: tokens that can end its text before their own end, and be within it as well.
  std::vector<std::vector<int32_t>> endings;
  std::vector<uint32_t> all;  // the mask of the sorted vocabulary
};

// xgrammar's Earley parser with lengths: a byte is not offered to a state whose text would become
// too long by it, nor to what follows a text that is too short.
class LimitedParser : private xgrammar::EarleyParser {
 public:
  using Tables = LimitedGrammar::Tables;

  explicit LimitedParser(const Tables& tables, std::optional<ParserState> initial = std::nullopt)
      : EarleyParser(tables.compiled->grammar, initial),
        tables_(tables),
        counts_(1),
        scratch_(tables.all.size()) {}

  void fill(std::span<uint32_t> words);
  // As many bytes as may come; how many.
  size_t advance(std::string_view bytes);
  void pop(size_t bytes);
  bool complete() const { return IsCompleted(); }
  void ignore_lengths(bool ignore) { ignores_lengths_ = ignore; }

 private:
  bool advance(uint8_t byte);
  bool may_scan(const ParserState& state, uint8_t byte) const;
  bool may_close(const ParserState& state, int16_t limit) const;
  bool may_complete(const ParserState& state) const;
  bool may_stand(const ParserState& state) const;
  int64_t length(const ParserState& state, CountedAs as) const;
  std::optional<int64_t> room(const ParserState& state) const;
  void add_taken(const ParserState& state, std::span<uint32_t> words);
  void find_accepted(const AdaptiveTokenMask& mask);
  void add_patterned(const ParserState& state, const PatternTokens& pattern,
                     std::span<uint32_t> words);
  void add_tried(const ParserState& state, std::span<const int32_t> indices,
                 std::span<uint32_t> words);

  const Tables& tables_;
  std::vector<CharacterCount> counts_;  // by row of the parser
  // Scratch of fill():
  std::vector<uint32_t> scratch_;
  std::vector<ParserState> open_states_;
  bool ignores_lengths_ = false;
};

// ---- parsing

int64_t LimitedParser::length(const ParserState& state, CountedAs as) const {
  return counts_.back().of(as) - counts_[static_cast<size_t>(state.rule_start_pos)].of(as);
}

// How many more characters the text of this state may have; nothing: any number.
std::optional<int64_t> LimitedParser::room(const ParserState& state) const {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit < 0) return std::nullopt;
  const TextLimit& text = tables_.limits[static_cast<size_t>(limit)];
  if (text.most == TextLimit::kAny) return std::nullopt;
  return text.most - length(state, text.as);
}

// Whether the text that ends before this state is long enough. In the row of trials from this state
// alone the text does not stand any more: it was looked at before.
bool LimitedParser::may_close(const ParserState& state, int16_t limit) const {
  const TextLimit& text = tables_.limits[static_cast<size_t>(limit)];
  if (text.least == 0) return true;
  const int32_t rule = tables_.rules[static_cast<size_t>(limit)];
  bool stands = false;
  for (const ParserState& own : scanable_state_history_[scanable_state_history_.size() - 1]) {
    if (own.rule_id != rule) continue;
    const auto parents = rule_id_to_completable_states_[own.rule_start_pos];
    const bool is_its = std::ranges::any_of(parents, [&](const auto& parent) {
      return parent.first == rule && xgrammar::StateEqualForParsing()(parent.second, state);
    });
    if (is_its && length(own, text.as) >= text.least) return true;
    stands = stands || is_its;
  }
  return !stands;
}

bool LimitedParser::may_scan(const ParserState& state, uint8_t byte) const {
  if (ignores_lengths_) return true;
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit >= 0) {
    const CountedAs as = tables_.limits[static_cast<size_t>(limit)].as;
    return !counts_.back().begins(as, byte) || room(state).value_or(1) > 0;
  }
  const int16_t close = tables_.close_of_state[static_cast<size_t>(state.element_id)];
  return close < 0 || may_close(state, close);
}

// Whether the text that ends with this state is long enough, if it has a length.
bool LimitedParser::may_complete(const ParserState& state) const {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit < 0 || ignores_lengths_) return true;
  const TextLimit& text = tables_.limits[static_cast<size_t>(limit)];
  return length(state, text.as) >= text.least;
}

// Whether the text of this state, by its pattern, can still end within its lengths.
bool LimitedParser::may_stand(const ParserState& state) const {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit < 0 || !tables_.patterns[static_cast<size_t>(limit)]) return true;
  const CountedAs as = tables_.limits[static_cast<size_t>(limit)].as;
  const RemainingLengths& lengths = tables_.patterns[static_cast<size_t>(limit)]->lengths();
  return lengths.can_end(lengths.node(state.element_id, counts_.back().escape), length(state, as));
}

bool LimitedParser::advance(uint8_t byte) {
  tmp_states_visited_in_queue_.Clear();
  tmp_states_to_be_added_.clear();
  tmp_completed_lazy_occurrences_.clear();
  tmp_accept_stop_token_ = false;
  for (const ParserState& state : scanable_state_history_[scanable_state_history_.size() - 1])
    if (may_scan(state, byte)) Scan(state, byte);
  if (tmp_process_state_queue_.empty() && tmp_states_to_be_added_.empty()) return false;
  rule_id_to_completable_states_.PushBack(std::vector<std::pair<int32_t, ParserState>>());
  counts_.push_back(counts_.back());
  counts_.back().add(byte);
  while (!tmp_process_state_queue_.empty()) {
    const ParserState state = tmp_process_state_queue_.front();
    tmp_process_state_queue_.pop();
    const auto [scanable, completable] = Predict(state);
    if (completable && may_complete(state)) Complete(state);
    if (scanable) tmp_states_to_be_added_.push_back(state);
  }
  if (tables_.any_patterned && !ignores_lengths_) {
    std::erase_if(tmp_states_to_be_added_,
                  [this](const ParserState& state) { return !may_stand(state); });
    if (tmp_states_to_be_added_.empty() && !tmp_accept_stop_token_) {
      rule_id_to_completable_states_.PopBack(1);
      counts_.pop_back();
      return false;
    }
  }
  is_completed_.push_back(tmp_accept_stop_token_);
  scanable_state_history_.PushBack(tmp_states_to_be_added_);
  return true;
}

size_t LimitedParser::advance(std::string_view bytes) {
  size_t taken = 0;
  while (taken < bytes.size() && advance(static_cast<uint8_t>(bytes[taken]))) ++taken;
  return taken;
}

void LimitedParser::pop(size_t bytes) {
  if (bytes == 0) return;
  PopLastStates(static_cast<int32_t>(bytes));
  counts_.resize(counts_.size() - bytes);
}

// ---- masks

namespace {

void set(std::span<uint32_t> words, int32_t id) {
  words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<size_t>(id) % 32);
}

void clear(std::span<uint32_t> words, int32_t id) {
  words[static_cast<size_t>(id) / 32] &= ~(1u << (static_cast<size_t>(id) % 32));
}

bool has(std::span<const uint32_t> words, int32_t id) {
  return (words[static_cast<size_t>(id) / 32] >> (static_cast<size_t>(id) % 32) & 1u) != 0;
}

}  // namespace

// The tokens that the grammar takes whole, into scratch_.
void LimitedParser::find_accepted(const AdaptiveTokenMask& mask) {
  const auto& vocabulary = tables_.vocabulary();
  const auto ids = static_cast<int>(tables_.tokens->ids());
  std::ranges::fill(scratch_, 0u);
  switch (mask.store_type) {
    case AdaptiveTokenMask::StoreType::kAccepted:
      for (const int32_t index : mask.accepted_indices)
        set(scratch_, vocabulary[static_cast<size_t>(index)].first);
      break;
    case AdaptiveTokenMask::StoreType::kAcceptedBitset:
      xgrammar::DynamicBitset(ids, scratch_.data()) |= mask.accepted_bitset;
      break;
    case AdaptiveTokenMask::StoreType::kRejected:
      std::ranges::copy(tables_.all, scratch_.begin());
      for (const auto* indices : {&mask.rejected_indices, &mask.uncertain_indices})
        for (const int32_t index : *indices)
          clear(scratch_, vocabulary[static_cast<size_t>(index)].first);
      break;
  }
}

// Where a pattern says too what may come.
void LimitedParser::add_patterned(const ParserState& state, const PatternTokens& pattern,
                                  std::span<uint32_t> words) {
  const auto limit = static_cast<size_t>(tables_.limit_of_rule[static_cast<size_t>(state.rule_id)]);
  const int32_t node = pattern.lengths().node(state.element_id, counts_.back().escape);
  pattern.fill(node, length(state, tables_.limits[limit].as), words);
  if (const auto leaving = pattern.leaving(node); !leaving.empty())
    add_tried(state, leaving, words);
}

void LimitedParser::add_taken(const ParserState& state, std::span<uint32_t> words) {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit >= 0)
    if (const auto& pattern = tables_.patterns[static_cast<size_t>(limit)])
      return add_patterned(state, *pattern, words);
  find_accepted(tables_.compiled->adaptive_token_mask_cache.find(state)->second);
  if (const int64_t left = room(state).value_or(TextLimit::kAny); left < tables_.tokens->longest())
    tables_.tokens->keep_up_to(left, tables_.limits[static_cast<size_t>(limit)].as, counts_.back(),
                               scratch_);
  if (const auto found = tables_.doubts.find(state.element_id); found != tables_.doubts.end())
    for (const auto* indices : {&found->second.never, &found->second.maybe})
      for (const int32_t index : *indices)
        clear(scratch_, tables_.vocabulary()[static_cast<size_t>(index)].first);
  const auto ids = static_cast<int>(tables_.tokens->ids());
  xgrammar::DynamicBitset taken(ids, words.data());
  taken |= xgrammar::DynamicBitset(ids, scratch_.data());
}

// Tries those of the tokens, given in order, that no state took yet. Tokens that begin alike share
// the rows of their beginning.
void LimitedParser::add_tried(const ParserState& state, std::span<const int32_t> indices,
                              std::span<uint32_t> words) {
  const auto& vocabulary = tables_.vocabulary();
  const auto& subtree_ends = tables_.info.GetTrieSubtreeNodesRange();
  PushOneStateToCheck(state);
  counts_.push_back(counts_.back());
  std::string_view tried;  // whose first `depth` bytes are in the rows
  size_t depth = 0;
  int32_t refused_until = 0;
  for (auto at = indices.begin(); at != indices.end();) {
    const int32_t index = *at;
    if (index < refused_until) {
      // Sorted and distinct, so that no more than the difference can lie between.
      const auto most = std::min<ptrdiff_t>(indices.end() - at, refused_until - index);
      at = std::lower_bound(at, at + most, refused_until);
      continue;
    }
    ++at;
    const auto& [id, text] = vocabulary[static_cast<size_t>(index)];
    if (has(words, id)) continue;
    const auto shared = static_cast<size_t>(
        std::ranges::mismatch(tried, std::string_view(text)).in1 - tried.begin());
    bool taken = shared <= depth;  // else the byte that was refused is its own too
    tried = text;
    if (taken) {
      pop(depth - shared);
      depth = shared + advance(tried.substr(shared));
      taken = depth == tried.size();
    }
    if (taken)
      set(words, id);
    else
      refused_until = subtree_ends[static_cast<size_t>(index)];
  }
  pop(depth + 1);
}

void LimitedParser::fill(std::span<uint32_t> words) {
  std::ranges::fill(words, 0u);
  open_states_.clear();
  for (const ParserState& state : GetLatestScanableStates()) {
    const int16_t close = tables_.close_of_state[static_cast<size_t>(state.element_id)];
    if (close < 0 || may_close(state, close)) open_states_.push_back(state);
  }
  for (const ParserState& state : open_states_) add_taken(state, words);
  for (const ParserState& state : open_states_) {
    const AdaptiveTokenMask& mask = tables_.compiled->adaptive_token_mask_cache.find(state)->second;
    add_tried(state, mask.uncertain_indices, words);
    if (const auto found = tables_.doubts.find(state.element_id); found != tables_.doubts.end())
      add_tried(state, found->second.maybe, words);
    if (const auto left = room(state); left && *left < tables_.tokens->longest())
      add_tried(state,
                tables_.endings[static_cast<size_t>(
                    tables_.limit_of_rule[static_cast<size_t>(state.rule_id)])],
                words);
  }
}

LimitedMatcher::LimitedMatcher(const LimitedGrammar& grammar)
    : parser_(std::make_unique<LimitedParser>(grammar.tables())) {}
LimitedMatcher::~LimitedMatcher() = default;

void LimitedMatcher::fill(std::span<uint32_t> words) {
  parser_->fill(words);
}

bool LimitedMatcher::accept(std::string_view bytes) {
  const size_t taken = parser_->advance(bytes);
  if (taken == bytes.size()) return true;
  parser_->pop(taken);
  return false;
}

bool LimitedMatcher::complete() const {
  return parser_->complete();
}

// ---- making

bool LimitedGrammar::Tables::takes(const AdaptiveTokenMask& mask, int32_t index) const {
  switch (mask.store_type) {
    case AdaptiveTokenMask::StoreType::kAccepted:
      return std::ranges::binary_search(mask.accepted_indices, index);
    case AdaptiveTokenMask::StoreType::kAcceptedBitset:
      return mask.accepted_bitset[vocabulary()[static_cast<size_t>(index)].first];
    case AdaptiveTokenMask::StoreType::kRejected:
      break;
  }
  return !std::ranges::binary_search(mask.rejected_indices, index) &&
         !std::ranges::binary_search(mask.uncertain_indices, index);
}

Result<void> LimitedGrammar::Tables::fill() {
  M2_TRY_VOID(find_rules());
  find_closes();
  M2_TRY_VOID(find_patterns());
  find_ids();
  find_doubts();
  find_endings();
  return {};
}

Result<void> LimitedGrammar::Tables::find_rules() {
  const xgrammar::Grammar& grammar = compiled->grammar;
  std::unordered_map<std::string_view, int32_t> by_name;
  for (int rule = 0; rule < grammar->NumRules(); ++rule)
    by_name.emplace(grammar->GetRule(rule).name, rule);
  limit_of_rule.assign(static_cast<size_t>(grammar->NumRules()), -1);
  for (size_t i = 0; i < limits.size(); ++i) {
    const auto found = by_name.find(limits[i].rule);
    if (found == by_name.end())
      return fail(Code::internal, "The lengths of the grammar's rule '{}' were lost.",
                  limits[i].rule);
    rules.push_back(found->second);
    limit_of_rule[static_cast<size_t>(found->second)] = static_cast<int16_t>(i);
  }
  return {};
}

// What follows the limited rules.
void LimitedGrammar::Tables::find_closes() {
  const xgrammar::Grammar& grammar = compiled->grammar;
  close_of_state.assign(static_cast<size_t>(grammar->complete_fsm.NumStates()), -1);
  for (int rule = 0; rule < grammar->NumRules(); ++rule) {
    const auto& automaton = grammar->per_rule_fsms[static_cast<size_t>(rule)]->GetFsm();
    std::unordered_set<int> states;
    automaton.GetReachableStates(&states);
    for (const int state : states)
      for (const xgrammar::FSMEdge& edge : automaton.GetFsm().GetEdges(state))
        if (edge.IsRuleRef())
          if (const int16_t limit = limit_of_rule[static_cast<size_t>(edge.GetRefRuleId())];
              limit >= 0)
            close_of_state[static_cast<size_t>(edge.target)] = limit;
  }
}

Result<void> LimitedGrammar::Tables::find_patterns() {
  patterns.resize(limits.size());
  for (size_t i = 0; i < limits.size(); ++i)
    if (limits[i].patterned) M2_TRY_VOID(find_pattern(i));
  return {};
}

Result<void> LimitedGrammar::Tables::find_pattern(size_t limit) {
  any_patterned = true;
  const auto refuse = [&](const Error& why) {
    return fail(why.code, "The pattern '{}' beside 'minLength' or 'maxLength' is refused: {}.",
                printable(limits[limit].pattern, 80), why.text);
  };
  auto lengths =
      RemainingLengths::make(compiled->grammar, rules[limit], limits[limit],
                             std::min<int64_t>(tokens->longest(), TokenCharacters::kMany));
  if (!lengths) return refuse(lengths.error());
  auto pattern =
      std::make_unique<PatternTokens>(std::move(*lengths), limits[limit].as, vocabulary(), tokens);
  for (const auto& [key, mask] : compiled->adaptive_token_mask_cache) {
    if (key.rule_id != rules[limit]) continue;
    for (uint8_t escape = 0; escape < CharacterCount::kEscapes; ++escape)
      if (const int32_t node = pattern->lengths().node(key.element_id, escape);
          node >= 0 && !pattern->knows(node))
        if (!pattern->add(node, accepted_by(mask)))
          return refuse(fail(Code::resource_exhausted,
                             "texts can be read in too many ways for their lengths to be told"));
  }
  pattern->finish();
  patterns[limit] = std::move(pattern);
  return {};
}

// In order.
std::vector<int32_t> LimitedGrammar::Tables::accepted_by(const AdaptiveTokenMask& mask) const {
  if (mask.store_type == AdaptiveTokenMask::StoreType::kAccepted) return mask.accepted_indices;
  std::vector<int32_t> out;
  for (int32_t index = 0; index < static_cast<int32_t>(vocabulary().size()); ++index)
    if (takes(mask, index)) out.push_back(index);
  return out;
}

void LimitedGrammar::Tables::find_ids() {
  all.resize((tokens->ids() + 31) / 32);
  for (const auto& [id, text] : vocabulary()) set(all, id);
}

// Whether a text of the limit may begin so; of one that ended before, nothing is known.
bool LimitedGrammar::Tables::may_hold(size_t limit, std::string_view begun) const {
  CharacterCount count;
  count.add(begun);
  if (!patterns[limit]) return count.of(limits[limit].as) <= limits[limit].most;
  const RemainingLengths& lengths = patterns[limit]->lengths();
  RemainingLengths::Nodes nodes = {lengths.start()};
  for (const char byte : begun) nodes = lengths.step(nodes, static_cast<uint8_t>(byte));
  return std::ranges::any_of(
      nodes, [&](int32_t node) { return lengths.can_end(node, count.of(limits[limit].as)); });
}

// Tokens that could enter a limited text and hold too much of it, or end it too early.
std::vector<int32_t> LimitedGrammar::Tables::suspects() const {
  std::vector<int32_t> out;
  const auto is_suspect = [&](std::string_view text) {
    for (size_t i = 0; i < limits.size(); ++i)
      for (size_t at = text.find(limits[i].open); at < text.size();
           at = text.find(limits[i].open, at + 1)) {
        const TextLimit& limit = limits[i];
        const std::string_view inside = text.substr(at + 1);
        if (!may_hold(i, inside)) return true;
        if ((limit.least > 0 || limit.patterned) &&
            inside.find(limit.close[0]) != std::string_view::npos)
          return true;
      }
    return false;
  };
  for (size_t i = 0; i < vocabulary().size(); ++i)
    if (is_suspect(vocabulary()[i].second)) out.push_back(static_cast<int32_t>(i));
  return out;
}

void LimitedGrammar::Tables::find_doubts() {
  const std::vector<int32_t> suspicious = suspects();
  for (const auto& [key, mask] : compiled->adaptive_token_mask_cache) {
    if (limit_of_rule[static_cast<size_t>(key.rule_id)] >= 0) continue;
    std::optional<LimitedParser> parser;
    Doubts found;
    for (const int32_t index : suspicious) {
      if (!takes(mask, index)) continue;
      if (!parser) {
        ParserState initial = key;
        initial.rule_start_pos = ParserState::kNoPrevInputPos;
        parser.emplace(*this, initial);
      }
      const std::string& text = vocabulary()[static_cast<size_t>(index)].second;
      const auto passes = [&](bool ignoring_lengths) {
        parser->ignore_lengths(ignoring_lengths);
        const size_t taken = parser->advance(std::string_view(text));
        parser->pop(taken);
        return taken == text.size();
      };
      if (passes(false)) continue;
      // Taken only for what follows the rule, or by no means.
      (passes(true) ? found.never : found.maybe).push_back(index);
    }
    if (!found.never.empty() || !found.maybe.empty())
      doubts.emplace(key.element_id, std::move(found));
  }
}

void LimitedGrammar::Tables::find_endings() {
  endings.resize(limits.size());
  for (size_t i = 0; i < limits.size(); ++i) {
    if (limits[i].as == CountedAs::json_characters) continue;
    const std::string_view close = limits[i].close;
    for (size_t index = 0; index < vocabulary().size(); ++index) {
      const std::string_view text = vocabulary()[index].second;
      for (size_t at = text.find(close[0]); at < text.size(); at = text.find(close[0], at + 1))
        if (close.starts_with(text.substr(at))) {
          endings[i].push_back(static_cast<int32_t>(index));
          break;
        }
    }
  }
}

LimitedGrammar::LimitedGrammar(std::unique_ptr<const Tables> tables) : tables_(std::move(tables)) {}
LimitedGrammar::~LimitedGrammar() = default;

Result<std::unique_ptr<const LimitedGrammar>> LimitedGrammar::make(
    const xgrammar::CompiledGrammar& compiled, std::vector<TextLimit> limits,
    std::shared_ptr<const TokenCharacters> tokens) {
  auto tables = std::make_unique<Tables>(compiled, std::move(limits), std::move(tokens));
  M2_TRY_VOID(tables->fill());
  return std::unique_ptr<const LimitedGrammar>(new LimitedGrammar(std::move(tables)));
}

size_t LimitedGrammar::bytes() const {
  size_t out = 0;
  for (const auto& one : tables_->patterns) out += one ? one->bytes() : 0;
  return out;
}

}  // namespace m2::text
