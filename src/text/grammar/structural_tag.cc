#include "text/grammar/structural_tag.h"

#include <memory>
#include <vector>

#include "base/log.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/schema_references.h"

namespace m2::text {
namespace {

constexpr int kMaxDepth = 32;

Error malformed(std::string_view what) {
  return fail(Code::invalid_argument, "Invalid structural tag: {}.", what);
}

class TagGrammar {
 public:
  Result<std::string> format(const Json& format, int depth, const std::string& end = "") {
    if (depth > kMaxDepth) return malformed("it is nested too deeply");
    if (!format.is_object()) return malformed("a format should be an object");
    M2_TRY(const std::string type, text(format, "type"));
    if (type == "const_string") {
      M2_TRY(const std::string value, text(format, "value"));
      return ebnf_literal(value);
    }
    if (type == "json_schema") return schema(member(format, "json_schema"));
    if (type == "regex") {
      M2_TRY(const std::string pattern, text(format, "pattern"));
      M2_TRY(const std::string regex, regex_pattern(pattern, Spelling::raw, true));
      return rules_.add(regex_terminal(regex));
    }
    if (type == "any_text") return any_text(end);
    if (type == "sequence" || type == "or") {
      M2_TRY(const auto parts, list(format, "elements", depth));
      std::string out;
      for (const std::string& part : parts)
        out += (out.empty() ? "" : type == "or" ? " | " : " ") + part;
      return rules_.add(out);
    }
    if (type == "tag") return tag(format, depth, "");
    if (type == "triggered_tags") return triggered(format, depth);
    if (type == "tags_with_separator") return separated(format, depth);
    return malformed(fmt::format("the format '{}' is not supported", printable(type, 40)));
  }

  Result<GrammarText> whole(const std::string& root) {
    if (rules_.full()) return fail(Code::resource_exhausted, "The structural tag is too large.");
    return rules_.grammar(root);
  }

 private:
  static const Json& member(const Json& object, const char* key) {
    static const Json none;
    const auto found = object.is_object() ? object.find(key) : object.end();
    return object.is_object() && found != object.end() ? *found : none;
  }

  static Result<std::string> text(const Json& object, const char* key) {
    const Json& value = member(object, key);
    if (!value.is_string()) return malformed(fmt::format("'{}' should be a string", key));
    return value.get<std::string>();
  }

  static bool flag(const Json& object, const char* key) {
    return member(object, key) == Json(true);
  }

  Result<std::string> schema(const Json& schema) {
    M2_TRY_VOID(check_references(schema, schema));
    SchemaGrammar grammar(schema, {}, rules_);
    M2_TRY(const Language language, grammar.values(schema));
    if (!language) return fail(Code::invalid_argument, "The JSON schema accepts no value at all.");
    return rules_.add(*language);
  }

  std::string any_text(const std::string& end) {
    if (end.empty())
      return rules_.add(regex_terminal(char_pattern(any_char(), Spelling::raw) + "*"));
    return rules_.add("TagDispatch(loop_after_dispatch=false, excludes=(" + ebnf_literal(end) +
                      "))");
  }

  Result<std::vector<std::string>> list(const Json& object, const char* key, int depth) {
    const Json& elements = member(object, key);
    if (!elements.is_array() || elements.empty())
      return malformed(fmt::format("'{}' should be a non-empty list", key));
    std::vector<std::string> out;
    for (const Json& element : elements) {
      M2_TRY(std::string part, format(element, depth + 1));
      out.push_back(std::move(part));
    }
    return out;
  }

  // A tag whose begin has been read up to the end of `trigger`.
  Result<std::string> tag(const Json& tag, int depth, const std::string& trigger) {
    M2_TRY(const std::string begin, text(tag, "begin"));
    M2_TRY(const std::string end, text(tag, "end"));
    const Json& content = member(tag, "content");
    std::string inside;
    if (content.is_null() && tag.contains("schema")) {
      M2_TRY(inside, schema(tag["schema"]));
    } else {
      M2_TRY(inside, format(content, depth + 1, end));
    }
    return rules_.add(ebnf_literal(std::string_view(begin).substr(trigger.size())) + " " + inside +
                      " " + ebnf_literal(end));
  }

  Result<std::string> triggered(const Json& format, int depth) {
    const Json& triggers = member(format, "triggers");
    const Json& tags = member(format, format.contains("structures") ? "structures" : "tags");
    if (!triggers.is_array() || triggers.empty())
      return malformed("'triggers' should be a non-empty list");
    if (!tags.is_array() || tags.empty()) return malformed("'tags' should be a non-empty list");
    std::string pairs, first;
    std::vector<bool> used(tags.size());
    for (const Json& trigger : triggers) {
      if (!trigger.is_string() || trigger.get_ref<const std::string&>().empty())
        return malformed("a trigger should be a non-empty string");
      const std::string& start = trigger.get_ref<const std::string&>();
      std::string rule;
      for (size_t i = 0; i < tags.size(); ++i) {
        M2_TRY(const std::string begin, text(tags[i], "begin"));
        if (!begin.starts_with(start)) continue;
        used[i] = true;
        M2_TRY(const std::string rest, tag(tags[i], depth, start));
        rule += (rule.empty() ? "" : " | ") + rest;
      }
      if (rule.empty()) return malformed("a trigger begins no tag");
      pairs += "(" + ebnf_literal(start) + ", " + rules_.add(rule) + "), ";
      first += (first.empty() ? "" : " | ") + ebnf_literal(start) + " " + rules_.add(rule);
    }
    for (const bool one : used)
      if (!one) return malformed("a tag begins with none of the triggers");
    const bool once = flag(format, "stop_after_first");
    const std::string dispatch = rules_.add(
        "TagDispatch(" + pairs + "loop_after_dispatch=" + (once ? "false" : "true") + ")");
    if (!flag(format, "at_least_one")) return dispatch;
    return rules_.add("(" + first + ")" + (once ? "" : " " + dispatch));
  }

  Result<std::string> separated(const Json& format, int depth) {
    M2_TRY(const std::string separator, text(format, "separator"));
    M2_TRY(const auto tags, list(format, "tags", depth));
    std::string one;
    for (const std::string& tag : tags) one += (one.empty() ? "" : " | ") + tag;
    const std::string tag = rules_.add(one);
    std::string out = tag;
    if (!flag(format, "stop_after_first"))
      out += " " + rules_.add(ebnf_literal(separator) + " " + tag) + "*";
    return rules_.add(flag(format, "at_least_one") ? out : "(" + out + ")?");
  }

  Rules rules_;
};

}  // namespace

Result<GrammarText> structural_tag_grammar(const Json& tag) {
  if (!tag.is_object()) return malformed("it should be an object");
  TagGrammar grammar;
  Json format = tag.contains("format") ? tag["format"] : tag;
  if (!tag.contains("format")) format["type"] = "triggered_tags";
  M2_TRY(const std::string root, grammar.format(format, 0));
  return grammar.whole(root);
}

}  // namespace m2::text
