#include "text/grammar/pattern.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <memory>
#include <optional>

#include "text/unicode.h"

namespace m2::text {
namespace {

constexpr char32_t kLastChar = 0x10FFFF;
using Range = std::pair<char32_t, char32_t>;

std::vector<Range> normal(std::vector<Range> ranges) {
  std::sort(ranges.begin(), ranges.end());
  std::vector<Range> out;
  for (const Range& range : ranges) {
    if (range.first > range.second) continue;
    if (!out.empty() && range.first <= out.back().second + 1)
      out.back().second = std::max(out.back().second, range.second);
    else
      out.push_back(range);
  }
  return out;
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  for (const char *at = text.data(), *end = at + text.size(); at < end;) {
    const Utf8Step step = read_utf8(at, end);
    out += step.valid ? step.code_point : U'\ufffd';
    at += step.size;
  }
  return out;
}

std::string one(char32_t c) {
  const bool plain = c < 0x80 && ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                                  (c >= 'A' && c <= 'Z') || c == ' ' || c == '"' || c == '_');
  return plain ? std::string(1, static_cast<char>(c))
               : fmt::format("\\u{{{:x}}}", static_cast<uint32_t>(c));
}

std::string class_text(const CharSet& set) {
  std::string out = "[";
  for (const auto& [first, last] : set.ranges())
    out += first == last ? one(first) : one(first) + "-" + one(last);
  return out + "]";
}

bool is_json(Spelling spelling) {
  return spelling == Spelling::json || spelling == Spelling::json_value;
}

const CharSet& control_chars() {
  static const CharSet set({{0, 0x1f}});
  return set;
}

const CharSet& single(char32_t c) {
  static const CharSet less({{'<', '<'}}), quote({{'"', '"'}}), backslash({{'\\', '\\'}});
  return c == '<' ? less : c == '"' ? quote : backslash;
}

// The part of a JSON escape after the backslash.
std::string escape_of(char32_t c) {
  switch (c) {
    case '\b':
      return "b";
    case '\t':
      return "t";
    case '\n':
      return "n";
    case '\f':
      return "f";
    case '\r':
      return "r";
    case '"':
      return "\"";
    case '\\':
      return "\\u{5c}";
    default:
      return fmt::format("u{:04x}", static_cast<uint32_t>(c));
  }
}

// The character in a JSON string, if it must be escaped there.
std::optional<std::string> escaped(char32_t c) {
  if (c >= 0x20 && c != '"' && c != '\\') return std::nullopt;
  return "\\u{5c}" + escape_of(c);
}

}  // namespace

CharSet::CharSet(std::vector<Range> ranges) {
  std::vector<Range> kept;
  for (auto [first, last] : ranges) {
    last = std::min(last, kLastChar);
    if (first < 0xD800) kept.emplace_back(first, std::min<char32_t>(last, 0xD7FF));
    if (last > 0xDFFF) kept.emplace_back(std::max<char32_t>(first, 0xE000), last);
  }
  ranges_ = normal(std::move(kept));
}

CharSet CharSet::complement() const {
  std::vector<Range> out;
  char32_t next = 0;
  for (const auto& [first, last] : ranges_) {
    if (first > next) out.emplace_back(next, first - 1);
    next = last + 1;
  }
  if (next <= kLastChar) out.emplace_back(next, kLastChar);
  return CharSet(std::move(out));
}

CharSet CharSet::with(const CharSet& other) const {
  std::vector<Range> all = ranges_;
  all.insert(all.end(), other.ranges_.begin(), other.ranges_.end());
  return CharSet(std::move(all));
}

CharSet CharSet::without(const CharSet& other) const {
  return complement().with(other).complement();
}

bool CharSet::contains(char32_t c) const {
  return std::any_of(ranges_.begin(), ranges_.end(),
                     [&](const Range& range) { return range.first <= c && c <= range.second; });
}

const CharSet& any_char() {
  static const CharSet set({{0, kLastChar}});
  return set;
}

// Not written with '?', which xgrammar 0.2.8 lets end inside a loop that ends or begins the
// pattern.
std::string optional_pattern(const std::string& pattern) {
  return "(?:|" + pattern + ")";
}

std::string char_pattern(const CharSet& set, Spelling spelling) {
  if (spelling == Spelling::raw) return class_text(set);
  if (spelling == Spelling::raw_value) {
    const CharSet kept = set.without(single('<'));
    return class_text(kept.empty() ? set : kept);
  }
  CharSet direct = set.without(control_chars()).without(single('"')).without(single('\\'));
  std::string escapes;
  const auto add_escape = [&](char32_t c) {
    escapes += (escapes.empty() ? "" : "|") + escape_of(c);
  };
  if (spelling == Spelling::json_value && direct.contains('<')) {
    direct = direct.without(single('<'));
    add_escape('<');
  }
  for (char32_t c = 0; c < 0x20; ++c)
    if (set.contains(c)) add_escape(c);
  for (const char32_t c : {U'"', U'\\'})
    if (set.contains(c)) add_escape(c);
  std::string out = direct.empty() ? "" : class_text(direct);
  if (!escapes.empty()) out += (out.empty() ? "" : "|") + ("\\u{5c}(?:" + escapes + ")");
  return "(?:" + out + ")";
}

std::string literal_pattern(std::string_view text, Spelling spelling) {
  std::string out;
  for (const char32_t c : decode_utf8(text)) {
    const auto escape = is_json(spelling) ? escaped(c) : std::nullopt;
    out += escape ? *escape : c == '.' ? "[.]" : one(c);
  }
  return out;
}

// ---- regular expressions

namespace {

// Counts above this xgrammar 0.2.8 keeps in a rule of its own, which it then fails to compile; so
// they are made of groups.
constexpr int64_t kMostCounted = 128;

std::string grouped(const std::string& pattern) {
  return "(?:" + pattern + ")";
}

std::string exactly(const std::string& pattern, int64_t count) {
  if (count <= kMostCounted) return fmt::format("{}{{{}}}", grouped(pattern), count);
  const std::string rest =
      count % kMostCounted > 0 ? exactly(pattern, count % kMostCounted) : std::string();
  return exactly(exactly(pattern, kMostCounted), count / kMostCounted) + rest;
}

// Of what has come no more than two readings are left at a time.
std::string at_most(const std::string& pattern, int64_t count) {
  if (count == 0) return {};
  if (count <= kMostCounted) return fmt::format("{}{{0,{}}}", grouped(pattern), count);
  return grouped(at_most(pattern, kMostCounted - 1) + "|" + exactly(pattern, kMostCounted) +
                 at_most(pattern, count - kMostCounted));
}

// {low,high} of a pattern; `high` < 0: or more.
std::string repeated(const std::string& pattern, int64_t low, int64_t high) {
  if (high == 0) return {};
  if (low == 1 && high == 1) return pattern;
  if (low == 0 && high == 1) return optional_pattern(pattern);
  if (low <= 1 && high < 0) return grouped(pattern) + (low == 0 ? "*" : "+");
  std::string out = low > 0 ? exactly(pattern, low) : std::string();
  if (high < 0) return out + grouped(pattern) + "*";
  return high > low ? out + at_most(pattern, high - low) : out;
}

// Reads a regular expression and prints it in the dialect of this file.
class RegexReader {
 public:
  RegexReader(std::u32string regex, Spelling spelling)
      : regex_(std::move(regex)), spelling_(spelling) {}

  struct Alternative {
    std::string text;
    bool from_start = false, to_end = false;
  };

  Result<std::vector<Alternative>> read() {
    std::vector<Alternative> out;
    do {
      Alternative alternative;
      if (take('^')) alternative.from_start = true;
      M2_TRY(alternative.text, sequence(0));
      if (take('$')) alternative.to_end = true;
      if (!done() && peek() != '|') return malformed("an unmatched ')' or an anchor inside");
      out.push_back(std::move(alternative));
    } while (take('|'));
    return out;
  }

  // ^, one character that may be repeated, $; nothing: it is more than that.
  std::optional<ClassRun> class_run() {
    if (!take('^')) return std::nullopt;
    for (const char32_t c : {U'(', U')', U'^', U'$', U'|'})
      if (done() || peek() == c) return std::nullopt;
    const auto set = characters();
    if (!set) return std::nullopt;
    const auto counts = quantifier();
    if (!counts || !take('$') || !done()) return std::nullopt;
    return ClassRun{char_pattern(*set, spelling_) + "*", counts->low, counts->high};
  }

 private:
  static constexpr int kMaxDepth = 64;
  static constexpr size_t kMaxSize = 10'000;  // characters, repetitions multiplied
  static constexpr size_t kWide = 50;         // that those of a wide class count for
  static constexpr size_t kMaxText = 256 << 10;

  bool done() const { return at_ >= regex_.size(); }
  char32_t peek() const { return regex_[at_]; }
  bool take(char32_t c) {
    if (done() || peek() != c) return false;
    ++at_;
    return true;
  }

  Error malformed(std::string_view why) const {
    return fail(Code::invalid_argument, "at character {}: {}", at_ + 1, why);
  }

  Result<std::string> alternatives(int depth) {
    if (depth > kMaxDepth) return malformed("groups are nested too deeply");
    std::string out;
    do {
      M2_TRY(const std::string part, sequence(depth));
      out += (out.empty() ? "" : "|") + (part.empty() ? "(?:)" : part);
    } while (take('|'));
    return out;
  }

  Result<std::string> sequence(int depth) {
    std::string out;
    while (!done() && peek() != '|' && peek() != ')' && peek() != '$') {
      if (peek() == '^') return malformed("an anchor inside is not supported");
      const size_t before = size_;
      M2_TRY(const std::string atom, this->atom(depth));
      M2_TRY(const Counts counts, quantifier());
      if (!multiply(size_ - before, counts) || out.size() > kMaxText)
        return fail(Code::resource_exhausted,
                    "its repetitions make it longer than {} characters, of which those of a wide "
                    "class count for {}",
                    kMaxSize, kWide);
      out += repeated(atom, counts.low, counts.high);
    }
    return out;
  }

  struct Counts {
    int64_t low = 1, high = 1;  // high < 0: or more
  };

  // A quantifier, if one follows.
  Result<Counts> quantifier() {
    Counts out;
    if (done()) return out;
    const size_t start = at_;
    if (take('*')) {
      out = {0, -1};
    } else if (take('+')) {
      out = {1, -1};
    } else if (take('?')) {
      out = {0, 1};
    } else if (take('{')) {
      M2_TRY(const bool is_count, counts(out.low, out.high));
      if (!is_count) return at_ = start, Counts{};
    } else {
      return out;
    }
    take('?');  // the lazy form has the same language
    if (!done() && peek() == '+') return malformed("possessive quantifiers are not supported");
    return out;
  }

  // Counts an atom of this size so often; false: that is beyond the budget.
  bool multiply(size_t size, const Counts& counts) {
    const auto times =
        static_cast<size_t>(std::max<int64_t>(counts.high < 0 ? counts.low + 1 : counts.high, 1));
    if (times > kMaxSize || size * times > kMaxSize) return false;
    size_ += size * (times - 1);
    return size_ <= kMaxSize;
  }

  // "m}", "m,}" or "m,n}" after the brace; anything else means that the brace is a character.
  Result<bool> counts(int64_t& low, int64_t& high) {
    const auto number = [&](int64_t& out) {
      const size_t first = at_;
      out = 0;
      while (!done() && peek() >= '0' && peek() <= '9' && at_ - first < 7)
        out = out * 10 + static_cast<int64_t>(regex_[at_++] - '0');
      return at_ > first;
    };
    if (!number(low)) return false;
    high = low;
    if (take(',') && !number(high)) high = -1;
    if (!take('}')) return malformed("a repetition count that is not one");
    if (high >= 0 && high < low) return malformed("a repetition of at least more than at most");
    return true;
  }

  Result<std::string> atom(int depth) {
    if (take('(')) return group(depth);
    const bool is_class = peek() == '[';
    M2_TRY(const CharSet set, characters());
    return is_single(set) && !is_class ? literal(set.ranges()[0].first) : print(set);
  }

  // What stands for one character: a class, an escape or the character itself.
  Result<CharSet> characters() {
    const char32_t c = regex_[at_++];
    if (c == '[') return char_class();
    if (c == '.') {
      static const CharSet breaks({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
      return breaks.complement();
    }
    if (c == '*' || c == '+' || c == '?') return malformed("nothing to repeat");
    if (c == '\\') return escape();
    return CharSet({{c, c}});
  }

  static bool is_single(const CharSet& set) {
    return set.ranges().size() == 1 && set.ranges()[0].first == set.ranges()[0].second;
  }

  std::string literal(char32_t c) {
    ++size_;
    std::string text;
    append_utf8(c, text);
    const std::string pattern = literal_pattern(text, spelling_);
    return pattern.size() > 1 ? "(?:" + pattern + ")" : pattern;
  }

  std::string print(const CharSet& set) {
    size_ += is_wide(set) ? kWide : 1;
    return char_pattern(set, spelling_);
  }

  // Whether an automaton has many states for one character of it.
  static bool is_wide(const CharSet& set) {
    return std::ranges::any_of(
        set.ranges(), [](const Range& range) { return range.second - range.first > 0x400; });
  }

  Result<std::string> group(int depth) {
    if (take('?') && !take(':')) {
      const bool python = take('P');
      if (!take('<') || done() || peek() == '=' || peek() == '!' || (python && done()))
        return malformed("look-around, flags and back references are not supported");
      while (!done() && peek() != '>') ++at_;
      if (!take('>')) return malformed("an unfinished group name");
    }
    M2_TRY(const std::string inner, alternatives(depth + 1));
    if (!take(')')) return malformed("a missing ')' or an anchor inside");
    return "(?:" + inner + ")";
  }

  // The set that \d, \D, \w, \W, \s or \S stands for in the mouth of every reader: about what is
  // not ASCII they disagree.
  static std::optional<CharSet> named_class(char32_t c) {
    static const CharSet digits({{'0', '9'}}), ascii({{0, 0x7f}});
    static const CharSet words({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}});
    static const CharSet blanks({{'\t', '\r'}, {' ', ' '}});
    static const CharSet all_blanks({{'\t', '\r'},
                                     {0x1c, 0x20},
                                     {0x85, 0x85},
                                     {0xa0, 0xa0},
                                     {0x1680, 0x1680},
                                     {0x2000, 0x200a},
                                     {0x2028, 0x2029},
                                     {0x202f, 0x202f},
                                     {0x205f, 0x205f},
                                     {0x3000, 0x3000},
                                     {0xfeff, 0xfeff}});
    switch (c) {
      case 'd':
        return digits;
      case 'D':
        return ascii.without(digits);
      case 'w':
        return words;
      case 'W':
        return ascii.without(words);
      case 's':
        return blanks;
      case 'S':
        return all_blanks.complement();
      default:
        return std::nullopt;
    }
  }

  // After the backslash: a class, or a single character.
  Result<CharSet> escape() {
    if (done()) return malformed("a backslash at the end");
    const char32_t c = regex_[at_++];
    if (const auto set = named_class(c)) return *set;
    switch (c) {
      case 't':
        return CharSet({{'\t', '\t'}});
      case 'n':
        return CharSet({{'\n', '\n'}});
      case 'r':
        return CharSet({{'\r', '\r'}});
      case 'f':
        return CharSet({{'\f', '\f'}});
      case 'v':
        return CharSet({{'\v', '\v'}});
      case '0':
        return CharSet({{0, 0}});
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      default:
        break;
    }
    const bool alphanumeric =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (alphanumeric) return malformed(fmt::format("\\{} is not supported", static_cast<char>(c)));
    return CharSet({{c, c}});
  }

  Result<CharSet> hex(size_t digits) {
    char32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const char32_t c = done() ? 0 : peek();
      const int digit = c >= '0' && c <= '9'   ? static_cast<int>(c - '0')
                        : c >= 'a' && c <= 'f' ? static_cast<int>(c - 'a') + 10
                        : c >= 'A' && c <= 'F' ? static_cast<int>(c - 'A') + 10
                                               : -1;
      if (digit < 0) return malformed("a hexadecimal escape that is not one");
      value = value * 16 + static_cast<char32_t>(digit);
    }
    const CharSet set({{value, value}});
    if (set.empty()) return malformed("surrogates are not characters");
    return set;
  }

  Result<CharSet> char_class() {
    const bool negated = take('^');
    CharSet set;
    for (bool first = true; done() || peek() != ']' || first; first = false) {
      if (done()) return malformed("a missing ']'");
      if (first && peek() == ']') return malformed("an empty class");
      M2_TRY(const CharSet low, class_item(negated));
      const bool is_range = at_ + 1 < regex_.size() && peek() == '-' && regex_[at_ + 1] != ']';
      if (!is_range || !is_single(low)) {
        set = set.with(low);
        continue;
      }
      ++at_;
      M2_TRY(const CharSet high, class_item(negated));
      if (!is_single(high) || high.ranges()[0].first < low.ranges()[0].first)
        return malformed("a range that is none");
      set = set.with(CharSet({{low.ranges()[0].first, high.ranges()[0].first}}));
    }
    ++at_;
    if (negated) set = set.complement();
    if (set.empty()) return malformed("a class that nothing matches");
    return set;
  }

  // Of a negated class all that any reader takes \s and its like for is left out.
  Result<CharSet> class_item(bool negated) {
    const char32_t c = regex_[at_++];
    if (c != '\\') return CharSet({{c, c}});
    if (take('b')) return CharSet({{'\b', '\b'}});
    if (!negated || done() || !named_class(peek())) return escape();
    constexpr char32_t kOtherCase = 'a' ^ 'A';
    return named_class(regex_[at_++] ^ kOtherCase)->complement();
  }

  const std::u32string regex_;
  const Spelling spelling_;
  size_t at_ = 0;
  size_t size_ = 0;
};

}  // namespace

Result<std::string> regex_pattern(std::string_view regex, Spelling spelling, bool whole) {
  constexpr size_t kMaxBytes = 4 << 10;
  if (regex.size() > kMaxBytes)
    return fail(Code::resource_exhausted, "it has {} bytes, at most {} are allowed", regex.size(),
                kMaxBytes);
  RegexReader reader(decode_utf8(regex), spelling);
  M2_TRY(const auto alternatives, reader.read());
  const std::string anything = char_pattern(any_char(), spelling) + "*";
  std::string out;
  for (const auto& alternative : alternatives) {
    std::string part;
    if (!whole && !alternative.from_start) part += anything;
    part += "(?:" + alternative.text + ")";
    if (!whole && !alternative.to_end) part += anything;
    out += (out.empty() ? "" : "|") + part;
  }
  return "(?:" + out + ")";
}

std::optional<ClassRun> class_run(std::string_view regex, Spelling spelling) {
  RegexReader reader(decode_utf8(regex), spelling);
  return reader.class_run();
}

// ---- numbers

namespace {

std::string digits_between(char low, char high) {
  return low == high ? std::string(1, low) : fmt::format("[{}-{}]", low, high);
}

// Strings of digits of one length from `low` to `high`, which have that length.
void same_length(const std::string& low, const std::string& high, const std::string& prefix,
                 std::vector<std::string>& out) {
  size_t same = 0;
  while (same < low.size() && low[same] == high[same]) ++same;
  const std::string head = prefix + low.substr(0, same);
  if (same == low.size()) return out.push_back(head);
  const size_t rest = low.size() - same - 1;
  const bool low_is_all = low.find_first_not_of('0', same + 1) == std::string::npos;
  const bool high_is_all = high.find_first_not_of('9', same + 1) == std::string::npos;
  char first = low[same], last = high[same];
  if (!low_is_all) {
    same_length(low.substr(same + 1), std::string(rest, '9'), head + first, out);
    ++first;
  }
  if (!high_is_all) --last;
  if (first <= last) {
    const std::string tail = rest == 0 ? "" : fmt::format("[0-9]{{{}}}", rest);
    out.push_back(head + digits_between(first, last) + tail);
  }
  if (!high_is_all)
    same_length(std::string(rest, '0'), high.substr(same + 1), head + high[same], out);
}

// 0 <= low <= high.
void natural(uint64_t low, uint64_t high, const std::string& prefix,
             std::vector<std::string>& out) {
  const std::string last = std::to_string(high);
  for (std::string first = std::to_string(low); first.size() <= last.size();
       first = "1" + std::string(first.size(), '0')) {
    const bool longest = first.size() == last.size();
    same_length(first, longest ? last : std::string(first.size(), '9'), prefix, out);
  }
}

std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& part : parts) out += (out.empty() ? "" : "|") + part;
  return "(?:" + out + ")";
}

}  // namespace

std::string integer_pattern(int64_t low, int64_t high) {
  low = std::max(low, -kMostInteger);
  high = std::min(high, kMostInteger);
  std::vector<std::string> parts;
  if (low > high) return "";
  if (low < 0)
    natural(static_cast<uint64_t>(std::max<int64_t>(-high, 1)), static_cast<uint64_t>(-low),
            "\\u{2d}", parts);
  if (high >= 0)
    natural(static_cast<uint64_t>(std::max<int64_t>(low, 0)), static_cast<uint64_t>(high), "",
            parts);
  return joined(parts);
}

namespace {

constexpr const char* kFraction = "(?:|[.][0-9]{1,12})";

// What may follow the whole part of a bound: fractions from (or above) `fraction` on.
std::string fraction_from(const std::string& fraction, bool exclusive) {
  if (fraction.empty()) return exclusive ? "[.][0-9]{0,11}[1-9]" : kFraction;
  std::vector<std::string> parts;
  for (size_t i = 0; i < fraction.size(); ++i)
    if (fraction[i] < '9')
      parts.push_back(fraction.substr(0, i) +
                      digits_between(static_cast<char>(fraction[i] + 1), '9') + "[0-9]{0,6}");
  parts.push_back(fraction + (exclusive ? "[0-9]{0,6}[1-9]" : "[0-9]{0,6}"));
  return "[.]" + joined(parts);
}

// Fractions up to (or below) `fraction`, none at all included.
std::string fraction_to(const std::string& fraction, bool exclusive) {
  if (fraction.empty()) return exclusive ? "" : "(?:|[.]0{1,6})";
  std::vector<std::string> parts;
  for (size_t i = 0; i < fraction.size(); ++i) {
    if (fraction[i] > '0')
      parts.push_back(fraction.substr(0, i) +
                      digits_between('0', static_cast<char>(fraction[i] - 1)) + "[0-9]{0,6}");
    if (i > 0) parts.push_back(fraction.substr(0, i));
  }
  if (!exclusive) parts.push_back(fraction + "0{0,3}");
  return parts.empty() ? "" : optional_pattern("[.]" + joined(parts));
}

struct Magnitude {
  uint64_t whole;
  std::string fraction;
  bool exclusive;
};

// Digits after a point that begin alike: from `rest` (above, if exclusive) on, and up to it.
void digits_from(const std::string& head, const std::string& rest, bool exclusive,
                 std::vector<std::string>& out) {
  for (size_t i = 0; i < rest.size(); ++i)
    if (rest[i] < '9')
      out.push_back(head + rest.substr(0, i) + digits_between(static_cast<char>(rest[i] + 1), '9') +
                    "[0-9]{0,6}");
  out.push_back(head + rest + (exclusive ? "[0-9]{0,6}[1-9]" : "[0-9]{0,6}"));
}

void digits_to(const std::string& head, const std::string& rest, bool exclusive,
               std::vector<std::string>& out) {
  for (size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] > '0')
      out.push_back(head + rest.substr(0, i) + digits_between('0', static_cast<char>(rest[i] - 1)) +
                    "[0-9]{0,6}");
    out.push_back(head + rest.substr(0, i));
  }
  if (!exclusive) out.push_back(head + rest + "0{0,3}");
}

// The fractions of one whole number. Precondition: low.fraction < high.fraction.
void fractions_between(const Magnitude& low, const Magnitude& high, std::vector<std::string>& out) {
  std::string first = low.fraction;
  first.resize(std::max(first.size(), high.fraction.size()), '0');
  size_t same = 0;
  while (first[same] == high.fraction[same]) ++same;
  const std::string head = first.substr(0, same);
  const char a = first[same], b = high.fraction[same];
  const std::string low_rest =
      low.fraction.size() > same + 1 ? low.fraction.substr(same + 1) : std::string();
  // A fraction cannot be empty: that is the whole number, which the caller writes.
  digits_from(head + a, low_rest, low.exclusive, out);
  if (a + 1 < b)
    out.push_back(head + digits_between(static_cast<char>(a + 1), static_cast<char>(b - 1)) +
                  "[0-9]{0,6}");
  digits_to(head + b, high.fraction.substr(same + 1), high.exclusive, out);
}

// Numbers without sign from `low` to `high` (null: without end).
void magnitudes(const Magnitude& low, const Magnitude* high, const std::string& sign,
                std::vector<std::string>& out) {
  const uint64_t most = high ? high->whole : static_cast<uint64_t>(kMostInteger);
  if (low.whole > most) return;
  if (high && low.whole == high->whole) {
    // Within one whole number: step through the digits where the two part.
    if (low.fraction == high->fraction) {
      if (low.exclusive || high->exclusive) return;
      out.push_back(sign + std::to_string(low.whole) +
                    (low.fraction.empty() ? "(?:|[.]0{1,3})" : "[.]" + low.fraction + "0{0,3}"));
      return;
    }
    if (low.fraction > high->fraction) return;
    std::vector<std::string> fractions;
    fractions_between(low, *high, fractions);
    const bool bare = low.fraction.empty() && !low.exclusive;
    const std::string fraction = "[.]" + joined(fractions);
    out.push_back(sign + std::to_string(low.whole) +
                  (bare ? optional_pattern(fraction) : fraction));
    return;
  }
  const bool whole_low = low.fraction.empty() && !low.exclusive;
  if (!whole_low)
    out.push_back(sign + std::to_string(low.whole) + fraction_from(low.fraction, low.exclusive));
  const uint64_t from = whole_low ? low.whole : low.whole + 1;
  if (!high) {
    if (from <= most) {
      std::vector<std::string> wholes;
      natural(from, most, sign, wholes);
      out.push_back(joined(wholes) + kFraction);
    }
    return;
  }
  if (from < most) {
    std::vector<std::string> wholes;
    natural(from, most - 1, sign, wholes);
    out.push_back(joined(wholes) + kFraction);
  }
  // At the upper whole number: nothing, if that itself is excluded.
  if (high->exclusive && high->fraction.empty()) return;
  out.push_back(sign + std::to_string(most) + fraction_to(high->fraction, high->exclusive));
}

Magnitude magnitude(const DecimalBound& bound) {
  uint64_t whole = 0;
  std::from_chars(bound.value.whole.data(), bound.value.whole.data() + bound.value.whole.size(),
                  whole);
  return {whole, bound.value.fraction, bound.exclusive};
}

bool is_zero(const Decimal& value) {
  return value.whole == "0" && value.fraction.empty();
}

}  // namespace

Result<Decimal> to_decimal(std::string_view text) {
  Decimal out;
  out.negative = text.starts_with('-');
  if (out.negative) text.remove_prefix(1);
  const size_t e = text.find_first_of("eE");
  int exponent = 0;
  if (e != std::string_view::npos) {
    std::string_view digits = text.substr(e + 1);
    if (digits.starts_with('+')) digits.remove_prefix(1);
    std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    text = text.substr(0, e);
  }
  const size_t dot = text.find('.');
  std::string whole(text.substr(0, dot));
  std::string fraction(dot == std::string_view::npos ? "" : text.substr(dot + 1));
  if (std::abs(exponent) > 40) exponent = exponent > 0 ? 40 : -40;
  for (; exponent > 0; --exponent) {
    whole += fraction.empty() ? '0' : fraction[0];
    if (!fraction.empty()) fraction.erase(0, 1);
  }
  for (; exponent < 0; ++exponent) {
    fraction.insert(fraction.begin(), whole.empty() ? '0' : whole.back());
    if (!whole.empty()) whole.pop_back();
  }
  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size()));
  fraction.erase(fraction.find_last_not_of('0') + 1);
  if (whole.size() > 18 || fraction.size() > 20)
    return fail(Code::invalid_argument, "a bound with more than 18 digits is not supported");
  out.whole = whole.empty() ? "0" : whole;
  out.fraction = fraction;
  if (is_zero(out)) out.negative = false;
  return out;
}

std::string number_pattern(const DecimalBound* low, const DecimalBound* high) {
  std::vector<std::string> parts;
  const bool low_negative = !low || low->value.negative;
  const bool high_negative = high && high->value.negative;
  const bool high_is_zero = high && is_zero(high->value);
  // Below zero, by magnitude; zero itself is written without a sign.
  if (low_negative) {
    const Magnitude least = high_negative ? magnitude(*high) : Magnitude{0, "", true};
    std::optional<Magnitude> most;
    if (low) most = magnitude(*low);
    magnitudes(least, most ? &*most : nullptr, "\\u{2d}", parts);
  }
  if (!high_negative && !(high_is_zero && high->exclusive)) {
    const Magnitude least = low_negative ? Magnitude{0, "", false} : magnitude(*low);
    std::optional<Magnitude> most;
    if (high) most = magnitude(*high);
    magnitudes(least, most ? &*most : nullptr, "", parts);
  }
  return parts.empty() ? "" : joined(parts);
}

// ---- names

namespace {

struct NameTree {
  std::map<char32_t, std::unique_ptr<NameTree>> children;
  bool ends = false;
};

std::string others(const NameTree& node, const CharSet& chars, Spelling spelling) {
  std::vector<Range> next;
  std::string out;
  for (const auto& [c, child] : node.children) {
    next.emplace_back(c, c);
    if (!chars.contains(c)) continue;
    std::string text;
    append_utf8(c, text);
    out += literal_pattern(text, spelling) + others(*child, chars, spelling) + "|";
  }
  out += class_text(chars.without(CharSet(next))) + class_text(chars) + "*";
  return node.ends ? "(?:" + out + ")" : optional_pattern(out);
}

}  // namespace

std::string other_strings_pattern(const std::vector<std::string>& names, Spelling spelling) {
  NameTree root;
  for (const std::string& name : names) {
    NameTree* node = &root;
    for (const char32_t c : decode_utf8(name)) {
      auto& child = node->children[c];
      if (!child) child = std::make_unique<NameTree>();
      node = child.get();
    }
    node->ends = true;
  }
  CharSet chars = any_char().without(control_chars()).without(single('"')).without(single('\\'));
  if (spelling != Spelling::json) chars = chars.without(single('<'));
  return others(root, chars, spelling);
}

std::string regex_terminal(std::string_view pattern) {
  std::string out = "Regex(\"";
  for (const char c : pattern) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\")";
}

}  // namespace m2::text
