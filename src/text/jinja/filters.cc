#include <charconv>
#include <cmath>

#include "text/jinja/builtin_tables.h"
#include "text/jinja/format.h"
#include "text/jinja/operators.h"
#include "text/jinja/repr.h"
#include "text/jinja/text_functions.h"
#include "text/jinja/unicode.h"

// Jinja's filters.

namespace m2::text::jinja {

// --- What several filters need -------------------------------------------------------------------

namespace {

Value path_part(std::string_view part) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
  const bool is_number = error == std::errc() && end == part.data() + part.size() && part[0] != '-';
  return is_number ? Value(number) : Value::text(part);
}

template <class Visit>
void for_each_part(std::string_view text, char separator, Visit&& visit) {
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(separator, at), text.size());
    visit(text.substr(at, end - at));
    at = end + 1;
  }
}

}  // namespace

Value follow_path(const Value& object, const Value& path) {
  if (path.is_none()) return object;
  if (!path.text()) return get_item(object, path);
  Value value = object;
  for_each_part(path.text()->view(), '.',
                [&](std::string_view part) { value = get_item(value, path_part(part)); });
  return value;
}

Value apply_filter(Call& call, const Value& name, const Value& self, const Arguments& arguments) {
  const std::string text = to_text(name, call.budget).bytes();
  const Builtin* filter = find_filter(text);
  if (!filter) raise("No filter named '{}'.", text);
  const Level level(call.budget);
  return apply(call.interpreter, *filter, self, arguments);
}

Value apply_test(Call& call, const Value& name, const Value& self, const Arguments& arguments) {
  const std::string text = to_text(name, call.budget).bytes();
  const Builtin* test = find_test(text);
  if (!test) raise("No test named '{}'.", text);
  return apply(call.interpreter, *test, self, arguments);
}

namespace {

Value ignore_case(Value value, bool case_sensitive, Budget& budget) {
  if (case_sensitive || !value.text()) return value;
  return changed(*value.text(), anywhere<to_lower>, budget);
}

Value make_generator(std::vector<Value> items, Budget& budget) {
  return make_sequence(Sequence::Kind::generator, std::move(items), budget);
}

std::vector<Value> self_items(Call& call) {
  return items_of(call.self, call.budget);
}

Value argument_or(const Call& call, size_t i, Value standard) {
  return call.find(i) ? call.at(i) : standard;
}

// --- Texts ---------------------------------------------------------------------------------------

template <Change C>
Value change_filter(Call& call) {
  return changed(call.self_text(), C, call.budget);
}

// Jinja's own idea of a title: words begin behind spaces and opening brackets only.
std::string title_words(std::string_view text, bool& in_word) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t point = next_point(text, at);
    const bool separates = is_space(point) || point == '-' || point == '(' || point == '{' ||
                           point == '[' || point == '<';
    const std::string_view bytes = text.substr(begin, at - begin);
    out += !in_word && !separates ? to_upper(bytes) : to_lower(bytes);
    in_word = !separates;
  }
  return out;
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Value trim(Call& call) {
  const bool has_chars = call.find(0) && !call.at(0).is_none();
  return strip(call.self_text(), has_chars ? &call.text(0) : nullptr, Side::both);
}

Value replace_filter(Call& call) {
  return replace(call.self_text(), to_text(call.at(0), call.budget),
                 to_text(call.at(1), call.budget), call.integer(2, -1), call.budget);
}

Value format_filter(Call& call) {
  const auto& [positional, named] = call.arguments;
  if (!positional.empty() && !named.empty())
    raise("can't handle positional and keyword arguments at the same time");
  if (named.empty()) {
    const Value row = make_sequence(Sequence::Kind::tuple, positional, call.budget);
    return format_percent(call.self_text(), row, call.budget);
  }
  std::vector<Dict::Entry> entries;
  for (const auto& [name, value] : named) entries.emplace_back(Value::text(name), value);
  const Value names = Dict::make(std::move(entries), call.budget);
  return format_percent(call.self_text(), names, call.budget);
}

// The lines of a text, each after the first behind `width` spaces (or that text).
Value indent(Call& call) {
  require_defined(call.self);
  if (!call.self.text()) raise("unsupported operand type for indent: '{}'", type_name(call.self));
  const Value width = argument_or(call, 0, int64_t{4});
  TextWriter space(call.budget);
  if (width.text()) {
    space.write(*width.text());
  } else {
    const int64_t count = std::max<int64_t>(as_integer(width), 0);
    space.fill(static_cast<size_t>(count), ' ');
  }
  const TracedText indentation = space.take();
  TracedText text = *call.self.text();
  text.append("\n", Origin::literal);  // so that a last empty line counts
  const std::vector<Value> lines = split_lines(text, false, call.budget);
  TextWriter out(call.budget);
  for (size_t i = 0; i < lines.size(); ++i) {
    const TracedText& line = *lines[i].text();
    if (i > 0) out.write("\n");
    const bool wanted = i > 0 ? call.truth(2, false) || !line.empty() : call.truth(1, false);
    if (wanted) out.write(indentation);
    out.write(line);
  }
  return out.take();
}

Value center(Call& call) {
  Arguments width;
  width.positional.push_back(argument_or(call, 0, int64_t{80}));
  const Value text = call.self_text();
  return apply(call.interpreter, *find_in(text_method_table(), "center"), text, width);
}

Value word_count(Call& call) {
  const TracedText text = call.self_text();
  int64_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t point = next_point(text.view(), at);
    const bool is_word = point == '_' || is_letter(point) || is_numeric(point);
    if (is_word && !inside) ++words;
    inside = is_word;
  }
  return words;
}

Value truncate(Call& call) {
  const std::optional<size_t> size = length_of(call.self);
  if (!size) raise("object of type '{}' has no len()", type_name(call.self));
  const int64_t length = call.integer(0, 255);
  const TracedText dots("...", Origin::literal);
  const TracedText& end = call.find(2) ? call.text(2) : dots;
  const int64_t leeway = call.integer(3, 5);
  const int64_t kept = length - static_cast<int64_t>(count_points(end.view()));
  if (kept < 0) raise("expected length >= {}, got {}", count_points(end.view()), length);
  if (leeway < 0) raise("expected leeway >= 0, got {}", leeway);
  if (static_cast<int64_t>(*size) - leeway <= length) return call.self;
  if (!call.self.text()) raise("'{}' object cannot be truncated", type_name(call.self));
  const TracedText& text = *call.self.text();
  size_t cut = byte_of_point(text.view(), static_cast<size_t>(kept));
  if (!call.truth(1, false)) {
    const size_t space = text.view().substr(0, cut).rfind(' ');
    if (space != std::string_view::npos) cut = space;
  }
  TextWriter out(call.budget);
  out.write_part(text, 0, cut);
  out.write(end);
  return out.take();
}

Value join_filter(Call& call) {
  std::vector<Value> items = self_items(call);
  if (call.find(1) && !call.at(1).is_none())
    for (Value& item : items) item = follow_path(item, call.at(1));
  const TracedText separator = call.find(0) ? to_text(call.at(0), call.budget) : TracedText();
  return join_texts(separator, items, call.budget);
}

// --- JSON ----------------------------------------------------------------------------------------

void read_separators(const Value& separators, JsonStyle& style, Budget& budget) {
  const std::vector<Value> pair = items_of(separators, budget);
  if (pair.size() != 2 || !pair[0].text() || !pair[1].text())
    raise("separators must be a pair of strings");
  style.item_separator = pair[0].text()->bytes();
  style.key_separator = pair[1].text()->bytes();
}

Value tojson(Call& call) {
  JsonStyle style;
  style.ensure_ascii = call.truth(0, false);
  style.sort_keys = call.truth(3, false);
  if (call.find(1) && !call.at(1).is_none()) {
    const Value& indent = call.at(1);
    constexpr int64_t kMaxIndent = 1000;
    style.item_separator = ",";
    style.indent =
        indent.text()
            ? indent.text()->bytes()
            : std::string(
                  static_cast<size_t>(std::clamp<int64_t>(as_integer(indent), 0, kMaxIndent)), ' ');
  }
  if (call.find(2) && !call.at(2).is_none()) read_separators(call.at(2), style, call.budget);
  TextWriter out(call.budget);
  write_json(out, call.self, style);
  return out.take();
}

// --- Numbers -------------------------------------------------------------------------------------

// float(text), if it is one.
std::optional<double> parse_float(const TracedText& text) {
  const TracedText stripped = strip(text, nullptr, Side::both);
  std::string digits = stripped.bytes();
  std::erase(digits, '_');
  std::string_view view = digits;
  if (view.starts_with('+')) view.remove_prefix(1);
  if (view.starts_with("+") || view.find_first_of("(xX") != std::string_view::npos)
    return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (end != view.data() + view.size() || view.empty()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return std::nullopt;
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

// int(text, base), if it is one.
std::optional<int64_t> parse_integer(const TracedText& text, int64_t base) {
  const TracedText stripped = strip(text, nullptr, Side::both);
  std::string digits = stripped.bytes();
  std::erase(digits, '_');
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.erase(0, 1);
  const char mark = digits.size() > 1 && digits[0] == '0' ? static_cast<char>(digits[1] | 32) : 0;
  const int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  if (marked != 0 && (base == marked || base == 0)) digits.erase(0, 2);
  if (base == 0) base = marked != 0 ? marked : 10;
  if (base < 2 || base > 36) return std::nullopt;
  if (negative) digits.insert(0, 1, '-');
  int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, static_cast<int>(base));
  if (error == std::errc::result_out_of_range)
    raise("integer is too large for this template engine (64 bits)");
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<int64_t> truncated(std::optional<double> number) {
  if (!number || !std::isfinite(*number)) return std::nullopt;
  if (std::fabs(*number) >= 9.2e18) raise("integer is too large for this template engine");
  return static_cast<int64_t>(*number);
}

Value int_filter(Call& call) {
  require_defined(call.self);
  const Value standard = argument_or(call, 0, int64_t{0});
  if (call.self.is_integer()) return call.self;
  std::optional<int64_t> number;
  if (const TracedText* text = call.self.text()) {
    number = parse_integer(*text, call.integer(1, 10));
    if (!number) number = truncated(parse_float(*text));
  } else if (call.self.is_number()) {
    number = truncated(as_float(call.self));
  }
  return number ? Value(*number) : standard;
}

Value float_filter(Call& call) {
  require_defined(call.self);
  if (call.self.is_number()) return as_float(call.self);
  if (const TracedText* text = call.self.text())
    if (const std::optional<double> number = parse_float(*text)) return *number;
  return argument_or(call, 0, 0.0);
}

Value abs_filter(Call& call) {
  require_defined(call.self);
  if (!call.self.is_number()) raise("bad operand type for abs(): '{}'", type_name(call.self));
  if (const double* number = call.self.get<double>()) return std::fabs(*number);
  if (call.self.is<uint64_t>()) return call.self;
  return as_integer(call.self) < 0 ? negate(call.self) : positive(call.self);
}

// round(number, precision) of Python: to the nearest, halves of the exact value to even.
double round_half_even(double number, int64_t precision) {
  if (!std::isfinite(number) || precision > 400) return number;
  if (precision < 0) {
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    return std::isinf(scale) ? 0.0 * number : std::nearbyint(number / scale) * scale;
  }
  std::array<char, 800> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number,
                                 std::chars_format::fixed, static_cast<int>(precision))
                       .ptr;
  double rounded = 0;
  std::from_chars(text.data(), end, rounded);
  return rounded;
}

Value round_filter(Call& call) {
  require_defined(call.self);
  const int64_t precision = call.integer(0, 0);
  const std::string method = call.find(1) ? to_text(call.at(1), call.budget).bytes() : "common";
  if (method != "common" && method != "ceil" && method != "floor")
    raise("method must be common, ceil or floor");
  if (!call.self.is_number())
    raise("type {} doesn't define __round__ method", type_name(call.self));
  if (method == "common") {
    if (!call.self.is<double>() && precision >= 0) return positive(call.self);
    return round_half_even(as_float(call.self), precision);
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = as_float(call.self) * scale;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

// --- Rows ----------------------------------------------------------------------------------------

Value length_filter(Call& call) {
  if (const std::optional<size_t> length = length_of(call.self))
    return static_cast<int64_t>(*length);
  raise("object of type '{}' has no len()", type_name(call.self));
}

Value first(Call& call) {
  if (const Sequence* row = call.self.sequence(); row && row->kind != Sequence::Kind::generator) {
    if (!row->items.empty()) return row->items.front();
  } else if (const TracedText* text = call.self.text()) {
    size_t end = 0;
    if (!text->empty()) return next_point(text->view(), end), text->part(0, end);
  } else if (std::vector<Value> items = self_items(call); !items.empty()) {
    return items.front();
  }
  return Value::undefined("No first item, sequence was empty.");
}

void require_reversible(const Value& value) {
  const Sequence* row = value.sequence();
  if (row && row->kind == Sequence::Kind::generator) raise("'generator' object is not reversible");
}

Value last(Call& call) {
  require_reversible(call.self);
  if (const Sequence* row = call.self.sequence())
    if (!row->items.empty()) return row->items.back();
  const std::vector<Value> items = self_items(call);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value reverse(Call& call) {
  std::vector<Value> items = self_items(call);
  std::reverse(items.begin(), items.end());
  if (!call.self.text()) return make_generator(std::move(items), call.budget);
  return join_texts(TracedText(), items, call.budget);
}

Value list_filter(Call& call) {
  return make_list(self_items(call), call.budget);
}

Value items_filter(Call& call) {
  if (call.self.is_undefined()) return make_generator({}, call.budget);
  const Dict* dict = call.self.dict();
  if (!dict) raise("Can only get item pairs from a mapping.");
  std::vector<Value> pairs;
  for (const auto& [key, value] : dict->entries())
    pairs.push_back(make_sequence(Sequence::Kind::tuple, {key, value}, call.budget));
  return make_generator(std::move(pairs), call.budget);
}

// Sorts values by keys made of them, keeping the order of equals.
std::vector<Value> sorted(std::vector<Value> items, const std::vector<Value>& keys, bool reverse,
                          Budget& budget) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return reverse ? less(keys[b], keys[a], budget) : less(keys[a], keys[b], budget);
  });
  std::vector<Value> result;
  for (const size_t i : order) result.push_back(std::move(items[i]));
  return result;
}

// What an item is sorted by: its attributes, separated by commas in `attribute`, as a list.
Value sort_key(const Value& item, const Value& attribute, bool case_sensitive, Budget& budget) {
  std::vector<Value> key;
  const auto add = [&](const Value& path) {
    key.push_back(ignore_case(follow_path(item, path), case_sensitive, budget));
  };
  if (attribute.text()) {
    for_each_part(attribute.text()->view(), ',',
                  [&](std::string_view path) { add(Value::text(path)); });
  } else {
    add(attribute);
  }
  return make_list(std::move(key), budget);
}

Value sort(Call& call) {
  std::vector<Value> items = self_items(call);
  std::vector<Value> keys;
  for (const Value& item : items)
    keys.push_back(sort_key(item, argument_or(call, 2, None{}), call.truth(1, false), call.budget));
  return make_list(sorted(std::move(items), keys, call.truth(0, false), call.budget), call.budget);
}

Value dictsort(Call& call) {
  const Dict* dict = call.self.dict();
  require_defined(call.self);
  if (!dict) raise("'{}' has no attribute 'items'", object_name(call.self));
  const std::string by = call.find(1) ? to_text(call.at(1), call.budget).bytes() : "key";
  if (by != "key" && by != "value") raise("You can only sort by either \"key\" or \"value\"");
  std::vector<Value> pairs, keys;
  for (const auto& [key, value] : dict->entries()) {
    pairs.push_back(make_sequence(Sequence::Kind::tuple, {key, value}, call.budget));
    keys.push_back(ignore_case(by == "key" ? key : value, call.truth(0, false), call.budget));
  }
  return make_list(sorted(std::move(pairs), keys, call.truth(2, false), call.budget), call.budget);
}

Value unique(Call& call) {
  std::vector<Value> kept, seen;
  for (const Value& item : self_items(call)) {
    Value key = ignore_case(follow_path(item, argument_or(call, 1, None{})), call.truth(0, false),
                            call.budget);
    if (!is_hashable(key)) raise("unhashable type: '{}'", type_name(key));
    const bool is_new = std::none_of(seen.begin(), seen.end(), [&](const Value& other) {
      return equal(other, key, call.budget);
    });
    if (!is_new) continue;
    seen.push_back(std::move(key));
    kept.push_back(item);
  }
  return make_generator(std::move(kept), call.budget);
}

// The smallest item, or the largest.
template <bool Largest>
Value extreme(Call& call) {
  const std::vector<Value> items = self_items(call);
  if (items.empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const auto key_of = [&](const Value& item) {
    return ignore_case(follow_path(item, argument_or(call, 1, None{})), call.truth(0, false),
                       call.budget);
  };
  const Value* best = &items[0];
  Value best_key = key_of(items[0]);
  for (size_t i = 1; i < items.size(); ++i) {
    Value key = key_of(items[i]);
    const bool better =
        Largest ? less(best_key, key, call.budget) : less(key, best_key, call.budget);
    if (!better) continue;
    best = &items[i];
    best_key = std::move(key);
  }
  return *best;
}

Value sum(Call& call) {
  Value total = argument_or(call, 1, int64_t{0});
  if (total.text()) raise("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : self_items(call)) {
    const Value part = follow_path(item, argument_or(call, 0, None{}));
    total = calculate(Arithmetic::add, total, part, call.budget);
  }
  return total;
}

Value batch(Call& call) {
  const int64_t size = as_integer(call.at(0));
  std::vector<Value> rows, row;
  for (Value& item : self_items(call)) {
    if (static_cast<int64_t>(row.size()) == size) {
      rows.push_back(make_list(std::move(row), call.budget));
      row.clear();
    }
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    const bool fills = call.find(1) && !call.at(1).is_none();
    for (; fills && static_cast<int64_t>(row.size()) < size; call.budget.step())
      row.push_back(call.at(1));
    rows.push_back(make_list(std::move(row), call.budget));
  }
  return make_generator(std::move(rows), call.budget);
}

Value slice_filter(Call& call) {
  const std::vector<Value> items = self_items(call);
  const int64_t count = as_integer(call.at(0));
  if (count == 0) raise("integer division or modulo by zero");
  const auto slices = static_cast<size_t>(std::max<int64_t>(count, 0));
  std::vector<Value> rows;
  size_t at = 0;
  for (size_t i = 0; i < slices; ++i) {
    const bool has_extra = i < items.size() % slices;
    const size_t end = at + items.size() / slices + (has_extra ? 1 : 0);
    std::vector<Value> row(items.begin() + static_cast<ptrdiff_t>(at),
                           items.begin() + static_cast<ptrdiff_t>(end));
    at = end;
    if (call.find(1) && !call.at(1).is_none() && !has_extra) row.push_back(call.at(1));
    call.budget.step();
    rows.push_back(make_list(std::move(row), call.budget));
  }
  return make_generator(std::move(rows), call.budget);
}

// --- Filters that apply others -------------------------------------------------------------------

// The arguments from number `first` on, for a filter or test that is applied to each item.
Arguments arguments_from(const Arguments& arguments, size_t first) {
  Arguments rest;
  for (size_t i = first; i < arguments.positional.size(); ++i)
    rest.positional.push_back(arguments.positional[i]);
  rest.named = arguments.named;
  return rest;
}

// map(attribute="...", default=...).
std::vector<Value> map_attribute(Call& call) {
  const Value* path = nullptr;
  Value standard;
  for (const auto& [name, value] : call.arguments.named) {
    if (name == "attribute") {
      path = &value;
    } else if (name == "default") {
      standard = value;
    } else {
      raise("Unexpected keyword argument '{}'", name);
    }
  }
  if (!path) raise("map requires a filter argument");
  std::vector<Value> results;
  for (const Value& item : self_items(call)) {
    Value found = follow_path(item, *path);
    results.push_back(found.is_undefined() && !standard.is_none() ? standard : std::move(found));
  }
  return results;
}

Value map(Call& call) {
  if (!is_true(call.self)) return make_generator({}, call.budget);
  const auto& positional = call.arguments.positional;
  if (positional.empty()) return make_generator(map_attribute(call), call.budget);
  const Arguments rest = arguments_from(call.arguments, 1);
  std::vector<Value> results;
  for (const Value& item : self_items(call))
    results.push_back(apply_filter(call, positional[0], item, rest));
  return make_generator(std::move(results), call.budget);
}

// select, reject, selectattr, rejectattr: keeps the items whose value (or attribute) passes a test,
// or fails it.
template <bool Keep, bool ByAttribute>
Value select(Call& call) {
  if (!is_true(call.self)) return make_generator({}, call.budget);
  const auto& positional = call.arguments.positional;
  const size_t test = ByAttribute ? 1 : 0;
  if (positional.size() < test) raise("Missing parameter for attribute name");
  const Arguments rest = arguments_from(call.arguments, test + 1);
  std::vector<Value> kept;
  for (const Value& item : self_items(call)) {
    const Value subject = ByAttribute ? follow_path(item, positional[0]) : item;
    const bool passes = positional.size() > test
                            ? is_true(apply_test(call, positional[test], subject, rest))
                            : is_true(subject);
    if (passes == Keep) kept.push_back(item);
  }
  return make_generator(std::move(kept), call.budget);
}

Value standard(Call& call) {
  const bool missing = call.self.is_undefined() || (call.truth(1, false) && !is_true(call.self));
  return missing ? argument_or(call, 0, TracedText()) : call.self;
}

Value attribute(Call& call) {
  require_defined(call.self);
  const TracedText name = to_text(call.at(0), call.budget);
  if (call.self.dict() && !find_method(call.self, name.view()))
    return Value::undefined(
        fmt::format("'{}' has no attribute '{}'", object_name(call.self), name.view()));
  return get_attribute(call.self, name.view());
}

constexpr Builtin kFilters[] = {
    {"tojson", "ensure_ascii? indent? separators? sort_keys?", tojson},
    {"trim", "chars?", trim},
    {"length", "", length_filter},
    {"count", "", length_filter},
    {"join", "d? attribute?", join_filter},
    {"default", "default_value? boolean?", standard},
    {"d", "default_value? boolean?", standard},
    {"first", "", first},
    {"last", "", last},
    {"list", "", list_filter},
    {"items", "", items_filter},
    {"string", "", [](Call& call) -> Value { return call.self_text(); }},
    {"safe", "", [](Call& call) -> Value { return call.self_text(); }},
    {"upper", "", change_filter<anywhere<to_upper>>},
    {"lower", "", change_filter<anywhere<to_lower>>},
    {"capitalize", "", change_filter<to_capitalized>},
    {"title", "", change_filter<title_words>},
    {"escape", "", change_filter<anywhere<escape_html>>},
    {"e", "", change_filter<anywhere<escape_html>>},
    {"forceescape", "", change_filter<anywhere<escape_html>>},
    {"replace", "old new count?", replace_filter},
    {"format", "*", format_filter},
    {"indent", "width? first? blank?", indent},
    {"center", "width?", center},
    {"truncate", "length? killwords? end? leeway?", truncate},
    {"wordcount", "", word_count},
    {"int", "default? base?", int_filter},
    {"float", "default?", float_filter},
    {"abs", "", abs_filter},
    {"round", "precision? method?", round_filter},
    {"map", "*", map},
    {"select", "*", select<true, false>},
    {"reject", "*", select<false, false>},
    {"selectattr", "*", select<true, true>},
    {"rejectattr", "*", select<false, true>},
    {"sort", "reverse? case_sensitive? attribute?", sort},
    {"dictsort", "case_sensitive? by? reverse?", dictsort},
    {"unique", "case_sensitive? attribute?", unique},
    {"min", "case_sensitive? attribute?", extreme<false>},
    {"max", "case_sensitive? attribute?", extreme<true>},
    {"sum", "attribute? start?", sum},
    {"reverse", "", reverse},
    {"batch", "linecount fill_with?", batch},
    {"slice", "slices fill_with?", slice_filter},
    {"attr", "name", attribute},
};

}  // namespace

std::span<const Builtin> filter_table() {
  return kFilters;
}

}  // namespace m2::text::jinja
