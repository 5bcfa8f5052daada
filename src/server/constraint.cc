#include "server/constraint.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/structural_tag.h"
#include "text/grammar/tool_calls.h"

namespace m2::server {
namespace {

using api::invalid;

class ConstrainedOutput final : public engine::TokenConstraint {
 public:
  ConstrainedOutput(text::OutputShape shape, std::shared_ptr<const text::TagTokens> tags)
      : constraint_(std::move(shape), std::move(tags)) {}

  bool fill(std::span<uint32_t> words) override { return constraint_.fill(words); }
  void accept(int32_t token) override { constraint_.accept(token); }
  void begin_trial() override { constraint_.begin_trial(); }
  void end_trial() override { constraint_.end_trial(); }
  bool complete() const override { return constraint_.complete(); }
  std::string_view failure() const override {
    return constraint_.spent()
               ? "The request's grammar is too ambiguous: what the output may go on with took too "
                 "long to find out, since the grammar can read it in too many ways."
               : std::string_view();
  }

 private:
  text::OutputConstraint constraint_;
};

const Json& member(const Json& object, const char* key) {
  static const Json none;
  if (!object.is_object()) return none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

// A schema as an object, or as the JSON text some clients send.
Result<Json> schema_of(const Json& sent, const char* param) {
  if (!sent.is_string()) return sent;
  auto parsed = parse_json(sent.get_ref<const std::string&>());
  if (!parsed) return invalid(param, "Invalid JSON schema: " + parsed.error().text);
  return std::move(*parsed);
}

// ---- the kinds of grammar, each as EBNF

Result<text::GrammarText> choice_grammar(const Json& choice) {
  if (!choice.is_array())
    return invalid("structured_outputs", "choice should be a list of strings");
  if (choice.empty()) return invalid("structured_outputs", "Choice '[]' cannot be an empty list");
  std::string out;
  for (const Json& one : choice) {
    if (!one.is_string())
      return invalid("structured_outputs", "choice should be a list of strings");
    out +=
        (out.empty() ? "root ::= " : " | ") + text::ebnf_literal(one.get_ref<const std::string&>());
  }
  return text::GrammarText(std::move(out));
}

Result<text::GrammarText> regex_grammar(const Json& regex) {
  if (!regex.is_string()) return invalid("structured_outputs", "regex should be a string");
  auto pattern =
      text::regex_pattern(regex.get_ref<const std::string&>(), text::Spelling::raw, true);
  if (!pattern)
    return invalid("structured_outputs",
                   "The regex is not supported: " + pattern.error().text + ".");
  return text::GrammarText("root ::= " + text::regex_terminal(*pattern));
}

// Where the attributes of a rule end that begin at grammar[at], as in `name[capture="x"] ::=`; `at`
// if a character class begins there.
size_t end_of_attributes(std::string_view grammar, size_t at) {
  bool quoted = false;
  size_t end = at + 1;
  for (; end < grammar.size() && grammar[end] != '\n' && (quoted || grammar[end] != ']'); ++end)
    if (grammar[end] == '"') quoted = !quoted;
  const size_t next = std::min(grammar.find_first_not_of(" \t", end + 1), grammar.size());
  return grammar.substr(next).starts_with("::=") ? end : at;
}

// What of an EBNF text is structure, as xgrammar's lexer has it: literals, character classes,
// attributes of rules and comments stand as blanks.
std::string structure_of(std::string_view grammar) {
  std::string out;
  for (size_t i = 0; i < grammar.size(); ++i) {
    const char opening = grammar[i];
    size_t end = opening == '[' ? end_of_attributes(grammar, i) : i;
    if (end == i && opening == '#') {
      end = grammar.find_first_of("\r\n", i);
    } else if (end == i && (opening == '"' || opening == '[')) {
      const char closing = opening == '"' ? '"' : ']';
      for (++end; end < grammar.size() && grammar[end] != closing; ++end)
        if (grammar[end] == '\\') ++end;
    } else if (end == i) {
      out += opening;
      continue;
    }
    out += ' ';
    i = std::min(end, grammar.size());
  }
  return out;
}

// A counted repetition of a counted repetition multiplies; all counts of the text together, at
// most 10^9.
int64_t product_of_counts(std::string_view structure) {
  int64_t product = 1;
  for (size_t at = structure.find('{'); at != std::string::npos; at = structure.find('{', at + 1)) {
    int64_t count = 0, largest = 1;
    const size_t end = std::min(structure.find_first_of("{}", at + 1), structure.size());
    for (size_t i = at + 1; i < end; ++i) {
      const char c = structure[i];
      count = c >= '0' && c <= '9' ? std::min<int64_t>(count * 10 + (c - '0'), 1'000'000) : 0;
      largest = std::max(largest, count);
    }
    product = std::min<int64_t>(product * largest, 1'000'000'000);
  }
  return product;
}

// A grammar as sent: bounded before anything reads it recursively.
Result<text::GrammarText> user_grammar(const Json& sent) {
  constexpr size_t kMaxBytes = 64 << 10;
  constexpr int kMaxDepth = 64;
  constexpr int64_t kMaxProduct = 10'000;
  if (!sent.is_string()) return invalid("structured_outputs", "grammar should be a string");
  const std::string& grammar = sent.get_ref<const std::string&>();
  if (grammar.find_first_not_of(" \t\r\n") == std::string::npos)
    return invalid("structured_outputs", "structured_outputs.grammar cannot be an empty string");
  if (grammar.size() > kMaxBytes)
    return invalid("structured_outputs",
                   fmt::format("The grammar has {} bytes, at most {} are allowed.", grammar.size(),
                               kMaxBytes));
  const std::string structure = structure_of(grammar);
  int depth = 0, deepest = 0;
  for (const char c : structure) {
    if (c == '(') deepest = std::max(deepest, ++depth);
    if (c == ')') --depth;
  }
  if (deepest > kMaxDepth)
    return invalid("structured_outputs",
                   fmt::format("The grammar is nested more than {} deep.", kMaxDepth));
  if (grammar.find("::=") == std::string::npos)
    return invalid("structured_outputs",
                   "The grammar should be EBNF, of rules such as root ::= \"a\".");
  if (product_of_counts(structure) > kMaxProduct)
    return invalid(
        "structured_outputs",
        fmt::format("The repetition counts of the grammar multiply to more than {}.", kMaxProduct));
  return text::GrammarText(grammar);
}

Result<text::GrammarText> tag_grammar(const Json& sent, const char* param) {
  M2_TRY(const Json tag, schema_of(sent, param));
  return text::structural_tag_grammar(tag);
}

Result<text::SchemaOptions> schema_options(const Json& asked) {
  text::SchemaOptions out;
  out.any_whitespace = member(asked, "disable_any_whitespace") != Json(true);
  const Json& blanks = member(asked, "whitespace_pattern");
  if (blanks.is_string()) {
    auto pattern =
        text::regex_pattern(blanks.get_ref<const std::string&>(), text::Spelling::raw, true);
    if (!pattern)
      return invalid("structured_outputs",
                     "The whitespace_pattern is not supported: " + pattern.error().text + ".");
    out.whitespace = *pattern;
  }
  return out;
}

constexpr const char* kKinds[] = {"json",    "regex",       "choice",
                                  "grammar", "json_object", "structural_tag"};

Result<text::GrammarText> structured_outputs_grammar(const Json& asked) {
  if (!asked.is_object())
    return invalid("structured_outputs", "structured_outputs should be an object");
  std::vector<std::string> given;
  for (const char* kind : kKinds)
    if (const Json& value = member(asked, kind); !value.is_null() && value != Json(false))
      given.emplace_back(kind);
  if (given.size() > 1)
    return invalid("structured_outputs",
                   "You can only use one kind of constraints for structured outputs ('json', "
                   "'regex' or 'choice').");
  if (given.empty())
    return invalid(
        "structured_outputs",
        "You must use one kind of structured outputs constraint but none are specified: " +
            to_text(asked));
  M2_TRY(const text::SchemaOptions options, schema_options(asked));
  const Json& value = member(asked, given[0].c_str());
  if (given[0] == "regex") return regex_grammar(value);
  if (given[0] == "choice") return choice_grammar(value);
  if (given[0] == "grammar") return user_grammar(value);
  if (given[0] == "structural_tag") return tag_grammar(value, "structured_outputs");
  if (given[0] == "json_object") return text::json_schema_grammar(Json(), options);
  M2_TRY(const Json schema, schema_of(value, "structured_outputs"));
  if (!schema.is_object() && !schema.is_boolean())
    return invalid("structured_outputs", "json should be a JSON schema");
  return text::json_schema_grammar(schema, options);
}

// Empty for plain text.
Result<text::GrammarText> response_format_grammar(const Json& format) {
  if (!format.is_object() || !member(format, "type").is_string())
    return invalid("response_format", "response_format should be an object with a 'type'");
  const std::string type = format["type"];
  if (type == "text") return text::GrammarText();
  if (type == "json_object") return text::json_schema_grammar(Json(), {});
  if (type == "structural_tag") return tag_grammar(format, "response_format");
  if (type != "json_schema")
    return invalid(
        "response_format",
        "response_format.type should be 'text', 'json_object', 'json_schema' or 'structural_tag'");
  const Json& inside = member(format, "json_schema");
  const Json& schema =
      member(inside, inside.is_object() && inside.contains("schema") ? "schema" : "json_schema");
  if (!schema.is_object() && !schema.is_boolean())
    return invalid("response_format", "response_format.json_schema.schema should be a JSON schema");
  return text::json_schema_grammar(schema, {});
}

Error with_param(Error error, const char* param) {
  if (error.param.empty()) error.param = param;
  error.code = Code::invalid_argument;
  return error;
}

Result<std::shared_ptr<const text::Grammar>> content_grammar(const ConstraintAsked& asked,
                                                             Grammars& grammars) {
  const bool format = !asked.response_format.is_null();
  const char* param = format ? "response_format" : "structured_outputs";
  auto text = format ? response_format_grammar(asked.response_format)
                     : structured_outputs_grammar(asked.structured_outputs);
  if (!text) return with_param(text.error(), param);
  if (text->ebnf.empty()) return std::shared_ptr<const text::Grammar>();
  auto grammar = grammars.compiler().compile(*text);
  if (!grammar) return with_param(grammar.error(), param);
  return grammar;
}

using Kind = api::ToolChoice::Kind;

// The error of all tools' grammar, with the name of the first tool that makes it alone. Of the
// others nothing is compiled: they may be hundreds, of seconds each.
Error of_tool(const Error& error, const Json& tools, const text::GrammarCompiler& compiler) {
  for (const Json& tool : tools) {
    const std::string name = tool["function"]["name"];
    const auto calls = text::tool_call_grammar(tools, name, true);
    if (!calls) continue;
    const auto checked = compiler.check(calls->text);
    if (checked.ok() || checked.error().code != error.code) continue;
    return fail(error.code, "The tool '{}': {}", printable(name, 80), checked.error().text);
  }
  return error;
}

// The grammar of the tool calls that may come; null: none, or as they come.
Result<std::shared_ptr<const text::Grammar>> calls_grammar(const ConstraintAsked& asked,
                                                           Context& context, Grammars& grammars) {
  const bool forced = asked.tool_choice.kind == Kind::required ||
                      asked.tool_choice.kind == Kind::named || asked.tool_choice.allowed;
  if (!forced && !context.options().constrain_auto_tools)
    return std::shared_ptr<const text::Grammar>();
  if (asked.tools.empty() || asked.tool_choice.kind == Kind::none ||
      context.options().tool_call_parser == text::ToolCallParser::none)
    return std::shared_ptr<const text::Grammar>();
  if (!grammars.tags()->complete()) {
    if (!forced) return std::shared_ptr<const text::Grammar>();
    return invalid(
        "tool_choice",
        "MiniMax M2 Tool parser could not locate tool call start/end tokens in the tokenizer!");
  }
  std::optional<std::string> only;
  if (asked.tool_choice.kind == Kind::named) only = asked.tool_choice.name;
  auto calls =
      text::tool_call_grammar(asked.tools, only, only.has_value() || !asked.parallel_tool_calls);
  if (!calls) return with_param(calls.error(), "tools");
  for (const std::string& keyword : calls->ignored)
    context.say_once("a tool's schema has what no grammar holds, calls may break it: '" +
                     printable(keyword, 60) + "'");
  auto grammar = grammars.compiler().compile(calls->text);
  if (grammar) return grammar;
  if (grammar.error().code == Code::invalid_argument)
    return with_param(of_tool(grammar.error(), asked.tools, grammars.compiler()), "tools");
  if (forced) return with_param(grammar.error(), "tools");
  context.say_once("tool calls of a request are not constrained: " +
                   printable(grammar.error().text, 200));
  return std::shared_ptr<const text::Grammar>();
}

}  // namespace

Grammars::Grammars(std::shared_ptr<const text::Tokenizer> tokenizer,
                   std::vector<text::TokenId> eos_ids)
    : tokenizer_(std::move(tokenizer)), eos_ids_(std::move(eos_ids)) {}

void Grammars::make() {
  std::call_once(once_, [&] {
    tags_ = std::make_shared<const text::TagTokens>(tokenizer_, eos_ids_);
    const text::TokenId close = tokenizer_->id_of("</minimax:tool_call>");
    compiler_ = std::make_unique<text::GrammarCompiler>(tokenizer_, eos_ids_, std::span(&close, 1));
  });
}

text::GrammarCompiler& Grammars::compiler() {
  make();
  return *compiler_;
}

const std::shared_ptr<const text::TagTokens>& Grammars::tags() {
  make();
  return tags_;
}

Result<std::optional<text::OutputShape>> output_shape(const ConstraintAsked& asked,
                                                      Context& context) {
  const bool wants_content =
      !asked.response_format.is_null() || !asked.structured_outputs.is_null();
  const bool wants_calls = !asked.tools.empty() && asked.tool_choice.kind != Kind::none;
  if (!wants_content && !wants_calls) return std::optional<text::OutputShape>();
  if (!asked.structured_outputs.is_null() && !asked.response_format.is_null() &&
      member(asked.response_format, "type") != Json("text"))
    return invalid("structured_outputs",
                   "You can only use one kind of constraints for structured outputs ('json', "
                   "'regex' or 'choice').");
  const auto& grammars = context.services()->grammars;
  if (!grammars) {
    if (!wants_content && asked.tool_choice.kind == Kind::automatic)
      return std::optional<text::OutputShape>();
    return invalid(wants_content ? "response_format" : "tool_choice",
                   "This model's vocabulary cannot be constrained.");
  }
  text::OutputShape shape;
  shape.reads_tags = asked.reads_tags;
  if (wants_content) {
    ConstraintAsked one = asked;
    if (!one.structured_outputs.is_null()) one.response_format = nullptr;
    M2_TRY(shape.content, content_grammar(one, *grammars));
  }
  const bool forced =
      asked.tool_choice.kind == Kind::required || asked.tool_choice.kind == Kind::named;
  if (shape.content && forced)
    return invalid(
        "tool_choice",
        "You can only either use constraints for structured outputs or tools, not both.");
  M2_TRY(shape.calls, calls_grammar(asked, context, *grammars));
  shape.calls_required = forced && shape.calls;
  shape.one_block = !asked.parallel_tool_calls;
  if (!shape.content && !shape.calls) return std::optional<text::OutputShape>();
  return std::optional<text::OutputShape>(std::move(shape));
}

std::unique_ptr<engine::TokenConstraint> make_constraint(text::OutputShape shape,
                                                         bool starts_in_reasoning,
                                                         Context& context) {
  shape.starts_in_reasoning =
      starts_in_reasoning && context.options().reasoning_parser != text::ReasoningParser::none;
  return std::make_unique<ConstrainedOutput>(std::move(shape),
                                             context.services()->grammars->tags());
}

}  // namespace m2::server
