#include "text/tool_arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/python_json.h"

namespace m2::text {
namespace {

// Arguments nested deeper than this keep the types the model wrote.
constexpr int kMaxCoercionDepth = 32;
// A "$ref" that leads to another "$ref", and so on, is followed this far.
constexpr int kMaxReferences = 16;
// Branches of anyOf, oneOf and allOf looked through for one property's schema.
constexpr int kMaxBranches = 64;

constexpr std::string_view kBlank = " \t\n\v\f\r";

std::string_view stripped(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string lowered(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + ('a' - 'A'));
  return out;
}

// --- what a schema admits ---

JsonTypes::Bit type_named(std::string_view name) {
  static const std::unordered_map<std::string, JsonTypes::Bit> kNames = {
      {"null", JsonTypes::null},        {"integer", JsonTypes::integer},
      {"number", JsonTypes::number},    {"boolean", JsonTypes::boolean},
      {"object", JsonTypes::object},    {"array", JsonTypes::array},
      {"string", JsonTypes::string},    {"str", JsonTypes::string},
      {"text", JsonTypes::string},      {"varchar", JsonTypes::string},
      {"char", JsonTypes::string},      {"enum", JsonTypes::string},
      {"int", JsonTypes::integer},      {"int32", JsonTypes::integer},
      {"int64", JsonTypes::integer},    {"uint", JsonTypes::integer},
      {"uint32", JsonTypes::integer},   {"uint64", JsonTypes::integer},
      {"long", JsonTypes::integer},     {"short", JsonTypes::integer},
      {"unsigned", JsonTypes::integer}, {"float", JsonTypes::number},
      {"float32", JsonTypes::number},   {"float64", JsonTypes::number},
      {"double", JsonTypes::number},    {"bool", JsonTypes::boolean},
      {"dict", JsonTypes::object},      {"arr", JsonTypes::array},
      {"list", JsonTypes::array},       {"sequence", JsonTypes::array},
  };
  const auto found = kNames.find(lowered(stripped(name)));
  return found == kNames.end() ? JsonTypes::other : found->second;
}

JsonTypes::Bit type_of(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return JsonTypes::null;
    case Json::value_t::boolean:
      return JsonTypes::boolean;
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return JsonTypes::integer;
    case Json::value_t::number_float:
      return JsonTypes::number;
    case Json::value_t::object:
      return JsonTypes::object;
    case Json::value_t::array:
      return JsonTypes::array;
    default:
      return JsonTypes::string;
  }
}

// The member of that name if `schema` is an object that has it, else nullptr.
const Json* member(const Json* schema, const std::string& name) {
  if (schema == nullptr || !schema->is_object()) return nullptr;
  const auto found = schema->find(name);
  return found == schema->end() ? nullptr : &*found;
}

// One step of a JSON pointer (RFC 6901): "~1" stands for '/', "~0" for '~'.
std::string pointer_token(std::string_view token) {
  std::string out;
  for (size_t i = 0; i < token.size(); ++i) {
    const bool escaped = token[i] == '~' && i + 1 < token.size();
    if (escaped) ++i;
    out += !escaped ? token[i] : token[i] == '1' ? '/' : '~';
  }
  return out;
}

// What "$ref" of `schema` points to within `root`; nullptr without one, or if it leads nowhere.
const Json* referenced(const Json* schema, const Json* root) {
  const Json* reference = member(schema, "$ref");
  if (reference == nullptr || !reference->is_string()) return nullptr;
  std::string_view rest = reference->get_ref<const std::string&>();
  if (!rest.starts_with('#')) return nullptr;
  rest.remove_prefix(1);
  const Json* at = root;
  while (at != nullptr && rest.starts_with('/')) {
    rest.remove_prefix(1);
    const size_t end = std::min(rest.find('/'), rest.size());
    at = member(at, pointer_token(rest.substr(0, end)));
    rest.remove_prefix(end);
  }
  return rest.empty() ? at : nullptr;
}

// The types named by "type", and those of the members of "enum" and of "const".
JsonTypes declared_types(const Json& schema) {
  JsonTypes types;
  if (const Json* type = member(&schema, "type")) {
    if (type->is_string()) types.add(type_named(type->get_ref<const std::string&>()));
    if (type->is_array())
      for (const Json& name : *type)
        if (name.is_string()) types.add(type_named(name.get_ref<const std::string&>()));
  }
  if (const Json* values = member(&schema, "enum"); values != nullptr && values->is_array())
    for (const Json& value : *values) types.add(type_of(value));
  if (const Json* value = member(&schema, "const")) types.add(type_of(*value));
  return types;
}

// Calls `visit(branch, is_alternative)` for every schema that `schema` is composed of.
template <class Visit>
void for_each_branch(const Json& schema, const Json* root, Visit visit) {
  if (const Json* target = referenced(&schema, root)) visit(*target, true);
  for (const char* key : {"anyOf", "oneOf", "allOf"}) {
    const Json* branches = member(&schema, key);
    if (branches == nullptr || !branches->is_array()) continue;
    const bool is_alternative = std::string_view(key) != "allOf";
    for (const Json& branch : *branches) visit(branch, is_alternative);
  }
}

// Walks a schema's branches with a list of its own, each schema once, so that neither depth nor
// cycles matter.
JsonTypes find_types(SchemaView view) {
  // An alternative that says nothing admits text, unless its parent has named the types.
  struct Step {
    const Json* schema;
    bool silence_is_string;
  };
  JsonTypes found;
  std::vector<Step> open{{view.schema, true}};
  std::unordered_set<const Json*> seen;
  while (!open.empty()) {
    const Step step = open.back();
    open.pop_back();
    if (!seen.insert(step.schema).second) continue;
    const JsonTypes declared = declared_types(*step.schema);
    found.add(declared.bits);
    bool has_branches = false;
    for_each_branch(*step.schema, view.root, [&](const Json& branch, bool is_alternative) {
      has_branches = true;
      open.push_back({&branch, is_alternative && declared.empty()});
    });
    if (declared.empty() && !has_branches && step.silence_is_string) found.add(JsonTypes::string);
  }
  if (found.empty()) found.add(JsonTypes::string);
  return found;
}

// The schema that `pick` finds in `view` or in the nearest of its branches.
template <class Pick>
SchemaView find_in_branches(SchemaView view, Pick pick) {
  std::vector<const Json*> open{view.schema};
  for (size_t i = 0; i < open.size() && i < kMaxBranches; ++i) {
    if (const Json* found = pick(open[i])) return {found, view.root};
    for_each_branch(*open[i], view.root, [&](const Json& branch, bool) {
      if (open.size() < kMaxBranches) open.push_back(&branch);
    });
  }
  return {};
}

SchemaView property_of(SchemaView view, const std::string& name) {
  return find_in_branches(
      view, [&](const Json* schema) { return member(member(schema, "properties"), name); });
}

SchemaView items_of(SchemaView view) {
  return find_in_branches(view, [](const Json* schema) {
    const Json* items = member(schema, "items");
    return items != nullptr && items->is_object() ? items : nullptr;
  });
}

// --- texts to values; each gives JSON text ---

// Python's rule for digits in a literal: an underscore may stand between two of them. Returns the
// text without underscores, or nothing if one is misplaced.
std::optional<std::string> without_underscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || !is_digit(text[i - 1]) || !is_digit(text[i + 1])) {
      return std::nullopt;
    }
  }
  return out;
}

// As Python's int(text): exact, however long.
std::optional<std::string> as_integer(std::string_view text) {
  const std::optional<std::string> plain = without_underscores(stripped(text));
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  if (digits.empty() || !std::all_of(digits.begin(), digits.end(), is_digit)) return std::nullopt;
  digits.remove_prefix(std::min(digits.find_first_not_of('0'), digits.size() - 1));
  std::string out;
  if (negative && digits != "0") out = '-';
  return out += digits;
}

// As Python's float(text), if finite; an integral value is printed as an integer.
std::optional<std::string> as_number(std::string_view text) {
  if (std::optional<std::string> integer = as_integer(text)) return integer;
  const std::optional<std::string> plain = without_underscores(stripped(text));
  if (!plain) return std::nullopt;
  std::string_view literal = *plain;
  if (literal.starts_with('+') && !literal.starts_with("+-")) literal.remove_prefix(1);
  double value = 0;
  const char* end = literal.data() + literal.size();
  const auto [stop, error] = std::from_chars(literal.data(), end, value);
  if (error != std::errc() || stop != end || !std::isfinite(value)) return std::nullopt;
  if (value == std::trunc(value)) return fmt::format("{:.0f}", value + 0.0);
  return python_json(Json(value));
}

std::optional<std::string> as_boolean(std::string_view text) {
  const std::string word = lowered(stripped(text));
  if (word == "true" || word == "1") return "true";
  if (word == "false" || word == "0") return "false";
  return std::nullopt;
}

// A JSON text; of a key that stands twice the last value counts, as in Python.
std::optional<Json> as_json(std::string_view text) {
  JsonLimits limits;
  limits.allow_duplicate_keys = true;
  Result<Json> parsed = parse_json(text, limits);
  if (!parsed.ok()) return std::nullopt;
  return std::move(parsed).value();
}

// The first of the scalar types, in the fixed order, that the text fits.
std::optional<std::string> as_scalar(std::string_view text, JsonTypes types) {
  if (types.has(JsonTypes::null) && lowered(text) == "null") return "null";
  std::optional<std::string> found;
  if (types.has(JsonTypes::integer)) found = as_integer(text);
  if (!found && types.has(JsonTypes::number)) found = as_number(text);
  if (!found && types.has(JsonTypes::boolean)) found = as_boolean(text);
  return found;
}

}  // namespace

ToolSchemas::ToolSchemas(Json tools) : tools_(std::move(tools)) {
  if (!tools_.is_array()) return;
  for (const Json& tool : tools_) {
    const Json* function = member(&tool, "function");
    const Json* name = member(function, "name");
    const Json* parameters = member(function, "parameters");
    if (name != nullptr && name->is_string() && parameters != nullptr)
      parameters_.emplace(name->get<std::string>(), parameters);
  }
}

SchemaView ToolSchemas::parameter(std::string_view tool, const std::string& name) const {
  const auto found = parameters_.find(std::string(tool));
  if (found == parameters_.end()) return {};
  return property_of({found->second, found->second}, name);
}

JsonTypes ToolSchemas::types(SchemaView view) {
  if (view.schema == nullptr) return {JsonTypes::string};
  const auto [found, is_new] = types_.try_emplace(view.schema);
  if (is_new) found->second = find_types(view);
  return found->second;
}

std::string ToolSchemas::argument_json(std::string_view text, SchemaView view) {
  return argument_json(text, view, kMaxCoercionDepth);
}

std::string ToolSchemas::argument_json(std::string_view text, SchemaView view, int depth) {
  const JsonTypes admitted = types(view);
  if (std::optional<std::string> scalar = as_scalar(text, admitted)) return *std::move(scalar);
  const bool admits_text = admitted.has(JsonTypes::string);
  const int containers = admitted.bits & (JsonTypes::object | JsonTypes::array);
  if (admits_text && containers == 0) return json_string(text);
  // JSON of a type that is not admitted is better than a string that is not admitted either.
  std::optional<Json> value = as_json(text);
  if (value && (!admits_text || (type_of(*value) & containers) != 0)) {
    coerce_children(*value, view, depth);
    return python_json(*value);
  }
  return json_string(text);
}

void ToolSchemas::coerce_children(Json& value, SchemaView view, int depth) {
  if (depth == 0 || view.schema == nullptr) return;
  if (value.is_object())
    for (auto& [name, child] : value.items()) coerce(child, property_of(view, name), depth - 1);
  if (value.is_array() && !value.empty()) {
    const SchemaView items = items_of(view);
    for (Json& child : value) coerce(child, items, depth - 1);
  }
}

// A string inside an object or array that its schema does not admit is read like an argument.
void ToolSchemas::coerce(Json& value, SchemaView view, int depth) {
  if (view.schema == nullptr || depth == 0) return;
  if (!value.is_string()) return coerce_children(value, view, depth);
  if (types(view).has(JsonTypes::string)) return;
  std::optional<Json> read =
      as_json(argument_json(value.get_ref<const std::string&>(), view, depth));
  if (read) value = *std::move(read);
}

void append_json_escaped(std::string& out, std::string_view text) {
  const std::string quoted = json_string(text);
  out.append(quoted, 1, quoted.size() - 2);
}

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text, /*ensure_ascii=*/false);
  return out;
}

}  // namespace m2::text
