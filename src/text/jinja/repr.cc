#include "text/jinja/repr.h"

#include "text/jinja/unicode.h"
#include "text/python_json.h"

namespace m2::text::jinja {
namespace {

// Writes `text` between its quotes, changed piece by piece, each piece keeping its origin.
template <class Escape>
void write_escaped(TextWriter& out, const TracedText& text, Escape&& escape) {
  text.for_each_run([&](std::string_view run, Origin origin) {
    out.budget().text(run.size(), out.size() + run.size());
    out.write(escape(run), origin);
  });
}

std::string repr_escape(char32_t point, char quote) {
  switch (point) {
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    case '\\':
      return "\\\\";
    default:
      break;
  }
  if (point == static_cast<char32_t>(quote)) return std::string("\\") + quote;
  const auto number = static_cast<uint32_t>(point);
  if (number < 0x100) return fmt::format("\\x{:02x}", number);
  return number < 0x10000 ? fmt::format("\\u{:04x}", number) : fmt::format("\\U{:08x}", number);
}

std::string repr_run(std::string_view run, char quote) {
  std::string out;
  for (size_t at = 0; at < run.size();) {
    const size_t begin = at;
    const char32_t point = next_point(run, at);
    const bool plain =
        point != '\\' && point != static_cast<char32_t>(quote) && is_printable(point);
    if (plain) {
      out += run.substr(begin, at - begin);
    } else {
      out += repr_escape(point, quote);
    }
  }
  return out;
}

void write_text_repr(TextWriter& out, const TracedText& text) {
  const bool has_single = text.view().find('\'') != std::string_view::npos;
  const bool has_double = text.view().find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.write({&quote, 1});
  write_escaped(out, text, [&](std::string_view run) { return repr_run(run, quote); });
  out.write({&quote, 1});
}

void write_items(TextWriter& out, const std::vector<Value>& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.write(", ");
    write_repr(out, items[i]);
  }
}

void write_sequence(TextWriter& out, const Sequence& sequence) {
  using Kind = Sequence::Kind;
  switch (sequence.kind) {
    case Kind::list:
      out.write("[");
      write_items(out, sequence.items);
      return out.write("]");
    case Kind::tuple:
      out.write("(");
      write_items(out, sequence.items);
      return out.write(sequence.items.size() == 1 ? ",)" : ")");
    case Kind::range:
      out.write(fmt::format("range({}, {}", sequence.start, sequence.stop));
      return out.write(sequence.step == 1 ? ")" : fmt::format(", {})", sequence.step));
    case Kind::generator:
      return out.write("<generator object>");
    case Kind::dict_keys:
      out.write("dict_keys([");
      break;
    case Kind::dict_values:
      out.write("dict_values([");
      break;
    case Kind::dict_items:
      out.write("dict_items([");
      break;
  }
  write_items(out, sequence.items);
  out.write("])");
}

void write_dict(TextWriter& out, const Dict& dict) {
  out.write("{");
  bool first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (!std::exchange(first, false)) out.write(", ");
    write_repr(out, key);
    out.write(": ");
    write_repr(out, value);
  }
  out.write("}");
}

void write_namespace(TextWriter& out, const Namespace& space) {
  out.write("<Namespace {");
  bool first = true;
  for (const auto& [name, value] : space.attributes) {
    if (!std::exchange(first, false)) out.write(", ");
    out.write("'" + name + "': ");
    write_repr(out, value);
  }
  out.write("}>");
}

std::string number_text(const Value& value) {
  if (const bool* truth = value.get<bool>()) return *truth ? "True" : "False";
  if (const int64_t* number = value.get<int64_t>()) return fmt::format("{}", *number);
  if (const uint64_t* number = value.get<uint64_t>()) return fmt::format("{}", *number);
  return python_float(*value.get<double>());
}

class JsonWriter {
 public:
  JsonWriter(TextWriter& out, const JsonStyle& style) : out_(out), style_(style) {}

  void write(const Value& value, int level) {
    const Level guard(out_.budget());
    out_.budget().step();
    if (const TracedText* text = value.text()) return write_string(*text);
    if (const Dict* dict = value.dict()) return write_object(*dict, level);
    if (const Sequence* row = value.sequence(); row && is_array(*row))
      return write_array(*row, level);
    out_.write(scalar(value));
  }

 private:
  static bool is_array(const Sequence& row) {
    return row.kind == Sequence::Kind::list || row.kind == Sequence::Kind::tuple;
  }

  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (const bool* truth = value.get<bool>()) return *truth ? "true" : "false";
    if (const double* number = value.get<double>()) return python_json_float(*number);
    if (value.is_integer()) return number_text(value);
    raise("Object of type {} is not JSON serializable", type_name(value));
  }

  void write_string(const TracedText& text) {
    out_.write("\"");
    write_escaped(out_, text, [&](std::string_view run) {
      std::string quoted;
      append_json_string(quoted, run, style_.ensure_ascii);
      return quoted.substr(1, quoted.size() - 2);
    });
    out_.write("\"");
  }

  void write_key(const Value& key) {
    if (const TracedText* text = key.text()) return write_string(*text);
    if (!key.is_none() && !key.is_number())
      raise("keys must be str, int, float, bool or None, not {}", type_name(key));
    out_.write("\"" + scalar(key) + "\"");
  }

  void write_object(const Dict& dict, int level) {
    if (dict.size() == 0) return out_.write("{}");
    out_.write("{");
    bool first = true;
    for (const Dict::Entry* entry : ordered(dict)) {
      separate(first, level + 1);
      write_key(entry->first);
      out_.write(style_.key_separator);
      write(entry->second, level + 1);
    }
    new_line(level);
    out_.write("}");
  }

  std::vector<const Dict::Entry*> ordered(const Dict& dict) {
    std::vector<const Dict::Entry*> order;
    for (const Dict::Entry& entry : dict.entries()) order.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(order.begin(), order.end(), [&](const auto* a, const auto* b) {
        return less(a->first, b->first, out_.budget());
      });
    }
    return order;
  }

  void write_array(const Sequence& row, int level) {
    if (row.items.empty()) return out_.write("[]");
    out_.write("[");
    bool first = true;
    for (const Value& item : row.items) {
      separate(first, level + 1);
      write(item, level + 1);
    }
    new_line(level);
    out_.write("]");
  }

  void separate(bool& first, int level) {
    if (!std::exchange(first, false)) out_.write(style_.item_separator);
    new_line(level);
  }

  void new_line(int level) {
    if (!style_.indent) return;
    out_.write("\n");
    for (int i = 0; i < level; ++i) out_.write(*style_.indent);
  }

  TextWriter& out_;
  const JsonStyle& style_;
};

}  // namespace

void write_text(TextWriter& out, const Value& value) {
  if (const TracedText* text = value.text()) return out.write(*text);
  if (value.is_undefined()) return;
  write_repr(out, value);
}

TracedText to_text(const Value& value, Budget& budget) {
  if (const TracedText* text = value.text()) return *text;
  TextWriter out(budget);
  write_text(out, value);
  return out.take();
}

void write_repr(TextWriter& out, const Value& value) {
  const Level guard(out.budget());
  out.budget().step();
  if (const TracedText* text = value.text()) return write_text_repr(out, *text);
  if (const Sequence* sequence = value.sequence()) return write_sequence(out, *sequence);
  if (const Dict* dict = value.dict()) return write_dict(out, *dict);
  if (const Namespace* space = value.space()) return write_namespace(out, *space);
  if (const Callable* callable = value.callable())
    return out.write(fmt::format("<function {}>", callable->name()));
  if (const LoopState* loop = value.loop())
    return out.write(
        fmt::format("<LoopContext {}/{}>", loop->index0 + 1, loop->items->items.size()));
  if (value.is_none()) return out.write("None");
  if (value.is_undefined()) return out.write("Undefined");
  out.write(number_text(value));
}

void write_json(TextWriter& out, const Value& value, const JsonStyle& style) {
  JsonWriter(out, style).write(value, 0);
}

}  // namespace m2::text::jinja
