#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

namespace m2::text {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string data_path(const std::string& name) {
  return std::string(M2_DATA_DIR) + "/" + name;
}

std::shared_ptr<const ChatTemplate> parse(const std::string& source) {
  auto parsed = ChatTemplate::parse(source);
  EXPECT_TRUE(parsed.ok()) << parsed.error().text;
  return parsed.ok() ? *parsed : nullptr;
}

std::string joined(const std::vector<TextPiece>& pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

// The text of the pieces that may hold any added token, or of the others.
std::string text_of(const std::vector<TextPiece>& pieces, AddedTokens added) {
  std::string text;
  for (const TextPiece& piece : pieces)
    if (piece.added == added) text += piece.text;
  return text;
}

class RealTemplate : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string source = read_file(data_path("chat_template.jinja"));
    if (source.empty()) GTEST_SKIP() << "no released templates in " << M2_DATA_DIR;
    template_ = parse(source);
  }

  std::shared_ptr<const ChatTemplate> template_;
};

TEST_F(RealTemplate, RendersEveryGoldenByteForByte) {
  const Json goldens = Json::parse(read_file(data_path("chat_golden.json")));
  int errors = 0;
  for (const Json& golden : goldens["cases"]) {
    SCOPED_TRACE(golden["name"].get<std::string>());
    const auto text = template_->render(golden["inputs"]);
    if (golden.contains("error")) {
      ASSERT_FALSE(text.ok());
      const std::string expected = golden["error"];
      EXPECT_EQ(text.error().text, expected.substr(expected.find(": ") + 2));
      EXPECT_EQ(text.error().code, Code::invalid_argument);
      ++errors;
      continue;
    }
    ASSERT_TRUE(text.ok()) << text.error().text;
    EXPECT_EQ(*text, golden["rendered"].get<std::string>());
    const auto pieces = template_->render_pieces(golden["inputs"]);
    ASSERT_TRUE(pieces.ok());
    EXPECT_EQ(joined(*pieces), *text);
  }
  EXPECT_EQ(errors, 3);
  EXPECT_GE(goldens["cases"].size(), 15u);
}

}  // namespace
}  // namespace m2::text
