// For the differential tests: answers one JSON request a line with one JSON line.
//
//   {"schema": S, "texts": [...]}            -> {"accepts": [bool...]} or {"error": "..."}
//   {"schema": S, "walks": N, "seed": K}     -> {"walks": [text...], "compile_ms", "mask_us"}
//   {"tools": [...], "walks": N, "seed": K}  -> {"walks": [{"text", "calls": [...]}...], ...}
//   {"schema": S, "at": [text...]}           -> {"at": [{"mask_us", "allowed", "wrong":
//   [token...]}...]}
//   {"schema": S, "at": [text...], "tokens": [text...]} -> {"at": [{..., "takes": [bool...]}...]}
//
// "takes" are the mask's bits of these tokens. "wrong" are the tokens of whose mask bit a matcher,
// given the token, says otherwise: all tokens that hold '"', '<' or '>', and every 37th other. A
// walk draws random tokens among those allowed until the end comes; what has not ended after
// `steps` tokens is left out.

#include <time.h>

#include <algorithm>
#include <bit>
#include <deque>
#include <fstream>
#include <iostream>
#include <random>

#include "text/grammar/json_schema.h"
#include "text/grammar/structural_tag.h"
#include "text/grammar/tool_calls.h"
#include "text/output_constraint.h"
#include "text/output_reader.h"

namespace m2::text {
namespace {

// Of this thread's own time.
double microseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

class Probe {
 public:
  explicit Probe(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)),
        stop_(tokenizer_->id_of("[e~[")),
        close_(tokenizer_->id_of("</minimax:tool_call>")),
        compiler_(tokenizer_, {stop_}, std::span(&close_, 1)),
        tags_(std::make_shared<const TagTokens>(tokenizer_, std::vector<TokenId>{stop_})),
        closers_(mask_words(tags_->ids())) {
    for (TokenId id = 0; id < tokenizer_->base_vocab_size(); ++id)
      if (tokenizer_->bytes(id).find_first_of("\"}],<>") != std::string_view::npos)
        set(closers_, id);
    for (TokenId id = 0; id < tokenizer_->id_limit(); ++id)
      if (tokenizer_->is_special(id) && id != stop_) control_.push_back(id);
  }

  Json answer(const Json& asked) {
    const double start = microseconds();
    Json out = Json::object();
    OutputShape shape;
    auto text = grammar(asked, out);
    if (!text) return Json{{"error", text.error().text}};
    if (asked.value("show", false)) out["ebnf"] = text->ebnf;
    auto compiled = compiler_.compile(*text);
    out["compile_ms"] = (microseconds() - start) / 1000;
    if (!compiled) return out["error"] = compiled.error().text, out;
    if (asked.contains("texts")) out["accepts"] = accepts(*compiled, asked["texts"]);
    if (asked.contains("at"))
      for (const Json& prefix : asked["at"])
        out["at"].push_back(look(*compiled, prefix.get<std::string>(), asked));
    if (asked.contains("walks")) walk(asked, *compiled, out);
    return out;
  }

 private:
  static Result<GrammarText> grammar(const Json& asked, Json& out) {
    if (asked.contains("ebnf")) return GrammarText(asked["ebnf"].get<std::string>());
    if (asked.contains("tag")) return structural_tag_grammar(asked["tag"]);
    if (asked.contains("regex")) {
      M2_TRY(const std::string pattern,
             regex_pattern(asked["regex"].get<std::string>(), Spelling::raw, true));
      return GrammarText("root ::= " + regex_terminal(pattern));
    }
    if (!asked.contains("tools")) return json_schema_grammar(asked["schema"], {});
    std::optional<std::string> only;
    if (asked.contains("only")) only = asked["only"].get<std::string>();
    M2_TRY(const ToolCallGrammar calls,
           tool_call_grammar(asked["tools"], only, asked.value("one", false)));
    out["ignored"] = calls.ignored;
    return calls.text;
  }

  static Json accepts(const std::shared_ptr<const Grammar>& grammar, const Json& texts) {
    Json out = Json::array();
    for (const Json& text : texts) {
      GrammarMatcher matcher(grammar);
      out.push_back(matcher.accept_text(text.get<std::string>()) && matcher.complete());
    }
    return out;
  }

  Json look(const std::shared_ptr<const Grammar>& grammar, const std::string& text,
            const Json& asked) {
    const bool check = asked.value("check", true);
    if (!GrammarMatcher(grammar).accept_text(text)) return Json{{"error", "not a beginning"}};
    std::vector<uint32_t> words(mask_words(tags_->ids()));
    std::vector<double> times;
    int64_t work = 0;
    for (int i = 0; i < 5; ++i) {  // one that has made no mask yet, each
      GrammarMatcher fresh(grammar);
      fresh.accept_text(text);
      const double start = microseconds();
      fresh.fill(words);
      times.push_back(microseconds() - start);
      work = fresh.work();
    }
    std::ranges::sort(times);
    Json wrong = Json::array();
    int64_t allowed = 0;
    for (TokenId id = 0; id < tokenizer_->id_limit(); ++id) {
      const bool bit =
          (words[static_cast<size_t>(id) / 32] >> (static_cast<size_t>(id) % 32) & 1u) != 0;
      allowed += bit ? 1 : 0;
      const bool looked_at = id % 37 == 0 || tokenizer_->is_added(id) ||
                             tokenizer_->bytes(id).find_first_of("\"<>") != std::string_view::npos;
      if (!check || !looked_at) continue;
      GrammarMatcher other(grammar);
      other.accept_text(text);
      if (other.accept(id) != bit) wrong.push_back(std::string(tokenizer_->bytes(id)));
    }
    Json out{
        {"mask_us", times[2]}, {"work", work}, {"allowed", allowed}, {"wrong", std::move(wrong)}};
    if (asked.contains("tokens"))
      for (const Json& token : asked["tokens"]) {
        const TokenId id = tokenizer_->id_of(token.get<std::string>());
        out["takes"].push_back(id >= 0 && has(words, id));
      }
    return out;
  }

  void walk(const Json& asked, const std::shared_ptr<const Grammar>& grammar, Json& out) {
    OutputShape shape;
    const bool calls = asked.contains("tools");
    (calls ? shape.calls : shape.content) = grammar;
    shape.calls_required = calls;
    shape.starts_in_reasoning = true;
    std::mt19937_64 random(asked.value("seed", 1));
    std::vector<double> times;
    Json walks = Json::array();
    int64_t unfinished = 0, dry = 0;
    most_work_ = trials_ = wrong_trials_ = 0;
    for (int64_t i = 0; i < asked["walks"].get<int64_t>(); ++i) {
      std::string text;
      switch (one_walk(shape, asked.value("steps", 300), random, times, text)) {
        case End::stopped:
          walks.push_back(read(asked, text));
          break;
        case End::cut:
          ++unfinished;
          break;
        case End::control:
          out["control_text"] = text;
          [[fallthrough]];
        case End::dry:
          ++dry;
          out["dry_text"] = text;
          break;
      }
    }
    out["walks"] = std::move(walks);
    out["unfinished"] = unfinished;
    out["work"] = most_work_;
    out["dry"] = dry;
    out["trials"] = trials_;
    out["wrong_trials"] = wrong_trials_;
    std::ranges::sort(times);
    const auto at = [&](double share) {
      return times.empty()
                 ? 0
                 : times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
    };
    out["mask_us"] =
        Json{{"median", at(0.5)}, {"p99", at(0.99)}, {"max", at(1)}, {"count", times.size()}};
  }

  enum class End { stopped, cut, dry, control };

  End one_walk(const OutputShape& shape, int64_t steps, std::mt19937_64& random,
               std::vector<double>& times, std::string& text) {
    OutputConstraint constraint(shape, tags_);
    std::vector<uint32_t> words(mask_words(tags_->ids()));
    constraint.accept(tags_->id(TagTokens::think_close));
    text = "</think>";
    std::deque<Tried> tried;
    for (int64_t step = 0; step < steps; ++step) {
      const double start = microseconds();
      const bool masked = constraint.fill(words);
      if (step > 2) times.push_back(microseconds() - start);
      most_work_ = std::max(most_work_, constraint.work());
      if (tried.empty() && masked && random() % 4 == 0)
        tried = try_ahead(constraint, words, text, step, steps, random);
      const bool follows = !tried.empty() && (tried.front().follows || random() % 2 == 0);
      if (!follows) tried.clear();
      TokenId token = -1;
      if (follows) {
        wrong_trials_ += tried.front().words != words;
        token = tried.front().token;
        tried.pop_front();
      } else if (masked) {
        token = draw(words, text, step, steps, random);
      }
      for (const TokenId id : control_)
        if (has(words, id)) return End::control;
      if (!shape.calls && has(words, close_)) return End::control;
      if (token < 0) return End::dry;
      if (token == stop_) return End::stopped;
      text += tokenizer_->bytes(token);
      constraint.accept(token);
    }
    return End::cut;
  }

  // A token of a trial, and the mask that it was drawn from.
  struct Tried {
    TokenId token;
    std::vector<uint32_t> words;
    bool follows;  // it is not the trial's first: the walk goes on with it if it did with that
  };

  // Tokens that are accepted for a trial: behind it the constraint must say what it said before.
  std::deque<Tried> try_ahead(OutputConstraint& constraint, std::vector<uint32_t>& words,
                              std::string text, int64_t step, int64_t steps,
                              std::mt19937_64& random) {
    const std::vector<uint32_t> before = words;
    std::deque<Tried> out;
    ++trials_;
    constraint.begin_trial();
    for (bool masked = true; masked && out.size() < 6; masked = constraint.fill(words)) {
      const TokenId token =
          draw(words, text, step + static_cast<int64_t>(out.size()), steps, random);
      if (token < 0) break;
      out.push_back({token, words, !out.empty()});
      text += tokenizer_->bytes(token);
      constraint.accept(token);
    }
    constraint.end_trial();
    wrong_trials_ += !constraint.fill(words) || words != before;
    return out;
  }

  static bool has(std::span<const uint32_t> words, TokenId id) {
    return (words[static_cast<size_t>(id) / 32] >> (static_cast<size_t>(id) % 32) & 1u) != 0;
  }
  static void set(std::span<uint32_t> words, TokenId id) {
    words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<size_t>(id) % 32);
  }

  // One of the tokens allowed, each as likely as any other, or -1.
  static TokenId any_of(std::span<const uint32_t> words, std::mt19937_64& random) {
    uint64_t allowed = 0;
    for (const uint32_t word : words) allowed += static_cast<uint64_t>(std::popcount(word));
    if (allowed == 0) return -1;
    uint64_t left = random() % allowed;
    size_t w = 0;
    for (; left >= static_cast<uint64_t>(std::popcount(words[w])); ++w)
      left -= static_cast<uint64_t>(std::popcount(words[w]));
    uint32_t word = words[w];
    for (; left > 0; --left) word &= word - 1;
    return static_cast<TokenId>(w * 32 + static_cast<size_t>(std::countr_zero(word)));
  }

  // The tags of a call that a text value could hold the beginnings of.
  static constexpr std::string_view kTags[] = {"</parameter>\n", "</invoke>\n",
                                               "<parameter name=\""};

  static size_t begun_of(std::string_view tag, std::string_view text) {
    size_t begun = std::min(tag.size() - 1, text.size());
    while (begun > 0 && !text.ends_with(tag.substr(0, begun))) --begun;
    return begun;
  }

  // The longest token that goes on with one of these tags, if one is begun or a value is to end.
  TokenId towards_tag(std::span<const uint32_t> words, std::string_view text, bool ends,
                      std::mt19937_64& random) const {
    std::string_view tag = kTags[0];
    for (const std::string_view one : kTags)
      if (begun_of(one, text) > begun_of(tag, text)) tag = one;
    size_t begun = begun_of(tag, text);
    if (begun < 2) {
      const bool ended = text.ends_with(kTags[0]);
      if (!ended && !ends) return -1;
      if (ended) tag = kTags[1 + random() % 2];
      begun = ended ? 0 : begun_of(tag, text);
    }
    for (size_t size = tag.size() - begun; size > 0; --size) {
      const TokenId id = tokenizer_->id_of(tag.substr(begun, size));
      if (id >= 0 && has(words, id)) return id;
    }
    return -1;
  }

  // A random token of those allowed; the longer it goes on, the rather one that closes something.
  TokenId draw(std::span<const uint32_t> words, std::string_view text, int64_t step, int64_t steps,
               std::mt19937_64& random) {
    for (const TokenId end : {stop_, close_})
      if (has(words, end) && random() % 2 == 0) return end;
    const bool closes = random() % 100 < static_cast<uint64_t>(20 + 150 * step / steps);
    if (random() % 10 > 0)
      if (const TokenId id = towards_tag(words, text, closes, random); id >= 0) return id;
    if (closes) {
      std::vector<uint32_t> closing(words.begin(), words.end());
      for (size_t w = 0; w < closing.size(); ++w) closing[w] &= closers_[w];
      if (const TokenId id = any_of(closing, random); id >= 0) return id;
    }
    return any_of(words, random);
  }

  Json read(const Json& asked, const std::string& text) {
    ReaderOptions options;
    options.tool_schemas = asked.contains("tools") ? asked["tools"] : Json::array();
    OutputReader reader(std::move(options));
    std::vector<OutputDelta> deltas;
    // As a detokenizer hands it over: what is not UTF-8 does not come.
    reader.feed(text, deltas);
    reader.finish(false, deltas);
    const AssistantMessage& message = reader.message();
    Json calls = Json::array();
    for (const auto& call : message.tool_calls)
      calls.push_back(Json{{"name", call.name}, {"arguments", call.arguments}});
    return Json{{"text", text}, {"content", message.content}, {"calls", std::move(calls)}};
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const TokenId stop_, close_;
  GrammarCompiler compiler_;
  const std::shared_ptr<const TagTokens> tags_;
  std::vector<uint32_t> closers_;
  std::vector<TokenId> control_;
  int64_t most_work_ = 0;  // of the masks of the walks asked for
  int64_t trials_ = 0, wrong_trials_ = 0;
};

int main(const std::string& path) {
  auto tokenizer = Tokenizer::load(path);
  if (!tokenizer) {
    std::cerr << tokenizer.error().text << "\n";
    return 1;
  }
  Probe probe(*tokenizer);
  for (std::string line; std::getline(std::cin, line);)
    std::cout << probe.answer(Json::parse(line)).dump(-1, ' ', true, Json::error_handler_t::replace)
              << std::endl;
  return 0;
}

}  // namespace
}  // namespace m2::text

int main(int argc, char** argv) {
  return argc == 2 ? m2::text::main(argv[1]) : 2;
}
