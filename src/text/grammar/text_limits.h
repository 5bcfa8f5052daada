#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Lengths of texts within a grammar. Counted by repetition they would need a state of the grammar
// for every character, each compared with the whole vocabulary; so the grammar leaves them free,
// and they are counted beside it (text/grammar/limited_matcher.h).

namespace m2::text {

enum class CountedAs : uint8_t {
  code_points,
  json_characters,  // inside a JSON string: an escape counts as one
};

// How long the text of one rule may be. The rule's body is a single terminal, Regex() or
// TagDispatch(); wherever the rule stands, `open` is the byte right before it and `close` the
// literal right after it. Texts of CountedAs::json_characters hold `close` only escaped.
struct TextLimit {
  static constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

  std::string rule;
  CountedAs as = CountedAs::code_points;
  int64_t least = 0, most = kAny;
  // Whether the body, a Regex() then, says where a text may end or go on. Else it may end after any
  // of its characters, and go on after any.
  bool patterned = false;
  std::string pattern = {};  // as it was sent, for errors
  char open = '"';
  std::string close = "\"";
};

// A language: xgrammar's EBNF, whose first symbol is "root", and the lengths of some of its rules.
struct GrammarText {
  GrammarText() = default;
  GrammarText(std::string the_ebnf) : ebnf(std::move(the_ebnf)) {}  // NOLINT: a text is a grammar

  std::string ebnf;
  std::vector<TextLimit> limits;

  std::string key() const;  // differs where the languages do
};

// What a text so far is within, as far as UTF-8 goes: which byte may come next.
enum class Utf8Phase : uint8_t {
  whole,       // nothing: a character may begin
  one_left,    // a character of which one more byte is due
  two_left,    // two
  after_e0,    // two, the first of which is A0 to BF
  after_ed,    // two, the first of which is 80 to 9F
  three_left,  // three
  after_f0,    // three, the first of which is 90 to BF
  after_f4,    // three, the first of which is 80 to 8F
  broken,
};
Utf8Phase utf8_after(Utf8Phase phase, unsigned char byte);
Utf8Phase utf8_after(Utf8Phase phase, std::string_view bytes);

// Characters counted from the beginning of a text on.
struct CharacterCount {
  static constexpr uint8_t kEscapes = 6;  // values of `escape`

  int32_t code_points = 0, json = 0;
  uint8_t escape = 0;  // 0: outside an escape; 1: after its '\'; n: n - 1 hex digits are due

  void add(unsigned char byte);
  void add(std::string_view bytes);
  int32_t of(CountedAs as) const { return as == CountedAs::json_characters ? json : code_points; }
  // Whether `byte` would begin a character.
  bool begins(CountedAs as, unsigned char byte) const;
};

// What characters the tokens of one vocabulary hold. Immutable; shared.
class TokenCharacters {
 public:
  // `texts` by id; one that is empty is of a token that no text holds. `stop_ids` end texts.
  TokenCharacters(const std::vector<std::string>& texts, std::span<const int32_t> stop_ids);

  // Clears the bits of tokens that would make a text in this phase ill-formed, or that no text
  // holds. Phases but broken.
  void keep_well_formed(Utf8Phase phase, std::span<uint32_t> words) const;

  // Clears the bits of tokens in which more than `most` characters begin, read from where
  // `from.escape` says.
  void keep_up_to(int64_t most, CountedAs as, const CharacterCount& from,
                  std::span<uint32_t> words) const;
  // The mask of the tokens in which at most so many characters begin, read from outside an escape.
  // `most` below kFew.
  std::span<const uint32_t> up_to(int64_t most, CountedAs as) const {
    return counts_[static_cast<size_t>(as)].up_to[static_cast<size_t>(most)];
  }
  static constexpr size_t kFew = 24;  // characters: most tokens have fewer
  // By id: characters that begin in the token, read from where `escape` says, kMany for so many or
  // more.
  std::span<const uint8_t> characters(CountedAs as, uint8_t escape) const {
    if (as == CountedAs::json_characters && escape != 0) return within_escape_[escape - 1u];
    return counts_[static_cast<size_t>(as)].all;
  }
  static constexpr uint8_t kMany = 255;
  // No token holds more characters.
  int64_t longest() const { return longest_; }

  const std::string& text(int32_t id) const { return texts_[static_cast<size_t>(id)]; }
  size_t ids() const { return texts_.size(); }

 private:
  struct Counts {
    std::vector<uint8_t> all;                  // by id, kMany for more
    std::vector<std::vector<uint32_t>> up_to;  // masks, by count; as many as kFew
    std::vector<int32_t> longer;               // the other tokens, those of most characters first
    std::vector<int32_t> of_longer;            // their counts
  };

  void count(CountedAs as);

  std::vector<std::string> texts_;
  std::array<std::vector<uint32_t>, 8> well_formed_;  // masks, by phase
  std::array<Counts, 2> counts_;
  // JSON characters that begin in each token, kMany for more, by CharacterCount::escape less one.
  std::array<std::vector<uint8_t>, 5> within_escape_;
  int64_t longest_ = 0;
};

}  // namespace m2::text
