#include "app/options.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <numeric>

namespace m2::app {
namespace {

// --Max_num-seqs is --max-num-seqs; keys inside JSON (after the first dot) are left alone.
std::string canonical(std::string_view name) {
  std::string out(name);
  const size_t dot = out.find('.');
  std::replace(out.begin(), out.begin() + static_cast<long>(std::min(dot, out.size())), '_', '-');
  return out;
}

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const size_t end = std::min(text.find(' '), text.size());
    if (end > 0) out.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

bool is_true(std::string_view text) {
  return text == "true" || text == "True" || text == "1";
}
bool is_false(std::string_view text) {
  return text == "false" || text == "False" || text == "0";
}

std::string_view kind_words(OptionKind kind) {
  switch (kind) {
    case OptionKind::flag:
      return "true or false";
    case OptionKind::integer:
      return "an integer (4096, 4k = 4000, 4K = 4096)";
    case OptionKind::number:
      return "a number";
    case OptionKind::text:
      return "a text";
    case OptionKind::list:
      return "one or more words";
    case OptionKind::json:
      return "a JSON object";
  }
  return "";
}

std::optional<double> parse_number(std::string_view text) {
  double value;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(value))
    return std::nullopt;
  return value;
}

bool fits(OptionKind kind, const std::string& value) {
  switch (kind) {
    case OptionKind::flag:
      return is_true(value) || is_false(value);
    case OptionKind::integer:
      return parse_human_integer(value).has_value();
    case OptionKind::number:
      return parse_number(value).has_value();
    case OptionKind::text:
    case OptionKind::list:
      return true;
    case OptionKind::json: {
      const Result<Json> json = parse_json(value);
      return json.ok() && json->is_object();
    }
  }
  return false;
}

// A dotted value: a JSON literal where it is one, else a string.
Json dotted_value(const std::string& text) {
  Result<Json> json = parse_json(text);
  return json.ok() ? *std::move(json) : Json(text);
}

// The words of a list; a word that is a JSON list of strings stands for its members.
std::vector<std::string> unpacked(const std::vector<std::string>& words) {
  std::vector<std::string> out;
  for (const std::string& word : words) {
    const Result<Json> json = word.starts_with('[') ? parse_json(word) : Result<Json>(Json());
    const bool strings =
        json.ok() && json->is_array() &&
        std::all_of(json->begin(), json->end(), [](const Json& item) { return item.is_string(); });
    if (!strings) {
      out.push_back(word);
      continue;
    }
    for (const Json& item : *json) out.push_back(item.get<std::string>());
  }
  return out;
}

// A YAML node as JSON: scalars as they would stand on a command line.
Json json_of(const YAML::Node& node) {
  if (node.IsMap()) {
    Json out = Json::object();
    for (const auto& entry : node) out[entry.first.as<std::string>()] = json_of(entry.second);
    return out;
  }
  if (node.IsSequence()) {
    Json out = Json::array();
    for (const auto& item : node) out.push_back(json_of(item));
    return out;
  }
  if (!node.IsScalar()) return nullptr;
  const bool is_text = node.Tag() == "!";  // quoted
  return is_text ? Json(node.Scalar()) : dotted_value(node.Scalar());
}

// What a switch of a config file says: true and false in every spelling of YAML, or 1 and 0.
std::optional<bool> truth_of(const YAML::Node& node) {
  bool value;
  if (!node.IsScalar()) return std::nullopt;
  if (YAML::convert<bool>::decode(node, value)) return value;
  if (is_true(node.Scalar()) || is_false(node.Scalar())) return is_true(node.Scalar());
  return std::nullopt;
}

// How many letters of a word have to be changed, added or left out to make it another.
size_t edits_between(std::string_view word, std::string_view other) {
  std::vector<size_t> row(other.size() + 1);  // of the word's beginning to other's beginnings
  std::iota(row.begin(), row.end(), size_t{0});
  for (const char letter : word) {
    size_t diagonal = row[0]++;
    for (size_t i = 0; i < other.size(); ++i) {
      const size_t above = row[i + 1];
      row[i + 1] = std::min({above + 1, row[i] + 1, diagonal + (letter != other[i])});
      diagonal = above;
    }
  }
  return row.back();
}

// {"a": {"b": value}} for the path "a.b".
Json nested(std::string_view path, Json value) {
  const size_t dot = path.rfind('.');
  if (dot == std::string_view::npos) return Json{{std::string(path), std::move(value)}};
  return nested(path.substr(0, dot), Json{{std::string(path.substr(dot + 1)), std::move(value)}});
}

}  // namespace

std::optional<int64_t> parse_human_integer(std::string_view text) {
  int64_t whole;
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (const auto [stop, error] = std::from_chars(begin, end, whole);
      error == std::errc{} && stop == end)
    return whole;

  static constexpr std::pair<char, double> kUnits[] = {{'k', 1e3},    {'m', 1e6},    {'g', 1e9},
                                                       {'t', 1e12},   {'K', 0x1p10}, {'M', 0x1p20},
                                                       {'G', 0x1p30}, {'T', 0x1p40}};
  if (text.size() < 2) return std::nullopt;
  for (const auto& [letter, factor] : kUnits) {
    if (text.back() != letter) continue;
    const std::optional<double> number = parse_number(text.substr(0, text.size() - 1));
    if (!number || std::abs(*number * factor) > 9e18) return std::nullopt;
    return static_cast<int64_t>(*number * factor);
  }
  return std::nullopt;
}

// ---- Values ----

const Option& Values::option(std::string_view name, OptionKind kind) const {
  for (const Option& option : command_->options) {
    if (option.name != name) continue;
    M2_CHECK(option.kind == kind, "option {} read as another kind", name);
    return option;
  }
  M2_CHECK(false, "no option {}", name);
}

const std::vector<std::string>* Values::find(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? nullptr : &found->second;
}

bool Values::given(std::string_view name) const {
  return find(name) != nullptr;
}

bool Values::flag(std::string_view name) const {
  const Option& declared = option(name, OptionKind::flag);
  const auto* value = find(name);
  return is_true(value ? std::string_view(value->back()) : declared.fallback);
}

std::optional<int64_t> Values::integer(std::string_view name) const {
  const Option& declared = option(name, OptionKind::integer);
  const auto* value = find(name);
  return parse_human_integer(value ? std::string_view(value->back()) : declared.fallback);
}

std::optional<double> Values::number(std::string_view name) const {
  const Option& declared = option(name, OptionKind::number);
  const auto* value = find(name);
  return parse_number(value ? std::string_view(value->back()) : declared.fallback);
}

std::string Values::text(std::string_view name) const {
  const Option& declared = option(name, OptionKind::text);
  const auto* value = find(name);
  return value ? value->back() : std::string(declared.fallback);
}

std::vector<std::string> Values::list(std::string_view name) const {
  const Option& declared = option(name, OptionKind::list);
  if (const auto* value = find(name)) return unpacked(*value);
  if (declared.fallback.empty()) return {};
  return {std::string(declared.fallback)};
}

Json Values::json(std::string_view name) const {
  option(name, OptionKind::json);
  Json out = Json::object();
  if (const auto* parts = find(name)) {
    for (const std::string& part : *parts) out.merge_patch(*parse_json(part));
  }
  return out;
}

Json Values::given_values() const {
  Json out = Json::object();
  for (const Option& declared : command_->options) {
    const auto* value = find(declared.name);
    if (!value) continue;
    Json& entry = out[std::string(declared.name)];
    switch (declared.kind) {
      case OptionKind::flag:
        entry = is_true(value->back());
        break;
      case OptionKind::integer:
        entry = *integer(declared.name);
        break;
      case OptionKind::number:
        entry = *number(declared.name);
        break;
      case OptionKind::text:
        entry = value->back();
        break;
      case OptionKind::list:
        entry = *value;
        break;
      case OptionKind::json:
        entry = json(declared.name);
        break;
    }
  }
  return out;
}

// ---- Parsing ----

// One pass over the words, then the config file, then the environment: the first to set an option
// wins.
class CommandLine {
 public:
  CommandLine(const Command& command, std::span<const std::string> words)
      : command_(command), words_(words), values_(command) {}

  Result<Values> read(const char* (*environment)(const char*)) {
    while (next_ < words_.size()) M2_TRY_VOID(read_word());
    if (const auto* file = values_.find("config")) M2_TRY_VOID(read_config_file(file->back()));
    for (const Option& option : command_.options) {
      if (option.environment.empty() || values_.given(option.name)) continue;
      const char* value = environment(std::string(option.environment).c_str());
      if (value && *value) M2_TRY_VOID(set(option, value, std::string(option.environment)));
    }
    return std::move(values_);
  }

 private:
  struct Match {
    const Option* option = nullptr;
    bool negated = false;
    std::string json_path;  // after the first dot
  };

  Result<void> read_word() {
    const std::string& word = words_[next_++];
    if (word.empty())
      return fail(Code::invalid_argument,
                  "an argument is empty, as that of a shell variable without a value is");
    if (word == "--") {
      for (; next_ < words_.size(); ++next_) values_.positionals_.push_back(words_[next_]);
      return {};
    }
    const bool is_option = word.size() > 1 && word[0] == '-' && !parse_human_integer(word);
    if (!is_option) {
      values_.positionals_.push_back(word);
      return {};
    }
    // -O3 is -O 3.
    if (word.size() > 2 && word[1] != '-' && word.find_first_not_of("0123456789", 2) == word.npos) {
      if (auto match = find_short(word.substr(0, 2)); match.ok())
        return take_value(*match, word.substr(0, 2), word.substr(2));
    }
    const size_t equals = word.find('=');
    M2_TRY(const Match match, find_option(word.substr(0, equals)));
    std::optional<std::string> inline_value;
    if (equals != std::string::npos) inline_value = word.substr(equals + 1);
    return take_value(match, word.substr(0, equals), std::move(inline_value));
  }

  Result<void> take_value(const Match& match, const std::string& spelled,
                          std::optional<std::string> value) {
    const Option& option = *match.option;
    if (option.kind == OptionKind::flag && !value) {
      // `--x true` is read too, as config files and wrappers write it.
      if (!match.negated && next_ < words_.size() &&
          (words_[next_] == "true" || words_[next_] == "false")) {
        value = words_[next_++];
      } else {
        value = match.negated ? "false" : "true";
      }
      return set(option, *value, spelled);
    }
    if (match.negated) return fail(Code::invalid_argument, "{} takes no value", spelled);
    const bool ends = next_ >= words_.size() || words_[next_].starts_with('-');
    if (!value && ends && !option.alone.empty()) value = option.alone;
    if (!value) {
      if (next_ >= words_.size())
        return fail(Code::invalid_argument, "{} needs {}", spelled, kind_words(option.kind));
      value = words_[next_++];
    }
    if (!match.json_path.empty())
      return set(option, to_text(nested(match.json_path, dotted_value(*value))), spelled);
    M2_TRY_VOID(set(option, *value, spelled));
    // A list goes on to the next option.
    while (option.kind == OptionKind::list && next_ < words_.size() && words_[next_][0] != '-')
      M2_TRY_VOID(set(option, words_[next_++], spelled));
    return {};
  }

  Result<void> set(const Option& option, std::string value, const std::string& spelled) {
    if (option.kind == OptionKind::integer && value == "auto") value = "-1";
    if (!fits(option.kind, value))
      return fail(Code::invalid_argument, "{} needs {}, got '{}'", spelled, kind_words(option.kind),
                  value);
    values_.values_[std::string(option.name)].push_back(std::move(value));
    return {};
  }

  Result<Match> find_option(const std::string& spelled) const {
    if (spelled.rfind("--", 0) != 0) return find_short(spelled);
    const std::string name = canonical(std::string_view(spelled).substr(2));
    const size_t dot = name.find('.');
    const std::string head = name.substr(0, dot);

    std::vector<Match> prefixes;
    for (const Option& option : command_.options) {
      if (option.name == head || (option.kind == OptionKind::flag && head == negated(option)))
        return with_path(Match{&option, option.name != head, {}}, spelled, dot);
      if (option.name.starts_with(head)) prefixes.push_back({&option, false, {}});
      if (option.kind == OptionKind::flag && negated(option).starts_with(head) && head.size() > 3)
        prefixes.push_back({&option, true, {}});
    }
    if (prefixes.size() == 1) return with_path(prefixes[0], spelled, dot);
    if (prefixes.empty())
      return fail(Code::invalid_argument, "unknown option {}{} (see m2 {} --help)", spelled,
                  suggestion(head), command_.name);
    std::string names;
    for (const Match& match : prefixes)
      names += fmt::format("{}--{}{}", names.empty() ? "" : ", ", match.negated ? "no-" : "",
                           match.option->name);
    return fail(Code::invalid_argument, "option {} is ambiguous: {}", spelled, names);
  }

  static std::string negated(const Option& option) { return "no-" + std::string(option.name); }

  // ", did you mean --x?" where an option's name is like `head`.
  std::string suggestion(const std::string& head) const {
    size_t fewest = std::min<size_t>(3, head.size() / 2) + 1;
    std::string nearest;
    const auto consider = [&](std::string name) {
      const size_t edits = edits_between(head, name);
      if (edits >= fewest) return;
      fewest = edits;
      nearest = std::move(name);
    };
    for (const Option& option : command_.options) {
      consider(std::string(option.name));
      if (option.kind == OptionKind::flag) consider(negated(option));
    }
    return nearest.empty() ? "" : fmt::format(", did you mean --{}?", nearest);
  }

  static Result<Match> with_path(Match match, const std::string& spelled, size_t dot) {
    if (dot == std::string::npos) return match;
    if (match.option->kind != OptionKind::json)
      return fail(Code::invalid_argument, "{} is not a JSON option; it has no keys", spelled);
    match.json_path = spelled.substr(spelled.find('.') + 1);
    return match;
  }

  Result<Match> find_short(const std::string& spelled) const {
    const size_t dot = spelled.find('.');
    for (const Option& option : command_.options) {
      for (const std::string_view name : split_words(option.shorts)) {
        if (name == std::string_view(spelled).substr(0, dot))
          return with_path(Match{&option, false, {}}, spelled, dot);
      }
    }
    return fail(Code::invalid_argument, "unknown option {} (see m2 {} --help)", spelled,
                command_.name);
  }

  // A YAML mapping of option names to values; what the line set stays. yaml-cpp throws what is
  // wrong with a file or a place in it.
  Result<void> read_config_file(const std::string& path) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored))
      return fail(Code::invalid_argument, "--config {}: it is a folder", path);
    try {
      const YAML::Node root = YAML::LoadFile(path);
      if (root.IsNull()) return {};
      if (!root.IsMap())
        return fail(Code::invalid_argument, "--config {}: needs `option: value` lines", path);
      for (const auto& entry : root) M2_TRY_VOID(read_entry(path, entry.first, entry.second));
    } catch (const YAML::Exception& error) {
      return fail(Code::invalid_argument, "--config {}: {}", path, error.what());
    }
    return {};
  }

  Result<void> read_entry(const std::string& path, const YAML::Node& key, const YAML::Node& value) {
    const std::string name = canonical(key.as<std::string>());
    M2_TRY(const Match match, find_option("--" + name));
    const Option& option = *match.option;
    if (name == "config" || values_.given(option.name)) return {};
    const std::string where = path + ": " + name;
    if (option.kind == OptionKind::flag) {
      if (const std::optional<bool> on = truth_of(value))
        return set(option, *on != match.negated ? "true" : "false", where);
    } else if (option.kind == OptionKind::json && !value.IsScalar()) {
      return set(option, to_text(json_of(value)), where);
    } else if (value.IsSequence()) {
      for (const auto& item : value) M2_TRY_VOID(set(option, item.as<std::string>(), where));
      return {};
    } else if (value.IsScalar()) {
      return set(option, value.as<std::string>(), where);
    }
    return fail(Code::invalid_argument, "{}: needs {}", where, kind_words(option.kind));
  }

  const Command& command_;
  const std::span<const std::string> words_;
  size_t next_ = 0;
  Values values_;
};

Result<Values> parse_command_line(const Command& command, std::span<const std::string> words,
                                  const char* (*environment)(const char*)) {
  return CommandLine(command, words).read(environment);
}

namespace {

// Whether --help=GROUP shows the option: a group's name, or the beginning of one, in any case.
bool in_group(const Option& option, std::string_view group) {
  if (group.empty() || group == "all") return true;
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  return group.size() <= option.group.size() &&
         std::equal(group.begin(), group.end(), option.group.begin(),
                    [&](char a, char b) { return lower(a) == lower(b); });
}

}  // namespace

std::optional<std::string> help_asked(std::span<const std::string> words) {
  for (const std::string& word : words) {
    if (word == "--help" || word == "-h") return "";
    if (word.starts_with("--help=")) return word.substr(7);
  }
  return std::nullopt;
}

std::string help_text(const Command& command, std::string_view group) {
  std::string out = fmt::format("usage: m2 {}{}{}{}\n\n{}\n", command.name,
                                command.positionals.empty() ? "" : " ", command.positionals,
                                command.options.empty() ? "" : " [options]", command.summary);
  std::string_view heading;
  const bool is_group = std::any_of(command.options.begin(), command.options.end(),
                                    [&](const Option& o) { return in_group(o, group); });
  const size_t hidden = group.empty() ? command.borrowed : 0;
  for (const Option& option : command.options.first(command.options.size() - hidden)) {
    const bool named = option.name.find(group) != std::string_view::npos;
    if (!(is_group ? in_group(option, group) : named)) continue;
    if (option.group != heading) {
      heading = option.group;
      out += fmt::format("\n{}:\n", heading);
    }
    std::string names = fmt::format("  --{}", option.name);
    for (const std::string_view name : split_words(option.shorts))
      names += fmt::format(", {}", name);
    out += fmt::format("{:<38} {}", names, option.help);
    if (!option.fallback.empty() && option.fallback != "false")
      out += fmt::format(" [{}]", option.fallback);
    if (!option.environment.empty()) out += fmt::format(" (${})", option.environment);
    out += '\n';
  }
  if (!group.empty() && heading.empty()) {
    out += fmt::format("\nNo group of options is called {}, nor is any option. Groups:", group);
    for (const Option& option : command.options) {
      if (option.group == heading) continue;
      out += fmt::format("{} {}", heading.empty() ? "" : ";", option.group);
      heading = option.group;
    }
    out += '\n';
  }
  if (hidden > 0)
    out += fmt::format("\nAll options of m2 serve are taken too: m2 {} --help=all\n", command.name);
  if (!command.details.empty()) out += fmt::format("\n{}\n", command.details);
  return out;
}

}  // namespace m2::app
