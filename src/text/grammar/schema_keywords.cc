#include "text/grammar/schema_keywords.h"

#include <algorithm>
#include <cmath>

namespace m2::text {
namespace {

const char* type_name(const Json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "boolean";
  if (value.is_number_integer()) return "integer";
  if (value.is_number())
    return value.get<double>() == std::trunc(value.get<double>()) ? "integer" : "number";
  if (value.is_string()) return "string";
  return value.is_array() ? "array" : "object";
}

}  // namespace

const std::unordered_set<std::string>& annotations() {
  static const std::unordered_set<std::string> names = {"title",
                                                        "description",
                                                        "default",
                                                        "examples",
                                                        "example",
                                                        "deprecated",
                                                        "readOnly",
                                                        "writeOnly",
                                                        "$comment",
                                                        "$schema",
                                                        "$id",
                                                        "id",
                                                        "$defs",
                                                        "definitions",
                                                        "$anchor",
                                                        "contentEncoding",
                                                        "contentMediaType",
                                                        "contentSchema",
                                                        "nullable",
                                                        "discriminator",
                                                        "xml",
                                                        "externalDocs",
                                                        "strict",
                                                        "name",
                                                        "$vocabulary",
                                                        "markdownDescription",
                                                        "enumDescriptions",
                                                        "propertyOrdering"};
  return names;
}

const std::unordered_set<std::string>& assertions() {
  static const std::unordered_set<std::string> names = {"type",
                                                        "enum",
                                                        "const",
                                                        "properties",
                                                        "required",
                                                        "additionalProperties",
                                                        "minProperties",
                                                        "maxProperties",
                                                        "patternProperties",
                                                        "propertyNames",
                                                        "items",
                                                        "prefixItems",
                                                        "additionalItems",
                                                        "minItems",
                                                        "maxItems",
                                                        "minLength",
                                                        "maxLength",
                                                        "pattern",
                                                        "format",
                                                        "minimum",
                                                        "maximum",
                                                        "exclusiveMinimum",
                                                        "exclusiveMaximum",
                                                        "multipleOf",
                                                        "uniqueItems",
                                                        "$ref",
                                                        "allOf",
                                                        "anyOf",
                                                        "oneOf"};
  return names;
}

const std::unordered_set<std::string>& refused() {
  static const std::unordered_set<std::string> names = {"not",
                                                        "if",
                                                        "then",
                                                        "else",
                                                        "dependentRequired",
                                                        "dependentSchemas",
                                                        "dependencies",
                                                        "contains",
                                                        "minContains",
                                                        "maxContains",
                                                        "unevaluatedProperties",
                                                        "unevaluatedItems",
                                                        "$dynamicRef",
                                                        "$dynamicAnchor",
                                                        "$recursiveRef",
                                                        "$recursiveAnchor"};
  return names;
}

const Json* find_keyword(const Json& schema, const char* key) {
  if (!schema.is_object()) return nullptr;
  const auto found = schema.find(key);
  return found == schema.end() ? nullptr : &*found;
}

bool asserts(const Json& schema) {
  if (schema.is_boolean()) return !schema.get<bool>();
  for (const auto& [key, value] : schema.items())
    if (!annotations().contains(key) && !key.starts_with("x-")) return true;
  return false;
}

Error malformed(const std::string& keyword, const std::string& should) {
  return fail(Code::invalid_argument, "Invalid JSON schema: '{}' should be {}.", keyword, should);
}

Result<int64_t> count_of(const Json& schema, const char* keyword, int64_t otherwise) {
  const Json* value = find_keyword(schema, keyword);
  if (!value) return otherwise;
  if (value->is_number_float() && value->get<double>() == std::trunc(value->get<double>()) &&
      value->get<double>() >= 0 && value->get<double>() < 1e15)
    return static_cast<int64_t>(value->get<double>());
  if (!value->is_number_integer() || (!value->is_number_unsigned() && value->get<int64_t>() < 0))
    return malformed(keyword, "a non-negative integer");
  return static_cast<int64_t>(std::min<uint64_t>(value->get<uint64_t>(), INT64_MAX));
}

bool is_type(const Json& value, const std::string& type) {
  const std::string own = type_name(value);
  return own == type || (own == "integer" && type == "number");
}

}  // namespace m2::text
