#include "api/openai_chat.h"

#include "api/json_text.h"
#include "base/json_members.h"

namespace m2::api {
namespace {

// ---- messages

// The texts of a list of reasoning parts; {text} as in reasoning_details, {thinking} as Anthropic
// has it.
std::string reasoning_texts(const Json& parts) {
  std::string text;
  if (!parts.is_array()) return text;
  for (const Json& part : parts)
    for (const char* name : {"text", "thinking"})
      if (part.is_object() && part.contains(name) && part[name].is_string())
        text += part[name].get_ref<const std::string&>();
  return text;
}

// Whichever of its spellings clients send reasoning back under.
std::optional<std::string> reasoning_of(const Json& message) {
  for (const char* name : {"reasoning", "reasoning_content", "reason", "thinking"}) {
    const auto field = message.find(name);
    if (field != message.end() && field->is_string()) return field->get<std::string>();
  }
  for (const char* name : {"reasoning_details", "reasoning_detail", "thinking_blocks"})
    if (const auto field = message.find(name); field != message.end())
      if (std::string text = reasoning_texts(*field); !text.empty()) return text;
  return std::nullopt;
}

bool is_reasoning_part(const Json& part) {
  if (!part.is_object()) return false;
  for (const char* type : {"thinking", "reasoning", "redacted_thinking"})
    if (part["type"] == type) return true;
  return false;
}

// Reasoning among the parts of an assistant's content goes where reasoning belongs.
void take_reasoning_parts(ChatMessage& message) {
  if (message.role != "assistant" || !message.content.is_array()) return;
  Json reasoning = Json::array(), rest = Json::array();
  for (Json& part : message.content)
    (is_reasoning_part(part) ? reasoning : rest).push_back(std::move(part));
  message.content = std::move(rest);
  const std::string text = reasoning_texts(reasoning);
  if (!text.empty() && !message.reasoning) message.reasoning = text;
}

Result<ChatToolCall> tool_call_from(const Json& value) {
  if (!value.is_object()) return invalid("messages", "a tool call should be an object");
  // Some clients send {name, arguments} without the "function" around them.
  const Json& function = value.contains("function") ? value["function"] : value;
  if (!function.is_object() || !function.contains("name") || !function["name"].is_string())
    return invalid("messages", "a tool call should have a function with a name");
  ChatToolCall call;
  call.name = function["name"];
  if (value.contains("id") && value["id"].is_string()) call.id = value["id"];
  if (function.contains("arguments")) call.arguments = function["arguments"];
  return call;
}

Result<void> read_tool_calls(const Json& value, std::vector<ChatToolCall>& out) {
  if (value.is_null()) return {};
  if (!value.is_array()) return invalid("messages", "tool_calls should be a list");
  for (const Json& item : value) {
    M2_TRY(ChatToolCall call, tool_call_from(item));
    out.push_back(std::move(call));
  }
  return {};
}

bool is_read_elsewhere(std::string_view name) {
  constexpr std::string_view kNames[] = {"role",
                                         "content",
                                         "tool_calls",
                                         "tool_call_id",
                                         "reasoning",
                                         "reason",
                                         "reasoning_content",
                                         "reasoning_details",
                                         "reasoning_detail",
                                         "thinking",
                                         "refusal",
                                         "thinking_blocks",
                                         "audio",
                                         "annotations",
                                         "function_call"};
  for (const std::string_view known : kNames)
    if (name == known) return true;
  return false;
}

Result<ChatMessage> message_from(const Json& value) {
  if (!value.is_object()) return invalid("messages", "each message should be an object");
  const auto role = value.find("role");
  if (role == value.end() || !role->is_string())
    return invalid("messages", "each message should have a string `role`");
  ChatMessage message;
  message.role = *role;
  if (value.contains("content")) message.content = value["content"];
  M2_TRY_VOID(check_content(message.content, "messages"));
  message.reasoning = reasoning_of(value);
  take_reasoning_parts(message);
  if (value.contains("tool_calls"))
    M2_TRY_VOID(read_tool_calls(value["tool_calls"], message.tool_calls));
  if (value.contains("tool_call_id") && value["tool_call_id"].is_string())
    message.tool_call_id = value["tool_call_id"];
  for (const auto& [name, field] : value.items())
    if (!is_read_elsewhere(name) && !field.is_null()) append_member(message.extra, name, field);
  return message;
}

// ---- tools

constexpr char kCorrectUsage[] =
    "Correct usage: `{\"type\": \"function\", \"function\": {\"name\": \"my_function\"}}`";

// A value as it stands in the texts of contract.md 2.5, which are Python's.
std::string shown(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "None";
  return to_text(value).substr(0, 200);
}

Result<ToolChoice> named_choice(const Json& value, const Json& tools) {
  const Json function = value.contains("function") ? value["function"] : Json();
  if (!function.is_object())
    return invalid("tool_choice",
                   fmt::format("Invalid value for `function`: `{}` in `tool_choice`! {}",
                               shown(function), kCorrectUsage));
  if (!function.contains("name"))
    return invalid("tool_choice", fmt::format("Expected field `name` in `function` in "
                                              "`tool_choice`! {}",
                                              kCorrectUsage));
  const Json& name = function["name"];
  if (!name.is_string() || name.get_ref<const std::string&>().empty())
    return invalid("tool_choice", fmt::format("Invalid `name` in `function`: `{}` in "
                                              "`tool_choice`! {}",
                                              shown(name), kCorrectUsage));
  if (!has_tool(tools, name))
    return invalid("tool_choice",
                   "The tool specified in `tool_choice` does not match any of the specified "
                   "`tools`");
  return ToolChoice{ToolChoice::Kind::named, name};
}

// Of {type: function, function: {name}}.
std::string called_name(const Json& tool) {
  const Json function = tool.value("function", Json());
  const Json name = function.is_object() ? function.value("name", Json()) : Json();
  return name.is_string() ? name.get<std::string>() : std::string();
}

Result<ToolChoice> tool_choice_from(const Json& body, const Json& tools) {
  using Kind = ToolChoice::Kind;
  const auto choice = body.find("tool_choice");
  const bool given = choice != body.end() && !choice->is_null();
  if (!given) return ToolChoice{tools.empty() ? Kind::none : Kind::automatic, {}};
  if (*choice == "none") return ToolChoice{};
  const auto list = body.find("tools");
  if (list == body.end() || list->is_null())
    return invalid("tool_choice", "When using `tool_choice`, `tools` must be set.");
  if (choice->is_object() && choice->contains("allowed_tools"))
    return allowed_tools_choice((*choice)["allowed_tools"], tools, called_name);
  if (choice->is_object()) return named_choice(*choice, tools);
  if (*choice != "auto" && *choice != "required")
    return invalid("tool_choice", fmt::format("Invalid value for `tool_choice`: {}! Only named "
                                              "tools, \"none\", \"auto\" or \"required\" are "
                                              "supported.",
                                              shown(*choice)));
  if (tools.empty()) return ToolChoice{};
  return ToolChoice{*choice == "auto" ? Kind::automatic : Kind::required, {}};
}

// ---- the request

const Fields<ChatRequest>& chat_fields() {
  static const Fields<ChatRequest> table = [] {
    Fields<ChatRequest> fields;
    add_generation_fields(fields);
    fields
        .field("messages",
               [](const Json& value, ChatRequest& r) { return read_messages(value, r.messages); })
        .field("tools",
               [](const Json& value, ChatRequest& r) { return read_tools(value, r.tools); })
        .field("parallel_tool_calls", &ChatRequest::parallel_tool_calls)
        .field("logprobs", &ChatRequest::logprobs)
        .field("top_logprobs", &ChatRequest::top_logprobs)
        .field("max_completion_tokens", &ChatRequest::max_completion_tokens)
        .field("include_reasoning", &ChatRequest::include_reasoning)
        .field("add_generation_prompt", &ChatRequest::add_generation_prompt)
        .field("continue_final_message", &ChatRequest::continue_final_message)
        .field("chat_template", &ChatRequest::chat_template)
        .field("chat_template_kwargs", &ChatRequest::chat_template_kwargs)
        .field("documents", &ChatRequest::documents)
        .field("thinking", read_thinking)
        .field("enable_thinking", read_thinking)
        .field("think", read_thinking)
        .field("reasoning", read_reasoning)
        .field("reasoning_effort", read_effort)
        .ignored({"tool_choice", "mm_processor_kwargs", "reasoning_split", "modalities",
                  "prediction", "verbosity"})
        .unserved({"functions", "function_call", "web_search_options", "audio"});
    return fields;
  }();
  return table;
}

Result<void> check_logprobs(const ChatRequest& request) {
  if (request.top_logprobs < -1)
    return invalid("top_logprobs", "`top_logprobs` must be a positive value or -1.");
  if (request.top_logprobs != 0 && !request.logprobs)
    return invalid("top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.");
  return {};
}

Result<void> check_prompt_shape(const ChatRequest& request) {
  if (request.messages.empty())
    return invalid("messages", "messages: List should have at least 1 item after validation");
  if (request.continue_final_message && request.add_generation_prompt.value_or(false))
    return invalid("continue_final_message",
                   "Cannot set both `continue_final_message` and `add_generation_prompt` to True.");
  if (!request.chat_template_kwargs.is_object())
    return invalid("chat_template_kwargs",
                   "chat_template_kwargs: Input should be a valid dictionary");
  return {};
}

}  // namespace

Result<void> check_content(const Json& content, std::string_view param) {
  if (content.is_null() || content.is_string()) return {};
  if (!content.is_array())
    return invalid(param, "message content should be a string or a list of parts");
  for (const Json& part : content) {
    if (part.is_string()) continue;
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
      return invalid(param, "each part of a message's content should be an object with a type");
    if (part["type"] == "text" && (!part.contains("text") || !part["text"].is_string()))
      return invalid(param, "a text part of a message should have a string `text`");
  }
  return {};
}

Result<void> read_messages(const Json& value, std::vector<ChatMessage>& out) {
  if (!value.is_array()) return invalid("messages", "messages: Input should be a valid list");
  for (const Json& item : value) {
    M2_TRY(ChatMessage message, message_from(item));
    out.push_back(std::move(message));
  }
  return {};
}

Result<void> read_tools(const Json& value, Json& out) {
  if (!value.is_array()) return invalid("tools", "tools: Input should be a valid list");
  out = Json::array();
  for (const Json& tool : value) {
    if (!tool.is_object()) return invalid("tools", "each tool should be an object");
    if (tool.contains("type") && tool["type"] != "function") continue;
    if (!tool.contains("function") || !tool["function"].is_object())
      return invalid("tools", "each tool should have an object `function`");
    const Json& function = tool["function"];
    if (!function.contains("name") || !function["name"].is_string())
      return invalid("tools", "each tool's function should have a string `name`");
    out.push_back(tool);
  }
  return {};
}

namespace {

void decide(std::optional<bool>& thinking, bool on) {
  if (!thinking) thinking = on;
}

void set_budget(const Json& object, const char* name, ChatRequest& out) {
  int64_t tokens;
  if (object.contains(name) && read_value(object[name], tokens).ok() && tokens >= 0 &&
      !out.thinking_token_budget)
    out.thinking_token_budget = tokens;
}

}  // namespace

Result<void> read_thinking(const Json& value, ChatRequest& out) {
  if (value.is_boolean()) {
    decide(out.thinking, value.get<bool>());
    return {};
  }
  if (value.is_string()) return read_effort(value, out);
  if (!value.is_object())
    return fail(Code::invalid_argument, "Input should be a valid boolean or dictionary");
  const Json type = value.value("type", Json());
  if (type == "disabled") decide(out.thinking, false);
  if (type == "enabled" || type == "adaptive") decide(out.thinking, true);
  set_budget(value, "budget_tokens", out);
  return {};
}

Result<void> read_reasoning(const Json& value, ChatRequest& out) {
  if (value.is_boolean() || value.is_string()) return read_thinking(value, out);
  if (!value.is_object()) return fail(Code::invalid_argument, "Input should be a valid dictionary");
  if (value.value("effort", Json()) == "none" || value.value("enabled", Json()) == false)
    decide(out.thinking, false);
  if (value.value("exclude", Json()) == true) out.include_reasoning = false;
  set_budget(value, "max_tokens", out);
  return {};
}

Result<void> read_effort(const Json& value, ChatRequest& out) {
  if (!value.is_string()) return fail(Code::invalid_argument, "Input should be a valid string");
  if (value == "none") decide(out.thinking, false);
  return {};
}

std::optional<bool> thinking_of_kwargs(const Json& kwargs) {
  for (const char* name : {"enable_thinking", "thinking"}) {
    const auto found = kwargs.find(name);
    if (found != kwargs.end() && found->is_boolean()) return found->get<bool>();
  }
  if (kwargs.value("reasoning_effort", Json()) == "none") return false;
  return std::nullopt;
}

namespace {

// The kinds of tools that read_tools() leaves out.
void note_other_tools(const Json& body, std::vector<std::string>& unknown) {
  const auto tools = body.find("tools");
  if (tools == body.end() || !tools->is_array()) return;
  for (const Json& tool : *tools)
    if (const std::string type = string_of(tool, "type"); !type.empty() && type != "function")
      unknown.push_back("tool:" + type);
}

}  // namespace

Json chat_request_schema() {
  return chat_fields().schema({"messages"});
}

Result<ChatRequest> chat_request_from_json(const Json& body, std::vector<std::string>& unknown) {
  ChatRequest request;
  M2_TRY_VOID(chat_fields().read(body, request, unknown));
  if (!body.contains("messages")) return invalid("messages", "messages: Field required");
  note_other_tools(body, unknown);
  M2_TRY_VOID(check_generation_fields(request));
  M2_TRY_VOID(check_logprobs(request));
  M2_TRY_VOID(check_prompt_shape(request));
  M2_TRY(request.tool_choice, tool_choice_from(body, request.tools));
  return request;
}

// ---- replies

namespace {

Json to_json(const ChatReplyMessage& message) {
  Json out;
  const auto text = [](const std::optional<std::string>& s) { return s ? Json(*s) : Json(); };
  out["role"] = message.role;
  out["content"] = text(message.content);
  out["refusal"] = nullptr;
  out["annotations"] = nullptr;
  out["audio"] = nullptr;
  out["function_call"] = nullptr;
  out["tool_calls"] = Json::array();
  for (const auto& call : message.tool_calls)
    out["tool_calls"].push_back(
        {{"id", call.id},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  out["reasoning"] = text(message.reasoning);
  out["reasoning_content"] = text(message.reasoning);
  return out;
}

}  // namespace

std::string to_json(const ChatReply& reply) {
  std::string choices = "[";
  for (size_t i = 0; i < reply.choices.size(); ++i) {
    const ChatReplyChoice& choice = reply.choices[i];
    JsonObjectText item;
    item.add("index", i);
    item.add("message", to_json(choice.message));
    item.add_text("logprobs", choice.logprobs);
    item.add("finish_reason", choice.finish.reason);
    item.add("stop_reason", choice.finish.stop_reason);
    item.add("token_ids", choice.token_ids);
    if (i > 0) choices += ',';
    choices += item.take();
  }
  choices += ']';
  JsonObjectText out;
  out.add("id", reply.head.id);
  out.add("object", "chat.completion");
  out.add("created", reply.head.created);
  out.add("model", reply.head.model);
  out.add_text("choices", choices);
  out.add("service_tier", nullptr);
  out.add("system_fingerprint", nullptr);
  out.add("usage", to_json(reply.usage, true));
  out.add_text("prompt_logprobs", reply.prompt_logprobs);
  out.add("prompt_token_ids", reply.prompt_token_ids);
  out.add("kv_transfer_params", nullptr);
  return out.take();
}

std::string role_delta(std::string_view role) {
  std::string out = "\"role\":";
  append_json_string(out, role);
  return out + ",\"content\":\"\"";
}

void append_content_delta(std::string& out, std::string_view text) {
  out += "\"content\":";
  append_json_string(out, text);
}

void append_reasoning_delta(std::string& out, std::string_view text) {
  out += "\"reasoning\":";
  const size_t begin = out.size();
  append_json_string(out, text);
  const std::string quoted = out.substr(begin);
  out += ",\"reasoning_content\":";
  out += quoted;
}

void append_call_delta(std::string& out, int call_index, std::string_view id,
                       std::string_view name) {
  out += "\"tool_calls\":[{\"index\":";
  append_json_integer(out, call_index);
  out += ",\"id\":";
  append_json_string(out, id);
  out += ",\"type\":\"function\",\"function\":{\"name\":";
  append_json_string(out, name);
  out += ",\"arguments\":\"\"}}]";
}

void append_arguments_delta(std::string& out, int call_index, std::string_view text) {
  out += "\"tool_calls\":[{\"index\":";
  append_json_integer(out, call_index);
  out += ",\"function\":{\"arguments\":";
  append_json_string(out, text);
  out += "}}]";
}

ChatChunks::ChatChunks(const ReplyHead& head)
    : prefix_(std::string_view(chunk_prefix(head, "chat.completion.chunk"))) {}

void ChatChunks::begin(int index, std::string_view role,
                       const std::vector<int32_t>* prompt_token_ids, const Usage* usage,
                       std::string& out) const {
  out += std::string_view(prefix_);
  out += "{\"index\":";
  append_json_integer(out, index);
  out += ",\"delta\":{" + role_delta(role) + "},\"logprobs\":null,\"finish_reason\":null}]";
  if (usage) out += ",\"usage\":" + to_text(to_json(*usage, false));
  out += ",\"prompt_token_ids\":";
  if (prompt_token_ids)
    append_json_array(out, *prompt_token_ids);
  else
    out += "null";
  out += "}\n\n";
}

void ChatChunks::append(const Chunk& chunk, std::string& out) const {
  out += std::string_view(prefix_);
  out += "{\"index\":";
  append_json_integer(out, chunk.index);
  out += ",\"delta\":{";
  out += chunk.delta;
  out += "},\"logprobs\":";
  out += chunk.logprobs.empty() ? "null" : chunk.logprobs;
  out += ",\"finish_reason\":";
  if (chunk.finish) {
    append_json_string(out, chunk.finish->reason);
    out += ",\"stop_reason\":" + to_text(chunk.finish->stop_reason);
  } else {
    out += "null";
  }
  out += ",\"token_ids\":";
  if (chunk.token_ids)
    append_json_array(out, *chunk.token_ids);
  else
    out += "null";
  out += "}]";
  if (chunk.usage) out += ",\"usage\":" + to_text(to_json(*chunk.usage, false));
  out += "}\n\n";
}

void ChatChunks::usage(const Usage& usage, std::string& out) const {
  out += std::string_view(prefix_);
  out += "],\"usage\":" + to_text(to_json(usage, false)) + "}\n\n";
}

}  // namespace m2::api
