#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
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

// The error with the field it arose in.
Error in_field(std::string_view name, Error error);

template <class Request>
class Fields {
 public:
  using Reader = std::function<Result<void>(const Json&, Request&)>;

  template <class Base, class Member>
  Fields& field(std::string_view name, Member Base::*member) {
    return field(name, [member](const Json& value, Request& request) {
      return read_value(value, request.*member);
    });
  }
  Fields& field(std::string_view name, Reader reader) {
    readers_.emplace(name, std::move(reader));
    return *this;
  }
  // Fields that are known and have no effect here.
  Fields& ignored(std::initializer_list<std::string_view> names) {
    for (const std::string_view name : names) readers_.emplace(name, Reader());
    return *this;
  }

  // Reads every field of `body` into `request`; names of fields the table lacks go to `unknown`.
  Result<void> read(const Json& body, Request& request, std::vector<std::string>& unknown) const {
    if (!body.is_object())
      return fail(Code::invalid_argument, "Input should be a valid dictionary");
    for (const auto& [name, value] : body.items()) {
      const auto reader = readers_.find(name);
      if (reader == readers_.end()) {
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
};

}  // namespace m2::api
