#include "app/completion.h"

#include <algorithm>
#include <vector>

namespace m2::app {
namespace {

using Commands = std::span<const Command* const>;

std::vector<std::string_view> shorts_of(const Option& option) {
  std::vector<std::string_view> out;
  for (std::string_view rest = option.shorts; !rest.empty();) {
    const size_t end = std::min(rest.find(' '), rest.size());
    if (end > 0) out.push_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return out;
}

// "inspect" and "tokenize" of the command "inspect tokenize"; the second may be empty.
std::pair<std::string_view, std::string_view> words_of(const Command& command) {
  const size_t blank = std::min(command.name.find(' '), command.name.size());
  return {command.name.substr(0, blank),
          command.name.substr(std::min(blank + 1, command.name.size()))};
}

// The first words, each once, in order.
std::vector<std::string_view> first_words(Commands commands) {
  std::vector<std::string_view> out;
  for (const Command* command : commands) {
    const std::string_view word = words_of(*command).first;
    if (std::find(out.begin(), out.end(), word) == out.end()) out.push_back(word);
  }
  return out;
}

std::vector<std::string_view> second_words(Commands commands, std::string_view first) {
  std::vector<std::string_view> out;
  for (const Command* command : commands)
    if (const auto [head, tail] = words_of(*command); head == first && !tail.empty())
      out.push_back(tail);
  return out;
}

std::string joined(const std::vector<std::string_view>& words, std::string_view glue = " ") {
  std::string out;
  for (const std::string_view word : words) {
    if (!out.empty()) out += glue;
    out += word;
  }
  return out;
}

// Every spelling of a command's options, as typed.
std::string option_words(const Command& command) {
  std::string out = "--help";
  for (const Option& option : command.options) {
    out += fmt::format(" --{}", option.name);
    if (option.kind == OptionKind::flag) out += fmt::format(" --no-{}", option.name);
    for (const std::string_view name : shorts_of(option)) out += fmt::format(" {}", name);
  }
  return out;
}

// Within single quotes of a POSIX shell; zsh's and fish's own marks escaped too.
std::string shell_word(std::string_view text, std::string_view escaped = "") {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'')
      out += "'\\''";
    else if (escaped.find(c) != std::string_view::npos)
      out += std::string("\\") + c;
    else
      out += c;
  }
  return out + "'";
}

std::string bash_script(Commands commands) {
  std::string out =
      "# Completion of m2 for bash: source this, or put it into\n"
      "# ~/.local/share/bash-completion/completions/m2\n"
      "_m2() {\n"
      "  local cur=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words=\n"
      "  COMPREPLY=()\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n";
  out += fmt::format("    words={}\n",
                     shell_word(joined(first_words(commands)) + " --help --version"));
  out += "  else\n    case \"$command\" in\n";
  for (const std::string_view first : first_words(commands)) {
    const auto seconds = second_words(commands, first);
    if (seconds.empty()) continue;
    out += fmt::format(
        "      {0}) if [ \"$COMP_CWORD\" -eq 2 ]; then words={1}; else command=\"{0} "
        "${{COMP_WORDS[2]}}\"; fi ;;\n",
        first, shell_word(joined(seconds)));
  }
  out += "    esac\n    case \"$cur,$command\" in\n";
  for (const Command* command : commands)
    out += fmt::format("      -*,{}) words={} ;;\n", shell_word(command->name),
                       shell_word(option_words(*command)));
  out +=
      "    esac\n  fi\n"
      "  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
      "}\n"
      "complete -o default -F _m2 m2\n";
  return out;
}

// One --name[help]:value: of zsh's _arguments.
void append_zsh_option(std::string& out, const Option& option) {
  const auto spec = [&](std::string_view name, bool takes_value) {
    std::string text = fmt::format("{}[", name);
    for (const char c : option.help)
      text += c == ']' || c == '[' || c == ':' ? fmt::format("\\{}", c) : std::string(1, c);
    text += takes_value ? "]:value:_files" : "]";
    out += fmt::format("        {} \\\n", shell_word(text));
  };
  const bool is_flag = option.kind == OptionKind::flag;
  spec(fmt::format("--{}", option.name), !is_flag);
  if (is_flag) spec(fmt::format("--no-{}", option.name), false);
  for (const std::string_view name : shorts_of(option)) spec(name, !is_flag);
}

std::string zsh_script(Commands commands) {
  std::string out =
      "#compdef m2\n"
      "# Completion of m2 for zsh: put this into a folder of $fpath, as _m2\n"
      "_m2() {\n"
      "  local command=$words[2]\n"
      "  if (( CURRENT == 2 )); then\n";
  out += fmt::format("    compadd -- {}\n    return\n  fi\n", joined(first_words(commands)));
  for (const std::string_view first : first_words(commands)) {
    const auto seconds = second_words(commands, first);
    if (seconds.empty()) continue;
    out += fmt::format(
        "  if [[ $command == {0} ]]; then\n    if (( CURRENT == 3 )); then compadd -- {1}; return; "
        "fi\n    command=\"{0} $words[3]\"\n  fi\n",
        first, joined(seconds));
  }
  out += "  case $command in\n";
  for (const Command* command : commands) {
    out += fmt::format("    ({})\n      _arguments \\\n", shell_word(command->name));
    for (const Option& option : command->options) append_zsh_option(out, option);
    out += "        '--help[Show help.]' '*:file:_files' ;;\n";
  }
  return out + "  esac\n}\n_m2 \"$@\"\n";
}

std::string fish_script(Commands commands) {
  std::string out =
      "# Completion of m2 for fish: put this into ~/.config/fish/completions/m2.fish\n";
  for (const std::string_view first : first_words(commands)) {
    std::string_view summary;
    for (const Command* command : commands)
      if (command->name == first) summary = command->summary;
    out += fmt::format("complete -c m2 -f -n __fish_use_subcommand -a {}", first);
    if (!summary.empty()) out += fmt::format(" -d {}", shell_word(summary, "\\"));
    out += '\n';
    if (const auto seconds = second_words(commands, first); !seconds.empty())
      out += fmt::format(
          "complete -c m2 -f -n '__fish_seen_subcommand_from {}; and not "
          "__fish_seen_subcommand_from {}' -a {}\n",
          first, joined(seconds), shell_word(joined(seconds)));
  }
  for (const Command* command : commands) {
    const auto [first, second] = words_of(*command);
    std::string when = fmt::format("__fish_seen_subcommand_from {}", first);
    if (!second.empty()) when += fmt::format("; and __fish_seen_subcommand_from {}", second);
    for (const Option& option : command->options) {
      const bool is_flag = option.kind == OptionKind::flag;
      out += fmt::format("complete -c m2 -n {} -l {}", shell_word(when), option.name);
      for (const std::string_view name : shorts_of(option))
        out += fmt::format(" -{} {}", name.size() == 2 ? 's' : 'o', name.substr(1));
      out += fmt::format("{} -d {}\n", is_flag ? "" : " -r", shell_word(option.help, "\\"));
      if (is_flag)
        out += fmt::format("complete -c m2 -n {} -l no-{}\n", shell_word(when), option.name);
    }
  }
  return out;
}

// Text that roff takes literally.
std::string roff(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool starts_line = out.empty() || out.back() == '\n';
    if (starts_line && (c == '.' || c == '\'')) out += "\\&";
    if (c == '\\')
      out += "\\e";
    else if (c == '-')
      out += "\\-";
    else
      out += c;
  }
  return out;
}

void append_man_option(std::string& out, const Option& option) {
  std::string names = fmt::format("\\fB\\-\\-{}\\fR", roff(option.name));
  for (const std::string_view name : shorts_of(option))
    names += fmt::format(", \\fB{}\\fR", roff(name));
  static constexpr const char* kValues[] = {"", "INTEGER", "NUMBER", "TEXT", "WORD...", "JSON"};
  const char* value = kValues[static_cast<size_t>(option.kind)];
  if (*value) names += fmt::format(" \\fI{}\\fR", value);
  out += fmt::format(".TP\n{}\n{}", names, roff(option.help));
  if (!option.fallback.empty() && option.fallback != "false")
    out += fmt::format(" Default: {}.", roff(option.fallback));
  if (!option.environment.empty()) out += fmt::format(" Variable: {}.", roff(option.environment));
  out += '\n';
}

}  // namespace

Result<std::string> completion_script(std::string_view shell, Commands commands) {
  if (shell == "bash") return bash_script(commands);
  if (shell == "zsh") return zsh_script(commands);
  if (shell == "fish") return fish_script(commands);
  return fail(Code::invalid_argument, "no completion for '{}': bash, zsh or fish", shell);
}

std::string man_page(Commands commands, std::string_view version) {
  std::string out = fmt::format(
      ".TH M2 1 \"\" \"m2 {}\" \"User Commands\"\n.SH NAME\nm2 \\- serve the MiniMax\\-M2 "
      "family\n.SH SYNOPSIS\n",
      roff(version));
  for (const Command* command : commands)
    out += fmt::format("\\fBm2 {}\\fR {} [options]\n.br\n", roff(command->name),
                       roff(command->positionals));
  out +=
      ".SH COMMAND LINES\nNames take _ for \\-, unambiguous prefixes and \\-\\-no\\-NAME. Integers "
      "take 1k = 1000 and 1K = 1024. JSON options take dotted keys.\n.SH COMMANDS\n";
  for (const Command* command : commands) {
    out += fmt::format(".SS m2 {} {}\n{}\n", roff(command->name), roff(command->positionals),
                       roff(command->summary));
    for (const Option& option : command->options) append_man_option(out, option);
    if (!command->details.empty()) out += fmt::format(".PP\n{}\n", roff(command->details));
  }
  return out;
}

}  // namespace m2::app
