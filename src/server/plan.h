#pragma once

#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "api/error.h"
#include "engine/request.h"
#include "server/chat_answers.h"
#include "server/context.h"
#include "server/conversation.h"
#include "server/http_message.h"

// From a request's body to engine requests: parsing, validation, template, tokens. Runs on a worker
// thread, because a long prompt takes long.

namespace m2::server {

// All that is needed to run one request.
struct Plan {
  std::vector<engine::Request> requests;  // one per choice, prompt-major
  std::unique_ptr<Answer> answer;
  int64_t n = 1;  // choices of each prompt
  bool stream = false;
  int64_t stream_interval = 1;  // tokens a stream gathers after the first before it shows them
  std::vector<std::string> stop;
  bool include_stop = false;
  int64_t min_tokens = 0;
  bool skip_special_tokens = true;
  bool background = false;  // goes on without its client
  HeaderList headers;       // of the reply
};

// A request that cannot be planned, told in a stream of its own: whole frames, the last included.
struct RefusedInStream {
  std::string events;
};

using Planned = std::variant<Plan, api::ApiError, RefusedInStream>;

Planned plan_chat(const HttpRequest& request, Context& context);
Planned plan_completion(const HttpRequest& request, Context& context);
// Whichever of the two the body is: one with messages chats.
Planned plan_invocation(const HttpRequest& request, Context& context);
Planned plan_response(const HttpRequest& request, Context& context);
Planned plan_message(const HttpRequest& request, Context& context);

// How a surface that chats writes its answer.
using MakeChatAnswer = std::function<std::unique_ptr<Answer>(
    AnswerSetup setup, ChatAnswerSetup chat, const engine::SamplingParams& params)>;

// The plan of a conversation, by whichever surface it came. `make_call_id` as in TurnSetup.
Result<Plan> plan_conversation(const HttpRequest& http, const api::ChatRequest& request,
                               api::ReplyHead head, std::string (*make_call_id)(), Context& context,
                               const MakeChatAnswer& make_answer);

// The tokens of a conversation's prompt, as plan_conversation() makes them.
Result<ChatPrompt> prompt_of(const HttpRequest& http, const api::ChatRequest& request,
                             Context& context);

// --enable-log-requests: numbers only, never a client's text.
void log_plan(const Plan& plan);

int64_t unix_seconds();

// Parse, then plan: the two kinds of error look different to clients.
template <class Parse, class MakePlan>
Planned plan_with(const HttpRequest& http, Context& context, Parse parse, MakePlan make_plan);

// The JSON of a request's body, or why it is none.
Result<Json> json_body(const HttpRequest& request, const Limits& limits);

// The error of a request that cannot be planned. A budget of a parser or of the template that it
// exceeds is its own fault, not overload.
api::ApiError request_error(Error error);

// A model's name as sent is one that is served; null and absent are.
Result<void> check_model(const std::optional<std::string>& name, const ServerOptions& options);

template <class Parse, class MakePlan>
Planned plan_with(const HttpRequest& http, Context& context, Parse parse, MakePlan make_plan) {
  auto body = json_body(http, context.limits());
  if (!body) return api::validation_error(body.error());
  std::vector<std::string> unknown;
  auto request = parse(*body, unknown);
  if (!request) return api::validation_error(request.error());
  context.note_unknown_fields(unknown);
  auto plan = make_plan(http, *request, context);
  if (!plan) return request_error(plan.error());
  if (context.options().log_requests) log_plan(*plan);
  return std::move(*plan);
}

}  // namespace m2::server
