#include "server/chat_handlers.h"

#include <utility>

#include "base/log.h"
#include "server/completion.h"
#include "server/plan.h"

namespace m2::server {
namespace {

HttpReply json_reply(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  return reply;
}

// The {id} of /v1/responses/{id}, whatever follows it.
std::string response_id(const std::string& path) {
  constexpr std::string_view kRoot = "/v1/responses/";
  return path.substr(kRoot.size(), path.find('/', kRoot.size()) - kRoot.size());
}

HttpReply no_such_response(const std::string& id) {
  return error_reply({404, "invalid_request_error",
                      fmt::format("Response with id '{}' not found.", printable(id)),
                      "response_id"});
}

std::optional<StoredResponse> find_response(const HandlerCall& call, const std::string& id) {
  ResponseStore* store = call.context.responses();
  return store ? store->find(id) : std::nullopt;
}

HttpReply deleted(const HandlerCall& call, const std::string& id) {
  const auto found = find_response(call, id);
  if (!found || !call.context.responses()->erase(id)) return no_such_response(id);
  if (found->running && found->cancel) found->cancel();
  return json_reply(to_text(Json{{"id", id}, {"object", "response"}, {"deleted", true}}));
}

HttpReply cancelled(const HandlerCall& call, const std::string& id) {
  auto found = find_response(call, id);
  if (!found) return no_such_response(id);
  if (!found->background)
    return error_reply(
        {400, "invalid_request_error", "Cannot cancel a synchronous response.", "response_id"});
  if (!found->running) return json_reply(found->json);
  if (found->cancel) found->cancel();
  auto response = parse_json(found->json);
  if (response) {
    (*response)["status"] = "cancelled";
    found->json = to_text(*response);
  }
  found->running = false;
  found->cancel = nullptr;
  call.context.responses()->put(id, *found);
  return json_reply(found->json);
}

HttpReply count_tokens(const HttpRequest& http, Context& context) {
  auto body = json_body(http, context.limits());
  if (!body) return error_reply(api::validation_error(body.error()));
  std::vector<std::string> unknown;
  const auto request =
      api::messages_request_from_json(*body, api::MessagesUse::count_tokens, unknown);
  if (!request) return error_reply(api::validation_error(request.error()));
  context.note_unknown_fields(unknown);
  if (auto served = check_model(request->model, context.options()); !served)
    return error_reply(request_error(served.error()));
  const auto prompt = prompt_of(*request, context);
  if (!prompt) return error_reply(request_error(prompt.error()));
  return json_reply(api::count_tokens_json(static_cast<int64_t>(prompt->ids.size())));
}

}  // namespace

void handle_response(const HandlerCall& call) {
  const HttpRequest& request = call.exchange->request();
  const std::string id = response_id(request.path);
  if (request.method == "DELETE") return call.exchange->send(deleted(call, id));
  if (("&" + request.query + "&").find("&stream=true&") != std::string::npos)
    return call.exchange->send(
        error_reply({400, "invalid_request_error",
                     "a stored response is not streamed: retrieve it whole", "stream"}));
  const auto found = find_response(call, id);
  call.exchange->send(found ? json_reply(found->json) : no_such_response(id));
}

void handle_cancel_response(const HandlerCall& call) {
  call.exchange->send(cancelled(call, response_id(call.exchange->request().path)));
}

void handle_count_tokens(const HandlerCall& call) {
  if (!call.context.services())
    return call.exchange->send(error_reply({503,
                                            "ServiceUnavailableError",
                                            "the model is not ready: " + call.context.progress(),
                                            {}}));
  auto reply = std::make_shared<HttpReply>();
  call.thread.run_aside(
      [reply, exchange = call.exchange, &context = call.context] {
        *reply = count_tokens(exchange->request(), context);
      },
      [reply, exchange = call.exchange] { exchange->send(std::move(*reply)); });
}

}  // namespace m2::server
