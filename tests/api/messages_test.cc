// Covers: api/anthropic_messages
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "api/anthropic_messages.h"

namespace m2::api {
namespace {

std::string golden(const std::string& name) {
  std::ifstream file(M2_SOURCE_DIR "/tests/golden/api/" + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<MessagesRequest> request(const std::string& fields, MessagesUse use = MessagesUse::create) {
  std::vector<std::string> unknown;
  const auto body = parse_json("{\"model\":\"m\",\"max_tokens\":5," + fields + "}");
  EXPECT_TRUE(body.ok()) << fields;
  return messages_request_from_json(*body, use, unknown);
}

const char kHello[] = R"("messages":[{"role":"user","content":"a"}])";

void write_all(MessageWriter& w, std::string* out) {
  w.begin({10, 3, 0}, out);
  w.thinking("a", out);
  w.thinking("bc", out);
  w.text("Hé", out);
  w.text("llo\n", out);
  w.begin_tool_use("toolu_1", "f", out);
  w.input("{\"k\": ", out);
  w.input("1}", out);
}

TEST(MessageWriter, StreamIsTheGolden) {
  MessageWriter w("msg_1", "m");
  std::string out;
  write_all(w, &out);
  w.finish({"tool_use", {}}, {10, 3, 5}, false, &out);
  EXPECT_EQ(out, golden("message_stream.txt"));
}

TEST(MessageWriter, WholeIsTheGolden) {
  MessageWriter w("msg_1", "m");
  write_all(w, nullptr);
  const MessageStop stop{"stop_sequence", "END"};
  w.finish(stop, {10, 3, 5}, false, nullptr);
  EXPECT_EQ(w.to_json(stop, {10, 3, 5}), golden("message.json"));
}

TEST(MessageWriter, NothingSaidIsAnEmptyTextBlock) {
  MessageWriter w("msg_1", "m");
  std::string out;
  w.finish({"end_turn", {}}, {1, 0, 1}, false, &out);
  EXPECT_NE(w.to_json({"end_turn", {}}, {1, 0, 1}).find(R"("content":[{"type":"text","text":""}])"),
            std::string::npos);
  EXPECT_NE(out.find("event: content_block_start\n"), std::string::npos);
}

TEST(MessageWriter, AToolUseThatWasCutOffIsNotPartOfTheMessage) {
  MessageWriter w("msg_1", "m");
  std::string out;
  w.text("a", &out);
  w.begin_tool_use("toolu_1", "f", &out);
  w.input("{\"k\": \"half", &out);
  w.finish({"max_tokens", {}}, {1, 0, 1}, true, &out);
  const auto message = parse_json(w.to_json({"max_tokens", {}}, {1, 0, 1}));
  EXPECT_EQ((*message)["content"].size(), 1u);
  EXPECT_NE(out.find(R"({"type":"content_block_stop","index":1})"), std::string::npos);
}

TEST(MessagesRequest, BlocksBecomeChatMessages) {
  const auto read = request(R"("system":[
      {"type":"text","text":"x-anthropic-billing-header: cc_version=2; cch=abcde;"},
      {"type":"text","text":"You code.","cache_control":{"type":"ephemeral"}},
      {"type":"text","text":"And test."}],
    "messages":[{"role":"user","content":[{"type":"text","text":"u"}]},
      {"role":"assistant","content":[
        {"type":"thinking","thinking":"t","signature":"foreign"},
        {"type":"redacted_thinking","data":"x"},
        {"type":"text","text":"a"},
        {"type":"tool_use","id":"c1","name":"f","input":{"x":1}},
        {"type":"tool_use","id":"c2","name":"g","input":{}}]},
      {"role":"user","content":[
        {"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"o"},
          {"type":"image","source":{}}]},
        {"type":"tool_result","tool_use_id":"c2","content":"bad","is_error":true},
        {"type":"text","text":"<system-reminder>mind</system-reminder>"}]},
      {"role":"system","content":"<total_tokens>181234 tokens left</total_tokens>"},
      {"role":"system","content":"<total_tokens>"},
      {"role":"system","content":[{"type":"text","text":"late"}]},
      {"role":"user","content":[{"type":"tool_result","tool_use_id":"c3"},
        {"type":"text","text":"<total_tokens>1 tokens left</total_tokens>"}]}])");
  ASSERT_TRUE(read.ok()) << read.error().text;
  const auto& m = read->messages;
  ASSERT_EQ(m.size(), 9u);
  EXPECT_EQ(m[0].content, "You code.\n\nAnd test.");
  EXPECT_EQ(m[2].reasoning, "t");
  EXPECT_EQ(m[2].content, "a");
  EXPECT_EQ(to_text(m[2].tool_calls[0].arguments), R"({"x":1})");
  EXPECT_EQ(m[3].tool_call_id, "c1");
  EXPECT_EQ(m[3].content, "o\n[image: this model reads text only]");
  EXPECT_EQ(m[4].content, "Error: bad\n\n<system-reminder>mind</system-reminder>");
  EXPECT_EQ(m[5].role, "system");
  EXPECT_EQ(m[5].content, "<total_tokens>");  // no element: it does not end
  EXPECT_EQ(m[6].content, "late");
  EXPECT_EQ(m[7].content, "");
  // Text of users is never touched.
  EXPECT_EQ(m[8].content[0]["text"], "<total_tokens>1 tokens left</total_tokens>");
}

TEST(MessagesRequest, ToolsBecomeFunctions) {
  const auto read = request(std::string(kHello) + R"(,"tools":[
      {"name":"f","description":"d","input_schema":{"properties":{}}},
      {"type":"web_search_20250305","name":"web_search"}],
    "tool_choice":{"type":"tool","name":"f","disable_parallel_tool_use":true},
    "thinking":{"type":"disabled"})");
  ASSERT_TRUE(read.ok()) << read.error().text;
  EXPECT_EQ(to_text(read->tools), R"([{"type":"function","function":{"name":"f","description":"d",)"
                                  R"("parameters":{"properties":{},"type":"object"}}}])");
  EXPECT_EQ(read->tool_choice.kind, ToolChoice::Kind::named);
  EXPECT_FALSE(read->parallel_tool_calls);
  EXPECT_EQ(read->thinking, false);
}

TEST(MessagesRequest, ChoicesOfTools) {
  using Kind = ToolChoice::Kind;
  const std::string tools =
      std::string(kHello) + R"(,"tools":[{"name":"f","input_schema":{}}],"tool_choice":{"type":)";
  EXPECT_EQ(request(tools + "\"auto\"}")->tool_choice.kind, Kind::automatic);
  EXPECT_EQ(request(tools + "\"any\"}")->tool_choice.kind, Kind::required);
  EXPECT_EQ(request(tools + "\"none\"}")->tool_choice.kind, Kind::none);
  EXPECT_EQ(request(kHello)->tool_choice.kind, Kind::none);
}

TEST(MessagesRequest, AFormatBecomesAResponseFormat) {
  for (const char* field :
       {"output_format\":", "output_config\":{\"effort\":\"low\",\"format\":"}) {
    const std::string end = std::string_view(field).ends_with("format\":") &&
                                    std::string_view(field).starts_with("output_config")
                                ? "}"
                                : "";
    const auto read = request(std::string(kHello) + ",\"" + field +
                              R"({"type":"json_schema","schema":{"type":"object"}})" + end);
    ASSERT_TRUE(read.ok()) << read.error().text;
    EXPECT_EQ(read->response_format["json_schema"]["schema"]["type"], "object");
  }
}

TEST(MessagesRequest, WhatIsWrongIsNamed) {
  const std::pair<std::string, const char*> cases[] = {
      {R"("messages":[])", "messages: at least one is required"},
      {R"("system":"a")", "messages: Field required"},
      {R"("messages":[{"role":"tool","content":"a"}])",
       "messages: role `tool` should be 'user' or 'assistant'"},
      {R"("messages":[{"role":"user","content":[{"type":"image","source":{}}]}])",
       "messages: a block of type `image` cannot be used: this model reads text only"},
      {std::string(kHello) + R"(,"tools":[{"name":"f"}])",
       "tools: `f` should have an object `input_schema`"},
      {std::string(kHello) + R"(,"tool_choice":{"type":"any"})",
       "tool_choice: `tools` must be set"},
      {std::string(kHello) + R"(,"system":[{"type":"image"}])",
       "system: each block should be of type text"},
  };
  for (const auto& [body, text] : cases) {
    const auto read = request(body);
    ASSERT_FALSE(read.ok()) << body;
    EXPECT_EQ(read.error().text, text);
  }
  std::vector<std::string> unknown;
  const auto bare = parse_json("{\"model\":\"m\"," + std::string(kHello) + "}");
  EXPECT_EQ(messages_request_from_json(*bare, MessagesUse::create, unknown).error().text,
            "max_tokens: Field required");
  EXPECT_TRUE(messages_request_from_json(*bare, MessagesUse::count_tokens, unknown).ok());
}

TEST(AnthropicError, TypeFollowsTheStatus) {
  const std::pair<int, const char*> types[] = {
      {400, "invalid_request_error"}, {401, "authentication_error"}, {404, "not_found_error"},
      {413, "request_too_large"},     {429, "rate_limit_error"},     {500, "api_error"},
      {503, "overloaded_error"}};
  for (const auto& [status, type] : types)
    EXPECT_EQ(
        anthropic_error_json({status, "x", "why", ""}),
        std::string(R"({"type":"error","error":{"type":")") + type + R"(","message":"why"}})");
  EXPECT_EQ(anthropic_error_frame({500, "x", "why", ""}),
            "event: error\ndata: "
            "{\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"why\"}}\n\n");
}

}  // namespace
}  // namespace m2::api
