#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"
#include "text/jinja/budget.h"
#include "text/jinja/traced_text.h"

// Values of a template: Python's None, bool, int, float, str, list, tuple, dict, range, generators
// and dict views, Jinja's Undefined, namespace and loop, and things that can be called. All are
// immutable and shared except a namespace (whose attributes are set by statements) and how far a
// generator is read. No value leads to anything outside the template and its variables.

namespace m2::text::jinja {

class Value;
struct Arguments;
class Interpreter;

struct None {};

// A missing thing. It prints as nothing and is false; using it otherwise raises `message`.
struct Undefined {
  std::shared_ptr<const std::string> message;
};

struct Sequence;
class Dict;
struct Namespace;
class Callable;
struct LoopState;

using TextRef = std::shared_ptr<const TracedText>;
using SequenceRef = std::shared_ptr<const Sequence>;
using DictRef = std::shared_ptr<const Dict>;
using CallableRef = std::shared_ptr<const Callable>;
using LoopRef = std::shared_ptr<const LoopState>;

class Value {
 public:
  // uint64_t holds only integers above int64_t's range: they print, but do not calculate.
  using State = std::variant<None, Undefined, bool, int64_t, uint64_t, double, TextRef, SequenceRef,
                             DictRef, Namespace*, CallableRef, LoopRef>;

  Value() = default;  // None
  Value(None) {}
  Value(bool value) : state_(value) {}
  Value(int64_t value) : state_(value) {}
  Value(double value) : state_(value) {}
  Value(TracedText text) : state_(std::make_shared<const TracedText>(std::move(text))) {}
  Value(SequenceRef sequence) : state_(std::move(sequence)) {}
  Value(DictRef dict) : state_(std::move(dict)) {}
  Value(Namespace* space) : state_(space) {}
  Value(CallableRef callable) : state_(std::move(callable)) {}
  Value(LoopRef loop) : state_(std::move(loop)) {}
  Value(const void*) = delete;  // a pointer would become a bool

  static Value undefined(std::string message);
  static Value big(uint64_t value);
  static Value text(std::string_view bytes, Origin origin = Origin::literal);

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(state_);
  }
  template <class T>
  const T* get() const {
    return std::get_if<T>(&state_);
  }

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_integer() const { return is<int64_t>() || is<uint64_t>(); }
  bool is_number() const { return is_integer() || is<bool>() || is<double>(); }

  // The parts of a composite value, or null.
  const TracedText* text() const { return pointee<TextRef>(); }
  const Sequence* sequence() const { return pointee<SequenceRef>(); }
  const Dict* dict() const { return pointee<DictRef>(); }
  const Callable* callable() const { return pointee<CallableRef>(); }
  const LoopState* loop() const { return pointee<LoopRef>(); }
  Namespace* space() const { return is<Namespace*>() ? *get<Namespace*>() : nullptr; }

  const State& state() const { return state_; }

 private:
  template <class Ref>
  auto pointee() const -> decltype(std::declval<Ref>().get()) {
    const Ref* ref = get<Ref>();
    return ref ? ref->get() : nullptr;
  }

  State state_;
};

// How deep composite values may nest: they are destroyed and compared recursively.
inline constexpr int kMaxValueDepth = 256;

// A row of values. The kinds differ in how they print, compare and may be used.
struct Sequence {
  enum class Kind { list, tuple, range, generator, dict_keys, dict_values, dict_items };

  Kind kind = Kind::list;
  std::vector<Value> items;
  int depth = 1;
  int64_t start = 0, stop = 0, step = 1;  // of a range
  mutable bool consumed = false;          // of a generator: it can be read once

  bool can_index() const {
    return kind == Kind::list || kind == Kind::tuple || kind == Kind::range;
  }
};

// A mapping that keeps the order of insertion.
class Dict {
 public:
  using Entry = std::pair<Value, Value>;

  // A later entry of an equal key replaces the value of an earlier one. Raises if a key cannot be
  // hashed in Python.
  static DictRef make(std::vector<Entry> entries, Budget& budget);

  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }
  int depth() const { return depth_; }

  // The value of a key, or null.
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;

 private:
  friend class DictBuilder;
  std::vector<Entry> entries_;
  std::vector<uint32_t> by_text_;  // entries with text keys, by key; only in large dicts
  int depth_ = 1;
};

// namespace(): the one value a template can change. Owned by the render, so that cycles through it
// cannot leak.
struct Namespace {
  // Raises for names that begin with "_", which the reference's sandbox refuses.
  void set(const std::string& name, Value value);
  const Value* find(std::string_view name) const;

  std::vector<std::pair<std::string, Value>> attributes;  // in the order of their first setting
};

// The arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Something that can be called: a function, a method bound to its object, a macro.
class Callable {
 public:
  virtual ~Callable() = default;
  virtual Value call(Interpreter& interpreter, const Arguments& arguments) const = 0;
  virtual std::string_view name() const = 0;
  virtual int depth() const { return 1; }
};

// The variable `loop` of a for statement, at one of its items.
struct LoopState {
  SequenceRef items;
  size_t index0 = 0;
  int depth0 = 0;  // always 0: recursive loops are not supported
};

// --- Making values -------------------------------------------------------------------------------

// Each raises if the value would nest deeper than kMaxValueDepth, and charges a step per item.
Value make_sequence(Sequence::Kind kind, std::vector<Value> items, Budget& budget);
Value make_list(std::vector<Value> items, Budget& budget);
Value make_range(int64_t start, int64_t stop, int64_t step, Budget& budget);

// A value of the caller's variables: its texts and keys have Origin::variable.
Value from_json(const Json& json, Budget& budget);

// --- Looking at values (Python's built-in operations) --------------------------------------------

// type(value).__name__.
std::string_view type_name(const Value& value);
// How Jinja's messages name an object: "dict object", "None", ...
std::string object_name(const Value& value);
int depth_of(const Value& value);

bool is_true(const Value& value);
bool is_hashable(const Value& value);

// str(value) and repr(value). repr raises beyond the depth budget (namespaces can hold themselves).
TracedText to_text(const Value& value, Budget& budget);
void write_text(TextWriter& out, const Value& value);
void write_repr(TextWriter& out, const Value& value);

// value == other; value is other, for values that have no identity of their own by equality.
bool equal(const Value& left, const Value& right, Budget& budget);
bool identical(const Value& left, const Value& right);
// left < right; raises for types without an order.
bool less(const Value& left, const Value& right, Budget& budget);

// The items that iteration over the value yields; raises if it cannot be iterated. A generator is
// used up by it.
std::vector<Value> items_of(const Value& value, Budget& budget);
bool can_iterate(const Value& value);
// len(value), or nothing if it has none.
std::optional<size_t> length_of(const Value& value);

// An undefined operand raises its own message, as any use of it does.
void require_defined(const Value& value);

// The number as a float / integer; raises TypeError's text for anything that is not a number (bool
// is one). as_integer also refuses floats.
double as_float(const Value& value);
int64_t as_integer(const Value& value);

}  // namespace m2::text::jinja
