#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

// Command lines as this family's users write them (contract.md 5.1): `_` is `-`, an unambiguous
// prefix of a name is that name, `--no-x` turns a switch off, short names may have several letters
// (-tp 4), integers take 1k = 1000 and 1K = 1024, JSON options take dotted keys
// (--compilation-config.cudagraph_mode NONE), and --config FILE.yaml gives what the line does not.
// One table of options is the source of parsing, --help, completion and the reference page.

namespace m2::app {

enum class OptionKind : uint8_t {
  flag,     // --x, --no-x, --x=true|false
  integer,  // 4096, 4k, 4K, 25.6k
  number,
  text,
  list,  // one or more words, or the option several times
  json,  // an object; dotted keys are merged into it
};

struct Option {
  std::string_view name;    // without dashes, words joined by '-'
  std::string_view shorts;  // "-tp -x", may be empty
  std::string_view group;   // heading in --help
  OptionKind kind;
  std::string_view fallback;  // the default, as text; empty: none
  std::string_view help;      // one sentence; ends with why it does nothing, where it does nothing
  std::string_view environment = {};  // the variable that sets it when the line does not
  std::string_view alone = {};        // a text's value where none follows; empty: one has to
};

// A command of the program: its words, its options, its positional arguments.
struct Command {
  std::string_view name;         // "serve", "inspect tokenize"
  std::string_view positionals;  // "MODEL", "[URL-or-MODEL]", ""
  std::string_view summary;      // one line
  std::string_view details;      // paragraphs after the options; may be empty
  std::span<const Option> options;
  size_t borrowed = 0;  // so many of the options, the last, are those of `m2 serve`
};

// What one command line said. Values are kept as text and read by kind.
class Values {
 public:
  explicit Values(const Command& command) : command_(&command) {}

  const std::vector<std::string>& positionals() const { return positionals_; }
  // True if the line, the config file or the environment set the option.
  bool given(std::string_view name) const;

  // The value or the default. Precondition: the table has the option, of that kind.
  bool flag(std::string_view name) const;
  std::optional<int64_t> integer(std::string_view name) const;
  std::optional<double> number(std::string_view name) const;
  std::string text(std::string_view name) const;
  std::vector<std::string> list(std::string_view name) const;
  Json json(std::string_view name) const;  // an object; empty if not given

  // {"name": value} of what was given, for the log line `non-default args`.
  Json given_values() const;

 private:
  friend class CommandLine;
  const Option& option(std::string_view name, OptionKind kind) const;
  const std::vector<std::string>* find(std::string_view name) const;

  const Command* command_;
  std::vector<std::string> positionals_;
  std::map<std::string, std::vector<std::string>, std::less<>> values_;
};

// Reads `words` (without program and command names). Every value is checked against its kind.
// `environment` looks a variable up, or returns nullptr. Errors name the option and what it takes.
Result<Values> parse_command_line(const Command& command, std::span<const std::string> words,
                                  const char* (*environment)(const char*));

// "4096", "4k", "4K", "25.6k", "1M", "2G", -1; nothing if it is not such a number or overflows.
std::optional<int64_t> parse_human_integer(std::string_view text);

// The group of --help=GROUP among the words; "" for --help and -h; nothing if none is there.
std::optional<std::string> help_asked(std::span<const std::string> words);

// --help: usage, options by group, details. `group`: empty for all but what is borrowed, "all", or
// only the groups that begin so, or where there is none, the options with that in their names.
std::string help_text(const Command& command, std::string_view group);

}  // namespace m2::app
