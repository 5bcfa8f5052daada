#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <string>

#include "tests/text/toy_tokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace m2::text {
namespace {

std::shared_ptr<const Tokenizer> toy() {
  return load_text(toy_tokenizer_json().dump()).value();
}

TEST(Detokenizer, KeepsBackUnfinishedCharacters) {
  Detokenizer detokenizer(toy(), false);
  EXPECT_EQ(detokenizer.add(0xf0), "");
  EXPECT_EQ(detokenizer.add(0x9f), "");
  EXPECT_EQ(detokenizer.add(0x98), "");
  EXPECT_EQ(detokenizer.add(0x80), "😀");
  EXPECT_EQ(detokenizer.add(259), "hello");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, ReplacesWhatCannotBecomeACharacter) {
  Detokenizer detokenizer(toy(), false);
  EXPECT_EQ(detokenizer.add(0xff), "\ufffd");
  EXPECT_EQ(detokenizer.add(0xe4), "");
  EXPECT_EQ(detokenizer.add('a'),
            "\ufffd"
            "a");
  EXPECT_EQ(detokenizer.add(0xe4), "");
  EXPECT_EQ(detokenizer.add(0xb8), "");
  EXPECT_EQ(detokenizer.add(0xf0), "\ufffd");
  EXPECT_EQ(detokenizer.finish(), "\ufffd");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, DropsOnlySpecialTokensAndOnlyWhenAsked) {
  const auto tokenizer = toy();
  const TokenId role = tokenizer->id_of("]~b]"), think = tokenizer->id_of("<think>");
  Detokenizer keeping(tokenizer, false), skipping(tokenizer, true);
  EXPECT_EQ(keeping.add(role), "]~b]");
  EXPECT_EQ(skipping.add(role), "");
  EXPECT_EQ(skipping.add(think), "<think>");
  EXPECT_EQ(skipping.add(1 << 30), "");
  EXPECT_EQ(skipping.add(-1), "");
}

void expect_same_as_whole(const std::shared_ptr<const Tokenizer>& tokenizer,
                          const std::vector<TokenId>& ids, bool skip_special) {
  Detokenizer detokenizer(tokenizer, skip_special);
  std::string streamed;
  for (const TokenId id : ids) {
    const std::string text = detokenizer.add(id);
    ASSERT_TRUE(is_valid_utf8(text));
    streamed += text;
  }
  streamed += detokenizer.finish();
  ASSERT_EQ(streamed, tokenizer->decode(ids, skip_special));
}

TEST(Detokenizer, StreamsWhatDecodeGives) {
  const auto tokenizer = toy();
  std::mt19937 random(5);
  for (int round = 0; round < 30000; ++round) {
    std::vector<TokenId> ids(random() % 12);
    for (TokenId& id : ids)  // mostly bytes beyond ASCII, where the difficulty is
      id = static_cast<TokenId>(random() % 4 == 0 ? random() % 275 : 0x80 + random() % 0x80);
    expect_same_as_whole(tokenizer, ids, round % 2 == 0);
  }
}

TEST(Detokenizer, StreamsWhatDecodeGivesWithTheReleasedTokens) {
  if (!std::filesystem::exists(M2_DATA_DIR "/tokenizer.json"))
    GTEST_SKIP() << "no released tokenizer.json in " << M2_DATA_DIR;
  const auto tokenizer = Tokenizer::load(M2_DATA_DIR "/tokenizer.json").value();
  std::mt19937 random(6);
  for (int round = 0; round < 20000; ++round) {
    std::vector<TokenId> ids(random() % 12);
    for (TokenId& id : ids)
      id = static_cast<TokenId>(random() % (random() % 2 == 0 ? 256 : 200070));
    expect_same_as_whole(tokenizer, ids, round % 2 == 0);
  }
}

TEST(Detokenizer, CostsTheSameAfterALongHistory) {
  Detokenizer detokenizer(toy(), false);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000000; ++i) detokenizer.add(0x80 + i % 0x80);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace m2::text
