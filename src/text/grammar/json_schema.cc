#include "text/grammar/json_schema.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "base/log.h"
#include "text/grammar/remaining_lengths.h"
#include "text/grammar/schema_keywords.h"
#include "text/grammar/schema_references.h"
#include "text/python_json.h"

namespace m2::text {
namespace {

constexpr int64_t kMostCounted = 10'000;  // minItems, maxItems, minProperties, maxProperties

std::string alternatives(const std::vector<std::string>& parts) {
  if (parts.size() == 1) return parts[0];
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : " | ") + part;
  return "(" + out + ")";
}

// The days there are, by the Gregorian calendar of RFC 3339.
std::string date_regex() {
  const std::string days =
      "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|"
      "02-(0[1-9]|1[0-9]|2[0-8])";
  const std::string leap_years =
      "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)";
  return "([0-9]{4}-(" + days + ")|" + leap_years + "-02-29)";
}

// RFC 4291 2.2 without the mixed form: eight groups, or fewer around one "::".
std::string ipv6_regex() {
  const std::string group = "[0-9a-fA-F]{1,4}";
  std::string out = "(" + group + ":){7}" + group + "|::((" + group + ":){0,6}" + group + ")?";
  for (int before = 1; before <= 6; ++before) {
    const int behind = 7 - before;  // "::" stands for one group at least
    out += fmt::format("|{0}(:{0}){{{1}}}::(({0}:){{0,{2}}}{0})?", group, before - 1, behind - 1);
  }
  out += "|(" + group + ":){6}" + group + "::";
  return "(" + out + ")";
}

// RFC 3339 appendix A: units from the largest to the smallest without a gap, or weeks.
std::string duration_regex() {
  const std::string time = "T([0-9]+S|[0-9]+M([0-9]+S)?|[0-9]+H([0-9]+M([0-9]+S)?)?)";
  const std::string date = "([0-9]+D|[0-9]+M([0-9]+D)?|[0-9]+Y([0-9]+M([0-9]+D)?)?)";
  return "P(" + date + "(" + time + ")?|" + time + "|[0-9]+W)";
}

// Formats with a grammar of their own, null for the others: those are annotations, as the
// specification says.
const std::string* format_regex(const std::string& format) {
  const std::string time =
      "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-"
      "9])";
  // Read in one way only: hyphens stand between letters and digits.
  const std::string label = "[0-9A-Za-z]+(-+[0-9A-Za-z]+)*";
  const std::string atom = "[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]+";
  static const std::map<std::string, std::string> known = {
      {"duration", "^" + duration_regex() + "$"},
      {"email", "^" + atom + "(\\." + atom + ")*@(" + label + "\\.)+[A-Za-z]{2,24}$"},
      {"hostname", "^" + label + "(\\." + label + ")*$"},
      {"ipv6", "^" + ipv6_regex() + "$"},
      {"date", "^" + date_regex() + "$"},
      {"time", "^" + time + "$"},
      {"date-time", "^" + date_regex() + "T" + time + "$"},
      {"uuid", "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"},
      {"ipv4",
       "^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?["
       "0-9])$"},
  };
  const auto found = known.find(format);
  return found == known.end() ? nullptr : &found->second;
}

// What stops the reader of tool calls in the middle of a value.
bool has_tag(std::string_view text) {
  for (const char* tag :
       {"<parameter name=", "</parameter>", "</invoke>", "<invoke name=", "</minimax:tool_call>"})
    if (text.find(tag) != std::string_view::npos) return true;
  return false;
}

}  // namespace

// ---- schemas

SchemaGrammar::SchemaGrammar(const Json& root, SchemaOptions options, Rules& rules)
    : root_(root), options_(std::move(options)), rules_(rules) {
  if (options_.whitespace) {
    blank_ = gap_ = rules_.add(regex_terminal(*options_.whitespace));
  } else if (options_.any_whitespace) {
    blank_ = gap_ = rules_.add(regex_terminal("(?:| |\\u{a}[ \\u{9}]{0,32})"));
  } else {
    blank_ = "\"\"";
    gap_ = "\" \"";
  }
}

Result<void> SchemaGrammar::unsupported(const std::string& keyword, const std::string& why) {
  if (options_.lenient) return ignored_.insert(keyword), Result<void>{};
  return fail(Code::invalid_argument, "The JSON schema keyword '{}' is not supported{}{}.",
              printable(keyword, 80), why.empty() ? "" : " ", why);
}

// ---- schemas to languages

Result<Language> SchemaGrammar::values(const Json& schema) {
  if (depth_ >= kMaxDepth)
    return fail(Code::invalid_argument, "The JSON schema is nested more than {} deep.", kMaxDepth);
  if (++visited_ > kMaxVisited || rules_.full())
    return fail(Code::resource_exhausted, "The JSON schema is too large.");
  if (schema.is_boolean() || !schema.is_object()) {
    M2_TRY(const auto parts, expand(schema));
    if (parts.empty()) return Language();
    return Language(any_value());
  }
  M2_TRY_VOID(check_keywords(schema));
  ++depth_;
  Result<Language> out = rule_of(schema);
  --depth_;
  return out;
}

// Schemas met again, as those that refer to themselves are, become references to one rule.
Result<Language> SchemaGrammar::rule_of(const Json& schema) {
  const Json* at = &schema;
  const bool only_reference = schema.contains("$ref") && [&] {
    Json rest = schema;
    rest.erase("$ref");
    return !asserts(rest);
  }();
  std::string key;
  if (only_reference) {
    M2_TRY(at, referred_schema(root_, schema));
    if (!at->is_object()) return values(*at);
    M2_TRY_VOID(check_keywords(*at));
    key = "#" + std::to_string(reinterpret_cast<uintptr_t>(at));
  } else if (schema.contains("$ref") || schema.contains("allOf")) {
    key = schema.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  const auto inside = [&]() -> Result<Language> {
    if (at != &schema && at->contains("$ref")) return values(*at);
    for (const char* keyword : {"anyOf", "oneOf"})
      if (const Json* list = find_keyword(*at, keyword)) {
        Json rest = *at;
        rest.erase(keyword);
        if (asserts(rest)) continue;
        if (std::string_view(keyword) == "oneOf") M2_TRY_VOID(branches(*list, keyword, 0));
        return union_of(*list);
      }
    if (const Json* all = find_keyword(*at, "allOf"); all && all->is_array() && all->size() == 1) {
      Json rest = *at;
      rest.erase("allOf");
      if (!asserts(rest)) return values((*all)[0]);
    }
    M2_TRY(const auto parts, expand(*at));
    std::vector<std::string> found;
    for (const Json& part : parts) {
      M2_TRY(const Language one, flat(part));
      if (one && std::ranges::count(found, *one) == 0) found.push_back(*one);
    }
    if (found.empty()) return Language();
    return Language(alternatives(found));
  };
  if (key.empty()) return inside();
  if (const auto known = known_.find(key); known != known_.end()) return Language(known->second);
  const std::string name = rules_.reserve();
  known_[key] = name;
  M2_TRY(const Language body, inside());
  if (!body)  // others may have referred to it: the grammar would have a rule without a text
    return fail(Code::invalid_argument,
                "The JSON schema has a '$ref' or 'allOf' that nothing satisfies.");
  rules_.define(name, *body);
  return Language(name);
}

Result<Language> SchemaGrammar::union_of(const Json& list) {
  if (!list.is_array() || list.empty()) return malformed("anyOf", "a non-empty list of schemas");
  std::vector<std::string> found;
  for (const Json& branch : list) {
    M2_TRY(const Language one, values(branch));
    if (one && std::ranges::count(found, *one) == 0) found.push_back(*one);
  }
  if (found.empty()) return Language();
  return Language(alternatives(found));
}

Result<Language> SchemaGrammar::flat(const Json& schema) {
  if (const Json* one = find_keyword(schema, "const")) return finite(schema, Json::array({*one}));
  if (const Json* members = find_keyword(schema, "enum")) {
    if (!members->is_array() || members->empty()) return malformed("enum", "a non-empty list");
    return finite(schema, *members);
  }
  M2_TRY(const auto types, types_of(schema));
  if (types.empty()) return Language(any_value());
  std::vector<std::string> found;
  for (const std::string& type : types) {
    M2_TRY(const Language one, of_type(schema, type));
    if (one) found.push_back(*one);
  }
  if (found.empty()) return Language();
  return Language(alternatives(found));
}

Result<Language> SchemaGrammar::finite(const Json& schema, const Json& members) {
  for (const auto& [key, value] : schema.items())
    if (key != "enum" && key != "const" && key != "type" && key != "minimum" && key != "maximum" &&
        key != "exclusiveMinimum" && key != "exclusiveMaximum" && key != "minLength" &&
        key != "maxLength" && assertions().contains(key) && key != "format")
      M2_TRY_VOID(unsupported(key, "beside 'enum' or 'const'"));
  M2_TRY_VOID(types_of(schema));
  std::vector<std::string> found;
  Json rest = schema;  // the members are what `enum` says already
  rest.erase("enum");
  std::set<std::string> seen;
  for (const Json& member : members) {
    if (!admits(rest, member)) continue;
    const std::string text = python_json(member);
    if (options_.spelling == Spelling::json_value && has_tag(text)) continue;
    if (seen.insert(text).second) found.push_back(ebnf_literal(text));
  }
  if (found.empty()) return Language();
  return Language(rules_.add(alternatives(found)));
}

Result<Language> SchemaGrammar::of_type(const Json& schema, const std::string& type) {
  if (type == "null") return Language("\"null\"");
  if (type == "boolean") return Language("(\"true\" | \"false\")");
  if (type == "integer") return integers(schema);
  if (type == "number") return numbers(schema);
  if (type == "string") return strings(schema);
  return type == "array" ? arrays(schema) : objects(schema);
}

namespace {

struct Bounds {
  std::optional<DecimalBound> low, high;
  bool empty = false;
};

Result<Bounds> bounds_of(const Json& schema) {
  Bounds out;
  for (const char* key : {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}) {
    const Json* value = find_keyword(schema, key);
    if (!value) continue;
    if (!value->is_number()) return malformed(key, "a number");
    const bool exclusive = key[0] == 'e';
    auto& side = std::string_view(key).ends_with("inimum") ? out.low : out.high;
    const double mine = value->get<double>();
    if (exclusive && side) {
      // The stricter of the two counts.
      const double other =
          find_keyword(schema, &side == &out.low ? "minimum" : "maximum")->get<double>();
      if (&side == &out.low ? mine < other : mine > other) continue;
    }
    if (std::abs(mine) > 1e17) {  // beyond what is written at all, or nothing is left
      if ((&side == &out.low) == (mine > 0)) out.empty = true;
      continue;
    }
    auto decimal = to_decimal(value->dump());
    if (!decimal)
      return fail(Code::invalid_argument, "The JSON schema keyword '{}': {}.", key,
                  decimal.error().text);
    side = DecimalBound{std::move(*decimal), exclusive};
  }
  return out;
}

// The least integer at or above (above, if exclusive) the bound.
int64_t integer_from(const DecimalBound& bound, bool is_low) {
  int64_t whole = 0;
  for (const char c : bound.value.whole) whole = whole * 10 + (c - '0');
  const bool exact = bound.value.fraction.empty();
  if (bound.value.negative) whole = -whole;
  if (!exact) {
    if (is_low && !bound.value.negative) ++whole;
    if (!is_low && bound.value.negative) --whole;
  } else if (bound.exclusive) {
    whole += is_low ? 1 : -1;
  }
  return whole;
}

}  // namespace

Result<Language> SchemaGrammar::integers(const Json& schema) {
  if (const Json* step = find_keyword(schema, "multipleOf");
      step && *step != Json(1) && *step != Json(1.0))
    M2_TRY_VOID(unsupported("multipleOf"));
  M2_TRY(const Bounds bounds, bounds_of(schema));
  if (bounds.empty) return Language();
  if (!bounds.low && !bounds.high)
    return Language(rules_.add(regex_terminal("\\u{2d}?(?:0|[1-9][0-9]{0,17})")));
  const int64_t low = bounds.low ? integer_from(*bounds.low, true) : -kMostInteger;
  const int64_t high = bounds.high ? integer_from(*bounds.high, false) : kMostInteger;
  if (low > high) return Language();
  return Language(rules_.add(regex_terminal(integer_pattern(low, high))));
}

Result<Language> SchemaGrammar::numbers(const Json& schema) {
  if (const Json* step = find_keyword(schema, "multipleOf")) {
    if (*step == Json(1) || *step == Json(1.0)) return integers(schema);
    M2_TRY_VOID(unsupported("multipleOf"));
  }
  M2_TRY(const Bounds bounds, bounds_of(schema));
  if (bounds.empty) return Language();
  if (!bounds.low && !bounds.high)
    return Language(
        rules_.add(regex_terminal("\\u{2d}?(?:0|[1-9][0-9]{0,17})(?:|[.][0-9]{1,16})"
                                  "(?:|[eE](?:|[\\u{2b}\\u{2d}])[0-9]{1,2})")));
  const std::string pattern =
      number_pattern(bounds.low ? &*bounds.low : nullptr, bounds.high ? &*bounds.high : nullptr);
  if (pattern.empty()) return Language();
  return Language(rules_.add(regex_terminal(pattern)));
}

namespace {

std::string json_escape() {
  return "\\u{5c}(?:[\"\\u{5c}\\u{2f}bfnrt]|u(?:[0-9A-Ca-cEFef][0-9a-fA-F]{3}|[Dd][0-7][0-9a-fA-F]{"
         "2}))";
}

// A character of a JSON string, in every way it may be written.
std::string json_char(Spelling spelling) {
  CharSet plain = any_char().without(CharSet({{0, 0x1f}, {'"', '"'}, {'\\', '\\'}}));
  if (spelling == Spelling::json_value) plain = plain.without(CharSet({{'<', '<'}}));
  return "(?:" + char_pattern(plain, Spelling::raw) + "|" + json_escape() + ")";
}

// After a '<': what begins none of the tags from their character `at` on, up to the next '<'.
std::string after_less(const std::vector<std::string>& tags, size_t at, const std::string& run) {
  std::map<char, std::vector<std::string>> next;
  for (const std::string& tag : tags)
    if (tag.size() > at) next[tag[at]].push_back(tag);
  CharSet set = any_char().without(CharSet({{0, 0x1f}, {'"', '"'}, {'<', '<'}, {'\\', '\\'}}));
  std::string out;
  for (const auto& [c, rest] : next) {
    const auto code = static_cast<char32_t>(static_cast<unsigned char>(c));
    set = set.without(CharSet({{code, code}}));
    const bool ends =
        std::ranges::any_of(rest, [&](const auto& tag) { return tag.size() == at + 1; });
    if (!ends)
      out +=
          literal_pattern(std::string(1, c), Spelling::raw) + after_less(rest, at + 1, run) + "|";
  }
  out += "(?:" + char_pattern(set, Spelling::raw) + "|" + json_escape() + ")" + run;
  return optional_pattern(out);
}

// Inside of a JSON string, without the tags that would end a tool call's value.
const std::string& tagless_json_pattern() {
  static const std::string pattern = [] {
    const std::string run = json_char(Spelling::json_value) + "*";
    // Their beginnings: fewer states, and '<' can be written as \u003c where it must be.
    const std::vector<std::string> tags = {"par", "inv", "/inv", "/mi"};
    return run + "(?:\\u{3c}" + after_less(tags, 0, run) + ")*";
  }();
  return pattern;
}

// Text free of the tags that would end a tool call's value.
const char* const kFreeValue =
    "TagDispatch(loop_after_dispatch=false, excludes=(\"<parameter name=\", \"</invoke>\", "
    "\"<invoke name=\", \"</minimax:tool_call>\"))";

// What any string is made of.
std::string any_string(Spelling spelling) {
  if (spelling == Spelling::raw_value) return kFreeValue;
  if (spelling == Spelling::json_value) return regex_terminal(tagless_json_pattern());
  const std::string one =
      spelling == Spelling::json ? json_char(spelling) : char_pattern(any_char(), spelling);
  return regex_terminal(one + "*");
}

}  // namespace

// The regular expression of the schema's `pattern`, or of its `format`; empty: none.
Result<std::string> SchemaGrammar::regex_of(const Json& schema, Spelling spelling) {
  if (const Json* pattern = find_keyword(schema, "pattern")) {
    if (!pattern->is_string()) return malformed("pattern", "a string");
    const bool in_call = spelling == Spelling::raw_value || spelling == Spelling::json_value;
    if (!in_call || !has_tag(pattern->get_ref<const std::string&>()))
      return pattern->get<std::string>();
    M2_TRY_VOID(unsupported("pattern", "with the tags of tool calls in it"));
    return std::string();
  }
  const Json* format = find_keyword(schema, "format");
  if (!format) return std::string();
  if (!format->is_string()) return malformed("format", "a string");
  // It need not hold; where lengths must, they may be of other texts.
  const std::string* known = format_regex(*format);
  const bool bounded = schema.contains("minLength") || schema.contains("maxLength");
  return known && !bounded ? *known : std::string();
}

// The body of the rule of strings that the regular expression describes, and within what lengths;
// `limit` has those that hold beside it. Nothing: it is passed over.
Result<Language> SchemaGrammar::string_body(const std::string& regex, Spelling spelling,
                                            TextLimit& limit) {
  constexpr int64_t kFew = 16;  // repetitions that the grammar may as well count
  const bool bounded = limit.least > 0 || limit.most != TextLimit::kAny;
  const auto run = class_run(regex, spelling);
  if (run && (bounded || run->least > kFew || run->most > kFew)) {
    limit.least = std::max(limit.least, run->least);
    if (run->most >= 0) limit.most = std::min(limit.most, run->most);
    return Language(regex_terminal(run->pattern));
  }
  auto text = regex_pattern(regex, spelling, /*whole=*/false);
  if (!text && options_.lenient) return ignored_.insert("pattern"), Language();
  if (!text)
    return fail(text.error().code, "The JSON schema keyword 'pattern' is not supported here: {}.",
                text.error().text);
  const int64_t longest = limit.most == TextLimit::kAny ? limit.least : limit.most;
  if (bounded && longest > RemainingLengths::kMost) {
    M2_TRY_VOID(
        unsupported("pattern", fmt::format("beside lengths above {}", RemainingLengths::kMost)));
    return Language();
  }
  limit.patterned = true;
  limit.pattern = regex;
  return Language(regex_terminal(*text));
}

Result<Language> SchemaGrammar::string_until(const Json& schema, Spelling spelling, char open,
                                             const std::string& close) {
  const bool json = spelling == Spelling::json || spelling == Spelling::json_value;
  TextLimit limit{.rule = {},
                  .as = json ? CountedAs::json_characters : CountedAs::code_points,
                  .open = open,
                  .close = close};
  M2_TRY(limit.least, count_of(schema, "minLength", 0));
  M2_TRY(limit.most, count_of(schema, "maxLength", TextLimit::kAny));
  M2_TRY(const std::string regex, regex_of(schema, spelling));
  Language body;
  if (!regex.empty()) {
    M2_TRY(body, string_body(regex, spelling, limit));
  }
  if (!body) body = any_string(spelling);
  if (limit.least > limit.most) return Language();
  if (limit.least == 0 && limit.most == TextLimit::kAny)
    return Language(rules_.add(rules_.add(*body) + " " + ebnf_literal(close)));
  return Language(rules_.add_limited(*body, std::move(limit)));
}

Result<Language> SchemaGrammar::strings(const Json& schema) {
  M2_TRY(const Language rest, string_until(schema, options_.spelling, '"', "\""));
  if (!rest) return Language();
  return Language(rules_.add("\"\\\"\" " + *rest));
}

Result<Language> SchemaGrammar::arrays(const Json& schema) {
  M2_TRY(const int64_t least, count_of(schema, "minItems", 0));
  M2_TRY(const int64_t most, count_of(schema, "maxItems", INT64_MAX));
  if (least > most) return Language();
  const int64_t high = most == INT64_MAX ? -1 : most;
  if (least > kMostCounted)
    M2_TRY_VOID(unsupported("minItems", fmt::format("above {}", kMostCounted)));
  const Json* items = find_keyword(schema, "items");
  const Json* prefix = find_keyword(schema, "prefixItems");
  if (items && items->is_array()) {  // of drafts before 2020-12
    prefix = items;
    items = find_keyword(schema, "additionalItems");
  }
  if (prefix && (!prefix->is_array() || prefix->empty()))
    return malformed("prefixItems", "a non-empty list of schemas");
  const auto list = [&](const std::string& body) {
    return Language(rules_.add("\"[\" " + blank_ + " " + body + "\"]\""));
  };
  const Json anything = true;
  Language rest;
  const bool closed_tuple = prefix && !items;  // further items only where they are asked for
  if (!closed_tuple || least > static_cast<int64_t>(prefix->size())) {
    M2_TRY(rest, values(items ? *items : anything));
  }
  const std::string item = rest ? rules_.add(*rest) : "";
  const std::string next = rest ? rules_.add(comma() + " " + item) : "";
  const int64_t counted = high < 0 ? -1 : std::min(high, kMostCounted);
  if (!prefix) {
    if (!rest || high == 0) return least > 0 ? Language() : list("");
    const std::string some =
        item + " " +
        rules_.times(next, std::max<int64_t>(least - 1, 0), counted < 0 ? -1 : counted - 1) + " " +
        blank_ + " ";
    return list(least == 0 ? "(" + some + ")? " : some);
  }
  // Tuples may end early: ((a ("," b ("," rest)*)?)?
  std::vector<std::string> heads;
  for (const Json& one : *prefix) {
    M2_TRY(const Language head, values(one));
    if (!head) break;
    heads.push_back(rules_.add(*head));
  }
  if (heads.size() < prefix->size()) rest.reset();
  const auto fixed = static_cast<int64_t>(heads.size());
  if (!rest && least > fixed) return Language();
  std::string body;
  if (rest && (high < 0 || high > fixed))
    body =
        rules_.times(next, std::max<int64_t>(least - fixed, 0), counted < 0 ? -1 : counted - fixed);
  for (int64_t i = std::min(fixed, high < 0 ? fixed : high) - 1; i >= 0; --i) {
    const std::string part =
        (i > 0 ? comma() + " " : "") + heads[static_cast<size_t>(i)] + " " + body;
    body = i < least ? part : "(" + part + ")?";
  }
  if (least == 0 && !body.empty()) return list(body + " " + blank_ + " ");
  return list(body.empty() ? "" : body + " " + blank_ + " ");
}

// "key": value of names that are not declared, the names by `key`'s schema or any others.
Result<std::string> SchemaGrammar::map_members(const Json& schema, const Json& value_schema,
                                               const Json* key) {
  M2_TRY(const Language value, values(value_schema));
  if (!value) return std::string();
  std::string name;
  if (key) {
    M2_TRY(const auto parts, expand(*key));
    std::vector<std::string> found;
    for (Json part : parts) {
      if (!part.contains("type")) part["type"] = "string";
      M2_TRY(const Language one, flat(part));
      if (one) found.push_back(*one);
    }
    if (found.empty()) return std::string();
    name = alternatives(found);
  } else {
    std::vector<std::string> names;
    if (const Json* properties = find_keyword(schema, "properties"))
      for (const auto& [declared, ignored] : properties->items()) names.push_back(declared);
    size_t bytes = 0;
    for (const std::string& declared : names) bytes += declared.size();
    constexpr size_t kMostNames = 2 << 10;
    if (bytes > kMostNames) {
      M2_TRY_VOID(unsupported("additionalProperties", "beside so many or so long names"));
      return std::string();
    }
    name = "\"\\\"\" " +
           rules_.add(regex_terminal(other_strings_pattern(names, options_.spelling))) +
           " \"\\\"\"";
  }
  return rules_.add(name + " \":\" " + gap_ + " " + *value);
}

Result<Language> SchemaGrammar::objects(const Json& schema) {
  M2_TRY(const Language inside, members(schema));
  if (!inside) return Language();
  return Language(rules_.add("\"{\" " + blank_ + " " + *inside + " \"}\""));
}

namespace {

Result<std::set<std::string>> required_names(const Json& schema) {
  std::set<std::string> out;
  const Json* names = find_keyword(schema, "required");
  if (!names) return out;
  if (!names->is_array()) return malformed("required", "a list of strings");
  for (const Json& name : *names) {
    if (!name.is_string()) return malformed("required", "a list of strings");
    out.insert(name);
  }
  return out;
}

}  // namespace

// `pattern` is room for a schema of names, which the result may point to.
Result<SchemaGrammar::OtherMembers> SchemaGrammar::other_members(const Json& schema,
                                                                 const Json& properties,
                                                                 Json& pattern) {
  static const Json open = true;
  OtherMembers out{find_keyword(schema, "additionalProperties"),
                   find_keyword(schema, "propertyNames")};
  const Json* patterns = find_keyword(schema, "patternProperties");
  if (out.names && *out.names == Json(true)) out.names = nullptr;
  if (patterns && patterns->is_object() && patterns->empty()) patterns = nullptr;
  if (out.names && !properties.empty()) {
    M2_TRY_VOID(unsupported("propertyNames", "beside 'properties'"));
    out.names = nullptr;
  }
  if (patterns) {
    if (!patterns->is_object()) return malformed("patternProperties", "an object");
    const bool alone = patterns->size() == 1 && properties.empty() && !out.names;
    if (!alone) M2_TRY_VOID(unsupported("patternProperties", "beside others or 'properties'"));
    if (alone) {
      pattern = Json{{"pattern", patterns->begin().key()}};
      out = {&patterns->begin().value(), &pattern};
    }
  }
  if (!out.values && properties.empty()) out.values = &open;
  return out;
}

// Those that `properties` declares, then those that are required without being declared, as what
// the rest of the schema says of such names. Nothing if no object can have them all; `others` is
// what is left beside them.
Result<std::optional<std::vector<SchemaGrammar::Member>>> SchemaGrammar::declared_members(
    const Json& properties, std::set<std::string> required, OtherMembers& others) {
  static const Json open = true;
  const std::optional<std::vector<Member>> impossible;
  std::vector<Member> out;
  const auto add = [&](const std::string& key, const std::string& value, bool needed) {
    out.push_back({rules_.add(ebnf_literal(key + ":") + " " + gap_ + " " + value), needed});
  };
  for (const auto& [name, value] : properties.items()) {
    const bool needed = required.erase(name) > 0;
    const std::string key = python_json(Json(name));
    M2_TRY(Language language, values(value));
    if (options_.spelling == Spelling::json_value && has_tag(key)) language.reset();
    if (!language && needed) return impossible;
    if (language) add(key, *language, needed);
  }
  for (const std::string& name : required) {
    if (others.values && others.none()) return impossible;
    if (others.names)
      M2_TRY_VOID(unsupported("required", "beside 'propertyNames' or 'patternProperties'"));
    M2_TRY(const Language language, values(others.values ? *others.values : open));
    if (!language) return impossible;
    add(python_json(Json(name)), *language, true);
  }
  if (!required.empty() && !others.none()) {
    // Names not declared could be these again.
    if (properties.empty())
      others.values = nullptr;
    else
      M2_TRY_VOID(unsupported("required", "of undeclared names beside 'additionalProperties'"));
  }
  return std::optional(std::move(out));
}

// Members in the order of their declaration, of which `first_required` is the first that has to be
// there, then any number of others.
std::string SchemaGrammar::in_order(const std::vector<Member>& declared, size_t first_required,
                                    const std::string& next_map) {
  std::string out;
  for (size_t i = 0; i < first_required; ++i) out += "(" + declared[i].text + " " + comma() + ")? ";
  out += declared[first_required].text;
  for (size_t i = first_required + 1; i < declared.size(); ++i) {
    const std::string part = rules_.add(comma() + " " + declared[i].text);
    out += " " + part + (declared[i].required ? "" : "?");
  }
  return out + (next_map.empty() ? "" : " " + next_map + "*") + " " + blank_;
}

// The same where none has to be there: begin with any of them, go on with those after it.
std::string SchemaGrammar::any_of_them(const std::vector<Member>& declared, const std::string& map,
                                       const std::string& next_map) {
  std::string after = map.empty() ? "\"\"" : rules_.add(next_map + "*");
  std::vector<std::string> starts;
  if (!map.empty()) starts.push_back(map + " " + after);
  for (size_t i = declared.size(); i-- > 0;) {
    starts.push_back(declared[i].text + " " + after);
    after = rules_.add("(" + comma() + " " + declared[i].text + ")? " + after);
  }
  std::ranges::reverse(starts);
  return alternatives(starts) + " " + blank_;
}

Result<Language> SchemaGrammar::members(const Json& schema) {
  static const Json none = Json::object();
  const Json* properties = find_keyword(schema, "properties");
  if (!properties) properties = &none;
  if (!properties->is_object()) return malformed("properties", "an object");
  M2_TRY(const std::set<std::string> required, required_names(schema));
  M2_TRY(const int64_t least, count_of(schema, "minProperties", 0));
  M2_TRY(const int64_t most, count_of(schema, "maxProperties", INT64_MAX));
  if (least > most) return Language();

  Json pattern;
  M2_TRY(OtherMembers others, other_members(schema, *properties, pattern));
  M2_TRY(const auto may_declare, declared_members(*properties, required, others));
  if (!may_declare) return Language();
  const std::vector<Member>& declared = *may_declare;
  std::string map;
  if (!others.none()) {
    M2_TRY(map, map_members(schema, *others.values, others.names));
  }
  const auto is_required = [](const Member& member) { return member.required; };
  const auto needed = static_cast<int64_t>(std::ranges::count_if(declared, is_required));
  const auto all = static_cast<int64_t>(declared.size());
  if (most < needed) return Language();
  if (map.empty() && least > all) return Language();

  const std::string next_map = map.empty() ? "" : rules_.add(comma() + " " + map);
  if (declared.empty()) {
    if (map.empty() || most == 0) return least > 0 ? Language() : Language("\"\"");
    if (least > 1) M2_TRY_VOID(unsupported("minProperties", "above 1 where names are free"));
    const int64_t more = most == INT64_MAX ? -1 : std::min(most, kMostCounted) - 1;
    const std::string some = map + " " + rules_.times(next_map, 0, more) + " " + blank_;
    return Language(least > 0 ? some : "(" + some + ")?");
  }
  if (least > 1 && least > needed)
    M2_TRY_VOID(unsupported("minProperties", "above the number of required properties"));
  if (most < all || (!map.empty() && most != INT64_MAX))
    M2_TRY_VOID(unsupported("maxProperties", "below the number of properties"));
  if (needed > 0) {
    const auto first = std::ranges::find_if(declared, is_required) - declared.begin();
    return Language(in_order(declared, static_cast<size_t>(first), next_map));
  }
  const std::string some = any_of_them(declared, map, next_map);
  return Language(least > 0 ? some : "(" + some + ")?");
}

// ---- anything

const std::string& SchemaGrammar::any_value() {
  if (!any_.empty()) return any_;
  any_ = rules_.reserve();
  const Language string = strings(Json::object()).value();
  const Language number = numbers(Json::object()).value();
  const std::string item = rules_.add(comma() + " " + any_);
  const std::string member = rules_.add(*string + " \":\" " + gap_ + " " + any_);
  const std::string next = rules_.add(comma() + " " + member);
  rules_.define(any_, *string + " | " + *number + " | \"true\" | \"false\" | \"null\" | \"[\" " +
                          blank_ + " (" + any_ + " " + item + "* " + blank_ + ")? \"]\" | \"{\" " +
                          blank_ + " (" + member + " " + next + "* " + blank_ + ")? \"}\"");
  return any_;
}

Result<GrammarText> json_schema_grammar(const Json& schema, const SchemaOptions& options) {
  static const Json any_object = Json{{"type", "object"}};
  const Json& root = schema.is_null() ? any_object : schema;
  Rules rules;
  M2_TRY_VOID(check_references(root, root));
  SchemaGrammar grammar(root, options, rules);
  M2_TRY(const Language language, grammar.values(root));
  if (!language) return fail(Code::invalid_argument, "The JSON schema accepts no value at all.");
  if (rules.full()) return fail(Code::resource_exhausted, "The JSON schema is too large.");
  return rules.grammar(*language);
}

}  // namespace m2::text
