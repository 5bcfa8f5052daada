#include "text/jinja/value.h"

#include <cmath>

#include "text/jinja/repr.h"
#include "text/jinja/unicode.h"

namespace m2::text::jinja {

Value Value::undefined(std::string message) {
  Value value;
  value.state_ = Undefined{std::make_shared<const std::string>(std::move(message))};
  return value;
}

Value Value::big(uint64_t number) {
  if (number <= INT64_MAX) return Value(static_cast<int64_t>(number));
  Value value;
  value.state_ = number;
  return value;
}

Value Value::text(std::string_view bytes, Origin origin) {
  return Value(TracedText(std::string(bytes), origin));
}

// --- Making values -------------------------------------------------------------------------------

namespace {

int checked_depth(int deepest_part) {
  if (deepest_part >= kMaxValueDepth)
    exhausted("a value of the template nests deeper than {} levels (max_depth)", kMaxValueDepth);
  return deepest_part + 1;
}

int depth_of_all(const std::vector<Value>& items) {
  int deepest = 0;
  for (const Value& item : items) deepest = std::max(deepest, depth_of(item));
  return checked_depth(deepest);
}

}  // namespace

int depth_of(const Value& value) {
  if (const Sequence* sequence = value.sequence()) return sequence->depth;
  if (const Dict* dict = value.dict()) return dict->depth();
  if (const Callable* callable = value.callable()) return callable->depth();
  if (const LoopState* loop = value.loop()) return loop->items->depth + 1;
  return 0;
}

Value make_sequence(Sequence::Kind kind, std::vector<Value> items, Budget& budget) {
  budget.step(items.size());
  auto sequence = std::make_shared<Sequence>();
  sequence->kind = kind;
  sequence->depth = depth_of_all(items);
  sequence->items = std::move(items);
  return Value(SequenceRef(std::move(sequence)));
}

Value make_list(std::vector<Value> items, Budget& budget) {
  return make_sequence(Sequence::Kind::list, std::move(items), budget);
}

Value make_range(int64_t start, int64_t stop, int64_t step, Budget& budget) {
  constexpr size_t kMaxRange = 100'000;  // of the reference's sandbox
  if (step == 0) raise("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t at = start; step > 0 ? at < stop : at > stop;) {
    if (items.size() == kMaxRange)
      exhausted("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", kMaxRange);
    items.emplace_back(at);
    budget.step();
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  auto range = std::make_shared<Sequence>();
  range->kind = Sequence::Kind::range;
  range->items = std::move(items);
  range->start = start;
  range->stop = stop;
  range->step = step;
  return Value(SequenceRef(std::move(range)));
}

Value from_json(const Json& json, Budget& budget) {
  const Level guard(budget);
  budget.step();
  switch (json.type()) {
    case Json::value_t::boolean:
      return json.get<bool>();
    case Json::value_t::number_integer:
      return json.get<int64_t>();
    case Json::value_t::number_unsigned:
      return Value::big(json.get<uint64_t>());
    case Json::value_t::number_float:
      return json.get<double>();
    case Json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      budget.text(text.size(), text.size());
      return Value::text(text, Origin::variable);
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(from_json(item, budget));
      return make_list(std::move(items), budget);
    }
    case Json::value_t::object: {
      std::vector<Dict::Entry> entries;
      entries.reserve(json.size());
      for (const auto& [key, item] : json.items())
        entries.emplace_back(Value::text(key, Origin::variable), from_json(item, budget));
      return Dict::make(std::move(entries), budget);
    }
    default:
      return None{};
  }
}

// --- Dict ----------------------------------------------------------------------------------------

namespace {

constexpr size_t kSmallDict = 16;  // up to this size a scan is as fast as an index

std::string_view text_key(const Dict::Entry& entry) {
  return entry.first.text()->view();
}

}  // namespace

// Sorting instead of hashing: no set of keys makes it slow.
class DictBuilder {
 public:
  DictBuilder(Dict& dict, std::vector<Dict::Entry> entries, Budget& budget)
      : dict_(dict), budget_(budget), entries_(std::move(entries)) {}

  void build() {
    budget_.step(entries_.size());
    int deepest = 0;
    for (const auto& [key, value] : entries_) {
      if (!is_hashable(key)) raise("unhashable type: '{}'", type_name(key));
      deepest = std::max({deepest, depth_of(key), depth_of(value)});
    }
    dict_.depth_ = checked_depth(deepest);
    merge_equal_keys();
    dict_.entries_ = std::move(entries_);
    if (dict_.size() > kSmallDict) dict_.by_text_ = text_order(dict_.entries_);
  }

 private:
  static std::vector<uint32_t> text_order(const std::vector<Dict::Entry>& entries) {
    std::vector<uint32_t> order;
    for (uint32_t i = 0; i < entries.size(); ++i)
      if (entries[i].first.text()) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return text_key(entries[a]) < text_key(entries[b]);
    });
    return order;
  }

  void merge_equal_keys() {
    std::vector<bool> dropped(entries_.size());
    const std::vector<uint32_t> order = text_order(entries_);
    for (size_t i = order.size(); i-- > 1;) {
      if (text_key(entries_[order[i]]) == text_key(entries_[order[i - 1]]))
        merge(order[i], order[i - 1], dropped);
    }
    if (order.size() < entries_.size()) merge_other_keys(dropped);
    size_t kept = 0;
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (dropped[i]) continue;
      if (kept != i) entries_[kept] = std::move(entries_[i]);
      ++kept;
    }
    entries_.resize(kept);
  }

  // Keys that are not texts come from the template only, and are few.
  void merge_other_keys(std::vector<bool>& dropped) {
    for (size_t i = entries_.size(); i-- > 1;) {
      if (entries_[i].first.text()) continue;
      budget_.step(i);
      for (size_t j = 0; j < i; ++j) {
        if (!equal(entries_[i].first, entries_[j].first, budget_)) continue;
        merge(i, j, dropped);
        break;
      }
    }
  }

  void merge(size_t later, size_t earlier, std::vector<bool>& dropped) {
    entries_[earlier].second = std::move(entries_[later].second);
    dropped[later] = true;
  }

  Dict& dict_;
  Budget& budget_;
  std::vector<Dict::Entry> entries_;
};

DictRef Dict::make(std::vector<Entry> entries, Budget& budget) {
  auto dict = std::make_shared<Dict>();
  DictBuilder(*dict, std::move(entries), budget).build();
  return dict;
}

const Value* Dict::find(std::string_view key) const {
  if (size() <= kSmallDict) {
    for (const Entry& entry : entries_)
      if (entry.first.text() && text_key(entry) == key) return &entry.second;
    return nullptr;
  }
  const auto at = std::lower_bound(
      by_text_.begin(), by_text_.end(), key,
      [&](uint32_t i, std::string_view wanted) { return text_key(entries_[i]) < wanted; });
  if (at == by_text_.end() || text_key(entries_[*at]) != key) return nullptr;
  return &entries_[*at].second;
}

const Value* Dict::find(const Value& key) const {
  if (const TracedText* text = key.text()) return find(text->view());
  Budget unlimited{TemplateLimits{}};
  for (const Entry& entry : entries_)
    if (!entry.first.text() && equal(entry.first, key, unlimited)) return &entry.second;
  return nullptr;
}

// --- Namespace -----------------------------------------------------------------------------------

void Namespace::set(const std::string& name, Value value) {
  if (name.starts_with('_'))
    raise(
        "Chat templates cannot store underscore-prefixed attributes on a namespace, but got "
        "'{}'. Please rename the attribute.",
        name);
  for (auto& [known, old] : attributes)
    if (known == name) return void(old = std::move(value));
  attributes.emplace_back(name, std::move(value));
}

const Value* Namespace::find(std::string_view name) const {
  for (const auto& [known, value] : attributes)
    if (known == name) return &value;
  return nullptr;
}

// --- Looking at values ---------------------------------------------------------------------------

namespace {

std::string_view type_name(Sequence::Kind kind) {
  switch (kind) {
    case Sequence::Kind::list:
      return "list";
    case Sequence::Kind::tuple:
      return "tuple";
    case Sequence::Kind::range:
      return "range";
    case Sequence::Kind::generator:
      return "generator";
    case Sequence::Kind::dict_keys:
      return "dict_keys";
    case Sequence::Kind::dict_values:
      return "dict_values";
    case Sequence::Kind::dict_items:
      return "dict_items";
  }
  return {};
}

}  // namespace

std::string_view type_name(const Value& value) {
  if (const Sequence* sequence = value.sequence()) return type_name(sequence->kind);
  if (value.is_none()) return "NoneType";
  if (value.is_undefined()) return "Undefined";
  if (value.is<bool>()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is<double>()) return "float";
  if (value.text()) return "str";
  if (value.dict()) return "dict";
  if (value.space()) return "namespace";
  if (value.loop()) return "LoopContext";
  return "function";
}

std::string object_name(const Value& value) {
  if (value.is_none()) return "None";
  return std::string(type_name(value)) + " object";
}

bool is_true(const Value& value) {
  if (const bool* truth = value.get<bool>()) return *truth;
  if (const int64_t* number = value.get<int64_t>()) return *number != 0;
  if (const double* number = value.get<double>()) return *number != 0;
  if (value.is_none() || value.is_undefined()) return false;
  return length_of(value).value_or(1) != 0;
}

std::optional<size_t> length_of(const Value& value) {
  if (const TracedText* text = value.text()) return count_points(text->view());
  if (const Dict* dict = value.dict()) return dict->size();
  if (const LoopState* loop = value.loop()) return loop->items->items.size();
  if (value.is_undefined()) return 0;
  const Sequence* sequence = value.sequence();
  if (!sequence || sequence->kind == Sequence::Kind::generator) return std::nullopt;
  return sequence->items.size();
}

bool is_hashable(const Value& value) {
  if (value.dict()) return false;
  const Sequence* sequence = value.sequence();
  if (!sequence) return true;
  if (sequence->kind == Sequence::Kind::tuple)
    return std::all_of(sequence->items.begin(), sequence->items.end(), is_hashable);
  return sequence->kind != Sequence::Kind::list;
}

bool can_iterate(const Value& value) {
  return value.sequence() || value.dict() || value.text() || value.is_undefined() || value.loop();
}

namespace {

std::vector<Value> points_of(const TracedText& text, Budget& budget) {
  std::vector<Value> points;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    next_point(text.view(), at);
    budget.step(2);
    points.emplace_back(text.part(begin, at));
  }
  return points;
}

}  // namespace

std::vector<Value> items_of(const Value& value, Budget& budget) {
  if (const Sequence* sequence = value.sequence()) {
    if (sequence->kind == Sequence::Kind::generator && std::exchange(sequence->consumed, true))
      return {};
    budget.step(sequence->items.size());
    return sequence->items;
  }
  if (const Dict* dict = value.dict()) {
    std::vector<Value> keys;
    for (const auto& entry : dict->entries()) keys.push_back(entry.first);
    budget.step(keys.size());
    return keys;
  }
  if (const TracedText* text = value.text()) return points_of(*text, budget);
  if (value.is_undefined()) return {};
  raise("'{}' object is not iterable", type_name(value));
}

void require_defined(const Value& value) {
  if (const Undefined* undefined = value.get<Undefined>()) raise("{}", *undefined->message);
}

double as_float(const Value& value) {
  if (const double* number = value.get<double>()) return *number;
  if (const uint64_t* number = value.get<uint64_t>()) return static_cast<double>(*number);
  return static_cast<double>(as_integer(value));
}

int64_t as_integer(const Value& value) {
  require_defined(value);
  if (const int64_t* number = value.get<int64_t>()) return *number;
  if (const bool* truth = value.get<bool>()) return *truth ? 1 : 0;
  if (value.is<uint64_t>()) raise("integer is too large for this template engine (64 bits)");
  raise("'{}' object cannot be interpreted as an integer", type_name(value));
}

// --- Comparing -----------------------------------------------------------------------------------

namespace {

// -1, 0, 1; nothing if a NaN is compared. Integers above 2^63 equal no other integer, so comparing
// them as floats is exact enough only against floats.
std::optional<int> compare_numbers(const Value& left, const Value& right) {
  const auto sign = [](auto a, auto b) { return a < b ? -1 : a > b ? 1 : 0; };
  const uint64_t* big_left = left.get<uint64_t>();
  const uint64_t* big_right = right.get<uint64_t>();
  if (left.is<double>() || right.is<double>()) {
    const double a = as_float(left), b = as_float(right);
    if (std::isnan(a) || std::isnan(b)) return std::nullopt;
    return sign(a, b);
  }
  if (big_left && big_right) return sign(*big_left, *big_right);
  if (big_left || big_right) return big_left ? 1 : -1;
  return sign(as_integer(left), as_integer(right));
}

bool equal_sequences(const Sequence& left, const Sequence& right, Budget& budget) {
  if (&left == &right) return true;
  if (left.kind != right.kind || left.items.size() != right.items.size()) return false;
  if (!left.can_index()) return false;  // views and generators are compared by identity here
  for (size_t i = 0; i < left.items.size(); ++i)
    if (!equal(left.items[i], right.items[i], budget)) return false;
  return true;
}

bool equal_dicts(const Dict& left, const Dict& right, Budget& budget) {
  if (left.size() != right.size()) return false;
  for (const auto& [key, value] : left.entries()) {
    const Value* other = right.find(key);
    if (!other || !equal(value, *other, budget)) return false;
  }
  return true;
}

[[noreturn]] void no_order(const Value& left, const Value& right) {
  require_defined(left);
  require_defined(right);
  raise("'<' not supported between instances of '{}' and '{}'", type_name(left), type_name(right));
}

bool less_sequences(const Sequence& left, const Sequence& right, Budget& budget) {
  const size_t common = std::min(left.items.size(), right.items.size());
  for (size_t i = 0; i < common; ++i) {
    if (!equal(left.items[i], right.items[i], budget))
      return less(left.items[i], right.items[i], budget);
  }
  return left.items.size() < right.items.size();
}

}  // namespace

bool equal(const Value& left, const Value& right, Budget& budget) {
  budget.step();
  if (left.is_number() && right.is_number()) return compare_numbers(left, right) == 0;
  if (left.text() && right.text()) {
    budget.step(std::min(left.text()->size(), right.text()->size()) / 64);
    return left.text()->view() == right.text()->view();
  }
  if (left.sequence() && right.sequence())
    return equal_sequences(*left.sequence(), *right.sequence(), budget);
  if (left.dict() && right.dict()) return equal_dicts(*left.dict(), *right.dict(), budget);
  return identical(left, right);
}

bool identical(const Value& left, const Value& right) {
  if (left.state().index() != right.state().index()) return false;
  return std::visit(
      [&](const auto& mine) {
        using T = std::decay_t<decltype(mine)>;
        if constexpr (std::is_same_v<T, None> || std::is_same_v<T, Undefined>) {
          return true;
        } else {
          return mine == std::get<T>(right.state());
        }
      },
      left.state());
}

bool less(const Value& left, const Value& right, Budget& budget) {
  budget.step();
  if (left.is_number() && right.is_number()) return compare_numbers(left, right) == -1;
  if (left.text() && right.text()) return left.text()->view() < right.text()->view();
  const Sequence* a = left.sequence();
  const Sequence* b = right.sequence();
  const bool ordered = a && b && a->kind == b->kind &&
                       (a->kind == Sequence::Kind::list || a->kind == Sequence::Kind::tuple);
  if (!ordered) no_order(left, right);
  return less_sequences(*a, *b, budget);
}

}  // namespace m2::text::jinja
