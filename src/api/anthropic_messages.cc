#include "api/anthropic_messages.h"

#include <algorithm>

#include "api/json_text.h"
#include "api/opaque.h"

namespace m2::api {
namespace {

Json text_part(std::string text) {
  return {{"type", "text"}, {"text", std::move(text)}};
}

// ---- Claude Code's envelopes

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

bool is_billing_header(std::string_view text) {
  return text.starts_with("x-anthropic-billing-header");
}

bool is_token_count(std::string_view text) {
  constexpr std::string_view kOpen = "<total_tokens>", kClose = "</total_tokens>";
  text = trimmed(text);
  return text.starts_with(kOpen) && text.ends_with(kClose) &&
         text.find(kClose) + kClose.size() == text.size();
}

// A note of the client, not of its user, that stands beside tool results.
bool is_reminder(std::string_view text) {
  return trimmed(text).starts_with("<system-reminder>");
}

// ---- messages

// The texts of a string or of text blocks; `where` names them in errors.
Result<std::vector<std::string>> texts_of(const Json& value, std::string_view where) {
  if (value.is_null()) return std::vector<std::string>();
  if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
  if (!value.is_array())
    return invalid(where, fmt::format("{}: Input should be a valid string or list", where));
  std::vector<std::string> texts;
  for (const Json& block : value) {
    if (!block.is_object() || string_of(block, "type") != "text" || !block.contains("text") ||
        !block["text"].is_string())
      return invalid(where, fmt::format("{}: each block should be of type text", where));
    texts.push_back(block["text"]);
  }
  return texts;
}

// System text without the envelopes; nullopt if nothing is left.
Result<std::optional<ChatMessage>> system_message(const Json& value, std::string_view where) {
  M2_TRY(std::vector<std::string> texts, texts_of(value, where));
  std::erase_if(texts, [](const std::string& text) {
    return text.empty() || is_billing_header(text) || is_token_count(text);
  });
  if (texts.empty()) return std::optional<ChatMessage>();
  ChatMessage message;
  message.role = "system";
  std::string joined = texts.front();
  for (size_t i = 1; i < texts.size(); ++i) joined += "\n\n" + texts[i];
  message.content = joined;
  return std::optional<ChatMessage>(std::move(message));
}

// What a tool returned, as text. What cannot be read is named instead of refused: a refusal would
// end an agent's session for good.
std::string result_text(const Json& content) {
  if (content.is_null()) return {};
  if (content.is_string()) return content;
  if (!content.is_array()) return to_text(content);
  std::string text;
  for (const Json& block : content) {
    if (!text.empty()) text += '\n';
    if (block.is_string())
      text += block.get_ref<const std::string&>();
    else if (block.is_object() && block.contains("text") && block["text"].is_string())
      text += block["text"].get_ref<const std::string&>();
    else if (block.is_object())
      text += fmt::format("[{}: this model reads text only]", string_of(block, "type"));
  }
  return text;
}

class MessagesReader {
 public:
  MessagesReader(std::vector<ChatMessage>& out, std::vector<std::string>& unknown)
      : out_(out), unknown_(unknown) {}

  Result<void> read(const Json& value) {
    if (!value.is_object()) return invalid("messages", "each message should be an object");
    const std::string role = string_of(value, "role");
    const Json content = value.contains("content") ? value["content"] : Json();
    if (role == "system") return read_system(content);
    if (role != "user" && role != "assistant")
      return invalid("messages", fmt::format("messages: role `{}` should be 'user' or 'assistant'",
                                             role.substr(0, 40)));
    if (content.is_string()) {
      ChatMessage& message = out_.emplace_back();
      message.role = role;
      message.content = content;
      return {};
    }
    if (!content.is_array())
      return invalid("messages", "messages: content should be a string or a list of blocks");
    return role == "user" ? read_user(content) : read_assistant(content);
  }

 private:
  Result<void> read_system(const Json& content) {
    M2_TRY(auto message, system_message(content, "messages"));
    if (message) out_.push_back(std::move(*message));
    return {};
  }

  static Result<std::string> type_of(const Json& block) {
    if (!block.is_object() || string_of(block, "type").empty())
      return invalid("messages", "messages: each block should be an object with a type");
    return string_of(block, "type");
  }

  // Tool results become tool messages, in order; the rest one user message after them.
  Result<void> read_user(const Json& content) {
    ChatMessage user;
    user.role = "user";
    user.content = Json::array();
    bool after_result = false;
    for (const Json& block : content) {
      M2_TRY(const std::string type, type_of(block));
      if (type == "tool_result") {
        read_tool_result(block);
        after_result = true;
        continue;
      }
      M2_TRY(std::string text, user_text(block, type));
      // A user message would begin a new turn, and with it the thinking before would be lost.
      if (after_result && is_reminder(text))
        out_.back().content.get_ref<std::string&>() += "\n\n" + text;
      else
        user.content.push_back(text_part(std::move(text)));
    }
    if (!user.content.empty() || !after_result) out_.push_back(std::move(user));
    return {};
  }

  static Result<std::string> user_text(const Json& block, const std::string& type) {
    if (type == "text") {
      if (!block.contains("text") || !block["text"].is_string())
        return invalid("messages", "messages: a text block should have a string `text`");
      return block["text"].get<std::string>();
    }
    if (type == "document" && block.contains("source") && block["source"].is_object()) {
      const Json& source = block["source"];
      if (string_of(source, "type") == "text") return string_of(source, "data");
      if (string_of(source, "type") == "content" && source.contains("content"))
        return result_text(source["content"]);
    }
    if (type == "search_result" && block.contains("content"))
      return string_of(block, "title") + "\n" + result_text(block["content"]);
    return invalid("messages", fmt::format("messages: a block of type `{}` cannot be used: this "
                                           "model reads text only",
                                           type.substr(0, 40)));
  }

  void read_tool_result(const Json& block) {
    ChatMessage message;
    message.role = "tool";
    message.tool_call_id = string_of(block, "tool_use_id");
    std::string text = result_text(block.contains("content") ? block["content"] : Json());
    const bool failed = block.contains("is_error") && block["is_error"] == true;
    if (failed && !text.starts_with("Error")) text = text.empty() ? "Error" : "Error: " + text;
    message.content = text;
    out_.push_back(std::move(message));
  }

  Result<void> read_assistant(const Json& content) {
    ChatMessage message;
    message.role = "assistant";
    std::string text;
    for (const Json& block : content) {
      M2_TRY(const std::string type, type_of(block));
      if (type == "text") {
        text += string_of(block, "text");
      } else if (type == "thinking") {
        if (const std::string thinking = string_of(block, "thinking"); !thinking.empty())
          message.add_reasoning(thinking);
      } else if (type == "tool_use") {
        M2_TRY(ChatToolCall call, tool_use(block));
        message.tool_calls.push_back(std::move(call));
      } else {
        unknown_.push_back("block:" + type);  // redacted_thinking, what servers' tools did
      }
    }
    if (!text.empty()) message.content = text;
    out_.push_back(std::move(message));
    return {};
  }

  static Result<ChatToolCall> tool_use(const Json& block) {
    ChatToolCall call;
    call.id = string_of(block, "id");
    call.name = string_of(block, "name");
    if (call.name.empty())
      return invalid("messages", "messages: a tool_use block should have a string `name`");
    if (block.contains("input")) call.arguments = block["input"];
    return call;
  }

  std::vector<ChatMessage>& out_;
  std::vector<std::string>& unknown_;
};

// ---- tools

Result<void> read_message_tools(const Json& value, Json& out, std::vector<std::string>& unknown) {
  if (!value.is_array()) return invalid("tools", "tools: Input should be a valid list");
  for (const Json& tool : value) {
    if (!tool.is_object()) return invalid("tools", "tools: each tool should be an object");
    const std::string type = string_of(tool, "type");
    if (!tool.contains("input_schema") && !type.empty() && type != "custom") {
      unknown.push_back("tool:" + type);  // a tool that Anthropic's servers run
      continue;
    }
    const std::string name = string_of(tool, "name");
    if (name.empty()) return invalid("tools", "tools: each tool should have a string `name`");
    if (!tool.contains("input_schema") || !tool["input_schema"].is_object())
      return invalid("tools", fmt::format("tools: `{}` should have an object `input_schema`",
                                          name.substr(0, 80)));
    Json function = {{"name", name}};
    if (tool.contains("description") && tool["description"].is_string())
      function["description"] = tool["description"];
    function["parameters"] = tool["input_schema"];
    if (!function["parameters"].contains("type")) function["parameters"]["type"] = "object";
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return {};
}

Result<void> read_tool_choice(const Json& body, MessagesRequest& request) {
  using Kind = ToolChoice::Kind;
  const bool has_tools = !request.tools.empty();
  request.tool_choice.kind = has_tools ? Kind::automatic : Kind::none;
  const auto choice = body.find("tool_choice");
  if (choice == body.end() || choice->is_null()) return {};
  if (!choice->is_object())
    return invalid("tool_choice", "tool_choice: Input should be a valid dictionary");
  if (choice->contains("disable_parallel_tool_use"))
    request.parallel_tool_calls = (*choice)["disable_parallel_tool_use"] != true;
  const std::string type = string_of(*choice, "type");
  if (type == "auto") return {};
  if (type == "none") {
    request.tool_choice.kind = Kind::none;
    return {};
  }
  if (type != "any" && type != "tool")
    return invalid("tool_choice", fmt::format("tool_choice: type `{}` should be 'auto', 'any', "
                                              "'tool' or 'none'",
                                              type.substr(0, 40)));
  if (!has_tools) return invalid("tool_choice", "tool_choice: `tools` must be set");
  if (type == "any") {
    request.tool_choice.kind = Kind::required;
    return {};
  }
  const std::string name = string_of(*choice, "name");
  if (name.empty()) return invalid("tool_choice", "tool_choice.name: Field required");
  const auto is_named = [&](const Json& tool) { return tool["function"]["name"] == name; };
  if (std::none_of(request.tools.begin(), request.tools.end(), is_named))
    return invalid("tool_choice", fmt::format("tool_choice: tool `{}` is not among the tools",
                                              name.substr(0, 80)));
  request.tool_choice = {Kind::named, name};
  return {};
}

// ---- the request

// {"type":"json_schema","schema":{...}} in the chat form.
Result<void> read_output_format(const Json& value, MessagesRequest& request) {
  if (!value.is_object() || string_of(value, "type") != "json_schema" ||
      !value.contains("schema") || !value["schema"].is_object())
    return fail(Code::invalid_argument,
                "the format should be an object with type json_schema and an object `schema`");
  request.response_format = {
      {"type", "json_schema"},
      {"json_schema", {{"name", "output"}, {"schema", value["schema"]}, {"strict", true}}}};
  return {};
}

Result<void> read_output_config(const Json& value, MessagesRequest& request) {
  if (!value.is_object()) return fail(Code::invalid_argument, "Input should be a valid dictionary");
  const auto format = value.find("format");
  return format == value.end() || format->is_null() ? Result<void>()
                                                    : read_output_format(*format, request);
}

const Fields<MessagesRequest>& message_fields() {
  static const Fields<MessagesRequest> table = [] {
    Fields<MessagesRequest> fields;
    fields.field("model", &MessagesRequest::model)
        .field("max_tokens", &MessagesRequest::max_tokens)
        .field("stop_sequences", &MessagesRequest::stop)
        .field("stream", &MessagesRequest::stream)
        .field("temperature", &MessagesRequest::temperature)
        .field("top_p", &MessagesRequest::top_p)
        .field("top_k", &MessagesRequest::top_k)
        .field("seed", &MessagesRequest::seed)
        .field("cache_salt", &MessagesRequest::cache_salt)
        .field("chat_template_kwargs", &MessagesRequest::chat_template_kwargs)
        .field("thinking",
               [](const Json& value, MessagesRequest& r) { return read_thinking(value, r); })
        .field("output_config", read_output_config)
        .field("output_format", read_output_format)
        .ignored({"messages", "system", "tools", "tool_choice", "metadata", "service_tier",
                  "context_management", "betas", "inference_geo", "speed", "cache_control",
                  "diagnostics"})
        .unserved({"container", "mcp_servers"});
    return fields;
  }();
  return table;
}

Result<void> check_request(const Json& body, const MessagesRequest& request, MessagesUse use) {
  if (!body.contains("messages") || body["messages"].is_null())
    return invalid("messages", "messages: Field required");
  if (!body["messages"].is_array())
    return invalid("messages", "messages: Input should be a valid list");
  if (body["messages"].empty()) return invalid("messages", "messages: at least one is required");
  if (!request.model) return invalid("model", "model: Field required");
  if (!request.chat_template_kwargs.is_object())
    return invalid("chat_template_kwargs",
                   "chat_template_kwargs: Input should be a valid dictionary");
  if (use == MessagesUse::count_tokens) return {};
  if (!request.max_tokens) return invalid("max_tokens", "max_tokens: Field required");
  if (*request.max_tokens < 1)
    return invalid("max_tokens",
                   fmt::format("max_tokens: {} should be greater than 0", *request.max_tokens));
  return check_generation_fields(request);
}

// Whether the last message is the beginning of the answer, which is to go on from there
// ("prefill").
bool is_begun_answer(const std::vector<ChatMessage>& messages) {
  if (messages.empty() || messages.back().role != "assistant") return false;
  const ChatMessage& last = messages.back();
  return last.tool_calls.empty() && last.content.is_string() &&
         !trimmed(last.content.get_ref<const std::string&>()).empty();
}

}  // namespace

Json messages_request_schema() {
  return message_fields().schema({"model", "messages"});
}

Result<MessagesRequest> messages_request_from_json(const Json& body, MessagesUse use,
                                                   std::vector<std::string>& unknown) {
  MessagesRequest request;
  request.max_tokens_at_most = true;
  M2_TRY_VOID(message_fields().read(body, request, unknown));
  M2_TRY_VOID(check_request(body, request, use));
  if (body.contains("system")) {
    M2_TRY(auto system, system_message(body["system"], "system"));
    if (system) request.messages.push_back(std::move(*system));
  }
  MessagesReader reader(request.messages, unknown);
  for (const Json& message : body["messages"]) M2_TRY_VOID(reader.read(message));
  request.continue_final_message = is_begun_answer(request.messages);
  if (body.contains("tools") && !body["tools"].is_null())
    M2_TRY_VOID(read_message_tools(body["tools"], request.tools, unknown));
  M2_TRY_VOID(read_tool_choice(body, request));
  return request;
}

// ---- errors

namespace {

const char* error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
    case 529:
      return "overloaded_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

}  // namespace

std::string anthropic_error_json(const ApiError& error) {
  Json body;
  body["type"] = "error";
  body["error"] = {{"type", error_type(error.status)}, {"message", error.message}};
  return to_text(body);
}

std::string anthropic_error_frame(const ApiError& error) {
  return "event: error\ndata: " + anthropic_error_json(error) + "\n\n";
}

std::string count_tokens_json(int64_t input_tokens) {
  return to_text(Json{{"input_tokens", input_tokens},
                      {"context_management", {{"original_input_tokens", input_tokens}}}});
}

// ---- replies

namespace {

Json usage_json(const MessageUsage& usage) {
  return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
          {"cache_creation_input_tokens", 0},
          {"cache_read_input_tokens", usage.cached_tokens},
          {"output_tokens", usage.output_tokens},
          {"output_tokens_details", {{"thinking_tokens", usage.thinking_tokens}}}};
}

Json message_json(const std::string& id, const std::string& model, Json content,
                  const MessageStop* stop, const MessageUsage& usage) {
  Json out;
  out["id"] = id;
  out["type"] = "message";
  out["role"] = "assistant";
  out["model"] = model;
  out["content"] = std::move(content);
  out["stop_reason"] = stop ? Json(stop->reason) : Json();
  out["stop_sequence"] = stop && stop->sequence ? Json(*stop->sequence) : Json();
  out["usage"] = usage_json(usage);
  return out;
}

void append_event(std::string& out, std::string_view type, const Json& data) {
  out += "event: ";
  out += type;
  out += "\ndata: " + to_text(data) + "\n\n";
}

}  // namespace

MessageWriter::MessageWriter(std::string id, std::string model)
    : id_(std::move(id)), model_(std::move(model)) {}

void MessageWriter::begin(const MessageUsage& usage, std::string* out) {
  if (!out) return;
  append_event(*out, "message_start",
               {{"type", "message_start"},
                {"message", message_json(id_, model_, Json::array(), nullptr, usage)}});
}

void MessageWriter::open(Kind kind, Json block, std::string* out) {
  close(false, out);
  kind_ = kind;
  block_ = std::move(block);
  text_.clear();
  ++index_;
  if (out)
    append_event(*out, "content_block_start",
                 {{"type", "content_block_start"}, {"index", index_}, {"content_block", block_}});
}

// Up to the text of a delta: {"type":TYPE,"NAME":
void MessageWriter::begin_delta(std::string_view type, std::string_view name,
                                std::string& out) const {
  out += "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":";
  append_json_integer(out, index_);
  out += ",\"delta\":{\"type\":\"";
  out += type;
  out += "\",\"";
  out += name;
  out += "\":";
}

void MessageWriter::delta(std::string_view type, std::string_view name, std::string_view text,
                          std::string* out) {
  if (!out) return;
  begin_delta(type, name, *out);
  append_json_string(*out, text);
  *out += "}}\n\n";
}

void MessageWriter::close(bool drop, std::string* out) {
  switch (kind_) {
    case Kind::none:
      return;
    case Kind::thinking:
      block_["thinking"] = text_;
      block_["signature"] = thinking_signature(text_);
      delta("signature_delta", "signature", block_["signature"].get_ref<const std::string&>(), out);
      break;
    case Kind::text:
      block_["text"] = text_;
      break;
    case Kind::tool_use:
      if (auto input = parse_json(text_)) block_["input"] = std::move(*input);
      break;
  }
  kind_ = Kind::none;
  if (out)
    append_event(*out, "content_block_stop", {{"type", "content_block_stop"}, {"index", index_}});
  if (!drop) content_.push_back(std::move(block_));
}

void MessageWriter::thinking(std::string_view text, std::string* out) {
  if (kind_ != Kind::thinking)
    open(Kind::thinking, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}}, out);
  text_ += text;
  delta("thinking_delta", "thinking", text, out);
}

void MessageWriter::text(std::string_view text, std::string* out) {
  if (kind_ != Kind::text) open(Kind::text, {{"type", "text"}, {"text", ""}}, out);
  text_ += text;
  delta("text_delta", "text", text, out);
}

void MessageWriter::begin_tool_use(std::string_view id, std::string_view name, std::string* out) {
  open(Kind::tool_use,
       {{"type", "tool_use"}, {"id", id}, {"name", name}, {"input", Json::object()}}, out);
}

void MessageWriter::input(std::string_view json, std::string* out) {
  text_ += json;
  delta("input_json_delta", "partial_json", json, out);
}

void MessageWriter::finish(const MessageStop& stop, const MessageUsage& usage, bool drop_call,
                           std::string* out) {
  close(drop_call && kind_ == Kind::tool_use, out);
  // Clients expect something to stand there.
  if (index_ < 0 || content_.empty()) {
    open(Kind::text, {{"type", "text"}, {"text", ""}}, out);
    close(false, out);
  }
  if (!out) return;
  Json delta;
  delta["stop_reason"] = stop.reason;
  delta["stop_sequence"] = stop.sequence ? Json(*stop.sequence) : Json();
  append_event(
      *out, "message_delta",
      {{"type", "message_delta"}, {"delta", std::move(delta)}, {"usage", usage_json(usage)}});
  append_event(*out, "message_stop", {{"type", "message_stop"}});
}

std::string MessageWriter::to_json(const MessageStop& stop, const MessageUsage& usage) const {
  return to_text(message_json(id_, model_, content_, &stop, usage));
}

}  // namespace m2::api
