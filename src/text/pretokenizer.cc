#include "text/pretokenizer.h"

namespace m2::text {
namespace {

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}]: the caseless are in both.
bool caseless(CharClass kind) {
  return kind == CharClass::letter || kind == CharClass::mark;
}
bool in_upper_set(CharClass kind) {
  return kind == CharClass::upper || caseless(kind);
}
bool in_lower_set(CharClass kind) {
  return kind == CharClass::lower || caseless(kind);
}

bool is_letter(CharClass kind) {
  return kind == CharClass::upper || kind == CharClass::lower || kind == CharClass::letter;
}
bool is_space(CharClass kind) {
  return kind == CharClass::space || kind == CharClass::newline;
}
// [^\s\p{L}\p{N}]
bool is_symbol(CharClass kind) {
  return kind == CharClass::other || kind == CharClass::mark;
}

char lower_ascii(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
}

}  // namespace

template <class Predicate>
const char* Pretokenizer::skip_while(const char* p, Predicate belongs) const {
  for (Char c = at(p); belongs(c.kind); c = at(p)) p += c.size;
  return p;
}

// The alternatives of the pattern in their order:
//   1  [^\r\n\p{L}\p{N}]? U* L+ contraction?     U: in_upper_set, L: in_lower_set
//   2  [^\r\n\p{L}\p{N}]? U+ L* contraction?
//   3  \p{N}{1,3}
//   4  ' '? [^\s\p{L}\p{N}]+ [\r\n/]*
//   5-7  white space
const char* Pretokenizer::match_o200k() const {
  const char* const p = next_;
  const Char first = at(p);
  const char* const after = p + first.size;

  if (is_letter(first.kind)) return match_contraction(match_word(p, WordShape::any));
  if (first.kind == CharClass::mark) {
    // A mark may be the optional first character or belong to the word. Alternative 1 is tried both
    // ways before alternative 2, and the second way always succeeds, on the mark alone.
    const char* const word = match_word(after, WordShape::not_all_capitals);
    return match_contraction(word != nullptr ? word : after);
  }
  if (first.kind == CharClass::number) {
    const char* end = after;
    for (int digits = 1; digits < 3 && at(end).kind == CharClass::number; ++digits)
      end += at(end).size;
    return end;
  }
  if (first.kind != CharClass::newline)
    if (const char* const word = match_word(after, WordShape::any)) return match_contraction(word);

  const char* const symbols = *p == ' ' ? after : p;
  if (const char* end = skip_while(symbols, is_symbol); end != symbols) {
    while (end != end_ && (*end == '\r' || *end == '\n' || *end == '/')) ++end;
    return end;
  }
  return match_space(p, true);
}

// U* L+ and, if that fails and the shape allows, U+ L*. Returns null if there is no match.
const char* Pretokenizer::match_word(const char* p, WordShape shape) const {
  const char* last_caseless_end = nullptr;
  const char* const begin = p;
  for (Char c = at(p); in_upper_set(c.kind); c = at(p)) {
    p += c.size;
    if (caseless(c.kind)) last_caseless_end = p;
  }
  if (at(p).kind == CharClass::lower) return skip_while(p, in_lower_set);
  // U* must give back characters until L+ finds one: the last that is in both sets.
  if (last_caseless_end != nullptr) return last_caseless_end;
  return shape == WordShape::any && p != begin ? p : nullptr;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)? from `quote` on. U+017F, the long s, folds to s.
const char* Pretokenizer::match_contraction(const char* quote) const {
  if (end_ - quote < 2 || *quote != '\'') return quote;
  const char* const p = quote + 1;
  const char first = lower_ascii(*p);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return p + 1;
  if (end_ - p < 2) return quote;
  const char second = lower_ascii(p[1]);
  const bool pair = (second == 'e' && (first == 'r' || first == 'v')) ||
                    (second == 'l' && first == 'l') || (p[0] == '\xc5' && p[1] == '\xbf');
  return pair ? p + 2 : quote;
}

// \s*[\r\n]+ (if newlines_end_token), then \s+(?!\S), then \s+. Precondition: white space at p.
const char* Pretokenizer::match_space(const char* p, bool newlines_end_token) const {
  const char* last = p;  // the last white space character of the run
  const char* after_newline = nullptr;
  const char* const begin = p;
  for (Char c = at(p); is_space(c.kind); c = at(p)) {
    last = p;
    p += c.size;
    if (c.kind == CharClass::newline) after_newline = p;
  }
  if (newlines_end_token && after_newline != nullptr) return after_newline;
  // Before text, the last white space is left to the word that follows, if there are others.
  return p == end_ || last == begin ? p : last;
}

const char* Pretokenizer::match_gpt2() const {
  const char* const p = next_;
  if (*p == '\'' && end_ - p >= 2) {
    if (p[1] == 's' || p[1] == 't' || p[1] == 'm' || p[1] == 'd') return p + 2;
    const std::string_view pair(p + 1, end_ - p >= 3 ? 2 : 0);
    if (pair == "re" || pair == "ve" || pair == "ll") return p + 3;
  }
  const char* const begin = *p == ' ' ? p + 1 : p;
  const CharClass kind = at(begin).kind;
  if (is_letter(kind)) return skip_while(begin, is_letter);
  if (kind == CharClass::number)
    return skip_while(begin, [](CharClass k) { return k == CharClass::number; });
  if (is_symbol(kind)) return skip_while(begin, is_symbol);
  return match_space(p, false);
}

}  // namespace m2::text
