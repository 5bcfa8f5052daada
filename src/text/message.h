#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"

// The one conversation type. Every wire protocol is translated into it and out of it; the template
// prints it, the output reader makes it. Nothing here knows HTTP.

namespace m2::text {

struct ToolCall {
  std::string id;    // as the client knows it; may be empty in a prompt
  std::string name;
  Json arguments;    // an object, keys in the order given
};

// One message of a conversation, as the template sees it (to_template_json below).
struct Message {
  std::string role;  // system, user, assistant, tool
  // A string, an array of parts ({"type":"text","text":...} or others), or absent (null is passed
  // by clients for "nothing", and the template would print the word None).
  std::optional<Json> content;
  std::optional<std::string> reasoning;  // assistant: printed as reasoning_content
  std::vector<ToolCall> tool_calls;      // assistant
  std::string tool_call_id;              // tool
  Json extra = Json::object();           // further fields a template may read (current_date, ...)
};

struct Conversation {
  std::vector<Message> messages;
  Json tools = Json::array();            // [{"type":"function","function":{...}}], order kept
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  Json template_kwargs = Json::object(); // chat_template_kwargs, documents, ...
};

// What the model said, read from its text.
struct AssistantMessage {
  std::string reasoning;                 // without the template's newlines
  bool has_reasoning = false;            // false: the `reasoning` field is null
  std::string content;
  bool has_content = false;              // false: the `content` field is null
  struct Call {
    std::string id;                      // "chatcmpl-tool-<32 hex>"
    std::string name;
    std::string arguments;               // JSON text, as streamed
  };
  std::vector<Call> tool_calls;
};

}  // namespace m2::text
