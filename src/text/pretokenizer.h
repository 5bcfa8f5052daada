#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "text/unicode.h"

namespace m2::text {

// The split patterns, as tokenizer.json spells them.
inline constexpr std::string_view kO200kPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class SplitPattern : uint8_t { o200k, gpt2 };

// Cuts a text into pre-tokens, the stretches that byte pairs never cross, exactly as a
// backtracking regex engine would find matches of the pattern one after another. Both patterns
// match at every position, so the pre-tokens cover the text. Linear time.
class Pretokenizer {
 public:
  // `text` must be valid UTF-8 and outlive this.
  Pretokenizer(SplitPattern pattern, std::string_view text)
      : pattern_(pattern), next_(text.data()), end_(text.data() + text.size()) {}

  // The next pre-token; empty at the end of the text.
  std::string_view next() {
    const char* const begin = next_;
    if (begin != end_) next_ = pattern_ == SplitPattern::o200k ? match_o200k() : match_gpt2();
    return {begin, static_cast<size_t>(next_ - begin)};
  }

 private:
  struct Char {
    CharClass kind;
    int size;
  };
  enum class WordShape : uint8_t { any, not_all_capitals };

  Char at(const char* p) const {
    if (p == end_) return {CharClass::end, 0};
    int size = 0;
    const char32_t c = decode_valid(p, size);
    return {table_.char_class(c), size};
  }
  template <class Predicate>
  const char* skip_while(const char* p, Predicate belongs) const;

  const char* match_o200k() const;
  const char* match_gpt2() const;
  const char* match_word(const char* p, WordShape shape) const;
  const char* match_contraction(const char* quote) const;
  const char* match_space(const char* p, bool newlines_end_token) const;

  const CharTable& table_ = CharTable::get();
  SplitPattern pattern_;
  const char* next_;
  const char* end_;
};

}  // namespace m2::text
