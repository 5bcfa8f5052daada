#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/result.h"

// Reading request bodies: one table per schema says which field goes into which member. A JSON null
// means "not given", as clients use it. Types are strict: "7" and true are not integers, 7.0 is.

namespace m2::api {

Result<void> read_value(const Json& value, bool& out);
Result<void> read_value(const Json& value, int64_t& out);
Result<void> read_value(const Json& value, double& out);
Result<void> read_value(const Json& value, std::string& out);
Result<void> read_value(const Json& value, Json& out);
template <class T>
Result<void> read_value(const Json& value, std::vector<T>& out);

template <class T>
Result<void> read_value(const Json& value, std::optional<T>& out) {
  return read_value(value, out.emplace());
}

template <class T>
Result<void> read_value(const Json& value, std::vector<T>& out) {
  if (!value.is_array()) return fail(Code::invalid_argument, "Input should be a valid list");
  out.clear();
  out.reserve(value.size());
  for (const Json& item : value) M2_TRY_VOID(read_value(item, out.emplace_back()));
  return {};
}

// What a JSON Schema says of each type that read_value() reads.
inline Json schema_of(const bool*) {
  return {{"type", "boolean"}};
}
inline Json schema_of(const int64_t*) {
  return {{"type", "integer"}};
}
inline Json schema_of(const double*) {
  return {{"type", "number"}};
}
inline Json schema_of(const std::string*) {
  return {{"type", "string"}};
}
inline Json schema_of(const Json*) {
  return Json::object();
}
template <class T>
Json schema_of(const std::vector<T>*);
template <class T>
Json schema_of(const std::optional<T>*) {
  return schema_of(static_cast<const T*>(nullptr));
}
template <class T>
Json schema_of(const std::vector<T>*) {
  return {{"type", "array"}, {"items", schema_of(static_cast<const T*>(nullptr))}};
}

// Not null, false or empty.
bool holds_something(const Json& value);

// The error of a request whose field `param` cannot be served as it was sent.
Error invalid(std::string_view param, std::string text);

// The error with the field it arose in, if it does not name one yet.
Error in_field(std::string_view name, Error error);

// The string under `name`; empty if there is none, or `object` is no object.
std::string string_of(const Json& object, const char* name);

template <class Request>
class Fields {
 public:
  using Reader = std::function<Result<void>(const Json&, Request&)>;

  template <class Base, class Member>
  Fields& field(std::string_view name, Member Base::*member) {
    using Type = std::remove_reference_t<decltype(std::declval<Base&>().*member)>;
    return field(
        name,
        [member](const Json& value, Request& request) {
          return read_value(value, request.*member);
        },
        schema_of(static_cast<const Type*>(nullptr)));
  }
  // `schema` is what /openapi.json says of the field; {}: anything.
  Fields& field(std::string_view name, Reader reader, Json schema = Json::object()) {
    readers_.emplace(name, std::move(reader));
    properties_[std::string(name)] =
        schema.empty() ? std::move(schema)
                       : Json{{"anyOf", Json::array({std::move(schema), {{"type", "null"}}})}};
    return *this;
  }
  // Fields that are known and have no effect here.
  Fields& ignored(std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) {
      readers_.emplace(name, Reader());
      properties_[std::string(name)] = Json::object();
    }
    return *this;
  }

  // Fields that would change the answer of servers that know them, and do not here: where one holds
  // anything, read() reports it as it reports an unknown one.
  Fields& unserved(std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) unserved_.insert(name);
    return ignored(names);
  }

  // The JSON Schema of what read() reads. `required`: names that must be there, which the reader of
  // the whole request checks.
  Json schema(std::initializer_list<const char*> required) const {
    Json out = {{"type", "object"}, {"properties", properties_}};
    out["required"] = Json::array();
    for (const char* name : required) out["required"].push_back(name);
    return out;
  }

  // Reads every field of `body` into `request`; names of fields the table lacks go to `unknown`,
  // and of those that are not served.
  Result<void> read(const Json& body, Request& request, std::vector<std::string>& unknown) const {
    if (!body.is_object())
      return fail(Code::invalid_argument, "Input should be a valid dictionary");
    for (const auto& [name, value] : body.items()) {
      const auto reader = readers_.find(name);
      if (reader == readers_.end() || (unserved_.contains(name) && holds_something(value))) {
        unknown.push_back(name);
      } else if (reader->second && !value.is_null()) {
        auto done = reader->second(value, request);
        if (!done) return in_field(name, std::move(done).error());
      }
    }
    return {};
  }

 private:
  std::unordered_map<std::string_view, Reader> readers_;
  std::unordered_set<std::string_view> unserved_;
  Json properties_ = Json::object();
};

}  // namespace m2::api
