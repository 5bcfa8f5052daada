#include "text/grammar/schema_references.h"

#include <map>
#include <string_view>
#include <vector>

#include "base/log.h"

namespace m2::text {
namespace {

constexpr int kMaxDepth = 64;  // of schemas that all speak of one value
// Members that references are looked for among, which takes some nanoseconds each.
constexpr uint64_t kMostLookedThrough = 50'000'000;

const Json* find(const Json& schema, const std::string& key) {
  const auto found = schema.is_object() ? schema.find(key) : schema.end();
  return !schema.is_object() || found == schema.end() ? nullptr : &*found;
}

// The part of a JSON pointer (RFC 6901) up to its next '/', which is taken from `rest`.
std::string next_token(std::string_view& rest) {
  const size_t end = std::min(rest.find('/'), rest.size());
  std::string token;
  for (size_t i = 0; i < end; ++i) {
    const bool escape = rest[i] == '~' && i + 1 < end;
    const char c = escape ? (rest[i + 1] == '1' ? '/' : '~') : rest[i];
    if (escape) ++i;
    token += c;
  }
  rest.remove_prefix(end);
  return token;
}

// The element of a list that this token of a pointer names, or null.
const Json* element(const Json& list, const std::string& token) {
  size_t index = 0;
  for (const char c : token)
    index = c >= '0' && c <= '9' && index < 1'000'000 ? index * 10 + static_cast<size_t>(c - '0')
                                                      : list.size();
  return token.empty() || index >= list.size() ? nullptr : &list[index];
}

// Goes through all that a schema leads to.
class ReferenceWalk {
 public:
  explicit ReferenceWalk(const Json& root) : root_(root) {}

  Result<void> walk(const Json& schema) {
    left_.push_back(&schema);
    while (!left_.empty()) {
      const Json& next = *left_.back();
      left_.pop_back();
      M2_TRY_VOID(same_value(next, 0));
    }
    return {};
  }

 private:
  // Every schema that speaks of the value that this one speaks of.
  Result<void> same_value(const Json& schema, int depth) {
    if (!schema.is_object()) return {};
    const auto [place, is_new] = done_.try_emplace(&schema, false);
    if (!is_new) return {};
    if (depth > kMaxDepth)
      return fail(Code::invalid_argument,
                  "The JSON schema's combinations or '$ref's are nested too deeply.");
    add_parts(schema);
    if (schema.contains("$ref")) M2_TRY_VOID(referred(schema, depth));
    for (const char* keyword : {"allOf", "anyOf", "oneOf"})
      if (const Json* list = find(schema, keyword); list && list->is_array())
        for (const Json& branch : *list) M2_TRY_VOID(same_value(branch, depth + 1));
    place->second = true;
    return {};
  }

  Result<void> referred(const Json& schema, int depth) {
    const auto to = referred_schema(root_, schema, &looked_through_);
    if (looked_through_ > kMostLookedThrough)
      return fail(Code::resource_exhausted, "The JSON schema is too large.");
    if (!to) return {};
    if (const auto met = done_.find(*to); met != done_.end() && !met->second)
      return fail(Code::invalid_argument,
                  "The JSON schema has a circle: its '$ref' to '{}' leads back to itself, and "
                  "nothing of a value is read on the way.",
                  printable(schema["$ref"].get_ref<const std::string&>(), 80));
    return same_value(**to, depth + 1);
  }

  // Schemas of parts of the value.
  void add_parts(const Json& schema) {
    for (const char* keyword :
         {"additionalProperties", "items", "additionalItems", "prefixItems", "propertyNames"})
      if (const Json* part = find(schema, keyword)) add(*part);
    for (const char* keyword : {"properties", "patternProperties"})
      if (const Json* parts = find(schema, keyword); parts && parts->is_object())
        for (const auto& [name, part] : parts->items()) add(part);
  }

  void add(const Json& part) {
    if (!part.is_array()) return left_.push_back(&part);
    for (const Json& one : part) left_.push_back(&one);
  }

  const Json& root_;
  uint64_t looked_through_ = 0;
  std::vector<const Json*> left_;
  std::map<const Json*, bool> done_;  // false: being gone through
};

}  // namespace

Result<const Json*> referred_schema(const Json& root, const Json& schema,
                                    uint64_t* looked_through) {
  const Json& reference = schema["$ref"];
  if (!reference.is_string())
    return fail(Code::invalid_argument, "Invalid JSON schema: '$ref' should be a string.");
  const std::string& text = reference.get_ref<const std::string&>();
  const Json* at = text.starts_with('#') ? &root : nullptr;
  std::string_view rest = std::string_view(text).substr(text.empty() ? 0 : 1);
  while (at && !rest.empty()) {
    const bool goes_on = rest[0] == '/';
    rest.remove_prefix(1);
    const std::string token = next_token(rest);
    if (looked_through) *looked_through += at->size();
    if (!goes_on)
      at = nullptr;
    else
      at = at->is_array() ? element(*at, token) : find(*at, token);
  }
  if (!at)
    return fail(Code::invalid_argument,
                "The JSON schema keyword '$ref' is only supported within the schema; '{}' is not "
                "there.",
                printable(text, 80));
  return at;
}

Result<void> check_references(const Json& root, const Json& schema) {
  return ReferenceWalk(root).walk(schema);
}

}  // namespace m2::text
