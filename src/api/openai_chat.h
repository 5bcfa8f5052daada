#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "api/generation.h"
#include "api/reply.h"
#include "api/tool_choice.h"
#include "base/dense_memory.h"

// POST /v1/chat/completions (contract.md 4.3, 4.6).

namespace m2::api {

struct ChatToolCall {
  std::string id;
  std::string name;
  Json arguments;  // as sent: JSON text, an object, or null
};

struct ChatMessage {
  std::string role;
  Json content;  // null, a string, or a list of parts (objects with a string "type")
  std::optional<std::string> reasoning;  // whichever of its spellings was sent
  std::vector<ChatToolCall> tool_calls;
  std::string tool_call_id;
  Json extra = Json::object();  // further fields, for the template

  void add_reasoning(std::string_view text) {
    (reasoning ? *reasoning : reasoning.emplace()) += text;
  }
};

struct ChatRequest : GenerationFields {
  std::vector<ChatMessage> messages;
  Json tools = Json::array();  // the function tools, as sent; other kinds are left out
  ToolChoice tool_choice;
  bool parallel_tool_calls = true;
  bool logprobs = false;
  int64_t top_logprobs = 0;
  std::optional<int64_t> max_completion_tokens;  // wins over max_tokens
  const char* max_tokens_field = "max_tokens";   // whose value that is, for errors
  bool max_tokens_at_most = false;  // where the context has no room for so many: fewer, no error
  bool include_reasoning = true;
  std::optional<bool> thinking;  // whichever of the spellings of read_thinking was sent
  std::optional<bool> add_generation_prompt;
  bool continue_final_message = false;
  std::optional<std::string> chat_template;
  Json chat_template_kwargs = Json::object();
  Json documents;  // null if not given
};

// Reads a request's body. Errors are of the validation kind; names of fields nobody knows are
// appended to `unknown`.
Result<ChatRequest> chat_request_from_json(const Json& body, std::vector<std::string>& unknown);

Json chat_request_schema();

// A message's content is null, a string, or a list of parts, and text parts have a text.
Result<void> check_content(const Json& content, std::string_view param);

// The chat form of /tokenize reads its messages and tools the same way.
Result<void> read_messages(const Json& value, std::vector<ChatMessage>& out);
Result<void> read_tools(const Json& value, Json& out);

// The spellings by which clients switch thinking off or on:
//   thinking, enable_thinking, think: a boolean; thinking: {"type": "disabled" | "enabled",
//   "budget_tokens": N}; reasoning: {"effort": ..., "enabled": bool, "max_tokens": N,
//   "exclude": bool}; reasoning_effort: "none".
// Other efforts are accepted and change nothing: the model knows no degrees. The first that says
// anything decides.
Result<void> read_thinking(const Json& value, ChatRequest& out);
Result<void> read_reasoning(const Json& value, ChatRequest& out);
Result<void> read_effort(const Json& value, ChatRequest& out);
// What enable_thinking, thinking and reasoning_effort say among a template's arguments.
std::optional<bool> thinking_of_kwargs(const Json& kwargs);

// ---- replies

// One message the model wrote.
struct ChatReplyMessage {
  std::string role = "assistant";
  std::optional<std::string> content;
  std::optional<std::string> reasoning;
  struct Call {
    std::string id, name, arguments;
  };
  std::vector<Call> tool_calls;
};

struct ChatReplyChoice {
  ChatReplyMessage message;
  std::string logprobs;  // JSON, {"content":[...]}; empty: null
  Finish finish;
  Json token_ids;  // null unless asked for
};

struct ChatReply {
  ReplyHead head;
  std::vector<ChatReplyChoice> choices;  // in order of index
  Usage usage;
  std::string prompt_logprobs;  // JSON; empty unless asked for
  Json prompt_token_ids;        // null unless asked for
};

std::string to_json(const ChatReply& reply);

// Members of a chunk's delta object, as JSON without the braces.
std::string role_delta(std::string_view role);
void append_content_delta(std::string& out, std::string_view text);
void append_reasoning_delta(std::string& out, std::string_view text);
void append_call_delta(std::string& out, int call_index, std::string_view id,
                       std::string_view name);
void append_arguments_delta(std::string& out, int call_index, std::string_view text);

// Writes the chunks of one streamed reply as SSE frames. What is the same in every chunk is
// printed once, at construction.
class ChatChunks {
 public:
  explicit ChatChunks(const ReplyHead& head);

  struct Chunk {
    int index = 0;
    std::string_view delta = {};                      // members of the delta, as JSON
    std::string_view logprobs = {};                   // JSON; empty: null
    const Finish* finish = nullptr;                   // of the choice's last chunk
    const std::vector<int32_t>* token_ids = nullptr;  // null unless asked for
    const Usage* usage = nullptr;                     // continuous_usage_stats
  };

  // The first chunk of a choice; `prompt_token_ids` may be null.
  void begin(int index, std::string_view role, const std::vector<int32_t>* prompt_token_ids,
             const Usage* usage, std::string& out) const;
  void append(const Chunk& chunk, std::string& out) const;
  // The chunk after the last one, if usage was asked for.
  void usage(const Usage& usage, std::string& out) const;

 private:
  DenseString prefix_;  // data: {... ,"choices":[
};

}  // namespace m2::api
