#include <ctime>

#include "text/jinja/builtin_tables.h"

// The global functions of Hugging Face's template environment.

namespace m2::text::jinja {
namespace {

Value range(Call& call) {
  const bool one = !call.find(1);
  const int64_t start = one ? 0 : as_integer(call.at(0));
  const int64_t stop = as_integer(call.at(one ? 0 : 1));
  return make_range(start, stop, call.find(2) ? as_integer(call.at(2)) : 1, call.budget);
}

// The entries of a mapping, or of an iterable of pairs.
std::vector<Dict::Entry> entries_of(const Value& value, Budget& budget) {
  if (value.dict()) {
    budget.step(value.dict()->size());
    return value.dict()->entries();
  }
  std::vector<Dict::Entry> entries;
  for (const Value& item : items_of(value, budget)) {
    std::vector<Value> pair = items_of(item, budget);
    if (pair.size() != 2)
      raise("dictionary update sequence element has length {}; 2 is required", pair.size());
    entries.emplace_back(std::move(pair[0]), std::move(pair[1]));
  }
  return entries;
}

// What dict(...) and namespace(...) are called with: one mapping, then names.
std::vector<Dict::Entry> all_entries(Call& call) {
  const auto& [positional, named] = call.arguments;
  if (positional.size() > 1) raise("dict expected at most 1 argument, got {}", positional.size());
  std::vector<Dict::Entry> entries;
  if (!positional.empty()) entries = entries_of(positional[0], call.budget);
  for (const auto& [name, value] : named) entries.emplace_back(Value::text(name), value);
  return entries;
}

Value make_dict(Call& call) {
  return Dict::make(all_entries(call), call.budget);
}

Value make_namespace(Call& call) {
  std::vector<std::pair<std::string, Value>> attributes;
  for (auto& [key, value] : all_entries(call))
    attributes.emplace_back(to_text(key, call.budget).bytes(), std::move(value));
  return call.interpreter.make_namespace(std::move(attributes));
}

Value raise_exception(Call& call) {
  raise("{}", to_text(call.at(0), call.budget).bytes());
}

Value strftime_now(Call& call) {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  const std::string format = call.text(0).bytes();
  std::array<char, 1024> text;
  const size_t size = std::strftime(text.data(), text.size(), format.c_str(), &local);
  return Value::text({text.data(), size});
}

constexpr Builtin kFunctions[] = {
    {"range", "start stop? step?", range},    {"dict", "*", make_dict},
    {"namespace", "*", make_namespace},       {"raise_exception", "message", raise_exception},
    {"strftime_now", "format", strftime_now},
};

}  // namespace

std::span<const Builtin> function_table() {
  return kFunctions;
}

}  // namespace m2::text::jinja
