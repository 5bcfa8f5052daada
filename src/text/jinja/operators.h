#pragma once

#include "text/jinja/ast.h"

// Python's operators on template values. Each raises what Python raises (TypeError, ...), and
// charges the budget before it makes anything large.

namespace m2::text::jinja {

Value calculate(Arithmetic op, const Value& left, const Value& right, Budget& budget);
Value negate(const Value& operand);
Value positive(const Value& operand);

bool compare(Comparison op, const Value& left, const Value& right, Budget& budget);
// item in container.
bool contains(const Value& container, const Value& item, Budget& budget);

// object[start:stop:step]; absent and None parts have Python's defaults.
Value slice(const Value& object, const Value* start, const Value* stop, const Value* step,
            Budget& budget);

// object[index] and object.name as the reference's sandbox reads them: an Undefined if there is no
// such thing or it is not allowed.
Value get_item(const Value& object, const Value& index);
Value get_attribute(const Value& object, std::string_view name);

}  // namespace m2::text::jinja
