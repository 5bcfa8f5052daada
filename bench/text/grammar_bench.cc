// Time of the masks of constrained output, and of compiling the grammars, on one core.
//
//   grammar_bench TOKENIZER_JSON TOOL_SETS_JSON
//
// Prints two tables. Every case draws outputs token by token, uniformly among those allowed but
// leaning to what ends a value, and takes the time of each mask: that of the thread, so that other
// work on the machine is not in it. A grammar is compiled by a compiler that has seen no other. The
// second table is of grammars made to be expensive, with the masks after beginnings that are worst
// as well; those that are refused say so by the time it took.

#include <time.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/grammar.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/pattern.h"
#include "text/grammar/tool_calls.h"
#include "text/output_constraint.h"
#include "text/tokenizer.h"

namespace {

using namespace m2;
using namespace m2::text;

constexpr size_t kMasks = 4000;  // of each case
constexpr int kSteps = 400;      // of an output, at most

double microseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

struct Case {
  const char* name;
  GrammarText text;
  bool calls = false;
};

Json object_of(Json properties) {
  Json required = Json::array();
  for (const auto& [name, value] : properties.items()) required.push_back(name);
  return Json{{"type", "object"},
              {"properties", std::move(properties)},
              {"required", std::move(required)},
              {"additionalProperties", false}};
}

GrammarText of_schema(const Json& schema) {
  return json_schema_grammar(schema, {}).value();
}

std::vector<Case> cases(const Json& tool_sets) {
  Json tools = Json::array();
  for (const Json& function : tool_sets["agents"])
    tools.push_back(Json{{"type", "function"}, {"function", function}});

  const Json person = object_of({{"name", {{"type", "string"}}},
                                 {"age", {{"type", "integer"}, {"minimum", 0}, {"maximum", 130}}},
                                 {"email", {{"type", {"string", "null"}}}}});
  const Json nested = object_of({{"kind", {{"enum", {"order", "refund", "question"}}}},
                                 {"customer", person},
                                 {"items",
                                  {{"type", "array"},
                                   {"items", object_of({{"sku", {{"type", "string"}}},
                                                        {"count", {{"type", "integer"}}},
                                                        {"price", {{"type", "number"}}}})}}},
                                 {"notes", {{"type", "array"}, {"items", {{"type", "string"}}}}}});
  const Json bounded = object_of(
      {{"title", {{"type", "string"}, {"minLength", 1}, {"maxLength", 60}}},
       {"summary", {{"type", "string"}, {"minLength", 40}, {"maxLength", 400}}},
       {"code", {{"type", "string"}, {"maxLength", 5}}},
       {"tags",
        {{"type", "array"}, {"items", {{"type", "string"}, {"maxLength", 20}}}, {"maxItems", 8}}}});
  Json bounded_tool = Json::array(
      {Json{{"type", "function"}, {"function", {{"name", "post"}, {"parameters", bounded}}}}});
  const Json list = {{"type", "array"},
                     {"items", {{"type", "integer"}, {"minimum", 0}, {"maximum", 9999}}},
                     {"minItems", 200},
                     {"maxItems", 1000}};
  Json choice = Json::array();
  std::string spelled;
  for (int i = 0; i < 1000; ++i) {
    choice.push_back(fmt::format("{} of the thousand values", i * 7919 % 1000));
    spelled += (i == 0 ? "" : " | ") + ebnf_literal(choice.back().get<std::string>());
  }
  const std::string date =
      "[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]T[0-9]{2}:[0-9]{2} [A-Za-z _/]+ <\\w+@\\w+(\\.\\w+)+>";

  return {
      {"any JSON object", of_schema(Json())},
      {"20 tools of coding agents", tool_call_grammar(tools, {}, false).value().text, true},
      {"nested schema", of_schema(nested)},
      {"bounded strings", of_schema(bounded)},
      {"a tool with bounded strings", tool_call_grammar(bounded_tool, {}, false).value().text,
       true},
      {"200 to 1000 items", of_schema(list)},
      {"enum of 1000 strings", of_schema(Json{{"enum", choice}})},
      {"choice of 1000 texts", GrammarText("root ::= " + spelled)},
      {"regular expression",
       GrammarText("root ::= " + regex_terminal(regex_pattern(date, Spelling::raw, true).value()))},
  };
}

struct Hostile {
  const char* name;
  GrammarText text;
  std::vector<std::string> beginnings;
};

GrammarText of_regex(const std::string& regex) {
  return GrammarText("root ::= " +
                     regex_terminal(regex_pattern(regex, Spelling::raw, true).value()));
}

std::vector<Hostile> hostile_cases() {
  const auto text = [](int least, int most) {
    return Json{{"type", "string"}, {"minLength", least}, {"maxLength", most}};
  };
  const auto pattern = [&](const char* regex, int least, int most) {
    Json schema = text(least, most);
    schema["pattern"] = regex;
    return of_schema(schema);
  };
  const auto as = [](size_t count) { return '"' + std::string(count, 'a'); };
  Json same = Json::array(), limits = Json::array(), optional = Json::object();
  for (int i = 0; i < 60; ++i)
    same.push_back(
        object_of({{"a", {{"type", "string"}}}, {fmt::format("b{}", i), {{"type", "integer"}}}}));
  for (int i = 0; i < 100; ++i) {
    limits.push_back(text(i, 1000 + i));
    optional[fmt::format("p{}", i)] = text(2, 90);
  }
  Json ranges = Json::array();
  for (int64_t i = 0; i < 40; ++i)
    ranges.push_back(
        {{"type", "integer"}, {"minimum", i}, {"maximum", 100'000'000'000'000'000 + i}});
  return {
      {"^.*a.{20}$, 10000 characters",
       pattern("^.*a.{20}$", 10'000, 10'000),
       {"\"", as(60), as(9960), as(9978), as(9990)}},
      {"^.*foo$, 3000 characters", pattern("^.*foo$", 3000, 3000), {as(50), as(2990), as(2995)}},
      {"^(a?){0,150}b$, 3 to 140 characters",
       pattern("^(a?){0,150}b$", 3, 140),
       {"\"", as(50), as(130)}},
      {"three readings of a character, 20 to 25",
       pattern("^(.|é|日){5,30}$", 20, 25),
       {as(10), as(20)}},
      {"(a?){0,150}b", of_regex("(a?){0,150}b"), {"", "aaaaaaaaaa"}},
      {"\\w*a\\w{300}", of_regex("\\w*a\\w{300}"), {std::string(320, 'a')}},
      {"[a-z]{1,128} three times",
       of_regex("[a-z]{1,128}[a-z]{1,128}[a-z]{1,128}"),
       {std::string(200, 'a')}},
      {"100 strings of other lengths", of_schema({{"anyOf", limits}}), {"\"", as(3), as(995)}},
      {"60 objects that begin alike",
       of_schema({{"anyOf", same}}),
       {"{\"a\": \"", "{\"a\": \"aaa"}},
      {"100 optional bounded strings",
       of_schema({{"type", "object"}, {"properties", optional}, {"additionalProperties", false}}),
       {"{", "{\"p1\": \"a", "{\"p1\": \"aaa"}},
      {"40 ranges of integers", of_schema({{"anyOf", ranges}}), {"1", "123"}},
      {"((w \" \"?)+ \".\"?)+", GrammarText("root ::= ((w \" \"?)+ \".\"?)+\nw ::= [a-z]+"), {"a"}},
      {"S S", GrammarText("root ::= \"(\" root \")\" root | root root | [a-z ]+ | \"\""), {"a"}},
      {"1000 optional pairs",
       GrammarText("root ::= (x){1,1000} \"b\"\nx ::= \"a\"? \"c\"?"),
       {"aaaa"}},
  };
}

class Walker {
 public:
  explicit Walker(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)),
        stop_(tokenizer_->id_of("[e~[")),
        close_(tokenizer_->id_of("</minimax:tool_call>")),
        tags_(std::make_shared<const TagTokens>(tokenizer_, std::vector<TokenId>{stop_})),
        closing_(mask_words(tags_->ids())),
        words_(mask_words(tags_->ids())) {
    for (TokenId id = 0; id < tokenizer_->base_vocab_size(); ++id)
      if (tokenizer_->bytes(id).find_first_of("\"}]<>/") != std::string_view::npos)
        closing_[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
  }

  std::unique_ptr<GrammarCompiler> compiler() const {
    return std::make_unique<GrammarCompiler>(tokenizer_, std::vector<TokenId>{stop_},
                                             std::span(&close_, 1));
  }

  // Times of copying a mask, sorted.
  std::vector<double> copies() {
    std::vector<double> times;
    while (times.size() < kMasks) {
      const double start = microseconds();
      std::ranges::copy(closing_, words_.begin());
      times.push_back(microseconds() - start);
    }
    std::ranges::sort(times);
    return times;
  }

  // Times of kMasks masks, sorted.
  std::vector<double> masks(const std::shared_ptr<const Grammar>& grammar, bool calls) {
    OutputShape shape;
    (calls ? shape.calls : shape.content) = grammar;
    shape.calls_required = calls;
    shape.starts_in_reasoning = true;
    std::vector<double> times;
    while (times.size() < kMasks) {
      OutputConstraint constraint(shape, tags_);
      constraint.accept(tags_->id(TagTokens::think_close));
      for (int step = 0; step < kSteps; ++step) {
        const double start = microseconds();
        constraint.fill(words_);
        times.push_back(microseconds() - start);
        const TokenId token = draw(step);
        if (token < 0 || token == stop_) break;
        constraint.accept(token);
      }
    }
    times.resize(kMasks);
    std::ranges::sort(times);
    return times;
  }

  // The mask after each beginning, by a matcher that has made none: the longest, of five each the
  // middle one. Nothing: there is no such beginning.
  std::optional<double> worst(const std::shared_ptr<const Grammar>& grammar,
                              const std::vector<std::string>& beginnings) {
    double most = 0;
    for (const std::string& beginning : beginnings) {
      std::array<double, 5> times;
      for (double& time : times) {
        GrammarMatcher matcher(grammar);
        if (!matcher.accept_text(beginning)) return std::nullopt;
        const double start = microseconds();
        matcher.fill(words_);
        time = microseconds() - start;
      }
      std::ranges::sort(times);
      most = std::max(most, times[2]);
    }
    return most;
  }

 private:
  TokenId draw(int step) {
    if (const auto stop = static_cast<size_t>(stop_);
        (words_[stop / 32] >> (stop % 32) & 1u) != 0 && random_() % 4 == 0)
      return stop_;
    if (static_cast<int>(random_() % kSteps) < step + kSteps / 20) {
      std::vector<uint32_t> ending = words_;
      for (size_t w = 0; w < ending.size(); ++w) ending[w] &= closing_[w];
      if (const TokenId token = any_of(ending); token >= 0) return token;
    }
    return any_of(words_);
  }

  TokenId any_of(std::span<const uint32_t> words) {
    uint64_t allowed = 0;
    for (const uint32_t word : words) allowed += static_cast<uint64_t>(std::popcount(word));
    if (allowed == 0) return -1;
    uint64_t left = random_() % allowed;
    for (size_t w = 0; w < words.size(); ++w) {
      const auto here = static_cast<uint64_t>(std::popcount(words[w]));
      if (left >= here) {
        left -= here;
        continue;
      }
      uint32_t word = words[w];
      for (; left > 0; --left) word &= word - 1;
      return static_cast<TokenId>(w * 32 + static_cast<size_t>(std::countr_zero(word)));
    }
    return -1;
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const TokenId stop_, close_;
  const std::shared_ptr<const TagTokens> tags_;
  std::vector<uint32_t> closing_, words_;
  std::mt19937_64 random_{1};
};

void print_row(const char* name, const std::string& compile_ms, const std::string& states,
               const std::vector<double>& times) {
  std::printf("| %s | %s | %s | %.1f | %.1f | %.1f |\n", name, compile_ms.c_str(), states.c_str(),
              times[times.size() / 2], times[times.size() * 99 / 100], times.back());
}

int run_hostile(Walker& walker) {
  std::printf("\n| made to be expensive | compile ms | states | median us | p99 us | worst us |\n");
  std::printf("|---|--:|--:|--:|--:|--:|\n");
  for (const Hostile& one : hostile_cases()) {
    const auto compiler = walker.compiler();
    const double start = microseconds();
    const auto grammar = compiler->compile(one.text);
    const double compile_ms = (microseconds() - start) / 1000;
    if (!grammar) {
      std::printf("| %s | %.1f | refused | | | |\n", one.name, compile_ms);
      continue;
    }
    const auto worst = walker.worst(*grammar, one.beginnings);
    if (!worst) {
      std::fprintf(stderr, "grammar_bench: %s: not a beginning\n", one.name);
      return 1;
    }
    const std::vector<double> times = walker.masks(*grammar, false);
    std::printf("| %s | %.1f | %zu | %.1f | %.1f | %.1f |\n", one.name, compile_ms,
                (*grammar)->states(), times[times.size() / 2], times[times.size() * 99 / 100],
                *worst);
    std::fflush(stdout);
  }
  return 0;
}

int run(const char* tokenizer_path, const char* tools_path) {
  auto tokenizer = Tokenizer::load(tokenizer_path);
  std::ifstream tools_file(tools_path);
  if (!tokenizer || !tools_file) {
    std::fprintf(stderr, "grammar_bench: cannot read %s or %s\n", tokenizer_path, tools_path);
    return 1;
  }
  Walker walker(*tokenizer);
  std::printf("| grammar | compile ms | states | median us | p99 us | max us |\n");
  std::printf("|---|--:|--:|--:|--:|--:|\n");
  print_row("a copy of a mask", "", "", walker.copies());
  for (const Case& one : cases(Json::parse(tools_file))) {
    const auto compiler = walker.compiler();
    const double start = microseconds();
    const auto grammar = compiler->compile(one.text);
    const double compile_ms = (microseconds() - start) / 1000;
    if (!grammar) {
      std::fprintf(stderr, "grammar_bench: %s: %s\n", one.name, grammar.error().text.c_str());
      return 1;
    }
    const std::vector<double> times = walker.masks(*grammar, one.calls);
    print_row(one.name, fmt::format("{:.1f}", compile_ms), std::to_string((*grammar)->states()),
              times);
    std::fflush(stdout);
  }
  return run_hostile(walker);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3) return run(argv[1], argv[2]);
  std::fprintf(stderr, "usage: grammar_bench TOKENIZER_JSON TOOL_SETS_JSON\n");
  return 2;
}
