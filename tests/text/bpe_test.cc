#include "text/bpe.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace m2::text {
namespace {

// All bytes as tokens 0..255, and a merge for each of `parts`.
struct Toy {
  Vocabulary vocabulary;
  std::vector<Merge> merges;

  Toy() {
    for (int byte = 0; byte < 256; ++byte)
      EXPECT_TRUE(vocabulary.add(std::string(1, static_cast<char>(byte)), byte).ok());
  }
  // Merges two tokens, into a new token unless there is one with these bytes.
  void merge(std::string_view left, std::string_view right) {
    const std::string both = std::string(left) + std::string(right);
    TokenId result = vocabulary.find(both);
    if (result < 0) {
      result = vocabulary.id_limit();
      EXPECT_TRUE(vocabulary.add(both, result).ok());
    }
    merges.push_back({vocabulary.find(left), vocabulary.find(right), result});
  }
};

// The definition: the first pair of the list that occurs, leftmost, until none does.
std::vector<TokenId> merge_by_definition(std::string_view word, const Toy& toy) {
  std::vector<TokenId> tokens;
  for (const char c : word) tokens.push_back(static_cast<unsigned char>(c));
  for (size_t rank = 0; rank < toy.merges.size(); ++rank) {
    const Merge& merge = toy.merges[rank];
    for (size_t i = 0; i + 1 < tokens.size(); ++i) {
      if (tokens[i] != merge.left || tokens[i + 1] != merge.right) continue;
      tokens[i] = merge.result;
      tokens.erase(tokens.begin() + static_cast<ptrdiff_t>(i) + 1);
      rank = SIZE_MAX;  // start again
      break;
    }
    if (rank == SIZE_MAX) continue;
  }
  return tokens;
}

std::vector<TokenId> encode(const Bpe& bpe, std::string_view word) {
  std::vector<TokenId> ids;
  bpe.encode(word, ids);
  return ids;
}

TEST(Bpe, FollowsTheMergeListNotTheVocabulary) {
  Toy toy;
  toy.merge("b", "c");
  toy.merge("a", "b");
  toy.merge("ab", "c");  // unreachable: "bc" is merged first
  const Bpe bpe = Bpe::build(toy.vocabulary, toy.merges, false).value();
  EXPECT_EQ(encode(bpe, "abc"), (std::vector<TokenId>{'a', 256}));
  EXPECT_EQ(encode(bpe, "ab"), (std::vector<TokenId>{257}));
  const Bpe whole = Bpe::build(toy.vocabulary, toy.merges, true).value();
  EXPECT_EQ(encode(whole, "abc"), (std::vector<TokenId>{258}));
}

TEST(Bpe, AgreesWithTheDefinition) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    Toy toy;
    std::vector<std::string> pieces = {"a", "b", "c"};
    for (int i = 0; i < 40; ++i) {
      const std::string left = pieces[random() % pieces.size()];
      const std::string right = pieces[random() % pieces.size()];
      bool known = false;
      for (const Merge& merge : toy.merges)
        known |=
            merge.left == toy.vocabulary.find(left) && merge.right == toy.vocabulary.find(right);
      if (known || left.size() + right.size() > 12) continue;
      toy.merge(left, right);
      pieces.push_back(left + right);
    }
    std::shuffle(toy.merges.begin(), toy.merges.end(), random);
    const Bpe bpe = Bpe::build(toy.vocabulary, toy.merges, false).value();
    for (const size_t length : {0, 1, 2, 3, 7, 20, 90, 100, 250}) {
      std::string word;
      while (word.size() < length) word += static_cast<char>('a' + random() % 3);
      ASSERT_EQ(encode(bpe, word), merge_by_definition(word, toy)) << word;
    }
  }
}

TEST(Bpe, RefusesWhatItCannotKeep) {
  Toy toy;
  toy.merge("a", "b");
  toy.merges.push_back(toy.merges[0]);
  EXPECT_FALSE(Bpe::build(toy.vocabulary, toy.merges, false).ok());
  Vocabulary few;
  ASSERT_TRUE(few.add("a", 0).ok());
  EXPECT_FALSE(Bpe::build(std::move(few), {}, false).ok());
}

TEST(Vocabulary, FindsEveryToken) {
  Vocabulary vocabulary;
  for (TokenId id = 0; id < 5000; ++id)
    ASSERT_TRUE(
        vocabulary.add(std::string(static_cast<size_t>(id % 40), 'x') + std::to_string(id), id * 2)
            .ok());
  for (TokenId id = 0; id < 5000; ++id) {
    const std::string bytes = std::string(static_cast<size_t>(id % 40), 'x') + std::to_string(id);
    ASSERT_EQ(vocabulary.find(bytes), id * 2);
    ASSERT_EQ(vocabulary.bytes(id * 2), bytes);
    ASSERT_EQ(vocabulary.bytes(id * 2 + 1), "");
    ASSERT_EQ(vocabulary.find(bytes + "y"), -1);
  }
  EXPECT_EQ(vocabulary.size(), 5000);
  EXPECT_EQ(vocabulary.id_limit(), 9999);
  EXPECT_EQ(vocabulary.bytes(-1), "");
  EXPECT_EQ(vocabulary.bytes(9999), "");
}

TEST(Vocabulary, RefusesContradictions) {
  Vocabulary vocabulary;
  ASSERT_TRUE(vocabulary.add("a", 0).ok());
  EXPECT_FALSE(vocabulary.add("a", 1).ok());
  EXPECT_FALSE(vocabulary.add("b", 0).ok());
  EXPECT_FALSE(vocabulary.add("", 1).ok());
  EXPECT_FALSE(vocabulary.add("b", -1).ok());
  EXPECT_FALSE(vocabulary.add("b", Vocabulary::kMaxIds).ok());
  ASSERT_TRUE(vocabulary.add_hidden("a", 2).ok());
  EXPECT_EQ(vocabulary.find("a"), 0);
  EXPECT_EQ(vocabulary.bytes(2), "a");
}

}  // namespace
}  // namespace m2::text
