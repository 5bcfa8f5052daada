#include "text/jinja/builtins.h"

#include <unordered_map>

#include "text/jinja/builtin_tables.h"

namespace m2::text::jinja {

// --- Calls ---------------------------------------------------------------------------------------

namespace {

// One parameter of a builtin, taken from the front of its list.
struct ParameterText {
  std::string_view name;
  bool is_optional;
};

ParameterText next_parameter(std::string_view& list) {
  const size_t end = std::min(list.find(' '), list.size());
  std::string_view name = list.substr(0, end);
  list.remove_prefix(std::min(end + 1, list.size()));
  const bool is_optional = name.ends_with('?');
  if (is_optional) name.remove_suffix(1);
  return {name, is_optional};
}

const Value* find_named(const Arguments& arguments, std::string_view name) {
  for (const auto& [key, value] : arguments.named)
    if (key == name) return &value;
  return nullptr;
}

}  // namespace

Call::Call(Interpreter& interpreter_, const Builtin& builtin, const Value& self_,
           const Arguments& arguments_)
    : interpreter(interpreter_), budget(interpreter_.budget()), self(self_), arguments(arguments_) {
  if (builtin.parameters == "*") return;
  std::string_view list = builtin.parameters;
  size_t count = 0, named = 0;
  for (; !list.empty(); ++count) {
    const auto [name, is_optional] = next_parameter(list);
    const Value* by_name = find_named(arguments, name);
    const bool by_place = count < arguments.positional.size();
    if (by_name && by_place) raise("{}() got multiple values for '{}'", builtin.name, name);
    bound_[count] = by_place ? &arguments.positional[count] : by_name;
    named += by_name ? 1 : 0;
    if (!bound_[count] && !is_optional)
      raise("{}() missing 1 required positional argument: '{}'", builtin.name, name);
  }
  if (arguments.positional.size() > count)
    raise("{}() takes {} arguments but {} were given", builtin.name, count,
          arguments.positional.size());
  if (named < arguments.named.size())
    raise("{}() got an unexpected keyword argument", builtin.name);
}

int64_t Call::integer(size_t i, int64_t standard) const {
  return find(i) && !at(i).is_none() ? as_integer(at(i)) : standard;
}

bool Call::truth(size_t i, bool standard) const {
  return find(i) ? is_true(at(i)) : standard;
}

const TracedText& Call::text(size_t i) const {
  require_defined(at(i));
  const TracedText* text = at(i).text();
  if (!text) raise("argument {} must be str, not {}", i + 1, type_name(at(i)));
  return *text;
}

TracedText Call::self_text() const {
  return to_text(self, budget);
}

Value apply(Interpreter& interpreter, const Builtin& builtin, const Value& self,
            const Arguments& arguments) {
  Call call(interpreter, builtin, self, arguments);
  return builtin.body(call);
}

// --- Things to call ------------------------------------------------------------------------------

namespace {

// A builtin together with the value it works on.
class BoundBuiltin : public Callable {
 public:
  BoundBuiltin(const Builtin& builtin, Value self) : builtin_(builtin), self_(std::move(self)) {
    depth_ = depth_of(self_) + 1;
    if (depth_ > kMaxValueDepth)
      exhausted("a value of the template nests deeper than {} levels (max_depth)", kMaxValueDepth);
  }

  Value call(Interpreter& interpreter, const Arguments& arguments) const override {
    return apply(interpreter, builtin_, self_, arguments);
  }
  std::string_view name() const override { return builtin_.name; }
  int depth() const override { return depth_; }

 private:
  const Builtin& builtin_;
  Value self_;
  int depth_;
};

Value bind(const Builtin& builtin, const Value& self) {
  return CallableRef(std::make_shared<const BoundBuiltin>(builtin, self));
}

std::string_view list_mutators() {
  return " append clear extend insert pop remove reverse sort ";
}
std::string_view dict_mutators() {
  return " clear pop popitem setdefault update ";
}

bool is_forbidden(const Value& object, std::string_view name) {
  if (name.starts_with("__") && name.ends_with("__")) return true;
  const std::string word = fmt::format(" {} ", name);
  if (object.dict()) return dict_mutators().find(word) != std::string_view::npos;
  const Sequence* row = object.sequence();
  return row && row->kind == Sequence::Kind::list &&
         list_mutators().find(word) != std::string_view::npos;
}

std::span<const Builtin> methods_of(const Value& object) {
  if (object.text()) return text_method_table();
  if (object.dict()) return dict_method_table();
  const Sequence* row = object.sequence();
  return row && row->can_index() ? list_method_table() : std::span<const Builtin>();
}

}  // namespace

std::optional<Value> find_method(const Value& object, std::string_view name) {
  if (const Builtin* method = find_in(methods_of(object), name)) return bind(*method, object);
  if (!is_forbidden(object, name)) return std::nullopt;
  return Value::undefined(
      fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)));
}

Value make_function(const Builtin& builtin) {
  return bind(builtin, None{});
}

// --- Tables --------------------------------------------------------------------------------------

const Builtin* find_in(std::span<const Builtin> table, std::string_view name) {
  for (const Builtin& builtin : table)
    if (builtin.name == name) return &builtin;
  return nullptr;
}

const Builtin* find_filter(std::string_view name) {
  return find_in(filter_table(), name);
}
const Builtin* find_test(std::string_view name) {
  return find_in(test_table(), name);
}
const Builtin* find_function(std::string_view name) {
  return find_in(function_table(), name);
}

}  // namespace m2::text::jinja
