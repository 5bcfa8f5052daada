#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "app/eval/item.h"

namespace m2::app::eval {

// Whether `content`, the answer without its thinking, is one of the item's right answers.
bool is_right_answer(const Item& item, std::string_view content);

// Whether an answer's `tool_calls` (null: none) are the calls of `step`, in order, with equal
// arguments.
bool are_right_calls(const Step& step, const Json& tool_calls);

// Why a call does not fit the `parameters` of the tool it names: its arguments are no JSON object,
// a required one is missing, a type or an enum is not kept; empty if it fits. Keywords other than
// type, enum, properties, required, additionalProperties (a boolean), items and anyOf are not
// looked at.
std::string misfit_of_call(const Json& call, const Json& tools);

// The number that a text ends with, or that stands in its last \boxed{}: "so it is 1,234." is 1234.
std::optional<double> number_in(std::string_view text);

// A and B of a 95 % confidence interval (Wilson's score) for `right` of `count`, as shares.
struct Interval {
  double low = 0, high = 1;
};
Interval wilson_interval(int64_t right, int64_t count);

}  // namespace m2::app::eval
