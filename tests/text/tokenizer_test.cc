#include "text/tokenizer.h"

#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "base/json.h"
#include "tests/text/toy_tokenizer.h"

namespace m2::text {
namespace {

using Ids = std::vector<TokenId>;

Json read_json(const std::string& name) {
  std::ifstream file(M2_DATA_DIR + ("/" + name));
  return Json::parse(file);
}

AddedTokens mode_of(const Json& golden) {
  const auto mode = golden.at("mode").get<std::string>();
  return mode == "ALL"          ? AddedTokens::all
         : mode == "NONSPECIAL" ? AddedTokens::nonspecial
                                : AddedTokens::none;
}

// The released tokenizer, loaded once.
class ReleasedTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(M2_DATA_DIR "/tokenizer.json"))
      GTEST_SKIP() << "no released tokenizer.json in " << M2_DATA_DIR;
    static const auto loaded = Tokenizer::load(M2_DATA_DIR "/tokenizer.json");
    ASSERT_TRUE(loaded.ok()) << loaded.error().text;
    tokenizer = *loaded;
  }
  std::shared_ptr<const Tokenizer> tokenizer;
};

TEST_F(ReleasedTokenizer, EncodesTheGoldenTexts) {
  const Json golden = read_json("tokenizer_golden.json");
  for (const char* group : {"hf_vectors", "derived"})
    for (const Json& item : golden.at(group).at("cases")) {
      const auto text = item.at("text").get<std::string>();
      EXPECT_EQ(tokenizer->encode(text, mode_of(item)), item.at("ids").get<Ids>()) << text;
    }
}

TEST_F(ReleasedTokenizer, GivesTheCheckHashOfLlamaCpp) {
  const Json golden = read_json("tokenizer_golden.json").at("llama_cpp_check");
  const Ids ids = tokenizer->encode(golden.at("text").get<std::string>(), AddedTokens::all);
  EXPECT_EQ(ids, golden.at("ids").get<Ids>());

  const std::string list = fmt::format("[{}]", fmt::join(ids, ", "));
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(list.data()), list.size(), digest);
  EXPECT_EQ(fmt::format("{:02x}", fmt::join(digest, "")), golden.at("chkhsh").get<std::string>());
}

TEST_F(ReleasedTokenizer, EncodesTheGoldenChats) {
  const Json golden = read_json("chat_golden.json");
  int compared = 0;
  for (const Json& item : golden.at("cases")) {
    if (!item.contains("token_ids")) continue;
    const auto rendered = item.at("rendered").get<std::string>();
    EXPECT_EQ(tokenizer->encode(rendered, AddedTokens::all), item.at("token_ids").get<Ids>());
    ++compared;
  }
  EXPECT_GT(compared, 10);
}

TEST_F(ReleasedTokenizer, KnowsItsTokens) {
  EXPECT_EQ(tokenizer->base_vocab_size(), 200000);
  EXPECT_EQ(tokenizer->id_limit(), 200054);
  EXPECT_EQ(tokenizer->id_of("[e~["), 200020);
  EXPECT_EQ(tokenizer->id_of("system"), 28463);
  EXPECT_EQ(tokenizer->id_of("\n"), 10);
  EXPECT_EQ(tokenizer->id_of("no such token"), -1);
  EXPECT_EQ(tokenizer->id_of(""), -1);
  EXPECT_EQ(tokenizer->bytes(200024), "]<]speech[>[");
  EXPECT_EQ(tokenizer->bytes(200060), "");
  EXPECT_EQ(tokenizer->bytes(-1), "");
  EXPECT_TRUE(tokenizer->is_special(200020));
  EXPECT_FALSE(tokenizer->is_special(200050));
  EXPECT_TRUE(tokenizer->is_added(200050));
  EXPECT_FALSE(tokenizer->is_added(199999));
  EXPECT_FALSE(tokenizer->is_added(200054));
  EXPECT_FALSE(tokenizer->is_special(-1));
}

TEST_F(ReleasedTokenizer, SkipsOnlySpecialTokensWhenAsked) {
  const Ids ids = {200034, 19739, 200050, 200051, 200020, 200063, -5};
  EXPECT_EQ(tokenizer->decode(ids, false), "]~!b[Hello<think></think>[e~[");
  EXPECT_EQ(tokenizer->decode(ids, true), "Hello<think></think>");
}

TEST_F(ReleasedTokenizer, NoSpecialTokenComesFromTypedText) {
  for (TokenId id = 200000; id < 200050; ++id) {
    const std::string text = "x" + std::string(tokenizer->bytes(id)) + "y";
    for (const TokenId typed : tokenizer->encode(text, AddedTokens::nonspecial))
      EXPECT_FALSE(tokenizer->is_special(typed)) << text;
    EXPECT_EQ(tokenizer->encode(text, AddedTokens::all)[1], id);
  }
}

// Quadratic behaviour anywhere would take minutes here; the benchmark holds the real times.
TEST_F(ReleasedTokenizer, TakesHostileTextInLinearTime) {
  const char* units[] = {"x", "X", " ", "\n", "^",  "\u0301", "\u0301\u0316", "中",   "'",
                         "/", "_", "<", "]",  "aA", " \n",    "A\u0301",      "\xff", "\xe4"};
  for (const std::string unit : units) {
    std::string text;
    while (text.size() < 1 << 20) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const Ids ids = tokenizer->encode(text, AddedTokens::all);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10)) << unit;
    const auto first = static_cast<unsigned char>(unit[0]);
    if (first < 0x80 && unit.size() == 1) {
      EXPECT_EQ(tokenizer->decode(ids, false), text) << unit;
    }
  }
}

class ToyTokenizer : public testing::Test {
 protected:
  std::shared_ptr<const Tokenizer> tokenizer = load_text(toy_tokenizer_json().dump()).value();
  // Ids of the added tokens.
  TokenId role = tokenizer->id_of("]~b]"), tag = tokenizer->id_of("<a>"),
          think = tokenizer->id_of("<think>"), thi = tokenizer->id_of("<thi");
};

TEST_F(ToyTokenizer, MatchesTheLongestAddedTokenAllowed) {
  EXPECT_EQ(tokenizer->encode("<think>", AddedTokens::all), (Ids{think}));
  EXPECT_EQ(tokenizer->encode("<thinky", AddedTokens::all), (Ids{thi, 'n', 'k', 'y'}));
  EXPECT_EQ(tokenizer->encode("<think>", AddedTokens::none),
            (Ids{'<', 't', 'h', 'i', 'n', 'k', '>'}));
  EXPECT_EQ(tokenizer->encode("]~b]<a>", AddedTokens::all), (Ids{role, tag}));
  EXPECT_EQ(tokenizer->encode("]~b]<thi", AddedTokens::nonspecial), (Ids{']', '~', 'b', ']', thi}));
}

TEST_F(ToyTokenizer, CutsAddedTokensBeforeNormalising) {
  EXPECT_EQ(tokenizer->encode("<a>\u0338", AddedTokens::all), (Ids{tag, 0xcc, 0xb8}));
}

TEST_F(ToyTokenizer, ReadsInvalidUtf8AsReplacementCharacters) {
  for (const char* bad : {"\xff", "\xe4\xb8", "\xed"})
    EXPECT_EQ(tokenizer->encode(std::string("a") + bad + "<a>b", AddedTokens::all),
              tokenizer->encode("a\ufffd<a>b", AddedTokens::all));
}

TEST_F(ToyTokenizer, MergesAndComposesAcrossPieces) {
  const TextPiece pieces[] = {{"he", AddedTokens::all},           {"", AddedTokens::none},
                              {"llo w", AddedTokens::nonspecial}, {"orld e", AddedTokens::none},
                              {"\u0301\xe4", AddedTokens::all},   {"\xb8\xad", AddedTokens::all}};
  EXPECT_EQ(tokenizer->encode(pieces), (Ids{259, 262, 263, 32, 264, 0xe4, 0xb8, 0xad}));
}

TEST_F(ToyTokenizer, LetsATokenMatchWhereEveryPieceItTouchesAllowsIt) {
  const auto encode = [&](AddedTokens first, AddedTokens second, const std::string& text,
                          size_t cut) {
    const TextPiece pieces[] = {{text.substr(0, cut), first}, {text.substr(cut), second}};
    return tokenizer->encode(pieces);
  };
  using enum AddedTokens;
  EXPECT_EQ(encode(all, all, "]~b]", 2), (Ids{role}));
  EXPECT_EQ(encode(all, nonspecial, "]~b]", 2), (Ids{']', '~', 'b', ']'}));
  EXPECT_EQ(encode(all, nonspecial, "<think>", 2), (Ids{think}));
  EXPECT_EQ(encode(nonspecial, none, "<think>", 4), (Ids{thi, 'n', 'k', '>'}));
  EXPECT_EQ(encode(none, all, "x]~b]", 1), (Ids{'x', role}));
  EXPECT_EQ(encode(all, none, "]~b]]~b]", 4), (Ids{role, ']', '~', 'b', ']'}));
}

// Added tokens found by looking everywhere, the text between them encoded alone.
Ids encode_by_definition(const Tokenizer& tokenizer, std::span<const TextPiece> pieces,
                         const std::vector<TokenId>& added) {
  std::string text;
  std::vector<AddedTokens> allowed;  // of each byte
  for (const TextPiece& piece : pieces) {
    text += piece.text;
    allowed.resize(text.size(), piece.added);
  }
  const auto matches = [&](TokenId id, size_t at) {
    const std::string_view token = tokenizer.bytes(id);
    if (text.compare(at, token.size(), token) != 0) return false;
    for (size_t i = at; i < at + token.size(); ++i)
      if (allowed[i] == AddedTokens::none ||
          (allowed[i] == AddedTokens::nonspecial && tokenizer.is_special(id)))
        return false;
    return true;
  };
  Ids ids;
  std::string plain;
  const auto flush = [&] {
    for (const TokenId id : tokenizer.encode(plain, AddedTokens::none)) ids.push_back(id);
    plain.clear();
  };
  for (size_t at = 0; at < text.size();) {
    TokenId best = -1;
    for (const TokenId id : added)
      if (matches(id, at) &&
          (best < 0 || tokenizer.bytes(id).size() > tokenizer.bytes(best).size()))
        best = id;
    if (best < 0) {
      plain += text[at++];
      continue;
    }
    flush();
    ids.push_back(best);
    at += tokenizer.bytes(best).size();
  }
  flush();
  return ids;
}

TEST_F(ToyTokenizer, EncodesPiecesByTheDefinition) {
  const char* fragments[] = {"<",  "thi",  "nk>",      "<think>", "<thi",   "]~b]",  "]~",
                             "b]", "<a>",  "a>",       "e",       "\u0301", "hello", " wor",
                             "ld", "\xe4", "\xb8\xad", " ",       "1"};
  std::mt19937 random(3);
  for (int round = 0; round < 20000; ++round) {
    std::vector<TextPiece> pieces(random() % 6);
    for (TextPiece& piece : pieces) {
      for (size_t i = random() % 4; i > 0; --i)
        piece.text += fragments[random() % std::size(fragments)];
      piece.added = static_cast<AddedTokens>(random() % 3);
    }
    ASSERT_EQ(tokenizer->encode(pieces),
              encode_by_definition(*tokenizer, pieces, {role, tag, think, thi}));
  }
}

}  // namespace
}  // namespace m2::text
