#include "text/grammar/limited_matcher.h"

#include <compiled_grammar_impl.h>  // xgrammar's own: its parser, and the masks of its states
#include <earley_parser.h>
#include <tokenizer_info_impl.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <bitset>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/log.h"
#include "text/grammar/leaving_tokens.h"
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
  void find_leaving();
  Result<void> find_doubts();
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
  std::unordered_map<int32_t, Doubts> doubts;          // by state
  std::unordered_map<int32_t, LeavingTokens> leaving;  // by state
  // By limit: tokens that can end its text before their own end, and be within it as well.
  std::vector<std::vector<int32_t>> endings;
  std::vector<uint32_t> all;  // the mask of the sorted vocabulary
};

namespace {

// What one mask, or the taking of one token, may cost: states of the parser looked at, of which a
// thread does some twenty to fifty million a second.
constexpr int64_t kMostWork = 240'000;
constexpr int64_t kInTimeOfState = 128;     // words of masks that are looked at meanwhile
constexpr int64_t kWorthKnowing = 30;       // of a mask; others are as soon made as copied
constexpr int32_t kMostInRow = 512;         // readings that wait for a rule to end, of one byte
constexpr int64_t kMostHeld = 1024 * 1024;  // of a whole output

}  // namespace

// xgrammar's Earley parser with lengths: a byte is not offered to a state whose text would become
// too long by it, nor to what follows a text that is too short. Texts of too many readings spend
// it: then it takes nothing more.
class LimitedParser : private xgrammar::EarleyParser {
 public:
  using Tables = LimitedGrammar::Tables;

  explicit LimitedParser(const Tables& tables, std::optional<ParserState> initial = std::nullopt)
      : EarleyParser(tables.compiled->grammar, initial),
        tables_(tables),
        counts_(1),
        scratch_(tables.all.size()) {}

  void fill(std::span<uint32_t> words);
  // All of the bytes, or nothing.
  bool accept(std::string_view bytes);
  // As many bytes as may come; how many.
  size_t advance(std::string_view bytes);
  void pop(size_t bytes);
  // From here on what is accepted is a trial, until end_trial() takes it back.
  void begin_trial();
  void end_trial();
  bool complete() const { return IsCompleted() && !spent_; }
  bool spent() const { return spent_; }
  int64_t work() const { return work_; }
  // Begins a trial, with lengths or without.
  void begin(bool ignoring_lengths) {
    ignores_lengths_ = ignoring_lengths;
    work_ = 0;
  }

 private:
  class Trials;
  bool advance(uint8_t byte);
  bool process();
  bool spend(int64_t states);
  void settle();
  bool is_known(std::span<uint32_t> words);
  bool is_free_of_lengths(const ParserState& state) const;
  bool may_scan(const ParserState& state, uint8_t byte) const;
  bool may_close(const ParserState& state, int16_t limit) const;
  bool may_complete(const ParserState& state) const;
  bool may_stand(const ParserState& state) const;
  int64_t length(const ParserState& state, CountedAs as) const;
  std::optional<int64_t> room(const ParserState& state) const;
  void add_taken(const ParserState& state, std::span<uint32_t> words);
  void find_accepted(const AdaptiveTokenMask& mask, std::span<uint32_t> words) const;
  void add_patterned(const ParserState& state, const PatternTokens& pattern,
                     std::span<uint32_t> words);
  void add_tried(const ParserState& state, std::span<const int32_t> indices,
                 std::span<uint32_t> words);
  void add_uncertain(const ParserState& state, std::span<uint32_t> words);
  bool add_endings(const ParserState& state, const LeavingTokens& leaving,
                   std::span<uint32_t> words);
  void set_length(const ParserState& state, CountedAs as, int64_t length);
  bool only_goes_on(const ParserState& state, const std::bitset<256>& bytes) const;

  const Tables& tables_;
  std::vector<CharacterCount> counts_;  // by row of the parser
  // Scratch of fill():
  std::vector<uint32_t> scratch_;
  std::vector<ParserState> open_states_;
  bool ignores_lengths_ = false;
  // The last mask, and of what it was: that of the same states is the same, as long as it is free
  // of lengths.
  std::vector<ParserState> known_states_;
  std::vector<uint32_t> known_;
  uint8_t known_escape_ = 0;
  bool known_is_free_ = false;

  // What a trial began with.
  struct Place {
    std::vector<ParserState> states;  // the last row's
    int32_t rows = 0;                 // of who waits; as many are held, or were when it began
    size_t completed = 0;
    size_t counts = 0;
    int64_t held = 0;
    int32_t settled = 0;
    bool spent = false;
  };
  Place place_;

  int64_t work_ = 0;     // since this mask or token was begun
  int64_t held_ = 0;     // readings that wait, of all rows
  int32_t settled_ = 0;  // rows
  bool spent_ = false;
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

// Notes this much work; false: it was too much.
bool LimitedParser::spend(int64_t states) {
  work_ += states;
  if (work_ > kMostWork) spent_ = true;
  return !spent_;
}

// Predicts and completes from what a byte led to. False: it is spent.
bool LimitedParser::process() {
  while (!tmp_process_state_queue_.empty()) {
    const ParserState state = tmp_process_state_queue_.front();
    tmp_process_state_queue_.pop();
    const auto waiting = [&](int32_t row) -> int64_t {
      return row < 0 ? 0 : rule_id_to_completable_states_[row].size();
    };
    const auto [scanable, completable] = Predict(state);
    if (completable && may_complete(state)) Complete(state);
    if (scanable) tmp_states_to_be_added_.push_back(state);
    // Who waits is looked through, four in the time of a state.
    const int64_t looked_at = scanable && !completable ? 0 : 1 + waiting(state.rule_start_pos) / 4;
    // Each of them may be compared with each that waits here already.
    const int64_t compared = scanable ? 0
                                      : waiting(state.rule_start_pos) *
                                            rule_id_to_completable_states_.Back().size() / 4096;
    if (!spend(1 + looked_at + compared) ||
        rule_id_to_completable_states_.Back().size() > kMostInRow)
      spent_ = true;
    if (!spent_) continue;
    while (!tmp_process_state_queue_.empty()) tmp_process_state_queue_.pop();
    return false;
  }
  return true;
}

bool LimitedParser::advance(uint8_t byte) {
  if (spent_) return false;
  tmp_states_visited_in_queue_.Clear();
  tmp_states_to_be_added_.clear();
  tmp_completed_lazy_occurrences_.clear();
  tmp_accept_stop_token_ = false;
  const auto& row = scanable_state_history_[scanable_state_history_.size() - 1];
  if (!spend(1 + row.size())) return false;
  for (const ParserState& state : row)
    if (may_scan(state, byte)) Scan(state, byte);
  if (tmp_process_state_queue_.empty() && tmp_states_to_be_added_.empty()) return false;
  rule_id_to_completable_states_.PushBack(std::vector<std::pair<int32_t, ParserState>>());
  counts_.push_back(counts_.back());
  counts_.back().add(byte);
  bool taken = process();
  if (taken && tables_.any_patterned && !ignores_lengths_) {
    std::erase_if(tmp_states_to_be_added_,
                  [this](const ParserState& state) { return !may_stand(state); });
    taken = !tmp_states_to_be_added_.empty() || tmp_accept_stop_token_;
  }
  if (!taken) {
    rule_id_to_completable_states_.PopBack(1);
    counts_.pop_back();
    return false;
  }
  is_completed_.push_back(tmp_accept_stop_token_);
  scanable_state_history_.PushBack(tmp_states_to_be_added_);
  return true;
}

bool LimitedParser::accept(std::string_view bytes) {
  constexpr size_t kToken = 32;  // bytes; a longer text may cost as much as several
  size_t taken = 0;
  for (size_t more = 1; taken < bytes.size() && more > 0; taken += more) {
    work_ = 0;
    more = advance(bytes.substr(taken, kToken));
  }
  if (taken < bytes.size()) return pop(taken), false;
  settle();
  return true;
}

// Forgets what no token can lead back to.
void LimitedParser::settle() {
  const std::vector<ParserState> states = GetLatestScanableStates();
  scanable_state_history_.PopBack(scanable_state_history_.size());
  scanable_state_history_.PushBack(states);
  for (; settled_ < rule_id_to_completable_states_.size(); ++settled_)
    held_ += rule_id_to_completable_states_[settled_].size();
  if (held_ > kMostHeld) spent_ = true;
}

void LimitedParser::begin_trial() {
  place_ = {GetLatestScanableStates(),
            static_cast<int32_t>(rule_id_to_completable_states_.size()),
            is_completed_.size(),
            counts_.size(),
            held_,
            settled_,
            spent_};
}

void LimitedParser::end_trial() {
  scanable_state_history_.PopBack(scanable_state_history_.size());
  scanable_state_history_.PushBack(place_.states);
  rule_id_to_completable_states_.PopBack(
      static_cast<int32_t>(rule_id_to_completable_states_.size()) - place_.rows);
  is_completed_.resize(place_.completed);
  counts_.resize(place_.counts);
  held_ = place_.held;
  settled_ = place_.settled;
  spent_ = place_.spent;
  stop_token_is_accepted_ = false;
  known_is_free_ = false;  // of states in rows that are others now
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

// Sets the bits of the tokens that the grammar takes whole. Those of a mask that says what is
// rejected need words that are empty.
void LimitedParser::find_accepted(const AdaptiveTokenMask& mask, std::span<uint32_t> words) const {
  const auto& vocabulary = tables_.vocabulary();
  const auto ids = static_cast<int>(tables_.tokens->ids());
  switch (mask.store_type) {
    case AdaptiveTokenMask::StoreType::kAccepted:
      for (const int32_t index : mask.accepted_indices)
        set(words, vocabulary[static_cast<size_t>(index)].first);
      break;
    case AdaptiveTokenMask::StoreType::kAcceptedBitset:
      xgrammar::DynamicBitset(ids, words.data()) |= mask.accepted_bitset;
      break;
    case AdaptiveTokenMask::StoreType::kRejected:
      std::ranges::copy(tables_.all, words.begin());
      for (const auto* indices : {&mask.rejected_indices, &mask.uncertain_indices})
        for (const int32_t index : *indices)
          clear(words, vocabulary[static_cast<size_t>(index)].first);
      break;
  }
}

// Where a pattern says too what may come.
void LimitedParser::add_patterned(const ParserState& state, const PatternTokens& pattern,
                                  std::span<uint32_t> words) {
  const auto limit = static_cast<size_t>(tables_.limit_of_rule[static_cast<size_t>(state.rule_id)]);
  const int32_t node = pattern.lengths().node(state.element_id, counts_.back().escape);
  const size_t looked_at = pattern.fill(node, length(state, tables_.limits[limit].as), words);
  spend(1 + static_cast<int64_t>(looked_at) / kInTimeOfState);
  if (const auto leaving = pattern.leaving(node); !leaving.empty())
    add_tried(state, leaving, words);
}

void LimitedParser::add_taken(const ParserState& state, std::span<uint32_t> words) {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit >= 0)
    if (const auto& pattern = tables_.patterns[static_cast<size_t>(limit)])
      return add_patterned(state, *pattern, words);
  const AdaptiveTokenMask& mask = tables_.compiled->adaptive_token_mask_cache.find(state)->second;
  const int64_t left = room(state).value_or(TextLimit::kAny);
  const auto found = tables_.doubts.find(state.element_id);
  const bool all = left >= tables_.tokens->longest() && found == tables_.doubts.end();
  if (all && mask.store_type != AdaptiveTokenMask::StoreType::kRejected) {
    const bool is_list = mask.store_type == AdaptiveTokenMask::StoreType::kAccepted;
    spend(1 + (is_list ? std::ssize(mask.accepted_indices) : std::ssize(words)) / kInTimeOfState);
    return find_accepted(mask, words);
  }
  std::ranges::fill(scratch_, 0u);
  find_accepted(mask, scratch_);
  spend(2 * std::ssize(words) / kInTimeOfState);
  if (left < tables_.tokens->longest())
    tables_.tokens->keep_up_to(left, tables_.limits[static_cast<size_t>(limit)].as, counts_.back(),
                               scratch_);
  if (found != tables_.doubts.end())
    for (const auto* indices : {&found->second.never, &found->second.maybe})
      for (const int32_t index : *indices)
        clear(scratch_, tables_.vocabulary()[static_cast<size_t>(index)].first);
  const auto ids = static_cast<int>(tables_.tokens->ids());
  xgrammar::DynamicBitset taken(ids, words.data());
  taken |= xgrammar::DynamicBitset(ids, scratch_.data());
}

// Texts tried one after the other, best in order: those that begin alike share the rows of their
// beginning.
class LimitedParser::Trials {
 public:
  // From this state alone.
  Trials(LimitedParser& parser, const ParserState& state) : parser_(parser) {
    parser_.PushOneStateToCheck(state);
    parser_.counts_.push_back(parser_.counts_.back());
  }
  ~Trials() { parser_.pop(settled_ + depth_ + 1); }
  Trials(const Trials&) = delete;
  Trials& operator=(const Trials&) = delete;

  // The text must outlive the next call.
  bool takes(std::string_view text) {
    const auto shared =
        static_cast<size_t>(std::ranges::mismatch(tried_, text).in1 - tried_.begin());
    tried_ = text;
    if (shared > depth_) return false;  // the byte that was refused is its own too
    parser_.pop(depth_ - shared);
    depth_ = shared + parser_.advance(text.substr(shared));
    return depth_ == text.size();
  }
  // From now on texts follow the one that was taken last.
  void settle() {
    settled_ += std::exchange(depth_, 0);
    tried_ = {};
  }

 private:
  LimitedParser& parser_;
  std::string_view tried_;  // whose first `depth` bytes are in the rows
  size_t depth_ = 0;
  size_t settled_ = 0;  // rows before them
};

// Tries those of the tokens, given in order, that no state took yet.
void LimitedParser::add_tried(const ParserState& state, std::span<const int32_t> indices,
                              std::span<uint32_t> words) {
  if (indices.empty()) return;
  const auto& vocabulary = tables_.vocabulary();
  const auto& subtree_ends = tables_.info.GetTrieSubtreeNodesRange();
  Trials trials(*this, state);
  int32_t refused_until = 0;
  for (auto at = indices.begin(); at != indices.end() && !spent_;) {
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
    if (trials.takes(text))
      set(words, id);
    else
      refused_until = subtree_ends[static_cast<size_t>(index)];
  }
}

// Whether nothing but this state, in the last row, takes any of these bytes.
bool LimitedParser::only_goes_on(const ParserState& state, const std::bitset<256>& bytes) const {
  const auto& row = scanable_state_history_[scanable_state_history_.size() - 1];
  return std::ranges::all_of(row, [&](const ParserState& other) {
    if (xgrammar::StateEqualForParsing()(state, other)) return true;
    const auto& automaton = grammar_->per_rule_fsms[static_cast<size_t>(other.rule_id)];
    return std::ranges::none_of(automaton->GetFsm().GetFsm().GetEdges(other.element_id),
                                [&](const auto& edge) {
                                  if (!edge.IsCharRange()) return false;
                                  for (int byte = edge.min; byte <= edge.max; ++byte)
                                    if (bytes[static_cast<size_t>(byte)]) return true;
                                  return false;
                                });
  });
}

// Tries each ending once, after a beginning that stands for all, and takes the tokens whose own
// beginning makes the text neither too short nor too long. False: it does not stand for all.
bool LimitedParser::add_endings(const ParserState& state, const LeavingTokens& leaving,
                                std::span<uint32_t> words) {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  const TextLimit any;
  const TextLimit& text = limit < 0 ? any : tables_.limits[static_cast<size_t>(limit)];
  const int64_t now = limit < 0 ? 0 : length(state, text.as);
  if (limit >= 0 && (counts_.back().escape != 0 || leaving.characters > text.most)) return false;
  Trials trials(*this, state);
  // As if the text could end after it: whether it can depends on the token.
  if (limit >= 0) set_length(state, text.as, std::max<int64_t>(text.least - leaving.characters, 0));
  if (!trials.takes(leaving.beginning) || !only_goes_on(state, leaving.goes_on)) return false;
  trials.settle();
  const auto fits = [&](const std::pair<int32_t, uint8_t>& token) {
    const int64_t there = now + token.second;
    return text.least <= there && there <= text.most;
  };
  for (const LeavingTokens::Ending& ending : leaving.endings) {
    const bool is_asked = std::ranges::any_of(
        ending.tokens, [&](const auto& token) { return !has(words, token.first) && fits(token); });
    if (!is_asked || !trials.takes(ending.text)) continue;
    for (const auto& token : ending.tokens)
      if (fits(token)) set(words, token.first);
  }
  return true;
}

void LimitedParser::set_length(const ParserState& state, CountedAs as, int64_t length) {
  const CharacterCount& begin = counts_[static_cast<size_t>(state.rule_start_pos)];
  CharacterCount& end = counts_.back();
  if (as == CountedAs::json_characters)
    end.json = begin.json + static_cast<int32_t>(length);
  else
    end.code_points = begin.code_points + static_cast<int32_t>(length);
}

void LimitedParser::add_uncertain(const ParserState& state, std::span<uint32_t> words) {
  if (const auto found = tables_.leaving.find(state.element_id);
      found != tables_.leaving.end() && add_endings(state, found->second, words))
    return add_tried(state, found->second.others, words);
  add_tried(state,
            tables_.compiled->adaptive_token_mask_cache.find(state)->second.uncertain_indices,
            words);
}

// Whether no token reaches a length from here.
bool LimitedParser::is_free_of_lengths(const ParserState& state) const {
  const int16_t limit = tables_.limit_of_rule[static_cast<size_t>(state.rule_id)];
  if (limit < 0) {
    const int16_t close = tables_.close_of_state[static_cast<size_t>(state.element_id)];
    return close < 0 || tables_.limits[static_cast<size_t>(close)].least == 0;
  }
  const TextLimit& text = tables_.limits[static_cast<size_t>(limit)];
  const int64_t now = length(state, text.as);
  if (now < text.least || room(state).value_or(TextLimit::kAny) < tables_.tokens->longest())
    return false;
  const auto& pattern = tables_.patterns[static_cast<size_t>(limit)];
  return !pattern ||
         pattern->is_free(pattern->lengths().node(state.element_id, counts_.back().escape), now);
}

// Whether the mask is the last one, which is written then; else it will be from now on. States are
// equal only where they wait for the same rows, which never change.
bool LimitedParser::is_known(std::span<uint32_t> words) {
  const auto& row = scanable_state_history_[scanable_state_history_.size() - 1];
  const bool is_free = std::ranges::all_of(
      row, [this](const ParserState& state) { return is_free_of_lengths(state); });
  if (is_free && known_is_free_ && known_escape_ == counts_.back().escape &&
      std::ranges::equal(row, known_states_, xgrammar::StateEqualForParsing())) {
    std::ranges::copy(known_, words.begin());
    return true;
  }
  known_states_.assign(row.begin(), row.end());
  known_escape_ = counts_.back().escape;
  known_is_free_ = is_free;
  return false;
}

void LimitedParser::fill(std::span<uint32_t> words) {
  work_ = 0;
  std::ranges::fill(words, 0u);
  if (spent_ || is_known(words)) return;
  open_states_.clear();
  for (const ParserState& state : known_states_) {
    const int16_t close = tables_.close_of_state[static_cast<size_t>(state.element_id)];
    if (close < 0 || may_close(state, close)) open_states_.push_back(state);
  }
  for (const ParserState& state : open_states_) add_taken(state, words);
  for (const ParserState& state : open_states_) {
    add_uncertain(state, words);
    if (const auto found = tables_.doubts.find(state.element_id); found != tables_.doubts.end())
      add_tried(state, found->second.maybe, words);
    if (const auto left = room(state); left && *left < tables_.tokens->longest())
      add_tried(state,
                tables_.endings[static_cast<size_t>(
                    tables_.limit_of_rule[static_cast<size_t>(state.rule_id)])],
                words);
  }
  known_is_free_ = known_is_free_ && work_ > kWorthKnowing;
  if (spent_)
    std::ranges::fill(words, 0u);
  else if (known_is_free_)
    known_.assign(words.begin(), words.end());
}

LimitedMatcher::LimitedMatcher(const LimitedGrammar& grammar)
    : parser_(std::make_unique<LimitedParser>(grammar.tables())) {}
LimitedMatcher::~LimitedMatcher() = default;

void LimitedMatcher::fill(std::span<uint32_t> words) {
  parser_->fill(words);
}

bool LimitedMatcher::accept(std::string_view bytes) {
  return parser_->accept(bytes);
}

void LimitedMatcher::begin_trial() {
  parser_->begin_trial();
}

void LimitedMatcher::end_trial() {
  parser_->end_trial();
}

bool LimitedMatcher::complete() const {
  return parser_->complete();
}

bool LimitedMatcher::spent() const {
  return parser_->spent();
}

int64_t LimitedMatcher::work() const {
  return parser_->work();
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
  find_endings();
  find_leaving();
  return find_doubts();
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

void LimitedGrammar::Tables::find_leaving() {
  for (const auto& [key, mask] : compiled->adaptive_token_mask_cache) {
    const auto& automaton = compiled->grammar->per_rule_fsms[static_cast<size_t>(key.rule_id)];
    const int16_t limit = limit_of_rule[static_cast<size_t>(key.rule_id)];
    const CountedAs as = limit < 0 ? CountedAs::code_points : limits[static_cast<size_t>(limit)].as;
    auto found = LeavingTokens::find(automaton->GetFsm(), key.element_id, mask.uncertain_indices,
                                     vocabulary(), as);
    if (found) leaving.emplace(key.element_id, std::move(*found));
  }
}

Result<void> LimitedGrammar::Tables::find_doubts() {
  if (limits.empty()) return {};
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
        parser->begin(ignoring_lengths);
        const size_t taken = parser->advance(std::string_view(text));
        parser->pop(taken);
        return taken == text.size();
      };
      if (passes(false)) continue;
      // Taken only for what follows the rule, or by no means.
      (passes(true) ? found.never : found.maybe).push_back(index);
      if (parser->spent())
        return fail(Code::resource_exhausted,
                    "The grammar is too ambiguous: a single token can be read in too many ways.");
    }
    if (!found.never.empty() || !found.maybe.empty())
      doubts.emplace(key.element_id, std::move(found));
  }
  return {};
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
  for (const auto& [state, one] : tables_->leaving) out += one.bytes();
  return out;
}

}  // namespace m2::text
