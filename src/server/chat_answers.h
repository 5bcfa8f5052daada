#pragma once

#include <memory>
#include <string>
#include <vector>

#include "api/anthropic_messages.h"
#include "api/openai_chat.h"
#include "api/openai_responses.h"
#include "server/answer.h"
#include "server/response_store.h"
#include "server/turn_reader.h"

// The answers of the surfaces that chat. All read the model's text with the same TurnReader.

namespace m2::server {

struct ChatAnswerSetup {
  std::string role = "assistant";
  TurnSetup turn;
  api::ToolChoice::Kind tool_choice = api::ToolChoice::Kind::none;
  bool include_reasoning = true;
  bool logprobs = false;
  std::string echo;            // content the answer begins with, of the message it continues
  bool context_bound = false;  // fewer tokens than were asked for fit into the context
};
std::unique_ptr<Answer> make_chat_answer(AnswerSetup setup, ChatAnswerSetup chat);

// One response of /v1/responses.
struct ResponseAnswerSetup {
  api::ResponseHead head;
  bool logprobs = false;
  ResponseStore* store = nullptr;              // null: it is not kept
  std::string tenant;                          // whose it is
  std::shared_ptr<EventLog> events;            // null: nobody reads them again
  std::vector<api::ChatMessage> conversation;  // the prompt's, without instructions; for `store`
};
std::unique_ptr<Answer> make_response_answer(AnswerSetup setup, ChatAnswerSetup chat,
                                             ResponseAnswerSetup response);

std::unique_ptr<Answer> make_message_answer(AnswerSetup setup, ChatAnswerSetup chat);

}  // namespace m2::server
