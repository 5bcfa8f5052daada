// Schemas as alternatives free of references and combinations: SchemaGrammar::expand().
#include <algorithm>
#include <cmath>

#include "base/json_members.h"
#include "base/log.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/schema_keywords.h"
#include "text/grammar/schema_references.h"

namespace m2::text {
namespace {

constexpr size_t kMaxAlternatives = 256;
// Members and items of schemas compared with one another, which takes some nanoseconds each.
constexpr uint64_t kMaxCompared = 50'000'000;

// Members or items under the keyword.
uint64_t size_under(const Json& schema, const char* keyword) {
  const Json* value = find_keyword(schema, keyword);
  return value && value->is_structured() ? value->size() : 1;
}

}  // namespace

// Before `many` things are each compared with up to `others`.
Result<void> SchemaGrammar::note_compared(uint64_t many, uint64_t others) {
  if ((compared_ += many * others) <= kMaxCompared) return {};
  return fail(Code::resource_exhausted, "The JSON schema is too large.");
}

Result<void> SchemaGrammar::check_keywords(const Json& schema) {
  for (const auto& [key, value] : schema.items()) {
    if (annotations().contains(key) || assertions().contains(key) || key.starts_with("x-"))
      continue;
    if (refused().contains(key)) M2_TRY_VOID(unsupported(key));
    // Any other name means nothing in JSON Schema.
  }
  if (const Json* unique = find_keyword(schema, "uniqueItems"); unique && *unique != Json(false)) {
    M2_TRY(const int64_t most, count_of(schema, "maxItems", INT64_MAX));
    if (most > 1) M2_TRY_VOID(unsupported("uniqueItems"));
  }
  return {};
}

Result<std::vector<Json>> SchemaGrammar::expand(const Json& schema) {
  return expand(schema, 0);
}

Result<std::vector<Json>> SchemaGrammar::branches(const Json& list, const std::string& keyword,
                                                  int depth) {
  if (!list.is_array() || list.empty()) return malformed(keyword, "a non-empty list of schemas");
  std::vector<Json> out;
  std::vector<size_t> ends;
  for (const Json& branch : list) {
    M2_TRY(auto part, expand(branch, depth + 1));
    for (Json& one : part) out.push_back(std::move(one));
    ends.push_back(out.size());
    if (out.size() > kMaxAlternatives)
      return fail(Code::resource_exhausted, "The JSON schema's '{}' has too many alternatives.",
                  keyword);
  }
  if (keyword != "oneOf") return out;
  // At most one may hold: where two could, the keyword has no grammar.
  for (size_t a = 0, first = 0; a < ends.size(); first = ends[a++])
    for (size_t i = first; i < ends[a]; ++i)
      for (size_t j = ends[a]; j < out.size(); ++j) {
        M2_TRY(const bool apart, disjoint(out[i], out[j]));
        if (apart) continue;
        M2_TRY_VOID(unsupported("oneOf", "where more than one branch may hold"));
        return out;
      }
  return out;
}

Result<std::vector<Json>> SchemaGrammar::expand(const Json& schema, int depth) {
  if (depth > kMaxDepth)
    return fail(Code::invalid_argument,
                "The JSON schema's combinations or '$ref's are nested too deeply.");
  if (++visited_ > kMaxVisited)
    return fail(Code::resource_exhausted, "The JSON schema is too large.");
  if (schema.is_boolean()) {
    if (!schema.get<bool>()) return std::vector<Json>{};
    return std::vector<Json>{Json::object()};
  }
  if (!schema.is_object())
    return fail(Code::invalid_argument,
                "Invalid JSON schema: a schema should be an object or a boolean.");
  M2_TRY_VOID(check_keywords(schema));
  Json base = Json::object();
  for (const auto& [key, value] : schema.items())
    if (!annotations().contains(key) && key != "$ref" && key != "allOf" && key != "anyOf" &&
        key != "oneOf")
      append_member(base, key, value);
  std::vector<Json> out{std::move(base)};
  const auto combine = [&](const std::vector<Json>& others) -> Result<void> {
    std::vector<Json> next;
    for (const Json& a : out)
      for (const Json& b : others) {
        M2_TRY(Json both, merge(a, b));
        if (!both.is_boolean()) next.push_back(std::move(both));
        if (next.size() > kMaxAlternatives || ++visited_ > kMaxVisited)
          return fail(Code::resource_exhausted, "The JSON schema has too many alternatives.");
      }
    out = std::move(next);
    return {};
  };
  if (schema.contains("$ref")) {
    M2_TRY(const Json* at, referred_schema(root_, schema));
    M2_TRY(const auto others, expand(*at, depth + 1));
    M2_TRY_VOID(combine(others));
  }
  if (const Json* all = find_keyword(schema, "allOf")) {
    if (!all->is_array() || all->empty()) return malformed("allOf", "a non-empty list of schemas");
    for (const Json& branch : *all) {
      M2_TRY(const auto others, expand(branch, depth + 1));
      M2_TRY_VOID(combine(others));
    }
  }
  for (const char* keyword : {"anyOf", "oneOf"})
    if (const Json* list = find_keyword(schema, keyword)) {
      M2_TRY(const auto others, branches(*list, keyword, depth));
      M2_TRY_VOID(combine(others));
    }
  return out;
}

Result<std::vector<std::string>> SchemaGrammar::types_of(const Json& schema) {
  static const std::vector<std::string> all = {"null",   "boolean", "integer", "number",
                                               "string", "array",   "object"};
  std::vector<std::string> out;
  const auto add = [&](const Json& name) -> Result<void> {
    if (!name.is_string() || std::ranges::count(all, name.get<std::string>()) == 0)
      return fail(Code::invalid_argument, "Invalid JSON schema: 'type' is unknown: {}.",
                  printable(name.dump(-1, ' ', false, Json::error_handler_t::replace), 80));
    if (std::ranges::count(out, name.get<std::string>()) == 0) out.push_back(name);
    return {};
  };
  if (const Json* type = find_keyword(schema, "type")) {
    if (type->is_array() && type->empty()) return malformed("type", "a name or a list of names");
    if (!type->is_array()) M2_TRY_VOID(add(*type));
    if (type->is_array())
      for (const Json& name : *type) M2_TRY_VOID(add(name));
    if (std::ranges::count(out, "number") > 0) std::erase(out, "integer");
    return out;
  }
  const auto any = [&](std::initializer_list<const char*> keys) {
    return std::ranges::any_of(keys, [&](const char* key) { return schema.contains(key); });
  };
  if (any({"properties", "required", "additionalProperties", "minProperties", "maxProperties",
           "patternProperties", "propertyNames"}))
    out.emplace_back("object");
  if (any({"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "additionalItems"}))
    out.emplace_back("array");
  if (any({"minLength", "maxLength", "pattern", "format"})) out.emplace_back("string");
  if (any({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}))
    out.emplace_back("number");
  return out;
}

bool SchemaGrammar::admits(const Json& schema, const Json& value) {
  if (const Json* type = find_keyword(schema, "type")) {
    bool fits = type->is_string() && is_type(value, *type);
    if (type->is_array())
      for (const Json& name : *type) fits = fits || (name.is_string() && is_type(value, name));
    if (!fits) return false;
  }
  if (const Json* one = find_keyword(schema, "const"); one && *one != value) return false;
  if (const Json* values = find_keyword(schema, "enum");
      values && std::ranges::count(*values, value) == 0)
    return false;
  if (value.is_number()) {
    const double number = value.get<double>();
    const auto bound = [&](const char* key) {
      const Json* b = find_keyword(schema, key);
      return b && b->is_number() ? b->get<double>() : std::nan("");
    };
    if (number < bound("minimum") || number > bound("maximum") ||
        number <= bound("exclusiveMinimum") || number >= bound("exclusiveMaximum"))
      return false;
  }
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const double size =
        static_cast<double>(std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
    const Json *least = find_keyword(schema, "minLength"),
               *most = find_keyword(schema, "maxLength");
    if ((least && least->is_number() && size < least->get<double>()) ||
        (most && most->is_number() && size > most->get<double>()))
      return false;
  }
  return true;
}

// Whether no value fits both. May say no where it cannot tell.
Result<bool> SchemaGrammar::disjoint(const Json& a, const Json& b) {
  M2_TRY(const auto types_a, types_of(a));
  M2_TRY(const auto types_b, types_of(b));
  const auto finite = [](const Json& schema) -> std::optional<Json> {
    if (const Json* one = find_keyword(schema, "const")) return Json::array({*one});
    if (const Json* list = find_keyword(schema, "enum"); list && list->is_array()) return *list;
    return std::nullopt;
  };
  const auto set_a = finite(a), set_b = finite(b);
  const uint64_t members = (set_a ? set_a->size() : 0) + (set_b ? set_b->size() : 0);
  M2_TRY_VOID(note_compared(members, size_under(a, "enum") + size_under(b, "enum")));
  if (set_a &&
      std::ranges::none_of(*set_a, [&](const Json& v) { return admits(a, v) && admits(b, v); }))
    return true;
  if (set_b &&
      std::ranges::none_of(*set_b, [&](const Json& v) { return admits(a, v) && admits(b, v); }))
    return true;
  if (a.contains("type") && b.contains("type")) {
    const auto meets = [](const std::string& x, const std::string& y) {
      return x == y || (x == "integer" && y == "number") || (x == "number" && y == "integer");
    };
    bool apart = true;
    for (const auto& x : types_a)
      for (const auto& y : types_b) apart = apart && !meets(x, y);
    if (apart) return true;
  }
  // Objects told apart by a property: required by one, and of other values in the other.
  if (types_a != std::vector<std::string>{"object"} || types_b != types_a || !a.contains("type") ||
      !b.contains("type"))
    return false;
  const auto required = [](const Json& schema, const std::string& name) {
    const Json* list = find_keyword(schema, "required");
    return list && list->is_array() && std::ranges::count(*list, Json(name)) > 0;
  };
  for (const auto& [x, y] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    const Json* properties = find_keyword(*x, "properties");
    if (!properties || !properties->is_object()) continue;
    M2_TRY_VOID(note_compared(properties->size(),
                              size_under(*x, "required") + size_under(*y, "properties")));
    for (const auto& [name, schema] : properties->items()) {
      if (!required(*x, name)) continue;
      const Json* others = find_keyword(*y, "properties");
      const Json* other = others ? find_keyword(*others, name.c_str()) : nullptr;
      if (!other) {
        const Json* additional = find_keyword(*y, "additionalProperties");
        if (additional && *additional == Json(false)) return true;
        continue;
      }
      const auto values = finite(schema);
      if (values)
        M2_TRY_VOID(
            note_compared(values->size(), size_under(schema, "enum") + size_under(*other, "enum")));
      if (values && finite(*other) && std::ranges::none_of(*values, [&](const Json& v) {
            return admits(schema, v) && admits(*other, v);
          }))
        return true;
    }
  }
  return false;
}

namespace {

// Two schemas of the same value, as one.
Json both(const Json& x, const Json& y) {
  if (x == y || y == Json(true)) return x;
  if (x == Json(true)) return y;
  if (x == Json(false) || y == Json(false)) return Json(false);
  return Json{{"allOf", Json::array({x, y})}};
}

// What an object's schema says of the member `name`.
Json member_schema(const Json& schema, const std::string& name) {
  const Json* properties = find_keyword(schema, "properties");
  if (const Json* own = properties ? find_keyword(*properties, name.c_str()) : nullptr) return *own;
  const Json* additional = find_keyword(schema, "additionalProperties");
  return additional ? *additional : Json(true);
}

// Types that are of both lists; an integer is a number.
Json common_types(const std::vector<std::string>& x, const std::vector<std::string>& y) {
  Json out = Json::array();
  for (const auto& t : x)
    for (const auto& u : y) {
      if (t == u) out.push_back(t);
      if ((t == "integer" && u == "number") || (t == "number" && u == "integer"))
        out.push_back("integer");
    }
  return out;
}

}  // namespace

// A keyword that both have and say different things with; nothing if no value fits both.
Result<std::optional<Json>> SchemaGrammar::merge_keyword(const Json& a, const Json& b,
                                                         const std::string& key) {
  const std::optional<Json> impossible;
  const Json &mine = a.at(key), &value = b.at(key);
  if (key == "type") {
    M2_TRY(const auto x, types_of(a));
    M2_TRY(const auto y, types_of(b));
    Json types = common_types(x, y);
    return types.empty() ? impossible : std::optional(std::move(types));
  }
  M2_TRY_VOID(note_compared(size_under(a, key.c_str()), size_under(b, key.c_str())));
  if (key == "enum" && mine.is_array() && value.is_array()) {
    Json kept = Json::array();
    for (const Json& one : mine)
      if (std::ranges::count(value, one) > 0) kept.push_back(one);
    return kept.empty() ? impossible : std::optional(std::move(kept));
  }
  if (key == "const") return impossible;
  if (key == "required" && mine.is_array() && value.is_array()) {
    Json names = mine;
    for (const Json& name : value)
      if (std::ranges::count(names, name) == 0) names.push_back(name);
    return std::optional(std::move(names));
  }
  if (mine.is_number() && value.is_number() && key != "multipleOf") {
    const bool keeps_larger = key.starts_with("min") || key == "exclusiveMinimum";
    return std::optional((mine.get<double>() > value.get<double>()) == keeps_larger ? mine : value);
  }
  if (key == "items" && !a.contains("prefixItems") && !b.contains("prefixItems"))
    return std::optional(both(mine, value));
  if (key == "uniqueItems") return std::optional(Json(true));
  M2_TRY_VOID(unsupported(key, "in more than one part of an 'allOf' or '$ref'"));
  return std::optional(mine);
}

// Refuses what one schema says of members or items that the other has not in mind.
Result<void> SchemaGrammar::check_merge(const Json& a, const Json& b) {
  if (a.contains("patternProperties") != b.contains("patternProperties") &&
      (a.contains("properties") || b.contains("properties")))
    M2_TRY_VOID(unsupported("patternProperties", "in an 'allOf' with properties"));
  if (a.contains("items") != b.contains("items") &&
      (a.contains("prefixItems") || b.contains("prefixItems")))
    M2_TRY_VOID(unsupported("prefixItems", "in an 'allOf' with items"));
  return {};
}

// Both at once; false if that is plainly impossible.
Result<Json> SchemaGrammar::merge(const Json& a, const Json& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  M2_TRY_VOID(note_compared(b.size(), a.size() + b.size()));
  Json out = a;
  for (const auto& [key, value] : b.items()) {
    if (key == "properties" || key == "additionalProperties") continue;
    const Json* mine = find_keyword(a, key.c_str());
    if (!mine || *mine == value) {
      out[key] = value;
      continue;
    }
    M2_TRY(std::optional<Json> one, merge_keyword(a, b, key));
    if (!one) return Json(false);
    out[key] = std::move(*one);
  }
  M2_TRY_VOID(check_merge(a, b));
  if (a.contains("properties") || b.contains("properties")) {
    const uint64_t names = size_under(a, "properties") + size_under(b, "properties");
    M2_TRY_VOID(note_compared(names, names));
    Json properties = Json::object();
    for (const Json* from : {&a, &b})
      if (const Json* own = find_keyword(*from, "properties"); own && own->is_object())
        for (const auto& [name, schema] : own->items())
          if (!properties.contains(name))
            properties[name] = both(member_schema(a, name), member_schema(b, name));
    out["properties"] = properties;
  }
  const Json *x = find_keyword(a, "additionalProperties"),
             *y = find_keyword(b, "additionalProperties");
  if (x || y) out["additionalProperties"] = both(x ? *x : Json(true), y ? *y : Json(true));
  return out;
}

}  // namespace m2::text
