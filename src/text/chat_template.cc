#include "text/chat_template.h"

#include <algorithm>
#include <set>

#include "base/json_members.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"
#include "text/jinja/unicode.h"

namespace m2::text {
namespace {

using jinja::Failure;
using jinja::Origin;
using jinja::TracedText;

class JinjaTemplate : public ChatTemplate {
 public:
  explicit JinjaTemplate(jinja::Program program) : program_(std::move(program)) {}

  Result<std::string> render(const Json& variables, const TemplateLimits& limits) const override {
    M2_TRY(const TracedText text, run(variables, limits));
    return text.bytes();
  }

  Result<std::vector<TextPiece>> render_pieces(const Json& variables,
                                               const TemplateLimits& limits) const override {
    M2_TRY(const TracedText text, run(variables, limits));
    std::vector<TextPiece> pieces;
    text.for_each_run([&](std::string_view bytes, Origin origin) {
      const auto added = origin == Origin::literal ? AddedTokens::all : AddedTokens::nonspecial;
      pieces.push_back({std::string(bytes), added});
    });
    return pieces;
  }

  bool uses(std::string_view name) const override {
    return std::find(program_.names.begin(), program_.names.end(), name) != program_.names.end();
  }

 private:
  Result<TracedText> run(const Json& variables, const TemplateLimits& limits) const {
    try {
      return jinja::Interpreter(program_, variables, limits).run();
    } catch (Failure& failure) {
      return Error{failure.code, std::move(failure.text), {}};
    }
  }

  jinja::Program program_;
};

}  // namespace

Result<std::shared_ptr<const ChatTemplate>> ChatTemplate::parse(std::string source) {
  try {
    return std::shared_ptr<const ChatTemplate>(
        std::make_shared<JinjaTemplate>(jinja::parse(source)));
  } catch (Failure& failure) {
    return Error{failure.code, "chat template: " + failure.text, {}};
  }
}

// --- Conversations -------------------------------------------------------------------------------

namespace {

Json tool_call_json(const ToolCall& call) {
  Json json = Json::object();
  if (!call.id.empty()) json["id"] = call.id;
  json["type"] = "function";
  json["function"] = {{"name", call.name},
                      {"arguments", call.arguments.is_null() ? Json::object() : call.arguments}};
  return json;
}

Json message_json(const Message& message) {
  Json json = Json::object();
  json["role"] = message.role;
  if (message.content && !message.content->is_null()) json["content"] = *message.content;
  if (message.reasoning) json["reasoning_content"] = *message.reasoning;
  for (const ToolCall& call : message.tool_calls)
    json["tool_calls"].push_back(tool_call_json(call));
  if (!message.tool_call_id.empty()) json["tool_call_id"] = message.tool_call_id;
  std::set<std::string, std::less<>> own;
  for (const auto& [name, value] : json.items()) own.insert(name);
  for (const auto& [name, value] : message.extra.items())
    if (!own.contains(name)) append_member(json, name, value);
  return json;
}

}  // namespace

Json template_variables(const Conversation& conversation) {
  Json variables = Json::object();
  Json& messages = variables["messages"] = Json::array();
  for (const Message& message : conversation.messages) messages.push_back(message_json(message));
  if (!conversation.tools.empty()) variables["tools"] = conversation.tools;
  variables["add_generation_prompt"] = conversation.add_generation_prompt;
  for (const auto& [name, value] : conversation.template_kwargs.items())
    if (!variables.contains(name)) variables[name] = value;
  return variables;
}

// --- Continuing the last message -----------------------------------------------------------------

namespace {

// Put behind the last message's content before rendering, and cut off with all that follows it.
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";
constexpr std::string_view kContinueTagStripped = kContinueTag.substr(0, kContinueTag.size() - 1);

std::string_view stripped(std::string_view text) {
  text.remove_prefix(jinja::leading_space(text));
  text.remove_suffix(jinja::trailing_space(text));
  return text;
}

// The text to continue: the content, or its last part that has a text. Null if there is none.
Json* text_to_continue(Json& message) {
  const auto content = message.find("content");
  if (content == message.end()) return nullptr;
  if (content->is_string()) return &*content;
  if (!content->is_array()) return nullptr;
  for (auto part = content->rbegin(); part != content->rend(); ++part)
    if (part->is_object() && part->contains("text") && (*part)["text"].is_string())
      return &(*part)["text"];
  return nullptr;
}

std::string joined(const std::vector<TextPiece>& pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

void cut_after(std::vector<TextPiece>& pieces, size_t size) {
  size_t before = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (before + pieces[i].text.size() >= size) {
      pieces[i].text.resize(size - before);
      pieces.resize(pieces[i].text.empty() ? i : i + 1);
      return;
    }
    before += pieces[i].text.size();
  }
}

Result<std::vector<TextPiece>> cut_at_tag(std::vector<TextPiece> pieces, std::string_view content) {
  const std::string text = joined(pieces);
  const size_t tag = text.rfind(kContinueTagStripped);
  if (tag == std::string::npos || text.find(stripped(content)) == std::string::npos)
    return fail(Code::invalid_argument,
                "continue_final_message is set but the final message does not appear in the chat "
                "after applying the chat template! This can happen if the chat template deletes "
                "portions of the final message.");
  const std::string_view before = std::string_view(text).substr(0, tag);
  // If the template trimmed the message's end, the tag's own space went with it.
  const bool was_trimmed = text.compare(tag, kContinueTag.size(), kContinueTag) != 0;
  cut_after(pieces, tag - (was_trimmed ? jinja::trailing_space(before) : 0));
  return pieces;
}

Result<std::vector<TextPiece>> render_to_continue(const ChatTemplate& chat_template, Json variables,
                                                  const TemplateLimits& limits) {
  Json& messages = variables["messages"];
  if (messages.empty())
    return fail(Code::invalid_argument,
                "continue_final_message is set but the conversation is empty");
  Json* text = text_to_continue(messages.back());
  if (!text)
    return fail(Code::invalid_argument,
                "continue_final_message is set but the final message has no text to continue");
  const std::string content = text->get<std::string>();
  *text = content + std::string(kContinueTag);
  M2_TRY(auto pieces, chat_template.render_pieces(variables, limits));
  return cut_at_tag(std::move(pieces), content);
}

}  // namespace

Result<std::vector<TextPiece>> render_prompt(const ChatTemplate& chat_template,
                                             const Conversation& conversation,
                                             const TemplateLimits& limits) {
  Json variables = template_variables(conversation);
  if (conversation.continue_final_message)
    return render_to_continue(chat_template, std::move(variables), limits);
  return chat_template.render_pieces(variables, limits);
}

}  // namespace m2::text
