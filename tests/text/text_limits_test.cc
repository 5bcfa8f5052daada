// Covers: text/grammar/text_limits, text/grammar/limited_matcher
#include "text/grammar/text_limits.h"

#include <gtest/gtest.h>

#include <random>

#include "base/json.h"
#include "tests/text/toy_tokenizer.h"
#include "text/grammar.h"
#include "text/unicode.h"

namespace m2::text {
namespace {

TEST(TextLimits, Utf8PhasesAgreeWithTheReaderOfWholeTexts) {
  std::mt19937 random(1);
  const std::string pieces[] = {"a",    "\xc3",     "\xa9",         "\xe0", "\xed", "\xf0", "\xf4",
                                "\x80", "\x8f",     "\x90",         "\x9f", "\xa0", "\xbf", "\xc0",
                                "\xf5", "\xe2\x82", "\xf0\x9f\x98", "é",    "日",   "🎉"};
  int whole = 0, broken = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string text;
    for (int n = 0; n < 5; ++n) text += pieces[random() % std::size(pieces)];
    const Utf8Phase phase = utf8_after(Utf8Phase::whole, text);
    EXPECT_EQ(phase == Utf8Phase::whole, is_valid_utf8(text)) << i;
    // What is unfinished can be finished: some bytes make it whole.
    const std::string_view begun =
        std::string_view(text).substr(text.size() - unfinished_tail(text));
    const bool can_be = is_valid_utf8(text.substr(0, text.size() - begun.size()));
    EXPECT_EQ(phase != Utf8Phase::broken, can_be) << i;
    whole += phase == Utf8Phase::whole ? 1 : 0;
    broken += phase == Utf8Phase::broken ? 1 : 0;
  }
  EXPECT_GT(whole, 100);
  EXPECT_GT(broken, 100);
}

TEST(TextLimits, CharactersOfAJsonStringAreThoseOfItsValue) {
  std::mt19937 random(2);
  const std::string pieces[] = {"a",    "é",       "🎉",       "\\n", "\\\"",
                                "\\\\", "\\u00e9", "\\u000A", "u",   "\\/"};
  for (int i = 0; i < 5'000; ++i) {
    std::string text;
    for (int n = 0; n < 8; ++n) text += pieces[random() % std::size(pieces)];
    CharacterCount count;
    count.add(text);
    const std::string value = Json::parse("\"" + text + "\"");
    CharacterCount of_value;
    of_value.add(value);
    EXPECT_EQ(count.json, of_value.code_points) << text;
    EXPECT_EQ(count.escape, 0);
  }
}

TEST(TextLimits, MasksKeepTokensByCharactersAndPhase) {
  const std::vector<std::string> texts = {
      "", "a", "ab", std::string(40, 'x'), "é", "\xa9", "n\\n", "00e9b", "\xff", "[end]"};
  const std::vector<int32_t> stops = {9};
  const TokenCharacters tokens(texts, stops);
  const auto kept_up_to = [&](int64_t most, CountedAs as, uint8_t escape) {
    std::vector<uint32_t> words = {0x3ff};
    CharacterCount from;
    from.escape = escape;
    tokens.keep_up_to(most, as, from, words);
    return words[0];
  };
  EXPECT_EQ(kept_up_to(1, CountedAs::code_points, 0),
            0x3ffu & ~(1u << 2 | 1u << 3 | 1u << 6 | 1u << 7 | 1u << 9));
  EXPECT_EQ(kept_up_to(39, CountedAs::code_points, 0), 0x3ffu & ~(1u << 3));
  EXPECT_EQ(kept_up_to(40, CountedAs::code_points, 0), 0x3ffu);
  // After a backslash "n" ends the escape; after "\u" four digits do.
  EXPECT_EQ(kept_up_to(1, CountedAs::json_characters, 1) >> 6 & 1u, 1u);
  EXPECT_EQ(kept_up_to(0, CountedAs::json_characters, 5) >> 7 & 1u, 0u);
  EXPECT_EQ(kept_up_to(1, CountedAs::json_characters, 5) >> 7 & 1u, 1u);

  std::vector<uint32_t> words = {0x3ff};
  tokens.keep_well_formed(Utf8Phase::whole, words);
  EXPECT_EQ(words[0], 1u << 1 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 6 | 1u << 7 | 1u << 9);
  words = {0x3ff};
  tokens.keep_well_formed(Utf8Phase::one_left, words);
  EXPECT_EQ(words[0], 1u << 5);
}

// The toy vocabulary's matchers: the same check as with the real one, over all tokens.
TEST(LimitedMatcher, MaskOfEveryTokenIsWhatTheMatcherSaysOfIt) {
  const auto tokenizer = load_text(toy_tokenizer_json().dump()).value();
  const TokenId stop = tokenizer->id_of("]~b]");
  GrammarCompiler compiler(tokenizer, {stop}, {});
  GrammarText text(
      "root ::= \"[\" r2 \"]\"\nr1 ::= Regex(\"[^\\\"]*\")\nr2 ::= \"\\\"\" r3\nr3 ::= r1 "
      "\"\\\"\"\n");
  text.limits = {{.rule = "r1", .as = CountedAs::code_points, .least = 2, .most = 4}};
  const auto grammar = compiler.compile(text).value();
  std::vector<uint32_t> words(mask_words(compiler.ids()));
  for (const char* begun :
       {"", "[", "[\"", "[\"h", "[\"he", "[\"hé", "[\"hell", "[\"hell\"", "[\"he\"]"}) {
    GrammarMatcher matcher(grammar);
    ASSERT_TRUE(matcher.accept_text(begun)) << begun;
    matcher.fill(words);
    int allowed = 0;
    for (TokenId id = 0; id < tokenizer->id_limit(); ++id) {
      const bool bit = (words[static_cast<size_t>(id) / 32] >> (id % 32) & 1u) != 0;
      GrammarMatcher other(grammar);
      other.accept_text(begun);
      EXPECT_EQ(other.accept(id), bit) << begun << " " << tokenizer->bytes(id);
      allowed += bit ? 1 : 0;
    }
    EXPECT_GT(allowed, 0) << begun;
  }
  for (const auto& [whole, fits] : {std::pair("[\"h\"]", false),
                                    {"[\"hi\"]", true},
                                    {"[\"日本語🎉\"]", true},
                                    {"[\"hello\"]", false}}) {
    GrammarMatcher matcher(grammar);
    EXPECT_EQ(matcher.accept_text(whole) && matcher.complete(), fits) << whole;
  }
}

TEST(Grammar, AttributesOfRulesAreRefused) {
  const auto tokenizer = load_text(toy_tokenizer_json().dump()).value();
  GrammarCompiler compiler(tokenizer, {tokenizer->id_of("]~b]")}, {});
  EXPECT_TRUE(compiler.compile(std::string("root ::= a\na ::= \"x\"*\n")).ok());
  const auto refused = compiler.compile(std::string("root ::= a\na[max_chars=3] ::= \"x\"*\n"));
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().text.find("attributes"), std::string::npos);
}

TEST(Grammar, TokensByTheirIdsAreRefused) {
  const auto tokenizer = load_text(toy_tokenizer_json().dump()).value();
  GrammarCompiler compiler(tokenizer, {tokenizer->id_of("]~b]")}, {});
  const auto refused = compiler.compile(std::string("root ::= \"x\" Token(3)\n"));
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().text.find("Token()"), std::string::npos) << refused.error().text;
}

// What an ambiguous grammar may cost is bounded: then the text is given up, and says so.
TEST(Grammar, TextsOfTooManyReadingsAreGivenUp) {
  const auto tokenizer = load_text(toy_tokenizer_json().dump()).value();
  GrammarCompiler compiler(tokenizer, {tokenizer->id_of("]~b]")}, {});
  const auto grammar =
      compiler.compile(std::string("root ::= \"(\" root \")\" | root root | [a-z]\n"));
  ASSERT_TRUE(grammar.ok()) << grammar.error().text;
  GrammarMatcher matcher(*grammar);
  std::vector<uint32_t> words(mask_words(compiler.ids()));
  int taken = 0;
  int64_t most = 0;
  while (taken < 100'000 && matcher.accept_text("a")) {
    ++taken;
    most = std::max(most, matcher.work());
    EXPECT_TRUE(matcher.complete());
    if (taken % 100 != 0) continue;
    matcher.fill(words);
    most = std::max(most, matcher.work());
    if (matcher.spent()) break;
    EXPECT_NE(std::ranges::count(words, 0u), std::ssize(words));
  }
  EXPECT_TRUE(matcher.spent());
  EXPECT_GT(taken, 100);
  EXPECT_LE(most, 200'000);
  EXPECT_FALSE(matcher.complete());
  EXPECT_FALSE(matcher.accept_text("a"));
  matcher.fill(words);
  EXPECT_EQ(std::ranges::count(words, 0u), std::ssize(words));
}

Result<std::shared_ptr<const Grammar>> compile(std::string ebnf, const std::string& limited) {
  const auto tokenizer = load_text(toy_tokenizer_json().dump()).value();
  GrammarText text(std::move(ebnf));
  text.limits.push_back({.rule = limited, .most = 2});
  return GrammarCompiler(tokenizer, {tokenizer->id_of("]~b]")}, {}).compile(text);
}

TEST(TextLimits, OfARuleThatNothingLeadsToIsOfNoText) {
  EXPECT_TRUE(compile("root ::= \"x\"\nr1 ::= Regex(\"[a-z]*\")\n", "r1").ok());
}

TEST(TextLimits, OfARuleThatCompilingLosesAreAnError) {
  // A rule that is no terminal may be written out where it stands.
  const auto lost = compile("root ::= r1 \"\\\"\"\nr1 ::= [a-z]\n", "r1");
  ASSERT_FALSE(lost.ok());
  EXPECT_EQ(lost.error().text, "The lengths of the grammar's rule 'r1' were lost.");
}

}  // namespace
}  // namespace m2::text
