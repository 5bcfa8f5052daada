#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

// Regular languages, as patterns in the dialect that xgrammar's Regex() reads: only (?:...), |,
// *, +, ?, {m,n} and positive classes of \u{hex}.

namespace m2::text {

// How the characters of a string stand in the text that is matched.
enum class Spelling : uint8_t {
  raw,         // as they are
  json,        // inside a JSON string
  raw_value,   // as they are, within a tool call's parameter: no '<' out of a class
  json_value,  // inside a JSON string within a tool call's parameter: '<' out of a class is escaped
};

// A set of code points; surrogates never belong to it.
class CharSet {
 public:
  CharSet() = default;
  explicit CharSet(std::vector<std::pair<char32_t, char32_t>> ranges);

  CharSet complement() const;
  CharSet with(const CharSet& other) const;
  CharSet without(const CharSet& other) const;
  bool empty() const { return ranges_.empty(); }
  bool contains(char32_t c) const;
  const std::vector<std::pair<char32_t, char32_t>>& ranges() const { return ranges_; }

 private:
  std::vector<std::pair<char32_t, char32_t>> ranges_;  // sorted, disjoint, inclusive
};

// One character of the set; nothing ("[]" has no form here) must not be asked for.
std::string char_pattern(const CharSet& set, Spelling spelling);
// The pattern or nothing.
std::string optional_pattern(const std::string& pattern);
// Exactly this text. `text` is UTF-8.
std::string literal_pattern(std::string_view text, Spelling spelling);
// Any character of a string.
const CharSet& any_char();

// The strings that a regular expression describes: the whole string if `whole`, else those it is
// found in (JSON Schema's `pattern`). The common subset of ECMA-262 and Python's re; \d, \w and \s
// are ASCII's. Errors: invalid_argument (malformed, or what no automaton has: look-around, back
// references, \b, anchors inside), resource_exhausted (its repetitions multiply beyond a budget).
Result<std::string> regex_pattern(std::string_view regex, Spelling spelling, bool whole);

// A regular expression that only says of which characters a string is, and how many:
// ^[a-z]{2,40}$.
struct ClassRun {
  std::string pattern;  // any number of them
  int64_t least, most;  // most < 0: any
};
// Nothing: it says more, or is malformed.
std::optional<ClassRun> class_run(std::string_view regex, Spelling spelling);

// The decimal integers, without leading zeros, from `low` to `high`; up to 18 digits.
std::string integer_pattern(int64_t low, int64_t high);
constexpr int64_t kMostInteger = 999'999'999'999'999'999;

// A bound of a number, in decimal: -12.5 is {true, "12", "5"}.
struct Decimal {
  bool negative = false;
  std::string whole, fraction;  // no leading or trailing zeros; "0" and "" for none
};
Result<Decimal> to_decimal(std::string_view json_number);

struct DecimalBound {
  Decimal value;
  bool exclusive = false;
};
// Decimal numbers without exponent within the bounds (null: none). Empty if there are none.
std::string number_pattern(const DecimalBound* low, const DecimalBound* high);

// Strings other than those given, without escapes, in the JSON spelling given.
std::string other_strings_pattern(const std::vector<std::string>& names, Spelling spelling);

// `pattern` as a terminal of a grammar: Regex("...").
std::string regex_terminal(std::string_view pattern);

}  // namespace m2::text
