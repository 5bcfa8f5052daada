#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/error.h"
#include "api/openai_chat.h"

// POST /v1/messages and /v1/messages/count_tokens (contract.md 4.12).

namespace m2::api {

// What the engine is to answer stands in the base, under chat's names: the system prompt is the
// first message, thinking is reasoning, tool_result a tool message.
struct MessagesRequest : ChatRequest {};

enum class MessagesUse { create, count_tokens };  // counting needs no max_tokens

// Reads a request's body. Errors are of the validation kind; names of fields nobody knows, and of
// tools and blocks that mean nothing here (tool:TYPE, block:TYPE), are appended to `unknown`. Two
// envelopes that Claude Code puts into system text and that change with every request are left
// out, as they would end every cached prefix: blocks that begin with "x-anthropic-billing-header",
// and system messages that hold a <total_tokens> element and nothing else. Text of users is never
// touched.
Result<MessagesRequest> messages_request_from_json(const Json& body, MessagesUse use,
                                                   std::vector<std::string>& unknown);

// The JSON Schema of that body; max_tokens is needed too where a message is to be created.
Json messages_request_schema();

// {"type":"error","error":{"type":...,"message":...}}.
std::string anthropic_error_json(const ApiError& error);
// The same as an event in mid-stream.
std::string anthropic_error_frame(const ApiError& error);

std::string count_tokens_json(int64_t input_tokens);

struct MessageUsage {
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  int64_t thinking_tokens = 0;  // of the output
};

// Why a message ended.
struct MessageStop {
  // end_turn, max_tokens, tool_use, stop_sequence, model_context_window_exceeded
  std::string reason;
  std::optional<std::string> sequence;  // that stopped it
};

// Makes one message out of what the model writes, and tells each step as server-sent events. Every
// method appends its events to `out`; nullptr: nobody listens. The blocks do not depend on how the
// text was cut into calls.
class MessageWriter {
 public:
  MessageWriter(std::string id, std::string model);

  void begin(const MessageUsage& usage, std::string* out);
  void thinking(std::string_view text, std::string* out);
  void text(std::string_view text, std::string* out);
  void begin_tool_use(std::string_view id, std::string_view name, std::string* out);
  void input(std::string_view json, std::string* out);
  // Closes what is open and ends the message. `drop_call`: the last tool use was cut off; it is not
  // part of the message.
  void finish(const MessageStop& stop, const MessageUsage& usage, bool drop_call, std::string* out);

  // The whole message as JSON; after finish().
  std::string to_json(const MessageStop& stop, const MessageUsage& usage) const;

 private:
  enum class Kind { none, thinking, text, tool_use };

  void open(Kind kind, Json block, std::string* out);
  void close(bool drop, std::string* out);
  void begin_delta(std::string_view type, std::string_view name, std::string& out) const;
  void delta(std::string_view type, std::string_view name, std::string_view text, std::string* out);

  const std::string id_, model_;
  Json content_ = Json::array();  // blocks that are closed
  int64_t index_ = -1;            // of the last block
  Kind kind_ = Kind::none;        // of the block that is open
  Json block_;
  std::string text_;  // of the open block: its text or input
};

}  // namespace m2::api
