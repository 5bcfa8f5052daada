#include "text/jinja/format.h"

#include <charconv>
#include <cmath>

#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"
#include "text/python_json.h"

namespace m2::text::jinja {
namespace {

// How one value is to be printed, in the words of Python's format mini-language.
struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '='
  char sign = '-';
  bool alternate = false;
  bool commas = false;
  int64_t width = 0;
  std::optional<int64_t> precision;
  char type = 0;
};

constexpr int64_t kMaxPrecision = 1000;

// Reads decimal digits at `at`; nothing if there are none.
std::optional<int64_t> read_digits(std::string_view text, size_t& at) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
  if (end == text.data() + at || text[at] == '-') return std::nullopt;
  if (error != std::errc()) raise("Too many decimal digits in format string");
  at = static_cast<size_t>(end - text.data());
  return value;
}

std::optional<int64_t> read_precision(std::string_view text, size_t& at, int64_t standard) {
  if (at >= text.size() || text[at] != '.') return std::nullopt;
  ++at;
  const int64_t precision = read_digits(text, at).value_or(standard);
  if (precision > kMaxPrecision) raise("precision too big");
  return precision;
}

std::string fixed_digits(double value, std::chars_format form, int64_t precision) {
  std::string text(400 + static_cast<size_t>(precision), '\0');
  const auto end = std::to_chars(text.data(), text.data() + text.size(), std::fabs(value), form,
                                 static_cast<int>(precision))
                       .ptr;
  text.resize(static_cast<size_t>(end - text.data()));
  return text;
}

// The digits of a float without its sign.
std::string float_digits(double value, const Spec& spec) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return "inf";
  const int64_t precision = spec.precision.value_or(6);
  switch (spec.type) {
    case 'e':
    case 'E':
      return fixed_digits(value, std::chars_format::scientific, precision);
    case 'g':
    case 'G':
      return fixed_digits(value, std::chars_format::general, std::max<int64_t>(precision, 1));
    case '%':
      return fixed_digits(value * 100, std::chars_format::fixed, precision) + "%";
    case 0:
      if (!spec.precision) return python_float(std::fabs(value));
      return fixed_digits(value, std::chars_format::general, std::max<int64_t>(precision, 1));
    default:
      return fixed_digits(value, std::chars_format::fixed, precision);
  }
}

std::string integer_digits(int64_t value, const Spec& spec) {
  const uint64_t size = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  switch (spec.type) {
    case 'x':
    case 'X':
      return (spec.alternate ? "0x" : "") + fmt::format("{:x}", size);
    case 'o':
      return (spec.alternate ? "0o" : "") + fmt::format("{:o}", size);
    case 'b':
      return (spec.alternate ? "0b" : "") + fmt::format("{:b}", size);
    default:
      return fmt::format("{}", size);
  }
}

void add_commas(std::string& digits) {
  size_t end = 0;
  while (end < digits.size() && digits[end] >= '0' && digits[end] <= '9') ++end;
  for (; end > 3; end -= 3) digits.insert(end - 3, ",");
}

// Writes a sign, digits or a text, and the fill that makes it `width` wide.
void write_padded(TextWriter& out, std::string_view sign, const TracedText& body, const Spec& spec,
                  char standard_align) {
  const char align = spec.align != 0 ? spec.align : standard_align;
  const auto size = static_cast<int64_t>(sign.size() + count_points(body.view()));
  const auto fill = static_cast<size_t>(std::max<int64_t>(spec.width - size, 0));
  const size_t left = align == '<' ? 0 : align == '^' ? fill / 2 : fill;
  if (align == '=') out.write(sign);
  for (size_t i = 0; i < left; ++i) out.write(spec.fill);
  if (align != '=') out.write(sign);
  out.write(body);
  for (size_t i = left; i < fill; ++i) out.write(spec.fill);
}

void write_number(TextWriter& out, const Value& value, const Spec& spec) {
  const bool floats = std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos;
  std::string digits;
  bool negative = false;
  if (value.is<double>() || (floats && spec.type != 0)) {
    const double number = as_float(value);
    negative = std::signbit(number) && !std::isnan(number);
    digits = float_digits(number, spec);
  } else if (const uint64_t* big = value.get<uint64_t>()) {
    digits = fmt::format("{}", *big);
  } else {
    negative = as_integer(value) < 0;
    digits = integer_digits(as_integer(value), spec);
  }
  if (spec.commas) add_commas(digits);
  if (spec.type == 'X' || spec.type == 'E' || spec.type == 'G' || spec.type == 'F')
    digits = to_upper(digits);
  const std::string_view sign = negative           ? "-"
                                : spec.sign == '+' ? "+"
                                : spec.sign == ' ' ? " "
                                                   : "";
  write_padded(out, sign, TracedText(digits, Origin::literal), spec, '>');
}

void write_string(TextWriter& out, const TracedText& text, const Spec& spec, char align) {
  size_t end = text.size();
  if (spec.precision) end = byte_of_point(text.view(), static_cast<size_t>(*spec.precision));
  write_padded(out, "", text.part(0, end), spec, align);
}

TracedText repr_of(const Value& value, Budget& budget) {
  TextWriter out(budget);
  write_repr(out, value);
  return out.take();
}

// --- "..." % arguments ---------------------------------------------------------------------------

class PercentFormatter {
 public:
  PercentFormatter(const TracedText& format, const Value& arguments, Budget& budget)
      : format_(format), text_(format.view()), arguments_(arguments), out_(budget) {
    const Sequence* row = arguments.sequence();
    if (row && row->kind == Sequence::Kind::tuple) {
      items_ = row->items;
    } else {
      items_ = {arguments};
    }
  }

  TracedText run() {
    while (at_ < text_.size()) {
      const size_t percent = std::min(text_.find('%', at_), text_.size());
      out_.write_part(format_, at_, percent);
      at_ = percent;
      if (at_ < text_.size()) conversion();
    }
    if (next_ < items_.size() && !may_have_rest())
      raise("not all arguments converted during string formatting");
    return out_.take();
  }

 private:
  // Anything that can be subscripted counts as named arguments, which need not all be used.
  bool may_have_rest() const {
    const Sequence* row = arguments_.sequence();
    return arguments_.dict() || (row && row->kind != Sequence::Kind::tuple && row->can_index());
  }

  void conversion() {
    ++at_;
    std::optional<Value> named = read_name();
    Spec spec = read_flags();
    spec.width = read_digits(text_, at_).value_or(0);
    spec.precision = read_precision(text_, at_, 0);
    if (at_ >= text_.size()) raise("incomplete format");
    spec.type = text_[at_++];
    if (spec.type == '%') return out_.write("%");
    const Value value = named ? *std::move(named) : next_item();
    write(value, spec);
  }

  std::optional<Value> read_name() {
    if (at_ >= text_.size() || text_[at_] != '(') return std::nullopt;
    const size_t end = text_.find(')', at_);
    if (end == std::string_view::npos) raise("incomplete format key");
    if (!arguments_.dict()) raise("format requires a mapping");
    const std::string_view name = text_.substr(at_ + 1, end - at_ - 1);
    const Value* found = arguments_.dict()->find(name);
    if (!found) raise("'{}'", name);
    at_ = end + 1;
    return *found;
  }

  Spec read_flags() {
    Spec spec;
    for (; at_ < text_.size(); ++at_) {
      switch (text_[at_]) {
        case '-':
          spec.align = '<';
          break;
        case '0':
          spec.fill = "0";
          if (spec.align == 0) spec.align = '=';
          break;
        case '+':
          spec.sign = '+';
          break;
        case ' ':
          spec.sign = spec.sign == '+' ? '+' : ' ';
          break;
        case '#':
          spec.alternate = true;
          break;
        default:
          return spec;
      }
    }
    return spec;
  }

  Value next_item() {
    if (next_ >= items_.size()) raise("not enough arguments for format string");
    return items_[next_++];
  }

  void write(const Value& value, Spec spec) {
    switch (spec.type) {
      case 's':
        return write_plain(to_text(value, out_.budget()), spec);
      case 'r':
      case 'a':
        return write_plain(repr_of(value, out_.budget()), spec);
      case 'd':
      case 'i':
      case 'u':
        return write_integer(value, spec);
      case 'x':
      case 'X':
      case 'o':
        return require_number(value), write_number(out_, Value(as_integer(value)), spec);
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        return require_number(value), write_number(out_, value, spec);
      default:
        raise("unsupported format character '{}'", spec.type);
    }
  }

  static void require_number(const Value& value) {
    require_defined(value);
    if (!value.is_number()) raise("a real number is required, not {}", type_name(value));
  }

  void write_plain(const TracedText& text, Spec spec) {
    if (spec.align == '=') spec.align = '>';
    spec.fill = " ";
    write_string(out_, text, spec, '>');
  }

  void write_integer(const Value& value, Spec spec) {
    require_number(value);
    spec.type = 'd';
    const double* number = value.get<double>();
    if (!number) return write_number(out_, value, spec);
    if (!(std::fabs(*number) < 9e18)) raise("cannot convert float to integer");
    write_number(out_, Value(static_cast<int64_t>(*number)), spec);
  }

  const TracedText& format_;
  std::string_view text_;
  const Value& arguments_;
  std::vector<Value> items_;
  size_t next_ = 0;
  size_t at_ = 0;
  TextWriter out_;
};

// --- "...".format(...) ---------------------------------------------------------------------------

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() && std::string_view("<>^=").find(text[i]) != std::string_view::npos;
  };
  size_t second = 0;
  if (!text.empty()) next_point(text, second);
  if (is_align(second) && second > 0) {
    spec.fill = std::string(text.substr(0, second));
    spec.align = text[second];
    at = second + 1;
  } else if (is_align(0)) {
    spec.align = text[at++];
  }
  const auto take = [&](char c) { return at < text.size() && text[at] == c && ++at > 0; };
  if (take('+')) spec.sign = '+';
  if (take('-')) spec.sign = '-';
  if (take(' ')) spec.sign = ' ';
  if (take('#')) spec.alternate = true;
  if (take('0') && spec.align == 0) {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = read_digits(text, at).value_or(0);
  if (take(',')) spec.commas = true;
  spec.precision = read_precision(text, at, 0);
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) raise("Invalid format specifier");
  return spec;
}

class BraceFormatter {
 public:
  BraceFormatter(const TracedText& format, const Arguments& arguments, Budget& budget)
      : format_(format), text_(format.view()), arguments_(arguments), out_(budget) {}

  TracedText run() {
    while (at_ < text_.size()) {
      const size_t brace = std::min(text_.find_first_of("{}", at_), text_.size());
      out_.write_part(format_, at_, brace);
      at_ = brace;
      if (at_ == text_.size()) break;
      if (at_ + 1 < text_.size() && text_[at_ + 1] == text_[at_]) {
        out_.write_part(format_, at_, at_ + 1);
        at_ += 2;
      } else {
        field();
      }
    }
    return out_.take();
  }

 private:
  void field() {
    if (text_[at_] == '}') raise("Single '}}' encountered in format string");
    const size_t end = text_.find('}', at_);
    if (end == std::string_view::npos) raise("expected '}}' before end of string");
    std::string_view body = text_.substr(at_ + 1, end - at_ - 1);
    if (body.find('{') != std::string_view::npos)
      raise("nested replacement fields are not supported");
    at_ = end + 1;
    const size_t colon = std::min(body.find(':'), body.size());
    const Spec spec = parse_spec(body.substr(std::min(colon + 1, body.size())));
    body = body.substr(0, colon);
    char conversion = 0;
    if (body.size() >= 2 && body[body.size() - 2] == '!') {
      conversion = body.back();
      body.remove_suffix(2);
    }
    write(converted(value_of(body), conversion), spec);
  }

  // name, 0, name.attribute, name[item].
  Value value_of(std::string_view path) {
    const size_t end = std::min(path.find_first_of(".["), path.size());
    Value value = first_value(path.substr(0, end));
    for (size_t at = end; at < path.size();) {
      const bool is_attribute = path[at] == '.';
      const size_t stop = std::min(
          is_attribute ? path.find_first_of(".[", at + 1) : path.find(']', at), path.size());
      const std::string_view name = path.substr(at + 1, stop - at - 1);
      value = is_attribute ? get_attribute(value, name) : get_item(value, item_name(name));
      at = is_attribute ? stop : stop + 1;
    }
    return value;
  }

  static Value item_name(std::string_view name) {
    size_t end = 0;
    const std::optional<int64_t> number = read_digits(name, end);
    return number && end == name.size() ? Value(*number) : Value::text(name);
  }

  Value first_value(std::string_view name) {
    if (name.empty()) return count(Numbering::automatic), positional(next_++);
    size_t end = 0;
    const std::optional<int64_t> number = read_digits(name, end);
    if (number && end == name.size())
      return count(Numbering::manual), positional(static_cast<size_t>(*number));
    for (const auto& [key, value] : arguments_.named)
      if (key == name) return value;
    raise("'{}'", name);
  }

  enum class Numbering { unknown, automatic, manual };

  // All fields of a format are numbered, or none is.
  void count(Numbering numbering) {
    if (numbering_ != Numbering::unknown && numbering_ != numbering)
      raise("cannot mix manual field specification and automatic field numbering");
    numbering_ = numbering;
  }

  Value positional(size_t i) const {
    if (i >= arguments_.positional.size())
      raise("Replacement index {} out of range for positional args tuple", i);
    return arguments_.positional[i];
  }

  Value converted(Value value, char conversion) {
    if (conversion == 's') return to_text(value, out_.budget());
    if (conversion == 'r') return repr_of(value, out_.budget());
    if (conversion != 0) raise("Unknown conversion specifier {}", conversion);
    return value;
  }

  void write(const Value& value, const Spec& spec) {
    const bool plain = spec.type == 0 && spec.width == 0 && !spec.precision;
    if (value.is_number() && !(value.is<bool>() && spec.type == 0)) {
      if (spec.type == 's')
        raise("Unknown format code 's' for object of type '{}'", type_name(value));
      return write_number(out_, value, spec);
    }
    if (!value.text() && !plain && !value.is<bool>() && !value.is_undefined())
      raise("unsupported format string passed to {}.__format__", type_name(value));
    if (spec.type != 0 && spec.type != 's')
      raise("Unknown format code '{}' for object of type '{}'", spec.type, type_name(value));
    write_string(out_, to_text(value, out_.budget()), spec, '<');
  }

  const TracedText& format_;
  std::string_view text_;
  const Arguments& arguments_;
  Numbering numbering_ = Numbering::unknown;
  size_t next_ = 0;
  size_t at_ = 0;
  TextWriter out_;
};

}  // namespace

Value format_percent(const TracedText& format, const Value& arguments, Budget& budget) {
  return PercentFormatter(format, arguments, budget).run();
}

Value format_braces(const TracedText& format, const Arguments& arguments, Budget& budget) {
  return BraceFormatter(format, arguments, budget).run();
}

}  // namespace m2::text::jinja
