#include <utility>

#include "server/ids.h"
#include "server/plan.h"

namespace m2::server {
namespace {

Result<Plan> make_message_plan(const HttpRequest& http, const api::MessagesRequest& request,
                               Context& context) {
  const api::ReplyHead head{"msg_" + random_hex(), unix_seconds(),
                            context.options().served_model_names.front()};
  return plan_conversation(
      http, request, head, tool_use_id, context,
      [](AnswerSetup setup, ChatAnswerSetup chat, const engine::SamplingParams&) {
        setup.prompt_tokens_details = true;
        return make_message_answer(std::move(setup), std::move(chat));
      });
}

}  // namespace

Planned plan_message(const HttpRequest& request, Context& context) {
  const auto parse = [](const Json& body, std::vector<std::string>& unknown) {
    return api::messages_request_from_json(body, api::MessagesUse::create, unknown);
  };
  Planned planned = plan_with(request, context, parse, make_message_plan);
  // Words by which Claude Code knows that it should compact the conversation. It asks for 32,000
  // tokens with any prompt: only a prompt without room for one is too long.
  if (auto* error = std::get_if<api::ApiError>(&planned);
      error && (error->param == "input_tokens" || error->param == "input_text"))
    error->message = "prompt is too long: " + error->message;
  return planned;
}

}  // namespace m2::server
