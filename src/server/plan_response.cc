#include <utility>

#include "base/log.h"
#include "server/ids.h"
#include "server/plan.h"

namespace m2::server {
namespace {

using api::invalid;

// The conversation so far: what a stored response goes on from, then this request's input.
Result<void> prepend_previous(const HttpRequest& http, api::ResponsesRequest& request,
                              Context& context) {
  if (!request.previous_response_id) return {};
  const std::string& id = *request.previous_response_id;
  const auto previous = context.responses() ? context.responses()->find(id, http.tenant)
                                            : std::optional<StoredResponse>();
  if (!previous)
    return Error{Code::not_found, fmt::format("Response with id '{}' not found.", printable(id)),
                 "previous_response_id"};
  if (!previous->conversation)
    return invalid("previous_response_id",
                   fmt::format("Response '{}' has not been completed.", printable(id)));
  request.messages.insert(request.messages.begin(), previous->conversation->begin(),
                          previous->conversation->end());
  return {};
}

// What the reply repeats, with what was decided here in place of what was left out.
Json echoed(const api::ResponsesRequest& request, const engine::SamplingParams& params) {
  Json out = request.echoed;
  if (!request.instructions.empty()) out["instructions"] = request.instructions;
  if (request.max_output_tokens) out["max_output_tokens"] = *request.max_output_tokens;
  if (request.previous_response_id) out["previous_response_id"] = *request.previous_response_id;
  out["parallel_tool_calls"] = request.parallel_tool_calls;
  out["temperature"] = params.temperature;
  out["top_p"] = params.top_p;
  out["top_logprobs"] = request.top_logprobs;
  return out;
}

Result<Plan> make_response_plan(const HttpRequest& http, api::ResponsesRequest& request,
                                Context& context) {
  if (request.background && !context.responses())
    return invalid("background",
                   "This server does not keep responses (`store=True`) and therefore does not "
                   "support the background mode. To enable these features, set the environment "
                   "variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the server.");
  for (const std::string& syntax : request.told_only)
    context.say_once("a custom tool's format is told to the model and not enforced, as it is in '" +
                     printable(syntax, 40) + "'; 'regex' would be");
  M2_TRY_VOID(prepend_previous(http, request, context));
  std::vector<api::ChatMessage> conversation;
  if (request.store && context.responses()) conversation = request.messages;
  if (!request.instructions.empty()) {
    api::ChatMessage system;
    system.role = "system";
    system.content = request.instructions;
    request.messages.insert(request.messages.begin(), std::move(system));
  }
  // Ours alone: a client's id must not be a key.
  const api::ReplyHead head{"resp_" + random_hex(), unix_seconds(),
                            context.options().served_model_names.front()};
  M2_TRY(Plan plan,
         plan_conversation(
             http, request, head, response_call_id, context,
             [&](AnswerSetup setup, ChatAnswerSetup chat, const engine::SamplingParams& params) {
               ResponseAnswerSetup response;
               response.store = request.store ? context.responses() : nullptr;
               response.tenant = http.tenant;
               if (request.background)
                 response.events = std::make_shared<EventLog>(context.event_budget());
               response.head = {
                   setup.head.id,           setup.head.created,        setup.head.model,
                   request.background,      response.store != nullptr, request.include_encrypted,
                   echoed(request, params), request.namespaced,        request.custom};
               response.logprobs = request.logprobs;
               response.conversation = std::move(conversation);
               setup.prompt_tokens_details = true;
               return make_response_answer(std::move(setup), std::move(chat), std::move(response));
             }));
  plan.background = request.background;
  return plan;
}

// The stream of a response that failed before its first token.
std::string failed_events(const api::ResponsesRequest& request, const Error& error,
                          const Context& context) {
  api::ResponseHead head;
  head.id = "resp_" + random_hex();
  head.created_at = unix_seconds();
  head.model = context.options().served_model_names.front();
  head.background = request.background;
  head.echoed = request.echoed;
  api::ResponseState failed;
  failed.status = "failed";
  failed.error_code = "context_length_exceeded";
  failed.error_message = error.text;
  api::ResponseWriter writer(std::move(head), random_hex);
  std::string events;
  writer.begin(&events);
  writer.finish(std::move(failed), false, &events);
  return events;
}

}  // namespace

// A conversation that is too long ends a stream with response.failed, as OpenAI's API tells it: by
// that event's code Codex knows that it should compact the conversation, while a 400 ends its turn.
Planned plan_response(const HttpRequest& request, Context& context) {
  std::string events;
  const auto make_plan = [&](const HttpRequest& http, api::ResponsesRequest& asked, Context& c) {
    Result<Plan> plan = make_response_plan(http, asked, c);
    const bool is_long =
        !plan && (plan.error().param == "input_tokens" || plan.error().param == "input_text");
    if (is_long && asked.stream) events = failed_events(asked, plan.error(), c);
    return plan;
  };
  Planned planned = plan_with(request, context, api::responses_request_from_json, make_plan);
  if (!events.empty()) return RefusedInStream{std::move(events)};
  return planned;
}

}  // namespace m2::server
