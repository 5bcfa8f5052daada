// Covers: api/fields, api/generation, api/openai_chat, api/openai_completions
#include <gtest/gtest.h>

#include "api/openai_chat.h"
#include "api/openai_completions.h"
#include "base/clock.h"
#include "tests/time_factor.h"

namespace m2::api {
namespace {

Result<ChatRequest> chat(const std::string& fields) {
  std::vector<std::string> unknown;
  const auto body = parse_json(R"({"messages":[{"role":"user","content":"a"}])" + fields + "}");
  EXPECT_TRUE(body.ok()) << fields;
  return chat_request_from_json(*body, unknown);
}

TEST(ChatRequest, DefaultsAreThoseOfTheContract) {
  const auto request = chat("");
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->n, 1);
  EXPECT_FALSE(request->stream);
  EXPECT_FALSE(request->temperature.has_value());
  EXPECT_TRUE(request->skip_special_tokens && request->include_reasoning);
  EXPECT_TRUE(request->parallel_tool_calls);
  EXPECT_EQ(request->tool_choice.kind, ToolChoice::Kind::none);
}

TEST(ChatRequest, NullIsNotGiven) {
  const auto request = chat(R"(,"n":null,"stop":null,"tools":null,"stream":null,"model":null)");
  ASSERT_TRUE(request.ok()) << request.error().text;
  EXPECT_EQ(request->n, 1);
}

TEST(ChatRequest, ReasoningIsReadUnderEverySpelling) {
  const char* spellings[] = {
      R"("content":"c","reasoning":"r")",
      R"("content":"c","reasoning_content":"r")",
      R"("content":"c","reason":"r")",
      R"("content":"c","thinking":"r")",
      R"("content":"c","reasoning_details":[{"type":"reasoning.text","text":"r"}])",
      R"("content":"c","reasoning_detail":[{"text":"r"}])",
      R"("content":"c","thinking_blocks":[{"type":"thinking","thinking":"r","signature":"s"}])",
      R"("content":[{"type":"thinking","thinking":"r"},{"type":"text","text":"c"}])",
      R"("content":[{"type":"reasoning","text":"r"},{"type":"text","text":"c"}])"};
  for (const char* fields : spellings) {
    std::vector<std::string> unknown;
    const auto body =
        parse_json(std::string(R"({"messages":[{"role":"assistant",)") + fields + "}]}");
    const auto request = chat_request_from_json(*body, unknown);
    ASSERT_TRUE(request.ok()) << request.error().text;
    const ChatMessage& message = request->messages[0];
    EXPECT_EQ(message.reasoning, "r") << fields;
    EXPECT_EQ(message.content.is_string() ? message.content : message.content[0]["text"], "c");
    EXPECT_TRUE(message.extra.empty()) << fields;
  }
}

TEST(ChatRequest, IntegersAreStrict) {
  for (const char* bad : {"\"7\"", "true", "1.5", "1e30", "18446744073709551616", "[]"})
    EXPECT_FALSE(chat(std::string(R"(,"n":)") + bad).ok()) << bad;
  const auto whole = chat(R"(,"n":2.0)");
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->n, 2);
}

TEST(ChatRequest, UnknownFieldsAreNamed) {
  std::vector<std::string> unknown;
  const auto body = parse_json(
      R"({"messages":[{"role":"user","content":"a"}],"guided_json":{},"user":"u","x":1})");
  ASSERT_TRUE(chat_request_from_json(*body, unknown).ok());
  EXPECT_EQ(unknown, (std::vector<std::string>{"guided_json", "x"}));
}

TEST(ChatRequest, ReasoningInAnySpelling) {
  for (const char* field : {R"("reasoning":"r")", R"("reasoning_content":"r")",
                            R"("reasoning_details":[{"type":"x","text":"r"}])"}) {
    std::vector<ChatMessage> messages;
    const auto value = parse_json(std::string(R"([{"role":"assistant",)") + field + "}]");
    ASSERT_TRUE(read_messages(*value, messages).ok());
    EXPECT_EQ(messages[0].reasoning, "r") << field;
    EXPECT_TRUE(messages[0].extra.empty());
  }
}

TEST(ChatRequest, ToolsOfOtherKindsAreLeftOut) {
  const auto request =
      chat(R"(,"tools":[{"type":"web_search"},{"type":"function","function":{"name":"f"}}])");
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->tools.size(), 1u);
  EXPECT_EQ(request->tool_choice.kind, ToolChoice::Kind::automatic);
}

TEST(CompletionRequest, PromptForms) {
  const auto count = [](const std::string& prompt) -> size_t {
    std::vector<std::string> unknown;
    const auto body = parse_json("{\"prompt\":" + prompt + "}");
    const auto request = completion_request_from_json(*body, unknown);
    return request ? request->prompts.size() : 0;
  };
  EXPECT_EQ(count("\"a\""), 1u);
  EXPECT_EQ(count("[\"a\",\"b\"]"), 2u);
  EXPECT_EQ(count("[1,2,3]"), 1u);
  EXPECT_EQ(count("[[1],[2,3]]"), 2u);
  EXPECT_EQ(count("[1,\"a\"]"), 0u);
  EXPECT_EQ(count("[]"), 0u);
  EXPECT_EQ(count("{}"), 0u);
  EXPECT_EQ(count("\"\""), 0u);
}

// As many tools as a body holds, the last of them allowed again and again: looking each up among
// all of them took a quarter of an hour.
TEST(ChatRequest, AllowedToolsTakeTimeByTheirNumberAlone) {
  Json tools = Json::array(), allowed = Json::array();
  for (int i = 0; i < 30'000; ++i)
    tools.push_back({{"type", "function"}, {"function", {{"name", fmt::format("f{}", i)}}}});
  for (int i = 0; i < 30'000; ++i) allowed.push_back(tools.back());
  const Json choice{{"type", "allowed_tools"},
                    {"allowed_tools", {{"mode", "auto"}, {"tools", std::move(allowed)}}}};
  const Nanos start = SteadyClock().now();
  const auto request =
      chat(R"(,"tools":)" + to_text(tools) + R"(,"tool_choice":)" + to_text(choice));
  EXPECT_LT(seconds(SteadyClock().now() - start), 5 * kTimeFactor);
  ASSERT_TRUE(request.ok()) << request.error().text;
  EXPECT_EQ(request->tool_choice.allowed, std::set<std::string>{"f29999"});
}

}  // namespace
}  // namespace m2::api
