#include "text/jinja/builtin_tables.h"
#include "text/jinja/format.h"
#include "text/jinja/text_functions.h"
#include "text/jinja/unicode.h"

// The methods of str, dict and list that do not change their object.

namespace m2::text::jinja {
namespace {

constexpr auto npos = std::string_view::npos;

const TracedText& self_of(const Call& call) {
  return *call.self.text();
}

// Argument i as a text; null if it is absent or None.
const TracedText* text_or_none(const Call& call, size_t i) {
  return call.find(i) && !call.at(i).is_none() ? &call.text(i) : nullptr;
}

Value number(size_t value) {
  return static_cast<int64_t>(value);
}

// --- str -----------------------------------------------------------------------------------------

template <Side S>
Value strip_method(Call& call) {
  return strip(self_of(call), text_or_none(call, 0), S);
}

template <auto Split>
Value split_method(Call& call) {
  std::vector<Value> parts =
      Split(self_of(call), text_or_none(call, 0), call.integer(1, -1), call.budget);
  return make_list(std::move(parts), call.budget);
}

Value splitlines(Call& call) {
  return make_list(split_lines(self_of(call), call.truth(0, false), call.budget), call.budget);
}

template <Change C>
Value change_method(Call& call) {
  return changed(self_of(call), C, call.budget);
}

Value replace_method(Call& call) {
  return replace(self_of(call), call.text(0), call.text(1), call.integer(2, -1), call.budget);
}

Value join_method(Call& call) {
  const std::vector<Value> items = items_of(call.at(0), call.budget);
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].text())
      raise("sequence item {}: expected str instance, {} found", i, type_name(items[i]));
  }
  return join_texts(self_of(call), items, call.budget);
}

// The bytes [begin, end) that the arguments start and stop, counted in code points, leave of a
// text.
struct Window {
  size_t begin, end;
  size_t first_point;  // number of the code point at begin
};

Window window_of(const Call& call, size_t start_argument) {
  const std::string_view text = self_of(call).view();
  const auto length = static_cast<int64_t>(count_points(text));
  const auto place = [&](size_t i, int64_t standard) {
    const int64_t index = call.integer(i, standard);
    return std::clamp<int64_t>(index < 0 ? std::max(index, -length) + length : index, 0, length);
  };
  const int64_t start = place(start_argument, 0);
  const int64_t stop = std::max(place(start_argument + 1, length), start);
  return {byte_of_point(text, static_cast<size_t>(start)),
          byte_of_point(text, static_cast<size_t>(stop)), static_cast<size_t>(start)};
}

// The index of the code point where the argument is found, or -1.
template <bool FromRight>
int64_t find_text(const Call& call) {
  const Window window = window_of(call, 1);
  const std::string_view text =
      self_of(call).view().substr(window.begin, window.end - window.begin);
  const std::string_view wanted = call.text(0).view();
  const size_t found = FromRight ? text.rfind(wanted) : text.find(wanted);
  if (found == npos) return -1;
  return static_cast<int64_t>(window.first_point + count_points(text.substr(0, found)));
}

template <bool FromRight>
Value find_method_of_text(Call& call) {
  return find_text<FromRight>(call);
}

template <bool FromRight>
Value index_method(Call& call) {
  const int64_t found = find_text<FromRight>(call);
  if (found < 0) raise("substring not found");
  return found;
}

template <bool (*Matches)(std::string_view, std::string_view)>
Value matches_method(Call& call) {
  const Window window = window_of(call, 1);
  const std::string_view text =
      self_of(call).view().substr(window.begin, window.end - window.begin);
  const Sequence* row = call.at(0).sequence();
  if (!row || row->kind != Sequence::Kind::tuple) return Matches(text, call.text(0).view());
  return std::any_of(row->items.begin(), row->items.end(), [&](const Value& item) {
    if (!item.text()) raise("tuple must only contain str, not {}", type_name(item));
    return Matches(text, item.text()->view());
  });
}

bool has_prefix(std::string_view text, std::string_view part) {
  return text.starts_with(part);
}
bool has_suffix(std::string_view text, std::string_view part) {
  return text.ends_with(part);
}

Value remove_prefix(Call& call) {
  const TracedText& text = self_of(call);
  const size_t cut = has_prefix(text.view(), call.text(0).view()) ? call.text(0).size() : 0;
  return text.part(cut, text.size());
}

Value remove_suffix(Call& call) {
  const TracedText& text = self_of(call);
  const size_t cut = has_suffix(text.view(), call.text(0).view()) ? call.text(0).size() : 0;
  return text.part(0, text.size() - cut);
}

template <bool FromRight>
Value partition(Call& call) {
  const TracedText& text = self_of(call);
  const std::string_view separator = call.text(0).view();
  if (separator.empty()) raise("empty separator");
  const size_t found = FromRight ? text.view().rfind(separator) : text.view().find(separator);
  size_t begin = found, end = found + separator.size();
  if (found == npos) begin = end = FromRight ? 0 : text.size();
  return make_sequence(Sequence::Kind::tuple,
                       {text.part(0, begin), text.part(begin, end), text.part(end, text.size())},
                       call.budget);
}

// Every code point is of a kind, and there is one.
template <bool (*Is)(char32_t)>
Value all_points(Call& call) {
  const std::string_view text = self_of(call).view();
  for (size_t at = 0; at < text.size();)
    if (!Is(next_point(text, at))) return false;
  return !text.empty();
}

bool is_alphanumeric(char32_t point) {
  return is_letter(point) || is_numeric(point);
}

template <bool (*Wanted)(char32_t), bool (*Unwanted)(char32_t)>
Value has_case(Call& call) {
  return apply(call.interpreter, *find_test(Wanted == is_lower ? "lower" : "upper"), call.self, {});
}

// The text between as many fill characters as make it `width` code points wide.
Value pad(Call& call, size_t left_share, size_t right_share) {
  const TracedText& text = self_of(call);
  const auto length = static_cast<int64_t>(count_points(text.view()));
  const int64_t missing = std::max<int64_t>(call.integer(0, 0) - length, 0);
  const TracedText space(" ", Origin::literal);
  const TracedText& fill = call.find(1) ? call.text(1) : space;
  if (count_points(fill.view()) != 1)
    raise("The fill character must be exactly one character long");
  const auto count = static_cast<size_t>(missing);
  size_t left = left_share == 0 ? 0 : count;
  // Python's rule for the odd character of a centred text.
  if (left_share != 0 && right_share != 0)
    left = count / 2 + (count & static_cast<size_t>(call.integer(0, 0)) & 1);
  TextWriter out(call.budget);
  for (size_t i = 0; i < left; ++i) out.write(fill);
  out.write(text);
  for (size_t i = left; i < count; ++i) out.write(fill);
  return out.take();
}

Value center(Call& call) {
  return pad(call, 1, 1);
}
Value align_left(Call& call) {
  return pad(call, 0, 1);
}
Value align_right(Call& call) {
  return pad(call, 1, 0);
}

Value zero_fill(Call& call) {
  const TracedText& text = self_of(call);
  const size_t sign = text.view().starts_with('-') || text.view().starts_with('+') ? 1 : 0;
  const auto length = static_cast<int64_t>(count_points(text.view()));
  TextWriter out(call.budget);
  out.write_part(text, 0, sign);
  out.fill(static_cast<size_t>(std::max<int64_t>(as_integer(call.at(0)) - length, 0)), '0');
  out.write_part(text, sign, text.size());
  return out.take();
}

Value format(Call& call) {
  return format_braces(self_of(call), call.arguments, call.budget);
}

Value count_text(Call& call) {
  const Window window = window_of(call, 1);
  return count_of(self_of(call).part(window.begin, window.end), call.text(0));
}

constexpr Builtin kTextMethods[] = {
    {"split", "sep? maxsplit?", split_method<split>},
    {"strip", "chars?", strip_method<Side::both>},
    {"lstrip", "chars?", strip_method<Side::left>},
    {"rstrip", "chars?", strip_method<Side::right>},
    {"startswith", "prefix start? end?", matches_method<has_prefix>},
    {"endswith", "suffix start? end?", matches_method<has_suffix>},
    {"replace", "old new count?", replace_method},
    {"upper", "", change_method<anywhere<to_upper>>},
    {"lower", "", change_method<anywhere<to_lower>>},
    {"title", "", change_method<to_title>},
    {"capitalize", "", change_method<to_capitalized>},
    {"join", "iterable", join_method},
    {"rsplit", "sep? maxsplit?", split_method<split_from_right>},
    {"splitlines", "keepends?", splitlines},
    {"find", "sub start? end?", find_method_of_text<false>},
    {"rfind", "sub start? end?", find_method_of_text<true>},
    {"index", "sub start? end?", index_method<false>},
    {"rindex", "sub start? end?", index_method<true>},
    {"count", "sub start? end?", count_text},
    {"removeprefix", "prefix", remove_prefix},
    {"removesuffix", "suffix", remove_suffix},
    {"partition", "sep", partition<false>},
    {"rpartition", "sep", partition<true>},
    {"isdigit", "", all_points<is_digit>},
    {"isdecimal", "", all_points<is_decimal>},
    {"isnumeric", "", all_points<is_numeric>},
    {"isalpha", "", all_points<is_letter>},
    {"isalnum", "", all_points<is_alphanumeric>},
    {"isspace", "", all_points<is_space>},
    {"isprintable", "", all_points<is_printable>},
    {"islower", "", has_case<is_lower, is_upper>},
    {"isupper", "", has_case<is_upper, is_lower>},
    {"center", "width fillchar?", center},
    {"ljust", "width fillchar?", align_left},
    {"rjust", "width fillchar?", align_right},
    {"zfill", "width", zero_fill},
    {"format", "*", format},
};

// --- dict ----------------------------------------------------------------------------------------

Value get(Call& call) {
  if (!is_hashable(call.at(0))) raise("unhashable type: '{}'", type_name(call.at(0)));
  if (const Value* found = call.self.dict()->find(call.at(0))) return *found;
  return call.find(1) ? call.at(1) : Value();
}

template <Sequence::Kind Kind>
Value view(Call& call) {
  std::vector<Value> items;
  for (const auto& [key, value] : call.self.dict()->entries()) {
    if (Kind == Sequence::Kind::dict_keys) items.push_back(key);
    if (Kind == Sequence::Kind::dict_values) items.push_back(value);
    if (Kind == Sequence::Kind::dict_items)
      items.push_back(make_sequence(Sequence::Kind::tuple, {key, value}, call.budget));
  }
  return make_sequence(Kind, std::move(items), call.budget);
}

constexpr Builtin kDictMethods[] = {
    {"get", "key default?", get},
    {"items", "", view<Sequence::Kind::dict_items>},
    {"keys", "", view<Sequence::Kind::dict_keys>},
    {"values", "", view<Sequence::Kind::dict_values>},
    {"copy", "", [](Call& call) { return call.self; }},
};

// --- list and tuple ------------------------------------------------------------------------------

Value index_of_item(Call& call) {
  const auto& items = call.self.sequence()->items;
  for (size_t i = 0; i < items.size(); ++i)
    if (equal(items[i], call.at(0), call.budget)) return number(i);
  raise("{} is not in list", type_name(call.at(0)));
}

Value count_item(Call& call) {
  const auto& items = call.self.sequence()->items;
  return static_cast<int64_t>(std::count_if(items.begin(), items.end(), [&](const Value& item) {
    return equal(item, call.at(0), call.budget);
  }));
}

constexpr Builtin kListMethods[] = {
    {"index", "value", index_of_item},
    {"count", "value", count_item},
    {"copy", "", [](Call& call) { return call.self; }},
};

}  // namespace

std::span<const Builtin> text_method_table() {
  return kTextMethods;
}
std::span<const Builtin> dict_method_table() {
  return kDictMethods;
}
std::span<const Builtin> list_method_table() {
  return kListMethods;
}

}  // namespace m2::text::jinja
