#pragma once

#include <vector>

#include "api/openai_chat.h"
#include "server/options.h"
#include "server/turn_replay.h"
#include "text/message.h"

// From what clients send to the one conversation type, and on to the prompt's tokens.

namespace m2::server {

// The messages as the template should see them (contract.md 1, model.md 4.3): system and developer
// messages at the start joined into one; later ones folded into the message before or dropped;
// arguments parsed; null content left out; parts other than text refused.
Result<std::vector<text::Message>> to_messages(const std::vector<api::ChatMessage>& messages,
                                               LateSystem late_system,
                                               ContentFormat format = ContentFormat::as_sent);

// The text of a message's content, its parts joined; nothing where it has none.
std::string content_text(const api::ChatMessage& message);

// What of a request decides about its prompt.
struct ChatPromptFields {
  const std::vector<api::ChatMessage>& messages;
  const Json& tools;
  std::optional<bool> add_generation_prompt;
  bool continue_final_message = false;
  const std::optional<std::string>& chat_template;
  const Json& template_kwargs;
  const Json& documents;
  std::optional<bool> thinking = {};  // asked for; else template_kwargs or the server's say
};

// A prompt as text, but for the turns whose tokens are known.
struct ChatText {
  std::vector<text::TextPiece> pieces;
  std::vector<KnownTurn> known;  // in order; none without a turn store
  int64_t restored = 0;          // messages whose reasoning was put back
};

struct ChatPrompt {
  std::vector<text::TokenId> ids;
  bool ends_in_reasoning = false;  // the last of <think> and </think> in it is <think>
  std::string opening;             // opening_of() its text
  int64_t restored = 0;            // as in ChatText
};

// Renders the template: the template's own text reads every added token, text of users and tools
// the non-special ones only. Of `model`, the template is read. Where thinking is off and the
// template has no switch for it, the reasoning it opened is closed again, empty. With a turn store,
// turns of this server's model are known by their tokens.
Result<ChatText> chat_text(const ChatPromptFields& fields, const ServerOptions& options,
                           const ModelServices& model, TenantTurns turns = {});

// Whether the last of <think> and </think> in `ids` is <think>.
bool ends_in_reasoning(const std::vector<text::TokenId>& ids, const text::Tokenizer& tokenizer);

ChatPrompt encode_prompt(const ChatText& text, const ModelServices& model);

// chat_text(), encoded.
Result<ChatPrompt> chat_prompt(const ChatPromptFields& fields, const ServerOptions& options,
                               const ModelServices& model, TenantTurns turns);

}  // namespace m2::server
