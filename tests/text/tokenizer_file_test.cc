#include "text/tokenizer_file.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "base/json.h"
#include "tests/text/toy_tokenizer.h"

namespace m2::text {
namespace {

using Ids = std::vector<TokenId>;

TEST(TokenizerFile, LoadsTheToy) {
  const auto tokenizer = load_text(toy_tokenizer_json().dump()).value();
  EXPECT_EQ(tokenizer->encode("hello world", AddedTokens::all), (Ids{259, 262, 263}));
  EXPECT_EQ(tokenizer->base_vocab_size(), 265);
  EXPECT_EQ(tokenizer->id_limit(), 269);
}

TEST(TokenizerFile, TakesMergesAsPairsAndOtherHarmlessForms) {
  Json json = toy_tokenizer_json();
  for (Json& merge : json["model"]["merges"]) {
    const auto text = merge.get<std::string>();
    const size_t space = text.find(' ');
    merge = {text.substr(0, space), text.substr(space + 1)};
  }
  json["post_processor"] = {{"type", "ByteLevel"}, {"trim_offsets", true}};
  json["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Isolated";
  json["pre_tokenizer"]["pretokenizers"][0]["invert"] = false;
  json["model"]["ignore_merges"] = false;
  json["model"]["unk_token"] = "<a>";
  const auto tokenizer = load_text(json.dump(2)).value();
  EXPECT_EQ(tokenizer->encode("hello world", AddedTokens::all), (Ids{259, 262, 263}));
}

TEST(TokenizerFile, TakesEscapesInNames) {
  const auto tokenizer =
      load_text(toy_tokenizer_json().dump(-1, ' ', /*ensure_ascii=*/true)).value();
  EXPECT_EQ(tokenizer->encode("hello \u00e9", AddedTokens::all), (Ids{259, 32, 264}));
}

TEST(TokenizerFile, TakesGpt2ByteLevelWithoutNormalizer) {
  Json json = toy_tokenizer_json();
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}};
  const auto tokenizer = load_text(json.dump()).value();
  EXPECT_EQ(tokenizer->encode("e\u0301", AddedTokens::all), (Ids{'e', 0xcc, 0x81}));
}

// Every form refused, with a word of the message that must name it.
TEST(TokenizerFile, RefusesOtherKindsByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"normalizer": {"type": "NFKC"}})", "NFKC"},
      {R"({"pre_tokenizer": {"type": "Whitespace"}})", "Whitespace"},
      {R"({"pre_tokenizer": {"pretokenizers": [{"pattern": {"Regex": "\\w+"}}]}})",
       "pre_tokenizer"},
      {R"({"decoder": {"type": "Metaspace"}})", "Metaspace"},
      {R"({"decoder": null})", "decoder"},
      {R"({"post_processor": {"type": "BertProcessing"}})", "BertProcessing"},
      {R"({"truncation": {"max_length": 5}})", "truncation"},
      {R"({"padding": {}})", "padding"},
      {R"({"surprise": 1})", "surprise"},
      {R"({"model": {"type": "Unigram"}})", "Unigram"},
      {R"({"model": {"dropout": 0.5}})", "dropout"},
      {R"({"model": {"byte_fallback": true}})", "byte_fallback"},
      {R"({"model": {"end_of_word_suffix": "</w>"}})", "end_of_word_suffix"},
      {R"({"model": {"vocab": {"x y": 5000000}}})", "5000000"},
      {R"({"model": {"vocab": {"ab": 97}}})", "97"},
      {R"({"model": {"vocab": {"ab": -1}}})", "whole number"},
      {R"({"model": {"vocab": {"": 300}}})", "300"},
      {R"({"model": {"merges": ["h e", "h e"]}})", "merges 0 and 1"},
      {R"({"model": {"merges": ["h eh"]}})", "not in the vocabulary"},
      {R"({"model": {"merges": ["h e l"]}})", "h e l"},
      {R"({"model": {"merges": [["h"]]}})", "1 sides"},
      {R"({"model": {"merges": [7]}})", "expected"},
      {R"({"added_tokens": [{"id": 7}]})", "added token"},
      {R"({"added_tokens": 7})", "added_tokens"},
  };
  for (const auto& [patch, word] : cases) {
    Json json = toy_tokenizer_json();
    const Json change = Json::parse(patch);
    for (const auto& [key, value] : change.items())
      if (key == "model")
        for (const auto& [name, inner] : value.items())
          if (name == "vocab")
            json[key][name].update(inner);
          else
            json[key][name] = inner;
      else
        json[key] = value;
    const auto tokenizer = load_text(json.dump());
    ASSERT_FALSE(tokenizer.ok()) << patch;
    EXPECT_NE(tokenizer.error().text.find(word), std::string::npos) << tokenizer.error().text;
  }
}

TEST(TokenizerFile, RefusesAddedTokensWithFlagsOrContradictions) {
  for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"}) {
    Json json = toy_tokenizer_json();
    json["added_tokens"][1][flag] = true;
    const auto tokenizer = load_text(json.dump());
    ASSERT_FALSE(tokenizer.ok()) << flag;
    EXPECT_NE(tokenizer.error().text.find(flag), std::string::npos);
  }
  Json json = toy_tokenizer_json();
  json["added_tokens"][1]["id"] = 97;  // the byte a
  EXPECT_FALSE(load_text(json.dump()).ok());
  json["added_tokens"][1]["content"] = "a";
  EXPECT_TRUE(load_text(json.dump()).ok());
  json["added_tokens"][1]["content"] = "]~b]";
  EXPECT_FALSE(load_text(json.dump()).ok());
  json["added_tokens"][1]["content"] = std::string(1000, 'x');
  EXPECT_FALSE(load_text(json.dump()).ok());
}

TEST(TokenizerFile, RefusesAMissingByteAndAMissingFile) {
  Json json = toy_tokenizer_json();
  json["model"]["vocab"].erase("!");
  const auto tokenizer = load_text(json.dump());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_NE(tokenizer.error().text.find("0x21"), std::string::npos) << tokenizer.error().text;
  EXPECT_EQ(Tokenizer::load("/nonexistent/tokenizer.json").error().code, Code::not_found);
  EXPECT_FALSE(Tokenizer::load(testing::TempDir()).ok());
}

TEST(TokenizerFile, RefusesRepeatedMembers) {
  std::string json = toy_tokenizer_json().dump();
  json.insert(1, "\"version\":\"1.0\",");
  EXPECT_FALSE(parse_tokenizer_file(json).ok());
}

TEST(TokenizerFile, RefusesEveryCut) {
  const std::string json = toy_tokenizer_json().dump();
  for (size_t length = 0; length < json.size(); ++length)
    ASSERT_FALSE(parse_tokenizer_file({json.data(), length}).ok()) << length;
  ASSERT_TRUE(parse_tokenizer_file(json).ok());
  ASSERT_FALSE(parse_tokenizer_file(json + "x").ok());
}

TEST(TokenizerFile, SurvivesDeepNesting) {
  for (const char* bracket : {"[", "{\"a\":"}) {
    std::string deep = "{\"normalizer\":";
    for (int i = 0; i < 1000000; ++i) deep += bracket;
    EXPECT_FALSE(parse_tokenizer_file(deep).ok());
  }
  const std::string closed = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_FALSE(parse_tokenizer_file("{\"normalizer\":" + closed + "}").ok());
}

// Bytes changed, removed, doubled or moved at random: whatever loads must also work.
TEST(TokenizerFile, SurvivesMutations) {
  const std::string original = toy_tokenizer_json().dump();
  constexpr std::string_view kBytes = "{}[]\",:\\u0019ntf-. \x01\x80\xff\xc4";
  std::mt19937 random(11);
  int loaded = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string json = original;
    for (unsigned change = 0; change <= random() % 3; ++change) {
      const size_t at = random() % json.size();
      const size_t length = 1 + random() % 20;
      switch (random() % 4) {
        case 0:
          json[at] = kBytes[random() % kBytes.size()];
          break;
        case 1:
          json.erase(at, length);
          break;
        case 2:
          json.insert(at, json.substr(random() % json.size(), length));
          break;
        default:
          json[at] = static_cast<char>(json[at] ^ (1 << random() % 8));
          break;
      }
    }
    const auto tokenizer = load_text(json);
    if (!tokenizer.ok()) continue;
    ++loaded;
    const Ids ids = (*tokenizer)->encode("hello world ]~b]<think>\u00e9 123", AddedTokens::all);
    EXPECT_FALSE(ids.empty());
    EXPECT_FALSE((*tokenizer)->decode(ids, false).empty());
  }
  EXPECT_GT(loaded, 0);
  EXPECT_LT(loaded, 2000);
}

}  // namespace
}  // namespace m2::text
