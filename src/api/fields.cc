#include "api/fields.h"

#include <cmath>

namespace m2::api {

Result<void> read_value(const Json& value, bool& out) {
  if (!value.is_boolean()) return fail(Code::invalid_argument, "Input should be a valid boolean");
  out = value.get<bool>();
  return {};
}

Result<void> read_value(const Json& value, int64_t& out) {
  if (value.is_number_unsigned() && value.get<uint64_t>() <= INT64_MAX) {
    out = static_cast<int64_t>(value.get<uint64_t>());
    return {};
  }
  if (value.is_number_integer() && !value.is_number_unsigned()) {
    out = value.get<int64_t>();
    return {};
  }
  constexpr double kExact = 9007199254740992;  // 2^53: beyond it doubles skip integers
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number == std::floor(number) && std::abs(number) <= kExact) {
      out = static_cast<int64_t>(number);
      return {};
    }
  }
  return fail(Code::invalid_argument, "Input should be a valid integer");
}

Result<void> read_value(const Json& value, double& out) {
  if (!value.is_number()) return fail(Code::invalid_argument, "Input should be a valid number");
  out = value.get<double>();
  return {};
}

Result<void> read_value(const Json& value, std::string& out) {
  if (!value.is_string()) return fail(Code::invalid_argument, "Input should be a valid string");
  out = value.get_ref<const std::string&>();
  return {};
}

Result<void> read_value(const Json& value, Json& out) {
  out = value;
  return {};
}

bool holds_something(const Json& value) {
  return !value.empty() && value != Json(false);  // null is empty, too
}

Error invalid(std::string_view param, std::string text) {
  return Error{Code::invalid_argument, std::move(text), std::string(param)};
}

Error in_field(std::string_view name, Error error) {
  if (error.param.empty()) {
    error.text = fmt::format("{}: {}", name, error.text);
    error.param = name;
  }
  return error;
}

std::string string_of(const Json& object, const char* name) {
  const auto field = object.find(name);
  return field != object.end() && field->is_string() ? field->get<std::string>() : std::string();
}

}  // namespace m2::api
