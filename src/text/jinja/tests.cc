#include "text/jinja/builtin_tables.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

// Jinja's tests: the words behind "is".

namespace m2::text::jinja {
namespace {

// Whether self % divisor is `rest`.
bool leaves(Call& call, const Value& divisor, int64_t rest) {
  const Value result = calculate(Arithmetic::modulo, call.self, divisor, call.budget);
  return equal(result, rest, call.budget);
}

// A name to look up in a table, as a dict of Python would take it.
std::string table_key(Call& call) {
  if (!is_hashable(call.self)) raise("unhashable type: '{}'", type_name(call.self));
  return call.self.text() ? call.self.text()->bytes() : "";
}

template <bool (*Wanted)(char32_t), bool (*Unwanted)(char32_t)>
Value has_case(Call& call) {
  bool found = false;
  const TracedText text = call.self_text();
  for (size_t at = 0; at < text.size();) {
    const char32_t point = next_point(text.view(), at);
    if (Unwanted(point)) return false;
    found |= Wanted(point);
  }
  return found;
}

template <Comparison Op>
Value compares(Call& call) {
  return compare(Op, call.self, call.at(0), call.budget);
}

bool is_sequence(const Value& value) {
  if (const Sequence* row = value.sequence()) return row->can_index();
  return value.text() || value.dict() || value.is_undefined();
}

constexpr Builtin kTests[] = {
    {"defined", "", [](Call& c) -> Value { return !c.self.is_undefined(); }},
    {"undefined", "", [](Call& c) -> Value { return c.self.is_undefined(); }},
    {"none", "", [](Call& c) -> Value { return c.self.is_none(); }},
    {"boolean", "", [](Call& c) -> Value { return c.self.is<bool>(); }},
    {"true", "", [](Call& c) -> Value { return c.self.is<bool>() && is_true(c.self); }},
    {"false", "", [](Call& c) -> Value { return c.self.is<bool>() && !is_true(c.self); }},
    {"integer", "", [](Call& c) -> Value { return c.self.is_integer(); }},
    {"float", "", [](Call& c) -> Value { return c.self.is<double>(); }},
    {"number", "", [](Call& c) -> Value { return c.self.is_number(); }},
    {"string", "", [](Call& c) -> Value { return c.self.text() != nullptr; }},
    {"mapping", "", [](Call& c) -> Value { return c.self.dict() != nullptr; }},
    {"sequence", "", [](Call& c) -> Value { return is_sequence(c.self); }},
    {"iterable", "", [](Call& c) -> Value { return can_iterate(c.self); }},
    {"callable", "", [](Call& c) -> Value { return c.self.callable() || c.self.is_undefined(); }},
    {"odd", "", [](Call& c) -> Value { return leaves(c, int64_t{2}, 1); }},
    {"even", "", [](Call& c) -> Value { return leaves(c, int64_t{2}, 0); }},
    {"divisibleby", "num", [](Call& c) -> Value { return leaves(c, c.at(0), 0); }},
    {"lower", "", has_case<is_lower, is_upper>},
    {"upper", "", has_case<is_upper, is_lower>},
    {"sameas", "other", [](Call& c) -> Value { return identical(c.self, c.at(0)); }},
    {"escaped", "", [](Call&) -> Value { return false; }},
    {"filter", "", [](Call& c) -> Value { return find_filter(table_key(c)) != nullptr; }},
    {"test", "", [](Call& c) -> Value { return find_test(table_key(c)) != nullptr; }},
    {"in", "seq", compares<Comparison::in>},
    {"==", "other", compares<Comparison::eq>},
    {"eq", "other", compares<Comparison::eq>},
    {"equalto", "other", compares<Comparison::eq>},
    {"!=", "other", compares<Comparison::ne>},
    {"ne", "other", compares<Comparison::ne>},
    {"<", "other", compares<Comparison::lt>},
    {"lt", "other", compares<Comparison::lt>},
    {"lessthan", "other", compares<Comparison::lt>},
    {"<=", "other", compares<Comparison::le>},
    {"le", "other", compares<Comparison::le>},
    {">", "other", compares<Comparison::gt>},
    {"gt", "other", compares<Comparison::gt>},
    {"greaterthan", "other", compares<Comparison::gt>},
    {">=", "other", compares<Comparison::ge>},
    {"ge", "other", compares<Comparison::ge>},
};

}  // namespace

std::span<const Builtin> test_table() {
  return kTests;
}

}  // namespace m2::text::jinja
