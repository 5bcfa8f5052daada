// For the differential tests: answers one JSON request a line with one JSON line.
//
//   {"schema": S, "texts": [...]}            -> {"accepts": [bool...]} or {"error": "..."}
//   {"schema": S, "walks": N, "seed": K}     -> {"walks": [text...], "compile_ms", "mask_us"}
//   {"tools": [...], "walks": N, "seed": K}  -> {"walks": [{"text", "calls": [...]}...], ...}
//
// A walk draws random tokens among those allowed until the end comes; what has not ended after
// `steps` tokens is left out.

#include <algorithm>
#include <chrono>
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

double microseconds() {
  return static_cast<double>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                 std::chrono::steady_clock::now().time_since_epoch())
                                 .count()) /
         1000;
}

class Probe {
 public:
  explicit Probe(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)),
        stop_(tokenizer_->id_of("[e~[")),
        close_(tokenizer_->id_of("</minimax:tool_call>")),
        compiler_(tokenizer_, {stop_}, std::span(&close_, 1)),
        tags_(std::make_shared<const TagTokens>(tokenizer_, std::vector<TokenId>{stop_})) {
    for (TokenId id = 0; id < tokenizer_->base_vocab_size(); ++id)
      if (tokenizer_->bytes(id).find_first_of("\"}],<>") != std::string_view::npos)
        closers_.push_back(id);
  }

  Json answer(const Json& asked) {
    const double start = microseconds();
    Json out = Json::object();
    OutputShape shape;
    auto ebnf = grammar(asked, out);
    if (!ebnf) return Json{{"error", ebnf.error().text}};
    if (asked.value("show", false)) out["ebnf"] = *ebnf;
    auto compiled = compiler_.compile(*ebnf);
    out["compile_ms"] = (microseconds() - start) / 1000;
    if (!compiled) return out["error"] = compiled.error().text, out;
    if (asked.contains("texts")) out["accepts"] = accepts(*compiled, asked["texts"]);
    if (asked.contains("walks")) walk(asked, *compiled, out);
    return out;
  }

 private:
  static Result<std::string> grammar(const Json& asked, Json& out) {
    if (asked.contains("ebnf")) return asked["ebnf"].get<std::string>();
    if (asked.contains("tag")) return structural_tag_grammar(asked["tag"]);
    if (asked.contains("regex")) {
      M2_TRY(const std::string pattern,
             regex_pattern(asked["regex"].get<std::string>(), Spelling::raw, true));
      return "root ::= " + regex_terminal(pattern);
    }
    if (!asked.contains("tools")) return json_schema_grammar(asked["schema"], {});
    std::optional<std::string> only;
    if (asked.contains("only")) only = asked["only"].get<std::string>();
    M2_TRY(const ToolCallGrammar calls,
           tool_call_grammar(asked["tools"], only, asked.value("one", false)));
    out["ignored"] = calls.ignored;
    return calls.ebnf;
  }

  static Json accepts(const std::shared_ptr<const Grammar>& grammar, const Json& texts) {
    Json out = Json::array();
    for (const Json& text : texts) {
      GrammarMatcher matcher(grammar);
      out.push_back(matcher.accept_text(text.get<std::string>()) && matcher.complete());
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
    for (int64_t i = 0; i < asked["walks"].get<int64_t>(); ++i) {
      std::string text;
      switch (one_walk(shape, asked.value("steps", 300), random, times, text)) {
        case End::stopped:
          walks.push_back(read(asked, text));
          break;
        case End::cut:
          ++unfinished;
          break;
        case End::dry:
          ++dry;
          out["dry_text"] = text;
          break;
      }
    }
    out["walks"] = std::move(walks);
    out["unfinished"] = unfinished;
    out["dry"] = dry;
    std::ranges::sort(times);
    const auto at = [&](double share) {
      return times.empty()
                 ? 0
                 : times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
    };
    out["mask_us"] =
        Json{{"median", at(0.5)}, {"p99", at(0.99)}, {"max", at(1)}, {"count", times.size()}};
  }

  enum class End { stopped, cut, dry };

  End one_walk(const OutputShape& shape, int64_t steps, std::mt19937_64& random,
               std::vector<double>& times, std::string& text) {
    OutputConstraint constraint(shape, tags_);
    std::vector<uint32_t> words(mask_words(tags_->ids()));
    constraint.accept(tags_->id(TagTokens::think_close));
    text = "</think>";
    for (int64_t step = 0; step < steps; ++step) {
      const double start = microseconds();
      const bool masked = constraint.fill(words);
      if (step > 2) times.push_back(microseconds() - start);
      const TokenId token = masked ? draw(words, step, steps, random) : -1;
      if (token < 0) return End::dry;
      if (token == stop_) return End::stopped;
      text += tokenizer_->bytes(token);
      constraint.accept(token);
    }
    return End::cut;
  }

  // A random token of those allowed; the longer it goes on, the rather one that closes something.
  TokenId draw(std::span<const uint32_t> words, int64_t step, int64_t steps,
               std::mt19937_64& random) {
    const auto allowed = [&](TokenId id) {
      return (words[static_cast<size_t>(id) / 32] >> (static_cast<size_t>(id) % 32) & 1u) != 0;
    };
    if (allowed(stop_)) return stop_;
    std::vector<TokenId> ids;
    const bool closes = random() % 100 < static_cast<uint64_t>(10 + 100 * step / steps);
    if (closes)
      for (const TokenId id : closers_)
        if (allowed(id)) ids.push_back(id);
    if (ids.empty())
      for (TokenId id = 0; id < tokenizer_->id_limit(); ++id)
        if (allowed(id)) ids.push_back(id);
    return ids.empty() ? -1 : ids[random() % ids.size()];
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
  std::vector<TokenId> closers_;
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
