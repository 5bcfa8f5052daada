#include "text/jinja/operators.h"

#include <cmath>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/unicode.h"

namespace m2::text::jinja {

// --- Arithmetic ----------------------------------------------------------------------------------

namespace {

std::string_view symbol_of(Arithmetic op) {
  constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};
  return kSymbols[static_cast<size_t>(op)];
}

[[noreturn]] void overflow() {
  raise("integer overflow: this template engine has 64 bits");
}

int64_t checked_multiply(int64_t a, int64_t b) {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) overflow();
  return result;
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) raise("integer division or modulo by zero");
  if (b == -1) return checked_multiply(a, -1);
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

int64_t modulo(int64_t a, int64_t b) {
  if (b == 0) raise("integer modulo by zero");
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double modulo(double a, double b) {
  if (b == 0) raise("float modulo by zero");
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

double floor_divide(double a, double b) {
  if (b == 0) raise("float floor division by zero");
  const double exact = (a - modulo(a, b)) / b;
  return exact == 0 ? std::copysign(0.0, a / b) : std::floor(exact + 0.5);
}

Value power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) raise("0.0 cannot be raised to a negative power");
    return std::pow(static_cast<double>(base), static_cast<double>(exponent));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if (exponent & 1) result = checked_multiply(result, base);
    exponent >>= 1;
    if (exponent > 0) base = checked_multiply(base, base);
  }
  return result;
}

double power(double base, double exponent) {
  if (base == 0 && exponent < 0) raise("0.0 cannot be raised to a negative power");
  const double result = std::pow(base, exponent);
  if (std::isnan(result) && base < 0 && std::isfinite(exponent))
    raise("complex numbers are not supported");
  if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent))
    raise("(34, 'Numerical result out of range')");
  return result;
}

double true_divide(double a, double b) {
  if (b == 0) raise("division by zero");
  return a / b;
}

Value calculate_integers(Arithmetic op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Arithmetic::add:
      if (__builtin_add_overflow(a, b, &result)) overflow();
      return result;
    case Arithmetic::subtract:
      if (__builtin_sub_overflow(a, b, &result)) overflow();
      return result;
    case Arithmetic::multiply:
      return checked_multiply(a, b);
    case Arithmetic::divide:
      return true_divide(static_cast<double>(a), static_cast<double>(b));
    case Arithmetic::floor_divide:
      return floor_divide(a, b);
    case Arithmetic::modulo:
      return modulo(a, b);
    case Arithmetic::power:
      return power(a, b);
  }
  return None{};
}

Value calculate_floats(Arithmetic op, double a, double b) {
  switch (op) {
    case Arithmetic::add:
      return a + b;
    case Arithmetic::subtract:
      return a - b;
    case Arithmetic::multiply:
      return a * b;
    case Arithmetic::divide:
      return true_divide(a, b);
    case Arithmetic::floor_divide:
      return floor_divide(a, b);
    case Arithmetic::modulo:
      return modulo(a, b);
    case Arithmetic::power:
      return power(a, b);
  }
  return None{};
}

// How often `count` repeats, Python reading negative numbers as 0.
size_t repetitions(const Value& count) {
  return static_cast<size_t>(std::max<int64_t>(as_integer(count), 0));
}

Value repeat(const TracedText& text, const Value& count, Budget& budget) {
  const size_t times = text.empty() ? 0 : repetitions(count);
  if (times > budget.max_bytes() / std::max<size_t>(text.size(), 1))
    exhausted("a repeated text of {} x {} bytes is over the limit of {} (max_output_bytes)", times,
              text.size(), budget.max_bytes());
  TextWriter out(budget);
  for (size_t i = 0; i < times; ++i) {
    budget.step();
    out.write(text);
  }
  return out.take();
}

Value repeat(const Sequence& row, const Value& count, Budget& budget) {
  std::vector<Value> items;
  const size_t times = row.items.empty() ? 0 : repetitions(count);
  for (size_t i = 0; i < times; ++i) {
    budget.step(row.items.size());
    items.insert(items.end(), row.items.begin(), row.items.end());
  }
  return make_sequence(row.kind, std::move(items), budget);
}

bool is_row(const Value& value) {
  const Sequence* row = value.sequence();
  return row && (row->kind == Sequence::Kind::list || row->kind == Sequence::Kind::tuple);
}

Value join(const Value& left, const Value& right, Budget& budget) {
  if (left.text()) {
    TextWriter out(budget);
    out.write(*left.text());
    out.write(*right.text());
    return out.take();
  }
  budget.step(left.sequence()->items.size() + right.sequence()->items.size());
  std::vector<Value> items = left.sequence()->items;
  items.insert(items.end(), right.sequence()->items.begin(), right.sequence()->items.end());
  return make_sequence(left.sequence()->kind, std::move(items), budget);
}

bool can_join(const Value& left, const Value& right) {
  if (left.text() || right.text()) return left.text() && right.text();
  return is_row(left) && is_row(right) && left.sequence()->kind == right.sequence()->kind;
}

std::optional<Value> calculate_rows(Arithmetic op, const Value& left, const Value& right,
                                    Budget& budget) {
  if (op == Arithmetic::add && can_join(left, right)) return join(left, right, budget);
  if (op == Arithmetic::modulo && left.text()) return format_percent(*left.text(), right, budget);
  if (op != Arithmetic::multiply) return std::nullopt;
  const bool left_counts = left.is<int64_t>() || left.is<bool>();
  const Value& count = left_counts ? left : right;
  const Value& row = left_counts ? right : left;
  if (!count.is_integer() && !count.is<bool>()) return std::nullopt;
  if (row.text()) return repeat(*row.text(), count, budget);
  if (is_row(row)) return repeat(*row.sequence(), count, budget);
  return std::nullopt;
}

[[noreturn]] void no_operation(Arithmetic op, const Value& left, const Value& right) {
  if (op == Arithmetic::add && (left.text() || is_row(left)))
    raise("can only concatenate {0} (not \"{1}\") to {0}", type_name(left), type_name(right));
  raise("unsupported operand type(s) for {}: '{}' and '{}'", symbol_of(op), type_name(left),
        type_name(right));
}

}  // namespace

Value calculate(Arithmetic op, const Value& left, const Value& right, Budget& budget) {
  // "%" on a text reads its right operand like a function, so an Undefined there prints as nothing.
  if (!(op == Arithmetic::modulo && left.text())) {
    require_defined(left);
    require_defined(right);
  }
  if (left.is_number() && right.is_number()) {
    if (left.is<double>() || right.is<double>())
      return calculate_floats(op, as_float(left), as_float(right));
    return calculate_integers(op, as_integer(left), as_integer(right));
  }
  if (std::optional<Value> row = calculate_rows(op, left, right, budget)) return *std::move(row);
  no_operation(op, left, right);
}

Value negate(const Value& operand) {
  require_defined(operand);
  if (!operand.is_number()) raise("bad operand type for unary -: '{}'", type_name(operand));
  if (const double* number = operand.get<double>()) return -*number;
  return checked_multiply(as_integer(operand), -1);
}

Value positive(const Value& operand) {
  require_defined(operand);
  if (!operand.is_number()) raise("bad operand type for unary +: '{}'", type_name(operand));
  if (const bool* truth = operand.get<bool>()) return int64_t{*truth};
  return operand;
}

// --- Comparison ----------------------------------------------------------------------------------

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (const TracedText* text = container.text()) {
    const TracedText* part = item.text();
    if (!part) raise("'in <string>' requires string as left operand, not {}", type_name(item));
    budget.step(text->size() / 64);
    return text->view().find(part->view()) != std::string_view::npos;
  }
  if (const Dict* dict = container.dict()) {
    if (!is_hashable(item)) raise("unhashable type: '{}'", type_name(item));
    budget.step();
    return dict->find(item) != nullptr;
  }
  const Sequence* row = container.sequence();
  if (!row && !container.is_undefined())
    raise("argument of type '{}' is not iterable", type_name(container));
  if (row && row->kind != Sequence::Kind::generator) {
    return std::any_of(row->items.begin(), row->items.end(),
                       [&](const Value& other) { return equal(other, item, budget); });
  }
  for (const Value& other : items_of(container, budget))
    if (equal(other, item, budget)) return true;
  return false;
}

bool compare(Comparison op, const Value& left, const Value& right, Budget& budget) {
  switch (op) {
    case Comparison::eq:
      return equal(left, right, budget);
    case Comparison::ne:
      return !equal(left, right, budget);
    case Comparison::lt:
      return less(left, right, budget);
    case Comparison::gt:
      return less(right, left, budget);
    case Comparison::le:
      return less(left, right, budget) || equal(left, right, budget);
    case Comparison::ge:
      return less(right, left, budget) || equal(left, right, budget);
    case Comparison::in:
      return contains(right, left, budget);
    case Comparison::not_in:
      return !contains(right, left, budget);
  }
  return false;
}

// --- Subscripts ----------------------------------------------------------------------------------

namespace {

// Python's slice.indices(): which of `length` items a slice takes.
struct Indices {
  int64_t start, stop, step;
};

std::optional<int64_t> slice_part(const Value* part) {
  if (!part || part->is_none()) return std::nullopt;
  if (!part->is<int64_t>() && !part->is<bool>())
    raise("slice indices must be integers or None or have an __index__ method");
  return as_integer(*part);
}

Indices indices_of(const Value* start, const Value* stop, const Value* step, int64_t length) {
  Indices result{};
  result.step = slice_part(step).value_or(1);
  if (result.step == 0) raise("slice step cannot be zero");
  const bool backward = result.step < 0;
  const int64_t lowest = backward ? -1 : 0;
  const int64_t highest = backward ? length - 1 : length;
  const auto place = [&](std::optional<int64_t> part, int64_t standard) {
    if (!part) return standard;
    const int64_t from_start = *part < 0 ? std::max(*part, -length - 1) + length : *part;
    return std::clamp(from_start, lowest, std::max(lowest, highest));
  };
  result.start = place(slice_part(start), backward ? highest : lowest);
  result.stop = place(slice_part(stop), backward ? lowest : highest);
  return result;
}

// Calls take(index) for each index of the slice.
template <class Take>
void for_each_index(const Indices& indices, Budget& budget, Take&& take) {
  for (int64_t at = indices.start; indices.step > 0 ? at < indices.stop : at > indices.stop;) {
    budget.step();
    take(static_cast<size_t>(at));
    if (__builtin_add_overflow(at, indices.step, &at)) break;
  }
}

// Where each code point of a text begins, and its end.
std::vector<size_t> point_borders(std::string_view text) {
  std::vector<size_t> borders;
  for (size_t at = 0; at < text.size(); next_point(text, at)) borders.push_back(at);
  borders.push_back(text.size());
  return borders;
}

Value slice_text(const TracedText& text, const Indices& indices, Budget& budget) {
  TextWriter out(budget);
  if (indices.step == 1) {
    if (indices.start >= indices.stop) return TracedText();
    const size_t begin = byte_of_point(text.view(), static_cast<size_t>(indices.start));
    const size_t count = static_cast<size_t>(indices.stop - indices.start);
    out.write_part(text, begin, begin + byte_of_point(text.view().substr(begin), count));
    return out.take();
  }
  budget.step(text.size());
  const std::vector<size_t> borders = point_borders(text.view());
  for_each_index(indices, budget,
                 [&](size_t i) { out.write_part(text, borders[i], borders[i + 1]); });
  return out.take();
}

Value slice_row(const Sequence& row, const Indices& indices, Budget& budget) {
  std::vector<Value> items;
  for_each_index(indices, budget, [&](size_t i) { items.push_back(row.items[i]); });
  if (row.kind != Sequence::Kind::range) return make_sequence(row.kind, std::move(items), budget);
  // Unsigned, as the end of a huge range may wrap around.
  const auto multiple = [&](int64_t i) { return static_cast<uint64_t>(i) * row.step; };
  const auto at = [&](int64_t i) { return static_cast<int64_t>(row.start + multiple(i)); };
  return make_range(at(indices.start), at(indices.stop),
                    static_cast<int64_t>(multiple(indices.step)), budget);
}

// The index of an item or code point counted from the end if negative, or nothing.
std::optional<size_t> place_of(int64_t index, size_t length) {
  const auto size = static_cast<int64_t>(length);
  if (index < -size || index >= size) return std::nullopt;
  return static_cast<size_t>(index < 0 ? index + size : index);
}

std::optional<Value> item_at(const Value& object, int64_t index) {
  if (const Sequence* row = object.sequence(); row && row->can_index()) {
    const std::optional<size_t> place = place_of(index, row->items.size());
    if (place) return row->items[*place];
  } else if (const TracedText* text = object.text()) {
    const std::optional<size_t> place = place_of(index, count_points(text->view()));
    if (!place) return std::nullopt;
    const size_t begin = byte_of_point(text->view(), *place);
    size_t end = begin;
    next_point(text->view(), end);
    return Value(text->part(begin, end));
  }
  return std::nullopt;
}

std::string missing_item(const Value& object, const Value& index) {
  Budget budget{TemplateLimits{}};
  TextWriter shown(budget);
  write_repr(shown, index);
  const std::string text = shown.take().bytes();
  if (index.text()) return fmt::format("'{}' has no attribute {}", object_name(object), text);
  return fmt::format("{} has no element {}", object_name(object), text);
}

// The attributes of a for statement's `loop`.
std::optional<Value> loop_attribute(const LoopState& loop, std::string_view name) {
  const auto& items = loop.items->items;
  const size_t i = loop.index0;
  const auto number = [](size_t value) { return Value(static_cast<int64_t>(value)); };
  if (name == "index0") return number(i);
  if (name == "index") return number(i + 1);
  if (name == "first") return i == 0;
  if (name == "last") return i + 1 == items.size();
  if (name == "length") return number(items.size());
  if (name == "revindex") return number(items.size() - i);
  if (name == "revindex0") return number(items.size() - i - 1);
  if (name == "depth") return number(static_cast<size_t>(loop.depth0) + 1);
  if (name == "depth0") return number(static_cast<size_t>(loop.depth0));
  if (name == "previtem")
    return i > 0 ? items[i - 1] : Value::undefined("there is no previous item");
  if (name == "nextitem")
    return i + 1 < items.size() ? items[i + 1] : Value::undefined("there is no next item");
  return std::nullopt;
}

std::optional<Value> own_attribute(const Value& object, std::string_view name) {
  if (const LoopState* loop = object.loop()) {
    if (std::optional<Value> found = loop_attribute(*loop, name)) return found;
  }
  if (const Namespace* space = object.space()) {
    if (const Value* found = space->find(name)) return *found;
  }
  return find_method(object, name);
}

Value missing_attribute(const Value& object, std::string_view name) {
  return Value::undefined(fmt::format("'{}' has no attribute '{}'", object_name(object), name));
}

}  // namespace

Value slice(const Value& object, const Value* start, const Value* stop, const Value* step,
            Budget& budget) {
  require_defined(object);
  const Sequence* row = object.sequence();
  if (!object.text() && !(row && row->can_index()))
    raise("'{}' object is not subscriptable", type_name(object));
  budget.step(object.text() ? object.text()->size() / 64 : 0);
  const auto length = static_cast<int64_t>(*length_of(object));
  const Indices indices = indices_of(start, stop, step, length);
  if (row) return slice_row(*row, indices, budget);
  return slice_text(*object.text(), indices, budget);
}

Value get_item(const Value& object, const Value& index) {
  require_defined(object);
  if (const Dict* dict = object.dict()) {
    if (const Value* found = is_hashable(index) ? dict->find(index) : nullptr) return *found;
  } else if (index.is<int64_t>() || index.is<bool>()) {
    if (std::optional<Value> found = item_at(object, as_integer(index))) return *std::move(found);
  }
  if (const TracedText* name = index.text()) {
    if (std::optional<Value> found = own_attribute(object, name->view())) return *std::move(found);
  }
  return Value::undefined(missing_item(object, index));
}

Value get_attribute(const Value& object, std::string_view name) {
  require_defined(object);
  if (std::optional<Value> found = own_attribute(object, name)) return *std::move(found);
  if (const Dict* dict = object.dict()) {
    if (const Value* found = dict->find(name)) return *found;
  }
  return missing_attribute(object, name);
}

}  // namespace m2::text::jinja
