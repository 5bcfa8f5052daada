#pragma once

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"

// What the files of builtins share.

namespace m2::text::jinja {

std::span<const Builtin> filter_table();
std::span<const Builtin> test_table();
std::span<const Builtin> function_table();
std::span<const Builtin> text_method_table();
std::span<const Builtin> dict_method_table();
std::span<const Builtin> list_method_table();

// The builtin of a name in one of the tables, or null.
const Builtin* find_in(std::span<const Builtin> table, std::string_view name);

// object.a.b.0, the path an attribute= argument names.
Value follow_path(const Value& object, const Value& path);

// A filter or test that is an argument of another: {{ rows | map("upper") }}.
Value apply_filter(Call& call, const Value& name, const Value& self, const Arguments& arguments);
Value apply_test(Call& call, const Value& name, const Value& self, const Arguments& arguments);

}  // namespace m2::text::jinja
