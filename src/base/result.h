#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

// Errors as values. Every function that can fail on something from outside (a file, a client, a
// flag) returns Result<T>; nothing is thrown across a room's border.

namespace m2 {

enum class Code {
  invalid_argument,    // the caller's input is wrong (HTTP 400)
  not_found,           // the named thing does not exist (HTTP 404)
  corrupt,             // a file's bytes contradict themselves or their declaration
  unsupported,         // well formed, but not something this program models
  resource_exhausted,  // a limit or a budget was hit (HTTP 429 or 400, as the caller decides)
  unavailable,         // not now: loading, draining, dead peer (HTTP 503)
  internal,            // a fault of ours (HTTP 500)
};

struct Error {
  Code code = Code::internal;
  std::string text;   // for people: names the cause and, where there is one, what to do next
  std::string param;  // the request field or file at fault; may be empty
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // Precondition: ok().
  T& value() & { return check(), std::get<0>(state_); }
  const T& value() const& { return check(), std::get<0>(state_); }
  T&& value() && { return check(), std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Precondition: !ok().
  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

 private:
  void check() const { M2_CHECK(ok(), "value() of a failed result: {}", std::get<1>(state_).text); }
  std::variant<T, Error> state_;
};

// A result without a value: `return {};` is success.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

// fail(Code::corrupt, "shard {} ends at {}", name, n) makes an Error.
template <class... Args>
Error fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Error{code, fmt::format(format, std::forward<Args>(args)...), {}};
}

}  // namespace m2

#define M2_CONCAT_(a, b) a##b
#define M2_CONCAT(a, b) M2_CONCAT_(a, b)

// M2_TRY(auto x, f()): x = f()'s value, or return its error from this function.
#define M2_TRY(lhs, ...)                                                      \
  auto M2_CONCAT(m2_try_, __LINE__) = (__VA_ARGS__);                          \
  if (!M2_CONCAT(m2_try_, __LINE__).ok())                                     \
    return std::move(M2_CONCAT(m2_try_, __LINE__)).error();                   \
  lhs = std::move(M2_CONCAT(m2_try_, __LINE__)).value()

// M2_TRY_VOID(f()): return f()'s error from this function if it failed.
#define M2_TRY_VOID(...)                                                      \
  do {                                                                        \
    auto m2_try_result = (__VA_ARGS__);                                       \
    if (!m2_try_result.ok()) return std::move(m2_try_result).error();         \
  } while (0)
