#include "text/grammar.h"

#include <grammar_functor.h>  // xgrammar's own: to see a grammar's automata before compiling it
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <exception>
#include <list>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/check.h"

namespace m2::text {

struct Grammar::Compiled {
  xgrammar::CompiledGrammar grammar;
  size_t ids;
};

Grammar::Grammar(std::unique_ptr<const Compiled> compiled) : compiled_(std::move(compiled)) {}
Grammar::~Grammar() = default;

size_t Grammar::bytes() const {
  return compiled_->grammar.MemorySizeBytes();
}

// ---- matching

struct GrammarMatcher::State {
  explicit State(std::shared_ptr<const Grammar> the_grammar)
      : grammar(std::move(the_grammar)), matcher(grammar->compiled().grammar) {}

  const std::shared_ptr<const Grammar> grammar;
  xgrammar::GrammarMatcher matcher;
};

GrammarMatcher::GrammarMatcher(std::shared_ptr<const Grammar> grammar)
    : state_(std::make_unique<State>(std::move(grammar))) {}
GrammarMatcher::~GrammarMatcher() = default;
GrammarMatcher::GrammarMatcher(GrammarMatcher&&) noexcept = default;

void GrammarMatcher::fill(std::span<uint32_t> words) {
  const size_t ids = state_->grammar->compiled().ids;
  M2_CHECK(words.size() >= mask_words(ids));
  std::ranges::fill(words, 0u);
  if (state_->matcher.IsTerminated()) return;
  auto shape = static_cast<int64_t>(mask_words(ids));
  DLTensor mask{};
  mask.data = words.data();
  mask.device = {kDLCPU, 0};
  mask.ndim = 1;
  mask.dtype = xgrammar::GetBitmaskDLType();
  mask.shape = &shape;
  try {
    state_->matcher.FillNextTokenBitmask(&mask);
  } catch (const std::exception&) {
    std::ranges::fill(words, 0u);  // nothing may come: the request ends
  }
}

bool GrammarMatcher::accept(TokenId token) {
  try {
    return !state_->matcher.IsTerminated() && state_->matcher.AcceptToken(token);
  } catch (const std::exception&) {
    return false;
  }
}

bool GrammarMatcher::accept_text(std::string_view text) {
  try {
    return !state_->matcher.IsTerminated() && state_->matcher.AcceptString(std::string(text));
  } catch (const std::exception&) {
    return false;
  }
}

bool GrammarMatcher::complete() const {
  return state_->matcher.IsCompleted() || state_->matcher.IsTerminated();
}

// ---- compiling

namespace {

// What the compiler keeps by itself: automata that many grammars have in common.
constexpr int64_t kSharedRulesBytes = 128 << 20;

// A byte that no UTF-8 text holds: the text of tokens that a grammar must not spell.
constexpr const char* kUnspelled = "\xff";

xgrammar::TokenizerInfo tokenizer_info(const Tokenizer& tokenizer,
                                       const std::vector<TokenId>& stop_ids,
                                       std::span<const TokenId> spelled) {
  std::vector<std::string> vocabulary;
  vocabulary.reserve(static_cast<size_t>(tokenizer.id_limit()));
  for (TokenId id = 0; id < tokenizer.id_limit(); ++id) {
    const bool is_text = !tokenizer.is_added(id) || std::ranges::count(spelled, id) > 0;
    const std::string_view bytes = tokenizer.bytes(id);
    vocabulary.emplace_back(is_text && !bytes.empty() ? bytes : kUnspelled);
  }
  return xgrammar::TokenizerInfo(vocabulary, xgrammar::VocabType::RAW, tokenizer.id_limit(),
                                 stop_ids);
}

// How long compiling will take, in states where any text may come (GrammarLimits).
double cost_of(const xgrammar::Grammar& parsed) {
  const xgrammar::Grammar optimized = xgrammar::GrammarOptimizer::Apply(parsed);
  using Kind = xgrammar::Grammar::Impl::GrammarExprType;
  double cost = 0;
  for (int rule = 0; rule < optimized->NumRules(); ++rule) {
    const auto& automaton = optimized->per_rule_fsms[rule];
    if (!automaton.has_value()) continue;
    const auto body = optimized->GetGrammarExpr(optimized->GetRule(rule).body_expr_id);
    // Those of free text up to a tag are compared with few tokens, as xgrammar knows them.
    const double wide = body.type == Kind::kTagDispatch ? 0.1 : 1;
    std::unordered_set<int> states;
    automaton->GetFsm().GetReachableStates(&states);
    for (const int state : states) {
      int bytes = 0;  // that may come next
      for (const xgrammar::FSMEdge& edge : automaton->GetFsm().GetFsm().GetEdges(state))
        if (edge.IsCharRange()) bytes += edge.max - edge.min + 1;
      cost += bytes > 100 ? wide : bytes > 16 ? 0.1 : 0.003;
    }
  }
  return cost;
}

}  // namespace

struct GrammarCompiler::State {
  struct Entry {
    std::string ebnf;
    std::shared_ptr<const Grammar> grammar;
    size_t bytes;
  };

  State(const Tokenizer& tokenizer, const std::vector<TokenId>& stop_ids,
        std::span<const TokenId> spelled, GrammarLimits the_limits)
      : limits(the_limits),
        ids(static_cast<size_t>(tokenizer.id_limit())),
        compiler(tokenizer_info(tokenizer, stop_ids, spelled), /*max_threads=*/1,
                 /*cache_enabled=*/true, /*max_memory_bytes=*/kSharedRulesBytes) {}

  std::shared_ptr<const Grammar> find(const std::string& ebnf);
  void keep(const std::string& ebnf, std::shared_ptr<const Grammar> grammar);
  Result<std::shared_ptr<const Grammar>> make(const std::string& ebnf);

  const GrammarLimits limits;
  const size_t ids;
  xgrammar::GrammarCompiler compiler;

  std::mutex mutex;          // guards what follows
  std::list<Entry> entries;  // the one used last first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_ebnf;
  size_t bytes = 0;
};

std::shared_ptr<const Grammar> GrammarCompiler::State::find(const std::string& ebnf) {
  std::lock_guard lock(mutex);
  const auto found = by_ebnf.find(ebnf);
  if (found == by_ebnf.end()) return nullptr;
  entries.splice(entries.begin(), entries, found->second);
  return found->second->grammar;
}

void GrammarCompiler::State::keep(const std::string& ebnf, std::shared_ptr<const Grammar> grammar) {
  const size_t size = grammar->bytes() + ebnf.size();
  std::lock_guard lock(mutex);
  if (size > limits.max_cached_bytes || by_ebnf.contains(ebnf)) return;
  entries.push_front({ebnf, std::move(grammar), size});
  by_ebnf.emplace(entries.front().ebnf, entries.begin());
  bytes += size;
  while (bytes > limits.max_cached_bytes || entries.size() > limits.max_cached) {
    bytes -= entries.back().bytes;
    by_ebnf.erase(entries.back().ebnf);
    entries.pop_back();
  }
}

Result<std::shared_ptr<const Grammar>> GrammarCompiler::State::make(const std::string& ebnf) {
  try {
    const xgrammar::Grammar parsed = xgrammar::Grammar::FromEBNF(ebnf);
    if (cost_of(parsed) > limits.max_cost)
      return fail(Code::resource_exhausted,
                  "The grammar is too large to compile: it has too many states, as counted "
                  "repetitions of wide character classes make them.");
    auto compiled = std::make_unique<Grammar::Compiled>(
        Grammar::Compiled{compiler.CompileGrammar(parsed), ids});
    return std::make_shared<const Grammar>(std::move(compiled));
  } catch (const std::exception& error) {
    // Without xgrammar's "[time] file.cc:line: ".
    std::string_view why = error.what();
    if (const size_t place = why.find(".cc:"); place != std::string_view::npos)
      why.remove_prefix(std::min(why.find(": ", place), why.size() - 2) + 2);
    return fail(Code::invalid_argument, "Not a grammar: {}", why);
  }
}

GrammarCompiler::GrammarCompiler(std::shared_ptr<const Tokenizer> tokenizer,
                                 std::vector<TokenId> stop_ids, std::span<const TokenId> spelled,
                                 GrammarLimits limits)
    : state_(std::make_unique<State>(*tokenizer, stop_ids, spelled, limits)) {}
GrammarCompiler::~GrammarCompiler() = default;

Result<std::shared_ptr<const Grammar>> GrammarCompiler::compile(const std::string& ebnf) {
  if (ebnf.size() > state_->limits.max_ebnf_bytes)
    return fail(Code::resource_exhausted, "The grammar has {} bytes, at most {} are allowed.",
                ebnf.size(), state_->limits.max_ebnf_bytes);
  if (auto known = state_->find(ebnf)) return known;
  M2_TRY(auto grammar, state_->make(ebnf));
  state_->keep(ebnf, grammar);
  return grammar;
}

size_t GrammarCompiler::ids() const {
  return state_->ids;
}

size_t GrammarCompiler::cached() const {
  std::lock_guard lock(state_->mutex);
  return state_->entries.size();
}

size_t GrammarCompiler::cached_bytes() const {
  std::lock_guard lock(state_->mutex);
  return state_->bytes;
}

}  // namespace m2::text
