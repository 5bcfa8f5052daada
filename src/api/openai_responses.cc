#include "api/openai_responses.h"

#include <algorithm>

#include "api/json_text.h"
#include "api/opaque.h"
#include "base/json_members.h"

namespace m2::api {
namespace {

std::string flat_name(const std::string& space, const std::string& name) {
  return space.empty() ? name : space + "__" + name;
}

bool is_sent(const Json& body, const char* name) {
  const auto field = body.find(name);
  return field != body.end() && holds_something(*field);
}

// ---- input items

// Items to chat messages. What the model made in one turn comes as several items (reasoning,
// message, calls) and becomes one assistant message again.
class InputReader {
 public:
  InputReader(std::vector<ChatMessage>& out, std::vector<std::string>& unknown)
      : out_(out), unknown_(unknown) {}

  Result<void> read(const Json& item) {
    if (!item.is_object()) return invalid("input", "each item of input should be an object");
    const std::string type =
        item.contains("type") && !item["type"].is_null() ? string_of(item, "type") : "message";
    if (type == "message") return read_message(item);
    if (type == "reasoning") return read_reasoning(item);
    if (type == "function_call") return read_call(item, "arguments");
    if (type == "custom_tool_call") return read_call(item, "input");
    if (type == "function_call_output" || type == "custom_tool_call_output")
      return read_call_output(item);
    if (type == "item_reference")
      return invalid("input", fmt::format("Item with id '{}' not found: items are not kept, only "
                                          "whole responses. Send the item itself, or use "
                                          "previous_response_id.",
                                          string_of(item, "id").substr(0, 80)));
    unknown_.push_back("item:" + type);
    return {};
  }

 private:
  // The assistant message that items of this turn belong to.
  ChatMessage& turn() {
    if (!in_turn_) {
      out_.emplace_back();
      out_.back().role = "assistant";
      in_turn_ = true;
    }
    return out_.back();
  }

  Result<void> read_message(const Json& item) {
    const std::string role = string_of(item, "role");
    if (role.empty()) return invalid("input", "each message of input should have a string `role`");
    Json content = item.contains("content") ? item["content"] : Json();
    M2_TRY_VOID(check_content(content, "input"));
    if (role != "assistant") {
      in_turn_ = false;
      ChatMessage& message = out_.emplace_back();
      message.role = role;
      message.content = std::move(content);
      return {};
    }
    // Text after calls belongs to their turn; a second message without any is a turn of its own.
    if (in_turn_ && !out_.back().content.is_null() && out_.back().tool_calls.empty())
      in_turn_ = false;
    add_content(turn(), std::move(content));
    return {};
  }

  static void add_content(ChatMessage& message, Json content) {
    if (content.is_null()) return;
    if (message.content.is_null()) {
      message.content = std::move(content);
      return;
    }
    const auto to_parts = [](Json& value) {
      if (value.is_string())
        value = Json::array({Json{{"type", "text"}, {"text", std::move(value)}}});
    };
    to_parts(message.content);
    to_parts(content);
    for (Json& part : content) message.content.push_back(std::move(part));
  }

  // The text of a reasoning item: its content, else what we sealed into it, else its summary.
  static std::string reasoning_text(const Json& item) {
    for (const char* name : {"content", "", "summary"}) {
      if (*name == 0) {
        if (auto text = opened_text(string_of(item, "encrypted_content"))) return *text;
        continue;
      }
      std::string text;
      const auto parts = item.find(name);
      if (parts == item.end() || !parts->is_array()) continue;
      for (const Json& part : *parts)
        if (part.is_object()) text += string_of(part, "text");
      if (!text.empty()) return text;
    }
    return {};
  }

  Result<void> read_reasoning(const Json& item) {
    const std::string text = reasoning_text(item);
    // Reasoning begins a turn.
    if (in_turn_ && (!out_.back().content.is_null() || !out_.back().tool_calls.empty()))
      in_turn_ = false;
    ChatMessage& message = turn();
    if (!text.empty()) message.add_reasoning(text);
    return {};
  }

  Result<void> read_call(const Json& item, const char* arguments) {
    ChatToolCall call;
    call.id = string_of(item, "call_id");
    call.name = flat_name(string_of(item, "namespace"), string_of(item, "name"));
    if (call.name.empty()) return invalid("input", "a function_call should have a string `name`");
    if (item.contains(arguments)) call.arguments = item[arguments];
    if (std::string_view(arguments) == "input") call.arguments = Json{{"input", call.arguments}};
    turn().tool_calls.push_back(std::move(call));
    return {};
  }

  Result<void> read_call_output(const Json& item) {
    in_turn_ = false;
    ChatMessage message;
    message.role = "tool";
    message.tool_call_id = string_of(item, "call_id");
    const Json output = item.contains("output") ? item["output"] : Json();
    if (output.is_string() || output.is_null()) {
      message.content = output.is_null() ? Json("") : output;
    } else if (output.is_array()) {
      std::string text;
      for (const Json& part : output) {
        if (!text.empty()) text += '\n';
        text += output_part_text(part);
      }
      message.content = text;
    } else {
      message.content = to_text(output);
    }
    out_.push_back(std::move(message));
    return {};
  }

  // A refusal would end an agent's session for good: what cannot be read is named instead.
  static std::string output_part_text(const Json& part) {
    if (part.is_string()) return part.get<std::string>();
    if (!part.is_object()) return to_text(part);
    if (part.contains("text") && part["text"].is_string()) return part["text"];
    return fmt::format("[{}: this model reads text only]", string_of(part, "type"));
  }

  std::vector<ChatMessage>& out_;
  std::vector<std::string>& unknown_;
  bool in_turn_ = false;  // the last message is an assistant's that may go on
};

Result<void> read_input(const Json& value, ResponsesRequest& request,
                        std::vector<std::string>& unknown) {
  if (value.is_string()) {
    ChatMessage& message = request.messages.emplace_back();
    message.role = "user";
    message.content = value;
    return {};
  }
  if (!value.is_array()) return invalid("input", "input: Input should be a valid string or list");
  InputReader reader(request.messages, unknown);
  for (const Json& item : value) M2_TRY_VOID(reader.read(item));
  return {};
}

// ---- tools

// {type:function, name, description, parameters, strict} in the chat form. Keys keep their order.
Json chat_tool(const Json& tool, const std::string& name) {
  Json function = Json::object();
  for (const auto& [key, value] : tool.items())
    if (key != "type" && key != "strict" && key != "defer_loading")
      append_member(function, key, value);
  function["name"] = name;
  return Json{{"type", "function"}, {"function", std::move(function)}};
}

Result<void> read_function_tool(const Json& tool, const std::string& space,
                                ResponsesRequest& request) {
  const std::string name = string_of(tool, "name");
  if (name.empty()) return invalid("tools", "each function tool should have a string `name`");
  const std::string flat = flat_name(space, name);
  if (!space.empty()) request.namespaced[flat] = {space, name};
  request.tools.push_back(chat_tool(tool, flat));
  return {};
}

// What a custom tool's input must look like; an empty syntax: like anything.
struct InputFormat {
  std::string syntax, definition;
};

InputFormat input_format(const Json& tool) {
  const Json format = tool.value("format", Json());
  if (!format.is_object() || string_of(format, "type") != "grammar") return {};
  // The API nests the grammar, Codex does not.
  const Json& grammar = format.contains("grammar") ? format["grammar"] : format;
  if (!grammar.is_object() || string_of(grammar, "definition").empty()) return {};
  return {string_of(grammar, "syntax"), string_of(grammar, "definition")};
}

// Of a regular expression that the whole input must match, with or without anchors.
std::string whole_pattern(std::string_view regex) {
  const bool alternatives = regex.find('|') != std::string_view::npos;
  if (regex.starts_with('^') && !alternatives) regex.remove_prefix(1);
  if (regex.ends_with('$') && !regex.ends_with("\\$") && !alternatives) regex.remove_suffix(1);
  return fmt::format("^(?:{})$", regex);
}

// {type:custom, name, description, format} as a function that takes one text.
Result<void> read_custom_tool(const Json& tool, const std::string& space,
                              ResponsesRequest& request) {
  const std::string name = string_of(tool, "name");
  if (name.empty()) return invalid("tools", "each custom tool should have a string `name`");
  const std::string flat = flat_name(space, name);
  if (!space.empty()) request.namespaced[flat] = {space, name};
  request.custom.insert(flat);
  std::string description = string_of(tool, "description");
  Json input = {{"type", "string"}};
  if (const InputFormat format = input_format(tool); !format.definition.empty()) {
    description += fmt::format("{}The input must match this {} grammar:\n{}",
                               description.empty() ? "" : "\n\n", format.syntax, format.definition);
    if (format.syntax == "regex")
      input["pattern"] = whole_pattern(format.definition);
    else
      request.told_only.insert(format.syntax);
  }
  const Json parameters = {{"type", "object"},
                           {"properties", {{"input", std::move(input)}}},
                           {"required", Json::array({"input"})}};
  request.tools.push_back(
      {{"type", "function"},
       {"function", {{"name", flat}, {"description", description}, {"parameters", parameters}}}});
  return {};
}

// A tool that this server can offer to the model; false: another kind.
Result<bool> read_response_tool(const Json& tool, const std::string& space,
                                ResponsesRequest& request) {
  const std::string type = string_of(tool, "type");
  if (type == "function")
    M2_TRY_VOID(read_function_tool(tool, space, request));
  else if (type == "custom")
    M2_TRY_VOID(read_custom_tool(tool, space, request));
  else
    return false;
  return true;
}

Result<void> read_response_tools(const Json& value, ResponsesRequest& request,
                                 std::vector<std::string>& unknown) {
  if (!value.is_array()) return invalid("tools", "tools: Input should be a valid list");
  for (const Json& tool : value) {
    if (!tool.is_object()) return invalid("tools", "each tool should be an object");
    M2_TRY(const bool known, read_response_tool(tool, {}, request));
    if (known) continue;
    const std::string type = string_of(tool, "type");
    if (type != "namespace" || !tool.contains("tools") || !tool["tools"].is_array()) {
      unknown.push_back("tool:" + (type.empty() ? "?" : type));
      continue;
    }
    for (const Json& inner : tool["tools"])
      if (inner.is_object())
        M2_TRY_VOID(read_response_tool(inner, string_of(tool, "name"), request));
  }
  return {};
}

// Of {type: function or custom, namespace, name}; of other kinds, which are not called here, empty.
std::string called_name(const Json& tool) {
  const std::string type = string_of(tool, "type");
  if (type != "function" && type != "custom") return {};
  return flat_name(string_of(tool, "namespace"), string_of(tool, "name"));
}

Result<ToolChoice> response_tool_choice(const Json& body, const Json& tools) {
  using Kind = ToolChoice::Kind;
  const auto choice = body.find("tool_choice");
  if (choice == body.end() || choice->is_null() || *choice == "auto")
    return ToolChoice{tools.empty() ? Kind::none : Kind::automatic, {}};
  if (*choice == "none") return ToolChoice{};
  if (*choice == "required") {
    if (!is_sent(body, "tools"))
      return invalid("tool_choice", "When using `tool_choice`, `tools` must be set.");
    return ToolChoice{tools.empty() ? Kind::none : Kind::required, {}};
  }
  if (!choice->is_object())
    return invalid("tool_choice", fmt::format("Invalid value for `tool_choice`: {}! Only named "
                                              "tools, \"none\", \"auto\" or \"required\" are "
                                              "supported.",
                                              to_text(*choice).substr(0, 200)));
  const std::string type = string_of(*choice, "type");
  if (type == "function" || type == "custom") {
    const std::string name = called_name(*choice);
    if (!has_tool(tools, name))
      return invalid("tool_choice",
                     "The tool specified in `tool_choice` does not match any of the specified "
                     "`tools`");
    return ToolChoice{Kind::named, name};
  }
  if (type == "allowed_tools") return allowed_tools_choice(*choice, tools, called_name);
  // A hosted tool, which does not run here: what is asked for is a wish.
  return ToolChoice{tools.empty() ? Kind::none : Kind::automatic, {}};
}

// ---- the request

Result<void> read_include(const Json& value, ResponsesRequest& request) {
  std::vector<std::string> names;
  M2_TRY_VOID(read_value(value, names));
  const auto has = [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  request.include_logprobs = has("message.output_text.logprobs");
  request.include_encrypted = has("reasoning.encrypted_content");
  return {};
}

Result<void> read_text_options(const Json& value, ResponsesRequest& request) {
  if (!value.is_object()) return fail(Code::invalid_argument, "Input should be a valid dictionary");
  const auto format = value.find("format");
  if (format == value.end() || format->is_null()) return {};
  if (!format->is_object() || string_of(*format, "type").empty())
    return invalid("text", "text.format should be an object with a type");
  const std::string type = string_of(*format, "type");
  if (type == "text") return {};
  if (type == "json_object") return invalid("text", "json_object is not supported");
  if (type != "json_schema")
    return invalid("text", fmt::format("text.format: `{}` is not a format: use text or "
                                       "json_schema",
                                       type.substr(0, 40)));
  // The chat form of the same wish: {type, json_schema: {name, schema, strict}}.
  Json schema = Json::object();
  for (const auto& [key, field] : format->items())
    if (key != "type") append_member(schema, key, field);
  request.response_format = Json{{"type", "json_schema"}, {"json_schema", std::move(schema)}};
  return {};
}

Result<void> read_response_reasoning(const Json& value, ResponsesRequest& request) {
  if (!value.is_object()) return fail(Code::invalid_argument, "Input should be a valid dictionary");
  request.echoed["reasoning"] = value;
  return read_reasoning(value, request);
}

Result<void> refuse_prompt(const Json&, ResponsesRequest&) {
  return invalid("prompt", "prompt template is not supported");
}

const Fields<ResponsesRequest>& response_fields() {
  static const Fields<ResponsesRequest> table = [] {
    Fields<ResponsesRequest> fields;
    fields.field("model", &ResponsesRequest::model)
        .field("instructions", &ResponsesRequest::instructions)
        .field("previous_response_id", &ResponsesRequest::previous_response_id)
        .field("max_output_tokens", &ResponsesRequest::max_output_tokens)
        .field("store", &ResponsesRequest::store)
        .field("background", &ResponsesRequest::background)
        .field("stream", &ResponsesRequest::stream)
        .field("parallel_tool_calls", &ResponsesRequest::parallel_tool_calls)
        .field("include", read_include)
        .field("text", read_text_options)
        .field("reasoning", read_response_reasoning)
        .field("prompt", refuse_prompt)
        .field("top_logprobs", &ResponsesRequest::top_logprobs)
        .field("temperature", &ResponsesRequest::temperature)
        .field("top_p", &ResponsesRequest::top_p)
        .field("top_k", &ResponsesRequest::top_k)
        .field("min_p", &ResponsesRequest::min_p)
        .field("repetition_penalty", &ResponsesRequest::repetition_penalty)
        .field("presence_penalty", &ResponsesRequest::presence_penalty)
        .field("frequency_penalty", &ResponsesRequest::frequency_penalty)
        .field("seed", &ResponsesRequest::seed)
        .field("stop", [](const Json& value,
                          ResponsesRequest& r) { return read_one_or_many(value, r.stop); })
        .field("ignore_eos", &ResponsesRequest::ignore_eos)
        .field("include_stop_str_in_output", &ResponsesRequest::include_stop_str_in_output)
        .field("skip_special_tokens", &ResponsesRequest::skip_special_tokens)
        .field("logit_bias",
               [](const Json& value, ResponsesRequest& r) {
                 return read_logit_bias(value, r.logit_bias);
               })
        .field("priority", &ResponsesRequest::priority)
        .field("cache_salt", &ResponsesRequest::cache_salt)
        .field("chat_template_kwargs", &ResponsesRequest::chat_template_kwargs)
        .ignored({"input", "tools", "tool_choice", "max_tool_calls", "metadata", "service_tier",
                  "truncation", "user", "prompt_cache_key", "prompt_cache_retention",
                  "safety_identifier", "client_metadata", "stream_options", "conversation",
                  "request_id", "mm_processor_kwargs", "previous_input_messages",
                  "context_management"})
        .unserved({"enable_response_messages", "vllm_xargs"});
    return fields;
  }();
  return table;
}

// Fields of the reply that repeat the request's.
void keep_echoed(const Json& body, ResponsesRequest& request) {
  for (const char* name : {"max_tool_calls", "metadata", "service_tier", "text", "tool_choice",
                           "tools", "truncation", "user", "prompt_cache_key", "safety_identifier"})
    if (body.contains(name) && !body[name].is_null()) request.echoed[name] = body[name];
}

Result<void> check_request(const Json& body, const ResponsesRequest& request) {
  if (!body.contains("input") || body["input"].is_null())
    return invalid("input", "input: Field required");
  if (request.messages.empty() && !request.previous_response_id)
    return invalid("input", "input: List should have at least 1 item after validation");
  if (body.contains("previous_input_messages") && !body["previous_input_messages"].is_null() &&
      request.previous_response_id)
    return invalid("previous_response_id",
                   "Only one of `previous_input_messages` and `previous_response_id` can be set.");
  // A history that is somewhere else: an answer without it would be one to another question.
  if (is_sent(body, "previous_input_messages"))
    return invalid("previous_input_messages",
                   "`previous_input_messages` is not supported: send the conversation as `input`.");
  if (is_sent(body, "conversation"))
    return invalid("conversation",
                   "`conversation` is not supported: send its items as `input`, or use "
                   "`previous_response_id`.");
  if (request.background && !request.store)
    return invalid("background", "background can only be used when `store` is true");
  if (body.contains("truncation") && body["truncation"] != "disabled" &&
      body["truncation"] != "auto" && !body["truncation"].is_null())
    return invalid("truncation", "truncation: Input should be 'auto' or 'disabled'");
  if (request.top_logprobs < 0)
    return invalid("top_logprobs", "`top_logprobs` must be a positive value.");
  if (!request.chat_template_kwargs.is_object())
    return invalid("chat_template_kwargs",
                   "chat_template_kwargs: Input should be a valid dictionary");
  return check_generation_fields(request);
}

}  // namespace

Json responses_request_schema() {
  return response_fields().schema({"input"});
}

Result<ResponsesRequest> responses_request_from_json(const Json& body,
                                                     std::vector<std::string>& unknown) {
  ResponsesRequest request;
  M2_TRY_VOID(response_fields().read(body, request, unknown));
  if (body.contains("input") && !body["input"].is_null())
    M2_TRY_VOID(read_input(body["input"], request, unknown));
  if (body.contains("tools") && !body["tools"].is_null())
    M2_TRY_VOID(read_response_tools(body["tools"], request, unknown));
  M2_TRY_VOID(check_request(body, request));
  M2_TRY(request.tool_choice, response_tool_choice(body, request.tools));
  request.max_tokens = request.max_output_tokens;
  request.max_tokens_field = "max_output_tokens";
  request.logprobs = request.include_logprobs || request.top_logprobs > 0;
  keep_echoed(body, request);
  return request;
}

// ---- replies

namespace {

// What one escape of a JSON string stands for.
std::string unescaped(std::string_view escape) {
  const auto text = parse_json(fmt::format("\"{}\"", escape));
  return text ? text->get<std::string>() : "\ufffd";
}

// The text of arguments that are not {"input": text}.
std::string text_of_arguments(const std::string& raw) {
  const auto arguments = parse_json(raw);
  if (!arguments || !arguments->is_object()) return raw;
  if (arguments->empty()) return {};
  if (arguments->contains("input") && (*arguments)["input"].is_string())
    return (*arguments)["input"];
  for (const auto& [name, value] : arguments->items())
    if (value.is_string()) return value;
  return raw;
}

}  // namespace

std::string InputText::feed(std::string_view arguments) {
  constexpr std::string_view kOpening = "{\"input\": \"";
  raw_ += arguments;
  if (!raw_.starts_with(kOpening)) return {};
  at_ = std::max(at_, kOpening.size());
  std::string out;
  while (!closed_ && at_ < raw_.size()) {
    const char c = raw_[at_];
    if (c == '"') {
      closed_ = true;
    } else if (c != '\\') {
      const size_t end = std::min(raw_.find_first_of("\"\\", at_), raw_.size());
      out += raw_.substr(at_, end - at_);
      at_ = end;
    } else {
      const bool is_code = at_ + 1 < raw_.size() && raw_[at_ + 1] == 'u';
      const size_t size = is_code ? 6 : 2;
      if (at_ + size > raw_.size()) break;
      out += unescaped(std::string_view(raw_).substr(at_, size));
      at_ += size;
    }
  }
  return out;
}

std::string InputText::finish() {
  return at_ > 0 ? std::string() : text_of_arguments(raw_);
}

ResponseWriter::ResponseWriter(ResponseHead head, std::string (*make_id)())
    : head_(std::move(head)), make_id_(make_id) {}

void ResponseWriter::begin_event(std::string_view type, std::string& out) {
  out += "event: ";
  out += type;
  out += "\ndata: {\"type\":\"";
  out += type;
  out += "\",\"sequence_number\":";
  append_json_integer(out, sequence_++);
}

void ResponseWriter::state_event(std::string_view type, const ResponseState& state,
                                 std::string* out) {
  if (!out) return;
  begin_event(type, *out);
  *out += ",\"response\":" + to_json(state) + "}\n\n";
}

void ResponseWriter::item_event(std::string_view type, std::string_view item, std::string* out) {
  if (!out) return;
  begin_event(type, *out);
  *out += ",\"output_index\":";
  append_json_integer(*out, items_);
  *out += ",\"item\":";
  *out += item;
  *out += "}\n\n";
}

void ResponseWriter::part_event(std::string_view type, std::string_view part, std::string* out) {
  if (!out) return;
  begin_event(type, *out);
  *out += ",\"item_id\":\"" + item_id_ + "\",\"output_index\":";
  append_json_integer(*out, items_);
  *out += ",\"content_index\":0,\"part\":";
  *out += part;
  *out += "}\n\n";
}

// An event with one text member, `name`, and JSON of further members.
void ResponseWriter::text_event(std::string_view type, std::string_view name, std::string_view text,
                                std::string_view more, std::string* out) {
  if (!out) return;
  begin_event(type, *out);
  *out += ",\"item_id\":\"";
  *out += item_id_;
  *out += "\",\"output_index\":";
  append_json_integer(*out, items_);
  if (kind_ == Kind::reasoning || kind_ == Kind::message) *out += ",\"content_index\":0";
  *out += ",\"";
  *out += name;
  *out += "\":";
  append_json_string(*out, text);
  *out += more;
  *out += "}\n\n";
}

void ResponseWriter::begin(std::string* out) {
  const ResponseState state;
  state_event("response.created", state, out);
  state_event("response.in_progress", state, out);
}

namespace {

// As JSON: a tree of its logprobs would take its thread for seconds.
std::string output_text(std::string_view text, std::string_view logprobs) {
  JsonObjectText part;
  part.add("type", "output_text");
  part.add("text", text);
  part.add("annotations", Json::array());
  part.add_text("logprobs", fmt::format("[{}]", logprobs));
  return part.take();
}

Json reasoning_text(std::string_view text) {
  return {{"type", "reasoning_text"}, {"text", text}};
}

}  // namespace

void ResponseWriter::open(Kind kind, Json item, std::string* out) {
  close("completed", out);
  kind_ = kind;
  item_ = std::move(item);
  item_id_ = item_["id"];
  text_.clear();
  logprobs_.clear();
  item_event("response.output_item.added", to_text(item_), out);
}

void ResponseWriter::close(std::string_view status, std::string* out) {
  std::string content;  // of a message, as JSON
  switch (kind_) {
    case Kind::none:
      return;
    case Kind::reasoning:
      text_event("response.reasoning_text.done", "text", text_, {}, out);
      item_["content"] = Json::array({reasoning_text(text_)});
      if (head_.encrypted) item_["encrypted_content"] = sealed_text(text_);
      break;
    case Kind::message: {
      const std::string part = output_text(text_, logprobs_);
      text_event("response.output_text.done", "text", text_, ",\"logprobs\":[" + logprobs_ + "]",
                 out);
      part_event("response.content_part.done", part, out);
      content = "[" + part + "]";
      break;
    }
    case Kind::call:
      text_event("response.function_call_arguments.done", "arguments", text_,
                 ",\"name\":" + to_text(item_["name"]), out);
      item_["arguments"] = text_;
      break;
    case Kind::custom_call:
      input(input_.finish(), out);
      text_event("response.custom_tool_call_input.done", "input", text_, {}, out);
      item_["input"] = text_;
      break;
  }
  kind_ = Kind::none;
  item_["status"] = status;
  JsonObjectText item;
  for (const auto& [name, value] : item_.items())
    name == "content" && !content.empty() ? item.add_text(name, content) : item.add(name, value);
  const std::string done = item.take();
  item_event("response.output_item.done", done, out);
  if (items_++ > 0) output_ += ',';
  output_ += done;
}

void ResponseWriter::reasoning(std::string_view text, std::string* out) {
  if (kind_ != Kind::reasoning) {
    Json item = {{"id", "rs_" + make_id_()}, {"type", "reasoning"}, {"summary", Json::array()}};
    item["content"] = Json::array();
    item["encrypted_content"] = nullptr;
    item["status"] = "in_progress";
    open(Kind::reasoning, std::move(item), out);
    part_event("response.content_part.added", to_text(reasoning_text("")), out);
  }
  text_ += text;
  text_event("response.reasoning_text.delta", "delta", text, {}, out);
}

void ResponseWriter::content(std::string_view text, std::string_view logprobs, std::string* out) {
  if (kind_ != Kind::message) {
    open(Kind::message,
         {{"id", "msg_" + make_id_()},
          {"type", "message"},
          {"status", "in_progress"},
          {"role", "assistant"},
          {"content", Json::array()}},
         out);
    part_event("response.content_part.added", output_text("", ""), out);
  }
  text_ += text;
  if (!logprobs.empty()) {
    if (!logprobs_.empty()) logprobs_ += ',';
    logprobs_ += logprobs;
  }
  std::string more = ",\"logprobs\":[";
  more += logprobs;
  more += ']';
  text_event("response.output_text.delta", "delta", text, more, out);
}

void ResponseWriter::begin_call(std::string_view call_id, std::string_view name, std::string* out) {
  const bool custom = head_.custom.contains(name);
  Json item = {{"id", (custom ? "ctc_" : "fc_") + make_id_()},
               {"type", custom ? "custom_tool_call" : "function_call"},
               {"status", "in_progress"}};
  item["call_id"] = call_id;
  const auto space = head_.namespaced.find(name);
  if (space == head_.namespaced.end()) {
    item["name"] = name;
  } else {
    item["name"] = space->second.name;
    item["namespace"] = space->second.space;
  }
  item[custom ? "input" : "arguments"] = "";
  input_ = {};
  open(custom ? Kind::custom_call : Kind::call, std::move(item), out);
}

void ResponseWriter::input(std::string_view text, std::string* out) {
  if (text.empty()) return;
  text_ += text;
  text_event("response.custom_tool_call_input.delta", "delta", text, {}, out);
}

void ResponseWriter::arguments(std::string_view text, std::string* out) {
  if (kind_ == Kind::custom_call) return input(input_.feed(text), out);
  text_ += text;
  text_event("response.function_call_arguments.delta", "delta", text, {}, out);
}

void ResponseWriter::finish(ResponseState state, bool drop_call, std::string* out) {
  if (drop_call && (kind_ == Kind::call || kind_ == Kind::custom_call)) kind_ = Kind::none;
  close(state.status == "completed" ? "completed" : "incomplete", out);
  state_event("response." + state.status, state, out);
}

namespace {

Json usage_json(const ResponseUsage& usage) {
  Json out;
  out["input_tokens"] = usage.input_tokens;
  out["input_tokens_details"] = {{"cached_tokens", usage.cached_tokens},
                                 {"cache_write_tokens", 0},  // as OpenAI bills them: nothing is
                                 {"input_tokens_per_turn", Json::array()},
                                 {"cached_tokens_per_turn", Json::array()}};
  out["output_tokens"] = usage.output_tokens;
  out["output_tokens_details"] = {{"reasoning_tokens", usage.reasoning_tokens},
                                  {"tool_output_tokens", 0},
                                  {"output_tokens_per_turn", Json::array()},
                                  {"tool_output_tokens_per_turn", Json::array()}};
  out["total_tokens"] = usage.input_tokens + usage.output_tokens;
  return out;
}

}  // namespace

std::string ResponseWriter::to_json(const ResponseState& state) const {
  const auto echoed = [&](const char* name, Json otherwise) {
    const auto field = head_.echoed.find(name);
    return field == head_.echoed.end() ? std::move(otherwise) : *field;
  };
  JsonObjectText out;
  out.add("id", head_.id);
  out.add("object", "response");
  out.add("created_at", head_.created_at);
  out.add("status", state.status);
  out.add("background", head_.background);
  out.add("error", state.error_code.empty()
                       ? Json()
                       : Json{{"code", state.error_code}, {"message", state.error_message}});
  out.add("incomplete_details",
          state.incomplete_reason.empty() ? Json() : Json{{"reason", state.incomplete_reason}});
  out.add("instructions", echoed("instructions", nullptr));
  out.add("max_output_tokens", echoed("max_output_tokens", nullptr));
  out.add("max_tool_calls", echoed("max_tool_calls", nullptr));
  out.add("model", head_.model);
  out.add_text("output", "[" + output_ + "]");
  out.add("parallel_tool_calls", echoed("parallel_tool_calls", true));
  out.add("previous_response_id", echoed("previous_response_id", nullptr));
  out.add("prompt", nullptr);
  out.add("prompt_cache_key", echoed("prompt_cache_key", nullptr));
  out.add("reasoning", echoed("reasoning", nullptr));
  out.add("safety_identifier", echoed("safety_identifier", nullptr));
  out.add("service_tier", echoed("service_tier", "auto"));
  out.add("store", head_.store);
  out.add("temperature", echoed("temperature", nullptr));
  out.add("text", echoed("text", Json{{"format", {{"type", "text"}}}}));
  out.add("tool_choice", echoed("tool_choice", "auto"));
  out.add("tools", echoed("tools", Json::array()));
  out.add("top_logprobs", echoed("top_logprobs", 0));
  out.add("top_p", echoed("top_p", nullptr));
  out.add("truncation", echoed("truncation", "disabled"));
  out.add("usage", state.usage ? usage_json(*state.usage) : Json());
  out.add("user", echoed("user", nullptr));
  out.add("metadata", echoed("metadata", Json::object()));
  return out.take();
}

}  // namespace m2::api
