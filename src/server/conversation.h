#pragma once

#include <vector>

#include "api/openai_chat.h"
#include "server/options.h"
#include "text/message.h"

// From what clients send to the one conversation type, and on to the prompt's tokens.

namespace m2::server {

// The messages as the template should see them (contract.md 1, model.md 4.3): system and developer
// messages at the start joined into one; later ones folded into the message before or dropped;
// arguments parsed; null content left out; parts other than text refused.
Result<std::vector<text::Message>> to_messages(const std::vector<api::ChatMessage>& messages,
                                               LateSystem late_system);

// What of a request decides about its prompt.
struct ChatPromptFields {
  const std::vector<api::ChatMessage>& messages;
  const Json& tools;
  std::optional<bool> add_generation_prompt;
  bool continue_final_message = false;
  const std::optional<std::string>& chat_template;
  const Json& template_kwargs;
  const Json& documents;
};

struct ChatPrompt {
  std::vector<text::TokenId> ids;
  bool ends_in_reasoning = false;  // the last of <think> and </think> in it is <think>
};

// Renders the template: the template's own text reads every added token, text of users and tools
// the non-special ones only. Of `model`, the template is read.
Result<std::vector<text::TextPiece>> chat_pieces(const ChatPromptFields& fields,
                                                 const ServerOptions& options,
                                                 const ModelServices& model);

// chat_pieces(), encoded.
Result<ChatPrompt> chat_prompt(const ChatPromptFields& fields, const ServerOptions& options,
                               const ModelServices& model);

}  // namespace m2::server
