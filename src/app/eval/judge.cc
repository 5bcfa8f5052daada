#include "app/eval/judge.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

namespace m2::app::eval {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0;
}

// What stands in the last \boxed{...}, braces matched.
std::optional<std::string_view> boxed(std::string_view text) {
  constexpr std::string_view kOpen = "\\boxed{";
  const size_t at = text.rfind(kOpen);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view rest = text.substr(at + kOpen.size());
  int depth = 1;
  for (size_t i = 0; i < rest.size(); ++i) {
    depth += rest[i] == '{' ? 1 : rest[i] == '}' ? -1 : 0;
    if (depth == 0) return rest.substr(0, i);
  }
  return std::nullopt;
}

// The last number of a text: digits with commas between groups of three, a fraction, a sign.
std::optional<double> last_number(std::string_view text) {
  size_t end = text.size();
  while (end > 0 && !is_digit(text[end - 1])) --end;
  if (end == 0) return std::nullopt;
  size_t begin = end;
  while (begin > 0 &&
         (is_digit(text[begin - 1]) || ((text[begin - 1] == '.' || text[begin - 1] == ',') &&
                                        begin > 1 && is_digit(text[begin - 2]))))
    --begin;
  // A minus that follows a number or a letter is an operator or a hyphen.
  if (begin > 0 && text[begin - 1] == '-' && (begin == 1 || !is_word(text[begin - 2]))) --begin;
  std::string digits(text.substr(begin, end - begin));
  std::erase(digits, ',');
  double value = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || stop != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<char> last_lone_letter(std::string_view text) {
  for (size_t i = text.size(); i-- > 0;) {
    const bool alone =
        (i == 0 || !is_word(text[i - 1])) && (i + 1 == text.size() || !is_word(text[i + 1]));
    if (alone && text[i] >= 'A' && text[i] <= 'Z') return text[i];
  }
  return std::nullopt;
}

std::optional<char> chosen_letter(std::string_view text) {
  if (const auto box = boxed(text)) return last_lone_letter(*box);
  const size_t word = lower(text).rfind("answer");
  if (word != std::string::npos) {
    std::string_view rest = text.substr(word);
    rest = rest.substr(0, rest.find('\n'));
    // "Answer: B", "the answer is (B)": the first letter that stands alone after the word.
    for (size_t i = 6; i < rest.size(); ++i)
      if (rest[i] >= 'A' && rest[i] <= 'Z' && !is_word(rest[i - 1]) &&
          (i + 1 == rest.size() || !is_word(rest[i + 1])))
        return rest[i];
  }
  return last_lone_letter(text);
}

// Equal whatever the order of their keys.
bool are_equal(const Json& a, const Json& b) {
  return nlohmann::json(a) == nlohmann::json(b);
}

bool matches(Match match, std::string_view content, const std::string& answer) {
  switch (match) {
    case Match::exact:
      return trimmed(content) == trimmed(answer);
    case Match::contains:
      return lower(content).find(lower(trimmed(answer))) != std::string::npos;
    case Match::number: {
      const auto wanted = number_in(answer), got = number_in(content);
      return wanted && got && *wanted == *got;
    }
    case Match::choice: {
      const auto got = chosen_letter(content);
      return got && answer.size() == 1 && *got == answer[0];
    }
    case Match::json: {
      const Result<Json> wanted = parse_json(answer), got = parse_json(trimmed(content));
      return wanted.ok() && got.ok() && are_equal(*wanted, *got);
    }
  }
  return false;
}

// The `function` of a call or tool; null if it has none.
const Json& function_of(const Json& entry) {
  static const Json none;
  if (!entry.is_object()) return none;
  const auto found = entry.find("function");
  return found == entry.end() ? none : *found;
}

std::string name_of(const Json& function) {
  if (!function.is_object()) return {};
  const Json name = function.value("name", Json());
  return name.is_string() ? name.get<std::string>() : std::string();
}

Result<Json> arguments_of(const Json& function) {
  const Json text = function.is_object() ? function.value("arguments", Json()) : Json();
  if (!text.is_string()) return fail(Code::invalid_argument, "arguments are no text");
  return parse_json(text.get<std::string>());
}

bool is_of_type(const Json& value, const std::string& type) {
  if (type == "string") return value.is_string();
  if (type == "integer")
    return value.is_number_integer() ||
           (value.is_number() && value.get<double>() == std::floor(value.get<double>()));
  if (type == "number") return value.is_number();
  if (type == "boolean") return value.is_boolean();
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "null") return value.is_null();
  return true;
}

std::string misfit(const Json& value, const Json& schema, const std::string& where);

std::string misfit_of_object(const Json& value, const Json& schema, const std::string& where) {
  const Json properties = schema.value("properties", Json::object());
  for (const Json& name : schema.value("required", Json::array()))
    if (name.is_string() && !value.contains(name.get<std::string>()))
      return fmt::format("{} lacks {}", where, to_text(name));
  for (const auto& [name, inner] : value.items()) {
    if (properties.is_object() && properties.contains(name)) {
      const std::string why = misfit(inner, properties[name], name);
      if (!why.empty()) return why;
    } else if (schema.value("additionalProperties", Json()) == false) {
      return fmt::format("{} may not hold {}", where, name);
    }
  }
  return {};
}

// Depth is bounded by the value's, which the parser bounds.
std::string misfit(const Json& value, const Json& schema, const std::string& where) {
  if (!schema.is_object()) return {};
  const Json type = schema.value("type", Json());
  if (type.is_string() && !is_of_type(value, type.get<std::string>()))
    return fmt::format("{} is no {}", where, type.get<std::string>());
  if (type.is_array() && std::none_of(type.begin(), type.end(), [&](const Json& one) {
        return one.is_string() && is_of_type(value, one.get<std::string>());
      }))
    return fmt::format("{} has none of the types {}", where, to_text(type));
  if (const auto choices = schema.find("enum"); choices != schema.end() && choices->is_array())
    if (std::find(choices->begin(), choices->end(), value) == choices->end())
      return fmt::format("{} is none of {}", where, to_text(*choices));
  if (const auto any = schema.find("anyOf"); any != schema.end() && any->is_array())
    if (std::none_of(any->begin(), any->end(),
                     [&](const Json& one) { return misfit(value, one, where).empty(); }))
      return fmt::format("{} fits no branch of anyOf", where);
  if (value.is_object()) return misfit_of_object(value, schema, where);
  if (value.is_array() && schema.contains("items")) {
    for (const Json& inner : value) {
      const std::string why = misfit(inner, schema["items"], where);
      if (!why.empty()) return why;
    }
  }
  return {};
}

}  // namespace

bool is_right_answer(const Item& item, std::string_view content) {
  return std::any_of(item.answers.begin(), item.answers.end(), [&](const std::string& answer) {
    return matches(item.match, content, answer);
  });
}

bool are_right_calls(const Step& step, const Json& tool_calls) {
  if (!tool_calls.is_array() || tool_calls.size() != step.calls.size()) return false;
  for (size_t i = 0; i < step.calls.size(); ++i) {
    const Json& function = function_of(tool_calls[i]);
    const Result<Json> arguments = arguments_of(function);
    if (name_of(function) != step.calls[i].name || !arguments.ok() ||
        !are_equal(*arguments, step.calls[i].arguments))
      return false;
  }
  return true;
}

std::string misfit_of_call(const Json& call, const Json& tools) {
  const Json& function = function_of(call);
  const std::string name = name_of(function);
  for (const Json& tool : tools) {
    const Json& offered = function_of(tool);
    if (name_of(offered) != name) continue;
    const Result<Json> arguments = arguments_of(function);
    if (!arguments.ok()) return arguments.error().text;
    if (!arguments->is_object()) return "the arguments are no object";
    return misfit(*arguments, offered.value("parameters", Json::object()), name);
  }
  return fmt::format("there is no tool {}", name);
}

std::optional<double> number_in(std::string_view text) {
  const auto box = boxed(text);
  return last_number(box ? *box : text);
}

Interval wilson_interval(int64_t right, int64_t count) {
  if (count <= 0) return {};
  constexpr double z = 1.959963984540054;  // the normal distribution's 97.5 % point
  const auto n = static_cast<double>(count);
  const double share = static_cast<double>(right) / n;
  const double scale = 1 + z * z / n;
  const double middle = (share + z * z / (2 * n)) / scale;
  const double half = z * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale;
  return {std::max(0.0, middle - half), std::min(1.0, middle + half)};
}

}  // namespace m2::app::eval
