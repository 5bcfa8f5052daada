#include "text/grammar/tool_calls.h"

#include <algorithm>
#include <unordered_set>
#include <vector>

#include "base/log.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/schema_references.h"
#include "text/tool_arguments.h"

namespace m2::text {
namespace {

constexpr size_t kAnyOrder = 6;  // 2^n states
constexpr const char* kClose = "</parameter>\n";

// Types under the names people give them become JSON Schema's; unknown ones go.
void plain_types(Json& schema, int depth) {
  if (depth > 64) return;
  if (schema.is_array())
    for (Json& one : schema) plain_types(one, depth + 1);
  if (!schema.is_object()) return;
  for (auto& [key, value] : schema.items())
    if (key != "enum" && key != "const" && key != "default" && key != "examples")
      plain_types(value, depth + 1);
  const auto found = schema.find("type");
  if (found == schema.end() || (!found->is_string() && !found->is_array())) return;
  Json own = Json{{"type", *found}};
  const JsonTypes named = ToolSchemas(Json()).types({&own, &own});
  Json types = Json::array();
  const std::pair<int, const char*> names[] = {
      {JsonTypes::null, "null"},     {JsonTypes::integer, "integer"},
      {JsonTypes::number, "number"}, {JsonTypes::boolean, "boolean"},
      {JsonTypes::object, "object"}, {JsonTypes::array, "array"},
      {JsonTypes::string, "string"}};
  for (const auto& [bit, name] : names)
    if (named.has(bit)) types.push_back(name);
  if (types.empty())
    schema.erase("type");
  else if (types.size() == 1)
    schema["type"] = types[0];
  else
    schema["type"] = types;
}

bool has_tag(std::string_view text) {
  for (const char* tag :
       {"<parameter name=", "</parameter>", "</invoke>", "<invoke name=", "</minimax:tool_call>"})
    if (text.find(tag) != std::string_view::npos) return true;
  return false;
}

// name="NAME>, the quotes such that the reader finds the name again.
std::optional<std::string> quoted_name(const std::string& name) {
  const bool plain = name.find('"') == std::string::npos;
  if (name.empty() || (!plain && name.find('\'') != std::string::npos) || has_tag(name) ||
      std::ranges::any_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
    return std::nullopt;
  const char quote = plain ? '"' : '\'';
  return quote + name + quote;
}

// The grammar of one tool's parameters.
class ParameterGrammar {
 public:
  ParameterGrammar(std::string tool, const Json& schema, Rules& rules,
                   std::set<std::string>& ignored)
      : schema_(schema),
        rules_(rules),
        ignored_(ignored),
        grammar_(schema_, {.spelling = Spelling::json_value, .lenient = true}, rules),
        reader_(Json::array(
            {{{"type", "function"}, {"function", {{"name", tool}, {"parameters", schema}}}}})),
        tool_(std::move(tool)) {}

  // Everything between the tags of the call; nothing: the schema cannot be satisfied. Errors:
  // invalid_argument (a circle of '$ref's).
  Result<Language> all() {
    M2_TRY_VOID(check_circles());
    std::vector<Json> parts;
    if (auto expanded = grammar_.expand(schema_); expanded.ok()) {
      parts = std::move(*expanded);
    } else {
      ignored_.insert("parameters");
      parts.push_back(Json::object());
    }
    std::string out;
    for (const Json& part : parts) {
      M2_TRY(const Language one, parameters(part));
      if (one) out += (out.empty() ? "" : " | ") + *one;
    }
    for (const std::string& keyword : grammar_.ignored()) ignored_.insert(keyword);
    if (out.empty()) return Language();
    return Language(rules_.add(out));
  }

 private:
  // Of a circle the parameter is told, where it is in one.
  Result<void> check_circles() {
    const auto properties = schema_.find("properties");
    if (properties != schema_.end() && properties->is_object())
      for (const auto& [name, value] : properties->items())
        if (auto sound = check_references(schema_, value); !sound)
          return fail(Code::invalid_argument, "The parameter '{}' of the tool '{}': {}",
                      printable(name, 80), printable(tool_, 80), sound.error().text);
    if (auto sound = check_references(schema_, schema_); !sound)
      return fail(Code::invalid_argument, "The tool '{}': {}", printable(tool_, 80),
                  sound.error().text);
    return {};
  }

  struct Parameter {
    std::string rule;
    bool required;
  };

  Result<Language> parameters(const Json& schema) {
    static const Json none = Json::object(), unknown = true;
    const auto member = [&](const char* key) -> const Json* {
      const auto found = schema.is_object() ? schema.find(key) : schema.end();
      return found == schema.end() ? nullptr : &*found;
    };
    const Json* properties = member("properties");
    if (!properties || !properties->is_object()) properties = &none;
    std::vector<std::string> required;
    std::unordered_set<std::string> missing;  // of those, the names not met yet
    if (const Json* names = member("required"); names && names->is_array())
      for (const Json& name : *names)
        if (name.is_string() && missing.insert(name.get<std::string>()).second)
          required.push_back(name);
    std::vector<Parameter> found;
    for (const auto& [name, value] : properties->items()) {
      const bool needed = missing.erase(name) > 0;
      M2_TRY(const Language rule, parameter(name, value));
      if (!rule && needed) return Language();
      if (rule) found.push_back({*rule, needed});
    }
    for (const std::string& name : required) {
      if (!missing.contains(name)) continue;
      M2_TRY(const Language rule, parameter(name, unknown));
      if (!rule) return Language();
      found.push_back({*rule, true});
    }
    for (const char* key : {"minProperties", "maxProperties", "patternProperties", "propertyNames"})
      if (member(key)) ignored_.insert(key);
    if (found.empty()) {
      const Json* additional = member("additionalProperties");
      const bool open = !additional || *additional == Json(true) || *additional == none;
      return open ? free_parameters() : Language("\"\"");
    }
    return found.size() <= kAnyOrder ? any_order(found) : declared_order(found);
  }

  Language free_parameters() {
    return Language(rules_.add("\"<parameter name=\\\"\" " +
                               regex_terminal("[^\\u{0}-\\u{1f}\"'<>]+") + " \"\\\">\" " +
                               free_value()) +
                    "?");
  }

  Language declared_order(const std::vector<Parameter>& found) {
    std::string out;
    for (const Parameter& one : found) out += one.rule + (one.required ? " " : "? ");
    return out;
  }

  // One rule for each set of parameters written already.
  Language any_order(const std::vector<Parameter>& found) {
    const size_t sets = size_t{1} << found.size();
    std::vector<std::string> names(sets);
    for (size_t set = sets; set-- > 0;) {
      std::string out;
      bool complete = true;
      for (size_t i = 0; i < found.size(); ++i) {
        if ((set >> i & 1u) != 0) continue;
        complete = complete && !found[i].required;
        out += (out.empty() ? "" : " | ") + found[i].rule + " " + names[set | size_t{1} << i];
      }
      if (complete) out += out.empty() ? "\"\"" : " | \"\"";
      names[set] = rules_.add(out);
    }
    return names[0];
  }

  Result<Language> parameter(const std::string& name, const Json& schema) {
    const auto quoted = quoted_name(name);
    if (!quoted) return Language();
    M2_TRY(const Language text, value(name, schema));
    if (!text) return Language();
    return Language(rules_.add(ebnf_literal("<parameter name=" + *quoted + ">") + " " + *text));
  }

  Result<Language> string_value(const Json& schema) {
    return grammar_.string_until(schema, Spelling::raw_value, '>', kClose);
  }
  std::string free_value() { return *string_value(Json::object()).value(); }
  std::string closed(const std::string& text) {
    return rules_.add("(" + text + ") " + ebnf_literal(kClose));
  }

  // Texts that the reader turns into values the schema accepts, with the tag that ends them.
  Result<Language> value(const std::string& name, const Json& schema) {
    const SchemaView view = reader_.parameter(tool_, name);
    const JsonTypes types = reader_.types(view);
    const auto looser = [&]() -> Language {
      ignored_.insert("parameters." + name);
      return types.has(JsonTypes::string) ? free_value() : closed(grammar_.any_value());
    };
    auto parts = grammar_.expand(schema);
    if (!parts) return looser();
    std::vector<Json> single;  // one type each
    bool others_bind = false;  // what looks like another type must be right as that
    for (const Json& part : *parts) {
      if (part.contains("enum") || part.contains("const")) {
        single.push_back(part);
        continue;
      }
      M2_TRY(auto names, SchemaGrammar::types_of(part));
      if (names.empty()) names.emplace_back(types.has(JsonTypes::string) ? "string" : "any");
      for (const std::string& type : names) {
        Json one = part;
        one["type"] = type;
        const bool bare = one.size() == 1;
        others_bind = others_bind || type == "array" || type == "object" ||
                      ((type == "integer" || type == "number") && !bare);
        single.push_back(std::move(one));
      }
    }
    std::string out;
    for (const Json& part : single) {
      auto text = one_value(part, view, types, others_bind);
      if (!text) return looser();
      if (*text) out += (out.empty() ? "" : " | ") + **text;
    }
    if (out.empty()) return Language();
    return Language(rules_.add(out));
  }

  Result<Language> one_value(const Json& part, SchemaView view, JsonTypes types, bool others_bind) {
    if (part.contains("enum") || part.contains("const")) return members(part, view);
    const std::string type = part["type"];
    if (type == "any") return Language(closed(grammar_.any_value()));
    if (type != "string") {
      M2_TRY(const Language text, grammar_.values(part));
      return text ? Language(closed(*text)) : Language();
    }
    if (!types.has(JsonTypes::string)) return Language();
    const bool mixed = types.bits != JsonTypes::string;
    if (!mixed || !others_bind) return string_value(part);
    const bool bounded =
        part.contains("minLength") || part.contains("maxLength") || part.contains("pattern");
    if (bounded) return Language();  // only the other types, then
    return Language("(" + ebnf_literal(kClose) + " | [^ \\t-\\r0-9+\\-._{\\[\"<] " + free_value() +
                    ")");
  }

  Result<Language> members(const Json& part, SchemaView view) {
    const Json list = part.contains("const") ? Json::array({part["const"]}) : part["enum"];
    std::string out;
    std::set<std::string> seen;
    if (!list.is_array()) return Language();
    Json rest = part;  // the members are what `enum` says already
    rest.erase("enum");
    for (const Json& member : list) {
      if (!SchemaGrammar::admits(rest, member)) continue;
      const std::string text = member.is_string()
                                   ? member.get<std::string>()
                                   : member.dump(-1, ' ', false, Json::error_handler_t::replace);
      if (has_tag(text) || !seen.insert(text).second) continue;
      const auto read = parse_json(reader_.argument_json(text, view));
      if (read.ok() && *read == member) out += (out.empty() ? "" : " | ") + ebnf_literal(text);
    }
    return out.empty() ? Language() : Language(closed(out));
  }

  const Json& schema_;
  Rules& rules_;
  std::set<std::string>& ignored_;
  SchemaGrammar grammar_;
  ToolSchemas reader_;
  const std::string tool_;
};

}  // namespace

Result<ToolCallGrammar> tool_call_grammar(const Json& tools, const std::optional<std::string>& only,
                                          bool one) {
  ToolCallGrammar out;
  Rules rules;
  std::string calls;
  std::set<std::string> seen;
  for (const Json& tool : tools) {
    const auto function = tool.is_object() ? tool.find("function") : tool.end();
    if (function == tool.end() || !function->is_object() || !function->contains("name")) continue;
    const Json& name = (*function)["name"];
    if (!name.is_string() || (only && name != *only) || !seen.insert(name).second) continue;
    const auto quoted = quoted_name(name);
    if (!quoted)
      return fail(Code::invalid_argument, "The tool name '{}' cannot be written in a tool call.",
                  printable(name.get<std::string>(), 80));
    Json schema = function->contains("parameters") ? (*function)["parameters"] : Json();
    if (!schema.is_object()) schema = Json{{"type", "object"}, {"additionalProperties", false}};
    plain_types(schema, 0);
    ParameterGrammar grammar(name, schema, rules, out.ignored);
    M2_TRY(const Language parameters, grammar.all());
    if (!parameters) continue;  // no call of it could be valid
    calls +=
        (calls.empty() ? "" : " | ") + rules.add(ebnf_literal("<invoke name=" + *quoted + ">\n") +
                                                 " " + *parameters + " \"</invoke>\\n\"");
  }
  if (calls.empty())
    return fail(Code::invalid_argument, "No call of the tools can satisfy their schemas.");
  if (rules.full())
    return fail(Code::resource_exhausted, "The schemas of the tools are too large.");
  const std::string call = rules.add(calls);
  out.text = rules.grammar("\"\\n\" " + call + (one ? "" : "+") + " \"</minimax:tool_call>\"");
  return out;
}

}  // namespace m2::text
