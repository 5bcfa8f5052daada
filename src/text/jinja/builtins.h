#pragma once

#include <array>
#include <span>
#include <string_view>

#include "text/jinja/value.h"

// Jinja's filters and tests, the methods of Python's types and the global functions: one table of
// `Builtin` each.

namespace m2::text::jinja {

class Call;

struct Builtin {
  std::string_view name;
  // In order, separated by spaces; "x?" may be left out, "*" takes any further arguments.
  std::string_view parameters;
  Value (*body)(Call& call);
};

// One call of a builtin: the value it works on and its arguments, matched to the parameters.
class Call {
 public:
  // Raises if the arguments do not fit the builtin's parameters.
  Call(Interpreter& interpreter, const Builtin& builtin, const Value& self,
       const Arguments& arguments);

  Interpreter& interpreter;
  Budget& budget;
  const Value& self;
  const Arguments& arguments;

  // Argument number i, or null if it was left out.
  const Value* find(size_t i) const { return bound_[i]; }
  const Value& at(size_t i) const { return *bound_[i]; }
  // As a Python function reads it: absent and None give `standard` where there is one.
  int64_t integer(size_t i, int64_t standard) const;
  bool truth(size_t i, bool standard) const;
  // Raises unless the argument is a str.
  const TracedText& text(size_t i) const;
  // str(self).
  TracedText self_text() const;

 private:
  static constexpr size_t kMaxParameters = 5;
  std::array<const Value*, kMaxParameters> bound_{};
};

// The builtin of a name, or null.
const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
const Builtin* find_function(std::string_view name);

// The method `name` of `object`, bound to it; an Undefined that raises if the reference's sandbox
// forbids it; nothing if the object has no such attribute.
std::optional<Value> find_method(const Value& object, std::string_view name);

// Calls a filter or test on a value.
Value apply(Interpreter& interpreter, const Builtin& builtin, const Value& self,
            const Arguments& arguments);

// A function that needs no object.
Value make_function(const Builtin& builtin);

}  // namespace m2::text::jinja
