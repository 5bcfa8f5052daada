#include "text/jinja/lexer.h"

#include <array>
#include <charconv>

#include "text/jinja/failure.h"
#include "text/jinja/unicode.h"

namespace m2::text::jinja {
namespace {

constexpr auto npos = std::string_view::npos;

std::string normalize_newlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out += text[i] == '\r' ? '\n' : text[i];
  }
  return out;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

int digit_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

// The value of a string literal's body, as Python's unicode-escape codec reads it.
class Unescaper {
 public:
  Unescaper(std::string_view body, int line) : body_(body), line_(line) {}

  std::string run() {
    while (at_ < body_.size()) {
      const char c = body_[at_++];
      if (c != '\\' || at_ == body_.size()) {
        out_ += c;
      } else {
        escape(body_[at_++]);
      }
    }
    return std::move(out_);
  }

 private:
  void escape(char c) {
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t known = kLetters.find(c); known != npos) return out_.push_back(kValues[known]);
    if (c == '\n') return;  // a continued line
    if (c == 'x') return point(2);
    if (c == 'u') return point(4);
    if (c == 'U') return point(8);
    if (c >= '0' && c <= '7') return octal(c);
    if (c == 'N') raise("line {}: named characters (\\N) are not supported", line_);
    out_ += '\\';
    out_ += c;
  }

  void point(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const int digit = at_ < body_.size() ? digit_value(body_[at_]) : 99;
      if (digit > 15) raise("line {}: truncated \\x, \\u or \\U escape in a string", line_);
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      raise("line {}: a string names U+{:04X}, which is no character", line_, value);
    append_point(out_, value);
  }

  void octal(char first) {
    auto value = static_cast<uint32_t>(first - '0');
    for (int i = 0; i < 2 && at_ < body_.size() && digit_value(body_[at_]) < 8; ++i)
      value = value * 8 + static_cast<uint32_t>(body_[at_++] - '0');
    append_point(out_, value);
  }

  std::string_view body_;
  int line_;
  size_t at_ = 0;
  std::string out_;
};

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {
    if (source_.ends_with('\n')) source_.pop_back();
    rest_ = source_;
  }

  std::vector<Token> run() {
    while (lex_data()) {
    }
    add(Token::Kind::end);
    return std::move(tokens_);
  }

 private:
  // --- Outside of tags ---

  // Text up to the next tag, and that tag. False at the end of the template.
  bool lex_data() {
    const size_t tag = find_tag();
    if (tag == npos) {
      add_data(rest_.substr(at_));
      return false;
    }
    const char kind = rest_[tag + 1];
    const char sign = sign_at(tag + 2);
    add_data(strip_before_tag(rest_.substr(at_, tag - at_), sign, kind == '{'));
    move_to(tag + 2 + (sign != 0 ? 1 : 0));
    if (kind == '#') {
      skip_comment();
    } else if (kind == '%' && at_raw()) {
      lex_raw();
    } else {
      lex_tag(kind == '{');
    }
    return true;
  }

  size_t find_tag() const {
    for (size_t at = rest_.find('{', at_); at != npos; at = rest_.find('{', at + 1)) {
      const char next = at + 1 < rest_.size() ? rest_[at + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return at;
    }
    return npos;
  }

  // The '-' or '+' at `at`, or 0.
  char sign_at(size_t at) const {
    if (at >= rest_.size()) return 0;
    return rest_[at] == '-' || rest_[at] == '+' ? rest_[at] : '\0';
  }

  // lstrip_blocks: a tag alone on its line takes the white space before it away.
  std::string_view strip_before_tag(std::string_view text, char sign, bool is_variable) const {
    if (sign == '-') return text.substr(0, text.size() - trailing_space(text));
    if (sign == '+' || is_variable) return text;
    const size_t newline = text.rfind('\n');
    const size_t line = newline == npos ? 0 : newline + 1;
    if (line == 0 && !line_starting_) return text;
    const std::string_view last = text.substr(line);
    return leading_space(last) == last.size() ? text.substr(0, line) : text;
  }

  void skip_comment() {
    const size_t end = rest_.find("#}", at_);
    if (end == npos) fail("Missing end of comment tag");
    finish_tag(end, end > at_ ? rest_[end - 1] : '\0');
  }

  // Moves behind a tag's end, which is two characters at `end`: with '-' before it all white space
  // goes too, without a sign one newline does (trim_blocks).
  void finish_tag(size_t end, char sign) {
    size_t next = end + 2;
    if (sign == '-') {
      next += leading_space(rest_.substr(next));
    } else if (sign != '+' && next < rest_.size() && rest_[next] == '\n') {
      ++next;
    }
    move_to(next);
  }

  bool at_raw() const { return raw_end(at_, "raw") != npos; }

  // If white space, `word`, white space and an optional sign and "%}" stand at `at`: the index of
  // the "%}", else npos.
  size_t raw_end(size_t at, std::string_view word) const {
    at += leading_space(rest_.substr(at));
    if (rest_.substr(at, word.size()) != word) return npos;
    at += word.size();
    at += leading_space(rest_.substr(at));
    if (sign_at(at) != 0) ++at;
    return rest_.substr(at, 2) == "%}" ? at : npos;
  }

  void lex_raw() {
    const size_t begin_end = raw_end(at_, "raw");
    const bool strips = rest_[begin_end - 1] == '-';
    move_to(begin_end + 2);
    if (strips) move_to(at_ + leading_space(rest_.substr(at_)));
    for (size_t tag = rest_.find("{%", at_); tag != npos; tag = rest_.find("{%", tag + 2)) {
      const char sign = sign_at(tag + 2);
      const size_t end = raw_end(tag + 2 + (sign != 0 ? 1 : 0), "endraw");
      if (end == npos) continue;
      add_data(strip_before_tag(rest_.substr(at_, tag - at_), sign, false));
      return finish_tag(end, rest_[end - 1]);
    }
    fail("Missing end of raw directive");
  }

  // --- Inside of tags ---

  void lex_tag(bool is_variable) {
    add(is_variable ? Token::Kind::variable_begin : Token::Kind::block_begin);
    const std::string_view close = is_variable ? "}}" : "%}";
    while (!lex_tag_end(close, is_variable)) lex_token();
  }

  bool lex_tag_end(std::string_view close, bool is_variable) {
    move_to(at_ + leading_space(rest_.substr(at_)));
    if (at_ == rest_.size()) return true;  // the parser reports the unexpected end
    if (!brackets_.empty()) return false;
    const char sign = sign_at(at_);
    const bool has_sign = sign == '-' || (sign == '+' && !is_variable);
    const size_t end = at_ + (has_sign ? 1 : 0);
    if (rest_.substr(end, 2) != close) return false;
    add(is_variable ? Token::Kind::variable_end : Token::Kind::block_end);
    if (is_variable && sign != '-') {
      move_to(end + 2);
    } else {
      finish_tag(end, sign);
    }
    return true;
  }

  void lex_token() {
    const char c = rest_[at_];
    if (is_digit(c)) return lex_number();
    if (c == '\'' || c == '"') return lex_string(c);
    if (lex_name()) return;
    lex_symbol();
  }

  bool lex_name() {
    size_t end = at_;
    while (end < rest_.size()) {
      size_t next = end;
      if (!is_identifier(next_point(rest_, next))) break;
      end = next;
    }
    if (end == at_) return false;
    add(Token::Kind::name, std::string(rest_.substr(at_, end - at_)));
    move_to(end);
    return true;
  }

  void lex_string(char quote) {
    size_t end = at_ + 1;
    while (end < rest_.size() && rest_[end] != quote) end += rest_[end] == '\\' ? 2 : 1;
    if (end >= rest_.size()) fail("a string has no end");
    add(Token::Kind::text, Unescaper(rest_.substr(at_ + 1, end - at_ - 1), line_).run());
    move_to(end + 1);
  }

  // Digits of `base` with single underscores between them, from `at`: the end of them.
  size_t digits_end(size_t at, int base) const {
    while (at < rest_.size()) {
      const bool underscore = rest_[at] == '_' && at + 1 < rest_.size();
      if (digit_value(rest_[at + (underscore ? 1 : 0)]) >= base) break;
      at += underscore ? 2 : 1;
    }
    return at;
  }

  void lex_number() {
    if (rest_[at_] == '0' && at_ + 1 < rest_.size()) {
      const char mark = static_cast<char>(rest_[at_ + 1] | 0x20);
      const int base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
      if (base != 0 && digits_end(at_ + 2, base) > at_ + 2) {
        const size_t end = digits_end(at_ + 2, base);
        return add_integer(at_ + 2, end, base);
      }
    }
    const size_t whole = digits_end(at_, 10);
    const size_t end = fraction_end(whole);
    if (end > whole && (at_ == 0 || rest_[at_ - 1] != '.')) return add_real(end);
    add_integer(at_, whole, 10);
  }

  // The end of ".5", "e3" or ".5e3" at `whole`, or `whole` if there is none of them.
  size_t fraction_end(size_t whole) const {
    size_t end = whole;
    if (end + 1 < rest_.size() && rest_[end] == '.' && is_digit(rest_[end + 1]))
      end = digits_end(end + 1, 10);
    if (end < rest_.size() && (rest_[end] | 0x20) == 'e') {
      size_t digits = end + 1;
      if (sign_at(digits) != 0) ++digits;
      if (digits < rest_.size() && is_digit(rest_[digits])) end = digits_end(digits, 10);
    }
    return end;
  }

  std::string without_underscores(size_t begin, size_t end) const {
    std::string digits(rest_.substr(begin, end - begin));
    std::erase(digits, '_');
    return digits;
  }

  void add_integer(size_t begin, size_t end, int base) {
    const std::string digits = without_underscores(begin, end);
    int64_t value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (result.ec != std::errc()) fail("an integer does not fit 64 bits");
    add(Token::Kind::integer);
    tokens_.back().integer = value;
    move_to(end);
  }

  void add_real(size_t end) {
    const std::string digits = without_underscores(at_, end);
    double value = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (result.ec != std::errc()) fail("a number does not fit a float");
    add(Token::Kind::real);
    tokens_.back().real = value;
    move_to(end);
  }

  void lex_symbol() {
    static constexpr std::array<std::string_view, 26> kSymbols = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view symbol : kSymbols) {
      if (rest_.substr(at_, symbol.size()) != symbol) continue;
      balance(symbol);
      add(Token::Kind::symbol, std::string(symbol));
      return move_to(at_ + symbol.size());
    }
    fail(fmt::format("unexpected char '{}'", rest_.substr(at_, 1)));
  }

  // Keeps the brackets that wait for their end: inside of them "}}" does not end a tag.
  void balance(std::string_view symbol) {
    constexpr std::string_view kOpen = "([{";
    constexpr std::string_view kClose = ")]}";
    if (const size_t open = kOpen.find(symbol); open != npos) {
      brackets_ += kClose[open];
    } else if (kClose.find(symbol) != npos) {
      if (brackets_.empty()) fail(fmt::format("unexpected '{}'", symbol));
      if (brackets_.back() != symbol[0])
        fail(fmt::format("unexpected '{}', expected '{}'", symbol, brackets_.back()));
      brackets_.pop_back();
    }
  }

  // --- Output ---

  void add(Token::Kind kind, std::string text = {}) {
    Token token;
    token.kind = kind;
    token.line = line_;
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
  }

  void add_data(std::string_view text) {
    if (!text.empty()) add(Token::Kind::data, std::string(text));
  }

  void move_to(size_t next) {
    for (size_t i = at_; i < next; ++i) line_ += rest_[i] == '\n' ? 1 : 0;
    if (next > at_) line_starting_ = rest_[next - 1] == '\n';
    at_ = next;
  }

  [[noreturn]] void fail(std::string_view what) const { raise("line {}: {}", line_, what); }

  std::string source_;
  std::string_view rest_;  // source_, whose parts are cheap to name
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::string brackets_;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace m2::text::jinja
