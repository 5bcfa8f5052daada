// Covers: api/reply, api/openai_chat, api/openai_completions
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "api/error.h"
#include "api/openai_chat.h"
#include "api/openai_completions.h"

namespace m2::api {
namespace {

std::string golden(const std::string& name) {
  std::ifstream file(M2_SOURCE_DIR "/tests/golden/api/" + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

TEST(ChatChunks, StreamIsTheGolden) {
  const ChatChunks chunks({"chatcmpl-1", 7, "m\"2"});
  const Usage usage{3, 2, std::nullopt, std::nullopt};
  std::string out;
  chunks.begin(0, "assistant", nullptr, nullptr, out);
  const auto send = [&](ChatChunks::Chunk chunk, std::string_view delta) {
    chunk.delta = delta;
    chunks.append(chunk, out);
  };
  std::string delta;
  append_reasoning_delta(delta, "a\n");
  send({}, delta);
  delta.clear();
  append_content_delta(delta, "é\x01\\");
  const std::vector<int32_t> ids = {1, 2};
  send({.logprobs = "{\"content\":[]}", .token_ids = &ids, .usage = &usage}, delta);
  delta.clear();
  append_call_delta(delta, 0, "c", "f");
  send({}, delta);
  delta.clear();
  append_arguments_delta(delta, 0, "{}");
  send({}, delta);
  const Finish finish{"stop", "END"};
  send({.finish = &finish}, "\"content\":\"\"");
  chunks.usage(usage, out);
  EXPECT_EQ(out, golden("chat_stream.txt"));
}

TEST(ChatReply, WholeReplyIsTheGolden) {
  ChatReply reply;
  reply.head = {"chatcmpl-1", 7, "m"};
  ChatReplyChoice choice;
  choice.message.reasoning = "r";
  choice.message.tool_calls = {{"c", "f", "{\"a\": 1}"}};
  choice.finish = {"tool_calls", {}};
  reply.choices.push_back(choice);
  reply.usage = {3, 2, 1, std::nullopt};
  EXPECT_EQ(to_json(reply), golden("chat_reply.json"));
}

TEST(CompletionChunks, StreamIsTheGolden) {
  const CompletionChunks chunks({"cmpl-1", 7, "m"});
  const std::vector<int32_t> prompt = {9};
  const Finish finish{"stop", 5};
  std::string out;
  chunks.append({.index = 1, .text = "a", .prompt_token_ids = &prompt}, out);
  chunks.append({.index = 1, .finish = &finish}, out);
  chunks.usage({3, 2, std::nullopt, std::nullopt}, out);
  EXPECT_EQ(out, golden("completion_stream.txt"));
}

TEST(ApiError, StatusAndTypeFollowTheCode) {
  EXPECT_EQ(to_json(serving_error({Code::not_found, "no", "model"})),
            R"({"error":{"message":"no","type":"NotFoundError","param":"model","code":404}})");
  EXPECT_EQ(to_json(validation_error({Code::invalid_argument, "no", ""})),
            R"({"error":{"message":"no","type":"Bad Request","param":null,"code":400}})");
  EXPECT_EQ(serving_error({Code::resource_exhausted, "", ""}).status, 429);
  EXPECT_EQ(serving_error({Code::unavailable, "", ""}).status, 503);
  EXPECT_EQ(serving_error({Code::internal, "", ""}).status, 500);
}

}  // namespace
}  // namespace m2::api
