#include "server/conversation.h"

#include <algorithm>

namespace m2::server {
namespace {

using api::invalid;

bool is_system(const std::string& role) {
  return role == "system" || role == "developer";
}

Result<Json> text_part(const Json& part) {
  if (part.is_string()) return Json{{"type", "text"}, {"text", part}};
  const std::string type = part["type"];
  if (type == "text") return Json{{"type", "text"}, {"text", part["text"]}};
  const bool is_text = type == "input_text" || type == "output_text";
  if (is_text && part.contains("text") && part["text"].is_string())
    return Json{{"type", "text"}, {"text", part["text"]}};
  if (type == "refusal" && part.contains("refusal") && part["refusal"].is_string())
    return Json{{"type", "text"}, {"text", part["refusal"]}};
  return invalid("messages", fmt::format("a content part of type `{}` cannot be used: this model "
                                         "reads text only",
                                         type.substr(0, 40)));
}

Json part_nobody_reads(const Json& part) {
  const std::string type = part["type"];
  return {{"type", "text"},
          {"text", fmt::format("[{}: this model reads text only]", type.substr(0, 40))}};
}

std::string joined_lines(const Json& parts) {
  std::string out;
  for (const Json& part : parts) {
    if (&part != &parts.front()) out += '\n';
    out += part["text"].get_ref<const std::string&>();
  }
  return out;
}

// A string as sent, parts reduced to text parts, null to nothing; all in the form asked for.
Result<std::optional<Json>> content_of(const api::ChatMessage& message, ContentFormat format) {
  if (message.content.is_null()) return std::optional<Json>();
  if (message.content.is_string()) {
    if (format != ContentFormat::parts) return std::optional<Json>(message.content);
    return std::optional<Json>(Json::array({Json{{"type", "text"}, {"text", message.content}}}));
  }
  Json parts = Json::array();
  for (const Json& part : message.content) {
    Result<Json> text = text_part(part);
    // Of a tool's result: a refusal would end an agent's session for good.
    if (!text.ok() && message.role == "tool") text = part_nobody_reads(part);
    M2_TRY(Json read, std::move(text));
    parts.push_back(std::move(read));
  }
  if (format == ContentFormat::string) return std::optional<Json>(joined_lines(parts));
  return std::optional<Json>(std::move(parts));
}

// The text of content, parts joined with nothing between, as the template prints them.
std::string text_of(const std::optional<Json>& content) {
  if (!content) return {};
  if (content->is_string()) return content->get<std::string>();
  std::string text;
  for (const Json& part : *content) text += part["text"].get_ref<const std::string&>();
  return text;
}

void append_paragraph(std::optional<Json>& content, const std::string& text) {
  if (!content || content->empty()) {
    content = text;
  } else if (content->is_string()) {
    content->get_ref<std::string&>() += "\n\n" + text;
  } else {
    content->back()["text"].get_ref<std::string&>() += "\n\n" + text;
  }
}

Result<Json> arguments_of(const api::ChatToolCall& call) {
  const Json& sent = call.arguments;
  if (sent.is_null() || (sent.is_string() && sent.get_ref<const std::string&>().empty()))
    return Json(Json::object());
  Json object = sent;
  if (sent.is_string()) {
    auto parsed = parse_json(sent.get_ref<const std::string&>());
    if (!parsed)
      return invalid("messages", fmt::format("the arguments of the tool call `{}` are not valid "
                                             "JSON: {}",
                                             call.name, parsed.error().text));
    object = std::move(*parsed);
    if (object.is_null()) object = Json::object();
  }
  if (!object.is_object())
    return invalid("messages", fmt::format("the arguments of the tool call `{}` should be a JSON "
                                           "object",
                                           call.name));
  return object;
}

Result<text::Message> to_message(const api::ChatMessage& sent, ContentFormat format) {
  static constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
  if (std::find(std::begin(kRoles), std::end(kRoles), sent.role) == std::end(kRoles))
    return invalid("messages", fmt::format("`{}` is not a message role: use system, developer, "
                                           "user, assistant or tool",
                                           sent.role.substr(0, 40)));
  text::Message message;
  message.role = sent.role;
  M2_TRY(message.content, content_of(sent, format));
  message.extra = sent.extra;
  message.tool_call_id = sent.tool_call_id;
  if (sent.role != "assistant") return message;
  message.reasoning = sent.reasoning;
  for (const api::ChatToolCall& call : sent.tool_calls) {
    M2_TRY(Json arguments, arguments_of(call));
    message.tool_calls.push_back({call.id, call.name, std::move(arguments)});
  }
  return message;
}

// A system message after the start, which the template would drop without a word.
void fold_late_system(const text::Message& late, std::vector<text::Message>& out) {
  const std::string text = text_of(late.content);
  const std::string& before = out.back().role;
  if (before == "user" || before == "tool") return append_paragraph(out.back().content, text);
  text::Message user;
  user.role = "user";
  user.content = text;
  out.push_back(std::move(user));
}

bool is_template_argument(const std::string& name) {
  return name == "messages" || name == "tools" || name == "add_generation_prompt" ||
         name == "continue_final_message";
}

// The server's and the request's extra variables that the template reads; the rest have no effect.
Result<Json> template_kwargs(const ChatPromptFields& fields,
                             const text::ChatTemplate& chat_template,
                             const ServerOptions& options) {
  if (to_text(fields.template_kwargs).size() > options.limits.max_template_kwargs)
    return invalid("chat_template_kwargs", fmt::format("chat_template_kwargs exceeds {} bytes",
                                                       options.limits.max_template_kwargs));
  Json out = Json::object();
  for (const Json* source : {&options.default_chat_template_kwargs, &fields.template_kwargs})
    for (const auto& [name, value] : source->items())
      if (!is_template_argument(name) && chat_template.uses(name)) out[name] = value;
  if (fields.thinking && chat_template.uses("enable_thinking"))
    out["enable_thinking"] = *fields.thinking;
  if (!fields.documents.is_null() && chat_template.uses("documents"))
    out["documents"] = fields.documents;
  return out;
}

Result<std::shared_ptr<const text::ChatTemplate>> template_for(const ChatPromptFields& fields,
                                                               const ServerOptions& options,
                                                               const ModelServices& model) {
  if (fields.chat_template && !fields.chat_template->empty()) {
    if (!options.trust_request_chat_template)
      return invalid("chat_template",
                     "Chat template is passed with request, but --trust-request-chat-template is "
                     "not set. Refused request with untrusted chat template.");
    return text::ChatTemplate::parse(*fields.chat_template);
  }
  if (!model.chat_template)
    return invalid("messages",
                   "the model has no chat template: use /v1/completions, or start the "
                   "server with --chat-template");
  return model.chat_template;
}

// The text that ends empty reasoning where the template has just opened it, as it prints reasoning
// in messages of the past.
constexpr std::string_view kOpenedThinking = "<think>\n", kNoThinking = "\n</think>\n\n";

bool thinks(const ChatPromptFields& fields, const text::ChatTemplate& chat_template,
            const ServerOptions& options) {
  if (chat_template.uses("enable_thinking")) return true;  // the template's own affair
  std::optional<bool> thinking = fields.thinking;
  if (!thinking) thinking = api::thinking_of_kwargs(fields.template_kwargs);
  if (!thinking) thinking = api::thinking_of_kwargs(options.default_chat_template_kwargs);
  return thinking.value_or(true);
}

Result<void> check_sizes(const ChatPromptFields& fields, const Limits& limits) {
  if (fields.messages.size() > static_cast<size_t>(limits.max_messages))
    return invalid("messages", fmt::format("{} messages were sent, at most {} are allowed",
                                           fields.messages.size(), limits.max_messages));
  if (fields.tools.size() > static_cast<size_t>(limits.max_tools))
    return invalid("tools", fmt::format("{} tools were sent, at most {} are allowed",
                                        fields.tools.size(), limits.max_tools));
  if (!fields.tools.empty() && to_text(fields.tools).size() > limits.max_tool_bytes)
    return invalid("tools", fmt::format("the tools exceed {} bytes", limits.max_tool_bytes));
  return {};
}

}  // namespace

Result<std::vector<text::Message>> to_messages(const std::vector<api::ChatMessage>& messages,
                                               LateSystem late_system, ContentFormat format) {
  std::vector<text::Message> out;
  bool at_start = true;
  for (const api::ChatMessage& sent : messages) {
    M2_TRY(text::Message message, to_message(sent, format));
    if (!is_system(message.role)) {
      at_start = false;
      out.push_back(std::move(message));
    } else if (!at_start) {
      if (late_system == LateSystem::fold) fold_late_system(message, out);
    } else if (out.empty()) {
      message.role = "system";
      out.push_back(std::move(message));
    } else {
      append_paragraph(out.back().content, text_of(message.content));
    }
  }
  return out;
}

std::string content_text(const api::ChatMessage& message) {
  const auto content = content_of(message, ContentFormat::as_sent);
  return content ? text_of(*content) : std::string();
}

namespace {

// The template's text of a conversation, with what the turn store knows of it.
Result<ChatText> render(const text::ChatTemplate& chat_template, text::Conversation conversation,
                        TenantTurns turns) {
  ChatText out;
  if (turns.store) {
    const std::vector<text::Message> messages = conversation.messages;
    const TurnReplay replay(conversation.messages, *turns.store, turns.tenant);
    M2_TRY(out.pieces, text::render_prompt(chat_template, conversation));
    if (auto known = replay.place(out.pieces)) {
      out.known = std::move(*known);
      out.restored = replay.restored();
      return out;
    }
    conversation.messages = messages;
  }
  M2_TRY(out.pieces, text::render_prompt(chat_template, conversation));
  return out;
}

}  // namespace

Result<ChatText> chat_text(const ChatPromptFields& fields, const ServerOptions& options,
                           const ModelServices& model, TenantTurns turns) {
  M2_TRY_VOID(check_sizes(fields, options.limits));
  M2_TRY(const auto chat_template, template_for(fields, options, model));
  text::Conversation conversation;
  M2_TRY(conversation.messages,
         to_messages(fields.messages, options.late_system, options.content_format));
  conversation.tools = fields.tools;
  conversation.continue_final_message = fields.continue_final_message;
  conversation.add_generation_prompt =
      fields.add_generation_prompt.value_or(!fields.continue_final_message);
  M2_TRY(conversation.template_kwargs, template_kwargs(fields, *chat_template, options));

  const bool generates = conversation.add_generation_prompt;
  M2_TRY(ChatText out, render(*chat_template, std::move(conversation), turns));
  auto& pieces = out.pieces;
  const bool opened = generates && !pieces.empty() && pieces.back().text.ends_with(kOpenedThinking);
  if (opened && !thinks(fields, *chat_template, options)) pieces.back().text += kNoThinking;
  return out;
}

bool ends_in_reasoning(const std::vector<text::TokenId>& ids, const text::Tokenizer& tokenizer) {
  const text::TokenId open = tokenizer.id_of("<think>"), close = tokenizer.id_of("</think>");
  const auto last = std::find_if(ids.rbegin(), ids.rend(),
                                 [&](text::TokenId id) { return id == open || id == close; });
  return last != ids.rend() && *last == open;
}

ChatPrompt encode_prompt(const ChatText& text, const ModelServices& model) {
  ChatPrompt prompt;
  const std::span<const text::TextPiece> pieces = text.pieces;
  size_t begin = 0;
  const auto encode_until = [&](size_t end) {
    const auto ids = model.tokenizer->encode(pieces.subspan(begin, end - begin));
    prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    begin = end;
  };
  for (const KnownTurn& known : text.known) {
    encode_until(known.at);
    const auto& tokens = known.turn->tokens;
    prompt.ids.insert(prompt.ids.end(), tokens.begin(), tokens.end());
  }
  encode_until(pieces.size());
  prompt.ends_in_reasoning = ends_in_reasoning(prompt.ids, *model.tokenizer);
  prompt.opening = opening_of(pieces);
  prompt.restored = text.restored;
  return prompt;
}

Result<ChatPrompt> chat_prompt(const ChatPromptFields& fields, const ServerOptions& options,
                               const ModelServices& model, TenantTurns turns) {
  M2_TRY(const ChatText text, chat_text(fields, options, model, turns));
  return encode_prompt(text, model);
}

}  // namespace m2::server
