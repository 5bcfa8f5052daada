#include "text/grammar.h"

#include <compiled_grammar_impl.h>  // xgrammar's own: to see what it made
#include <grammar_functor.h>        // and a grammar's automata before compiling it
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <bit>
#include <bitset>
#include <exception>
#include <list>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "text/grammar/limited_matcher.h"

namespace m2::text {

struct Grammar::Compiled {
  xgrammar::CompiledGrammar grammar;
  std::unique_ptr<const LimitedGrammar> limited;
  std::shared_ptr<const TokenCharacters> tokens;
  std::vector<TokenId> stop_ids;
};

Grammar::Grammar(std::unique_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}
Grammar::~Grammar() = default;

size_t Grammar::bytes() const {
  return compiled_->grammar.MemorySizeBytes() + compiled_->limited->bytes();
}

size_t Grammar::states() const {
  return compiled_->grammar->adaptive_token_mask_cache.size();
}

// ---- matching

namespace {

// What `call` says of the matcher; `otherwise` if xgrammar throws, which is no fault of the text.
template <class Matcher, class Value, class Call>
Value ask(Matcher& matcher, Value otherwise, const Call& call) {
  try {
    return call(matcher);
  } catch (const std::exception&) {
    return otherwise;
  }
}

}  // namespace

struct GrammarMatcher::State {
  explicit State(std::shared_ptr<const Grammar> the_grammar)
      : grammar(std::move(the_grammar)), matcher(*compiled().limited) {}

  const Grammar::Compiled& compiled() const { return grammar->compiled(); }
  bool is_stop(TokenId token) const { return std::ranges::count(compiled().stop_ids, token) > 0; }

  // Takes this text, by `accept` of the matcher, if UTF-8 allows it.
  template <class Accept>
  bool take(std::string_view text, const Accept& accept) {
    const Utf8Phase after = utf8_after(phase, text);
    if (after == Utf8Phase::broken || !ask(matcher, false, accept)) return false;
    phase = after;
    return true;
  }

  const std::shared_ptr<const Grammar> grammar;
  LimitedMatcher matcher;
  Utf8Phase phase = Utf8Phase::whole;
  bool stopped = false;
  // Of the output, while there is a trial.
  Utf8Phase own_phase = Utf8Phase::whole;
  bool own_stopped = false;
};

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar)
    : state_(std::make_unique<State>(std::move(grammar))) {}
GrammarMatcher::~GrammarMatcher() = default;
GrammarMatcher::GrammarMatcher(GrammarMatcher&&) noexcept = default;

void GrammarMatcher::fill(std::span<uint32_t> words) {
  const TokenCharacters& tokens = *state_->compiled().tokens;
  M2_CHECK(words.size() >= mask_words(tokens.ids()));
  std::ranges::fill(words.subspan(state_->stopped ? 0 : mask_words(tokens.ids())), 0u);
  if (state_->stopped) return;
  const bool filled = ask(state_->matcher, false, [&](LimitedMatcher& matcher) {
    matcher.fill(words.first(mask_words(tokens.ids())));
    return true;
  });
  if (!filled) std::ranges::fill(words, 0u);  // nothing may come: the request ends
  tokens.keep_well_formed(state_->phase, words);
  if (!complete()) return;
  for (const TokenId id : state_->compiled().stop_ids)
    words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<size_t>(id) % 32);
}

bool GrammarMatcher::accept(TokenId token) {
  if (state_->stopped) return false;
  if (state_->is_stop(token)) return state_->stopped = complete();
  const TokenCharacters& tokens = *state_->compiled().tokens;
  if (token < 0 || static_cast<size_t>(token) >= tokens.ids()) return false;
  const std::string& text = tokens.text(token);
  return !text.empty() &&
         state_->take(text, [&](LimitedMatcher& matcher) { return matcher.accept(text); });
}

bool GrammarMatcher::accept_text(std::string_view text) {
  return !state_->stopped &&
         state_->take(text, [&](LimitedMatcher& matcher) { return matcher.accept(text); });
}

void GrammarMatcher::begin_trial() {
  state_->matcher.begin_trial();
  state_->own_phase = state_->phase;
  state_->own_stopped = state_->stopped;
}

void GrammarMatcher::end_trial() {
  state_->matcher.end_trial();
  state_->phase = state_->own_phase;
  state_->stopped = state_->own_stopped;
}

bool GrammarMatcher::complete() const {
  return state_->stopped || (state_->phase == Utf8Phase::whole &&
                             ask(state_->matcher, false,
                                 [](const LimitedMatcher& matcher) { return matcher.complete(); }));
}

bool GrammarMatcher::spent() const {
  return state_->matcher.spent();
}

int64_t GrammarMatcher::work() const {
  return state_->matcher.work();
}

// ---- compiling

namespace {

// What the compiler keeps by itself: automata that many grammars have in common.
constexpr int64_t kSharedRulesBytes = 128 << 20;

// A byte that no UTF-8 text holds: the text of tokens that a grammar must not spell.
constexpr const char* kUnspelled = "\xff";

// The texts of the tokens that a grammar may spell, by id; empty for all others.
std::vector<std::string> texts_of(const Tokenizer& tokenizer, std::span<const TokenId> spelled) {
  std::vector<std::string> texts(static_cast<size_t>(tokenizer.id_limit()));
  for (TokenId id = 0; id < tokenizer.id_limit(); ++id)
    if (!tokenizer.is_added(id) || std::ranges::count(spelled, id) > 0)
      texts[static_cast<size_t>(id)] = tokenizer.bytes(id);
  return texts;
}

xgrammar::TokenizerInfo tokenizer_info(std::vector<std::string> texts,
                                       const std::vector<TokenId>& stop_ids) {
  for (std::string& text : texts)
    if (text.empty()) text = kUnspelled;
  return xgrammar::TokenizerInfo(texts, xgrammar::VocabType::RAW, static_cast<int>(texts.size()),
                                 stop_ids);
}

// Rules with attributes bound tokens or characters at any price in time, or change the sampling.
bool has_attributes(const xgrammar::Grammar& grammar) {
  for (int i = 0; i < grammar->NumRules(); ++i) {
    const auto& rule = grammar->GetRule(i);
    if (rule.max_tokens >= 0 || rule.max_chars >= 0 || !rule.capture_name.empty() || rule.is_lazy ||
        rule.temperature.has_value() || grammar->GetSuffixStopInfo(i) != nullptr)
      return true;
  }
  return false;
}

// Whether tokens are named in it by their ids.
bool has_token_edges(const xgrammar::Grammar& optimized) {
  const auto& automaton = optimized->complete_fsm;
  for (int state = 0; state < automaton.NumStates(); ++state)
    for (const xgrammar::FSMEdge& edge : automaton.GetEdges(state))
      if (edge.IsToken() || edge.IsExcludeToken()) return true;
  return false;
}

// Whether each rule has a text that ends. Rules whose every text holds a rule without one do not.
class Endings {
 public:
  explicit Endings(const xgrammar::Grammar& optimized)
      : grammar_(optimized), ends_(static_cast<size_t>(grammar_->NumRules())) {
    std::vector<std::vector<int>> users(ends_.size());
    std::vector<int> left(ends_.size());
    for (int rule = 0; rule < grammar_->NumRules(); ++rule) {
      left[static_cast<size_t>(rule)] = rule;
      each_edge(rule, [&](const xgrammar::FSMEdge& edge) {
        if (const int used = rule_of(edge); used >= 0)
          users[static_cast<size_t>(used)].push_back(rule);
        return true;
      });
    }
    while (!left.empty()) {
      const auto rule = static_cast<size_t>(left.back());
      left.pop_back();
      if (ends_[rule] || !can_end(static_cast<int>(rule))) continue;
      ends_[rule] = true;
      left.insert(left.end(), users[rule].begin(), users[rule].end());
    }
  }

  bool all() const { return std::ranges::count(ends_, false) == 0; }

 private:
  int rule_of(const xgrammar::FSMEdge& edge) const {
    if (edge.IsRuleRef()) return edge.GetRefRuleId();
    if (!edge.IsRepeatRef()) return -1;
    return grammar_->complete_fsm.GetRepeatEdgeInfo(edge.GetAuxIndex()).RuleId();
  }
  bool may_pass(const xgrammar::FSMEdge& edge) const {
    if (edge.IsRepeatRef() &&
        grammar_->complete_fsm.GetRepeatEdgeInfo(edge.GetAuxIndex()).Lower() == 0)
      return true;
    const int rule = rule_of(edge);
    return rule < 0 || ends_[static_cast<size_t>(rule)];
  }

  // Visits the edges of the rule's automaton that `passes` lets it reach; whether an end was met.
  template <class Passes>
  bool each_edge(int rule, const Passes& passes) const {
    const auto& automaton = grammar_->per_rule_fsms[static_cast<size_t>(rule)]->GetFsm();
    std::vector<int> left = {automaton.GetStart()};
    std::unordered_set<int> met(left.begin(), left.end());
    bool ends = false;
    while (!left.empty()) {
      const int state = left.back();
      left.pop_back();
      ends = ends || automaton.IsEndState(state);
      for (const xgrammar::FSMEdge& edge : automaton.GetFsm().GetEdges(state))
        if (passes(edge) && met.insert(edge.target).second) left.push_back(edge.target);
    }
    return ends;
  }
  bool can_end(int rule) const {
    return each_edge(rule, [&](const xgrammar::FSMEdge& edge) { return may_pass(edge); });
  }

  const xgrammar::Grammar& grammar_;
  std::vector<bool> ends_;
};

// What tells a terminal's automaton from others; empty for other bodies.
std::string terminal_text(const xgrammar::Grammar& grammar,
                          const xgrammar::Grammar::Impl::GrammarExpr& body) {
  using Kind = xgrammar::Grammar::Impl::GrammarExprType;
  if (body.type == Kind::kRegex) return "regex " + grammar->GetRegexString(body);
  if (body.type != Kind::kTagDispatch) return {};
  const auto dispatch = grammar->GetTagDispatch(body);
  if (!dispatch.tag_rule_pairs.empty()) return {};
  std::string out = "free ";
  for (const std::string& excluded : dispatch.excludes) out += excluded + '\0';
  return out;
}

// The limits of rules that the root leads to.
std::vector<TextLimit> limits_in_use(std::vector<TextLimit> limits,
                                     const xgrammar::Grammar& parsed) {
  if (limits.empty()) return limits;
  const xgrammar::Grammar used = xgrammar::DeadCodeEliminator::Apply(parsed);
  std::unordered_set<std::string> names;
  for (int rule = 0; rule < used->NumRules(); ++rule) names.insert(used->GetRule(rule).name);
  std::erase_if(limits, [&](const TextLimit& limit) { return !names.contains(limit.rule); });
  return limits;
}

// What xgrammar threw, in words for whoever sent the grammar.
Error why(const std::exception& error) {
  std::string_view text = error.what();
  if (text.find("Check failed") != std::string_view::npos)
    return fail(Code::resource_exhausted,
                "The grammar is beyond what can be compiled. In a Regex() at most 128 repetitions "
                "can be counted.");
  // Without xgrammar's "[time] file.cc:line: ".
  if (const size_t place = text.find(".cc:"); place != std::string_view::npos)
    text.remove_prefix(std::min(text.find(": ", place), text.size() - 2) + 2);
  return fail(Code::invalid_argument, "Not a grammar: {}", text);
}

// How long compiling will take, in states where any text may come (GrammarLimits). Compiling walks
// the vocabulary from each state, so this walks a sample of it: a step costs as many states as the
// text so far can have led to, which grow in number where a text can be read in several ways.
class CompileCost {
 public:
  // In the order of their bytes tokens share beginnings, which are walked once.
  explicit CompileCost(const TokenCharacters& tokens) {
    std::vector<std::string_view> sorted;
    for (size_t id = 0; id < tokens.ids(); ++id)
      sorted.push_back(tokens.text(static_cast<int32_t>(id)));
    std::ranges::sort(sorted);
    const size_t stride = std::max<size_t>(sorted.size() / kSample, 1);
    for (size_t i = stride; i < sorted.size(); i += stride) {
      const std::string_view text = sorted[i];
      const auto shared = std::ranges::mismatch(text, sorted[i - 1]).in1 - text.begin();
      sample_.push_back({text, static_cast<size_t>(shared)});
      steps_ += static_cast<double>(text.size()) - static_cast<double>(shared);
    }
  }

  // Stops counting beyond `most`.
  double of(const xgrammar::Grammar& optimized, double most) const {
    using Kind = xgrammar::Grammar::Impl::GrammarExprType;
    double cost = 0;
    Walk walk;
    std::set<std::string> seen;  // bodies: masks of equal automata are made once
    for (int rule = 0; rule < optimized->NumRules(); ++rule) {
      const auto& automaton = optimized->per_rule_fsms[rule];
      if (!automaton.has_value()) continue;
      const auto body = optimized->GetGrammarExpr(optimized->GetRule(rule).body_expr_id);
      if (const std::string text = terminal_text(optimized, body); !text.empty())
        if (!seen.insert(text).second) continue;
      // Those of free text up to a tag are compared with few tokens, as xgrammar knows them.
      const double share = body.type == Kind::kTagDispatch ? 0.1 : 1;
      std::unordered_set<int> states;
      automaton->GetFsm().GetReachableStates(&states);
      for (const int state : states) {
        walk.counted = walk.taken = 0;
        walk_from(state, automaton->GetFsm().GetFsm(), walk);
        cost += kState + share * walk.counted / steps_ + walk.taken / kTaken;
        if (cost > most) return cost;
      }
    }
    return cost;
  }

 private:
  static constexpr size_t kSample = 500;   // tokens
  static constexpr double kState = 0.003;  // of a state that no token passes
  static constexpr double kTaken = 5e5;    // steps of this estimate that weigh 1

  struct Sample {
    std::string_view text;
    size_t shared;  // bytes of it, with the token before
  };

  // The states that a text can have led to. Its memory is used again and again.
  class States {
   public:
    void clear() {
      states_.clear();
      ++turn_;
    }
    // Together with those that it is left for without a character.
    void add(int state, const auto& automaton) {
      size_t done = states_.size();
      meet(state);
      for (; done < states_.size(); ++done)
        for (const xgrammar::FSMEdge& edge : automaton.GetEdges(states_[done]))
          if (edge.IsEpsilon()) meet(edge.target);
    }
    void each_edge(const auto& automaton, auto&& visit) const {
      for (const int state : states_)
        for (const xgrammar::FSMEdge& edge : automaton.GetEdges(state))
          if (edge.IsCharRange()) visit(edge);
    }
    size_t size() const { return states_.size(); }

   private:
    void meet(int state) {
      const auto at = static_cast<size_t>(state);
      if (at >= met_.size()) met_.resize(at + at / 2 + 1);
      if (std::exchange(met_[at], turn_) != turn_) states_.push_back(state);
    }

    std::vector<int> states_;
    std::vector<uint32_t> met_;  // per state: in which turn
    uint32_t turn_ = 1;
  };

  struct Walk {
    States first, now, next;
    double counted = 0;  // steps such as compiling takes
    double taken = 0;    // steps of this walk
  };

  void walk_from(int state, const auto& automaton, Walk& walk) const {
    States &first = walk.first, &now = walk.now, &next = walk.next;
    first.clear();
    first.add(state, automaton);
    walk.taken += static_cast<double>(first.size());
    std::bitset<256> begins;
    first.each_edge(automaton, [&](const xgrammar::FSMEdge& edge) {
      for (int byte = edge.min; byte <= edge.max; ++byte) begins.set(static_cast<size_t>(byte));
    });
    for (const Sample& sample : sample_) {
      if (sample.text.empty() || !begins[static_cast<unsigned char>(sample.text[0])]) continue;
      const States* from = &first;
      for (size_t i = 0; i < sample.text.size() && from->size() > 0; ++i) {
        const auto c = static_cast<unsigned char>(sample.text[i]);
        next.clear();
        from->each_edge(automaton, [&](const xgrammar::FSMEdge& edge) {
          if (edge.min <= c && c <= edge.max) next.add(edge.target, automaton);
        });
        walk.taken += static_cast<double>(from->size() + next.size());
        if (i >= sample.shared) walk.counted += static_cast<double>(next.size());
        std::swap(now, next);
        from = &now;
      }
    }
  }

  std::vector<Sample> sample_;
  double steps_ = 0;  // from a state where any text may come
};

}  // namespace

struct GrammarCompiler::State {
  struct Entry {
    std::string key;
    std::shared_ptr<const Grammar> grammar;
    size_t bytes;
  };

  State(const std::vector<std::string>& texts, std::vector<TokenId> the_stop_ids,
        GrammarLimits the_limits)
      : limits(the_limits),
        stop_ids(std::move(the_stop_ids)),
        tokens(std::make_shared<const TokenCharacters>(texts, stop_ids)),
        compile_cost(*tokens),
        compiler(tokenizer_info(texts, stop_ids), /*max_threads=*/1,
                 /*cache_enabled=*/true, /*max_memory_bytes=*/kSharedRulesBytes) {}

  std::shared_ptr<const Grammar> find(const std::string& key);
  void keep(const std::string& key, std::shared_ptr<const Grammar> grammar);
  Result<std::shared_ptr<const Grammar>> make(const GrammarText& text);
  Result<void> check_size(const GrammarText& text) const;
  Result<void> check(const xgrammar::Grammar& parsed) const;
  Result<void> try_out(const LimitedGrammar& grammar) const;

  const GrammarLimits limits;
  const std::vector<TokenId> stop_ids;
  const std::shared_ptr<const TokenCharacters> tokens;
  const CompileCost compile_cost;
  xgrammar::GrammarCompiler compiler;

  std::mutex mutex;          // guards what follows
  std::list<Entry> entries;  // the one used last first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_key;
  size_t bytes = 0;
};

Result<void> GrammarCompiler::State::check_size(const GrammarText& text) const {
  if (text.ebnf.size() <= limits.max_ebnf_bytes) return {};
  return fail(Code::resource_exhausted, "The grammar has {} bytes, at most {} are allowed.",
              text.ebnf.size(), limits.max_ebnf_bytes);
}

// Whether it can be compiled, within the limits.
Result<void> GrammarCompiler::State::check(const xgrammar::Grammar& parsed) const {
  if (has_attributes(parsed))
    return fail(Code::invalid_argument,
                "Not a grammar: attributes of rules, as in name[max_chars=9], are not supported.");
  const xgrammar::Grammar optimized = xgrammar::GrammarOptimizer::Apply(parsed);
  if (has_token_edges(optimized))
    return fail(Code::invalid_argument,
                "Not a grammar: Token(), ExcludeToken() and TokenTagDispatch() are not supported.");
  if (!Endings(optimized).all())
    return fail(Code::invalid_argument,
                "Not a grammar that can be satisfied: some of its rules (of a JSON schema: its "
                "'$ref's) require each other in a circle, so that no text of theirs ever ends.");
  if (compile_cost.of(optimized, limits.max_cost) > limits.max_cost)
    return fail(Code::resource_exhausted,
                "The grammar is too large to compile: it has more than {:.0f} states of free text, "
                "as counted repetitions of wide character classes make them, above all where a "
                "text can be read in several ways.",
                limits.max_cost);
  return {};
}

// Whether the beginnings of some texts can be had at a price that a mask may have: most grammars of
// too many readings show it there, before a request has begun.
Result<void> GrammarCompiler::State::try_out(const LimitedGrammar& grammar) const {
  constexpr int kTexts = 3, kTokens = 16;
  std::vector<uint32_t> words(mask_words(tokens->ids()));
  std::vector<int32_t> allowed;
  uint64_t random = 1;
  for (int i = 0; i < kTexts; ++i) {
    LimitedMatcher matcher(grammar);
    Utf8Phase phase = Utf8Phase::whole;
    for (int step = 0; step < kTokens && !matcher.spent(); ++step) {
      matcher.fill(words);
      tokens->keep_well_formed(phase, words);
      allowed.clear();
      for (size_t w = 0; w < words.size(); ++w)
        for (uint32_t bits = words[w]; bits != 0; bits &= bits - 1)
          allowed.push_back(static_cast<int32_t>(w * 32) + std::countr_zero(bits));
      std::erase_if(allowed, [this](int32_t id) { return tokens->text(id).empty(); });
      if (allowed.empty()) break;
      random = random * 6364136223846793005u + 1442695040888963407u;
      const std::string& text = tokens->text(allowed[(random >> 33) % allowed.size()]);
      phase = utf8_after(phase, text);
      matcher.accept(text);
    }
    if (matcher.spent())
      return fail(Code::resource_exhausted,
                  "The grammar is too ambiguous: the tokens that may come next take too long to "
                  "find, since its rules can read the same text in too many ways.");
  }
  return {};
}

std::shared_ptr<const Grammar> GrammarCompiler::State::find(const std::string& key) {
  std::lock_guard lock(mutex);
  const auto found = by_key.find(key);
  if (found == by_key.end()) return nullptr;
  entries.splice(entries.begin(), entries, found->second);
  return found->second->grammar;
}

void GrammarCompiler::State::keep(const std::string& key, std::shared_ptr<const Grammar> grammar) {
  const size_t size = grammar->bytes() + key.size();
  std::lock_guard lock(mutex);
  if (size > limits.max_cached_bytes || by_key.contains(key)) return;
  entries.push_front({key, std::move(grammar), size});
  by_key.emplace(entries.front().key, entries.begin());
  bytes += size;
  while (bytes > limits.max_cached_bytes || entries.size() > limits.max_cached) {
    bytes -= entries.back().bytes;
    by_key.erase(entries.back().key);
    entries.pop_back();
  }
}

Result<std::shared_ptr<const Grammar>> GrammarCompiler::State::make(const GrammarText& text) {
  try {
    const xgrammar::Grammar parsed = xgrammar::Grammar::FromEBNF(text.ebnf);
    M2_TRY_VOID(check(parsed));
    auto compiled = std::make_unique<Grammar::Compiled>(
        Grammar::Compiled{compiler.CompileGrammar(parsed), nullptr, tokens, stop_ids});
    M2_TRY(compiled->limited,
           LimitedGrammar::make(compiled->grammar, limits_in_use(text.limits, parsed), tokens));
    M2_TRY_VOID(try_out(*compiled->limited));
    return std::make_shared<const Grammar>(std::move(compiled));
  } catch (const std::exception& error) {
    return why(error);
  }
}

GrammarCompiler::GrammarCompiler(std::shared_ptr<const Tokenizer> tokenizer,
                                 std::vector<TokenId> stop_ids, std::span<const TokenId> spelled,
                                 GrammarLimits limits)
    : state_(std::make_unique<State>(texts_of(*tokenizer, spelled), std::move(stop_ids), limits)) {}
GrammarCompiler::~GrammarCompiler() = default;

Result<std::shared_ptr<const Grammar>> GrammarCompiler::compile(const GrammarText& text) {
  M2_TRY_VOID(state_->check_size(text));
  const std::string key = text.key();
  if (auto known = state_->find(key)) return known;
  M2_TRY(auto grammar, state_->make(text));
  state_->keep(key, grammar);
  return grammar;
}

Result<void> GrammarCompiler::check(const GrammarText& text) const {
  M2_TRY_VOID(state_->check_size(text));
  try {
    return state_->check(xgrammar::Grammar::FromEBNF(text.ebnf));
  } catch (const std::exception& error) {
    return why(error);
  }
}

size_t GrammarCompiler::ids() const {
  return state_->tokens->ids();
}

size_t GrammarCompiler::cached() const {
  std::lock_guard lock(state_->mutex);
  return state_->entries.size();
}

}  // namespace m2::text
