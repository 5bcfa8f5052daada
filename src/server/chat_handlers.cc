#include "server/chat_handlers.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "api/json_text.h"
#include "base/log.h"
#include "server/event_follower.h"
#include "server/plan.h"

namespace m2::server {
namespace {

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
  return store ? store->find(id, call.exchange->request().tenant) : std::nullopt;
}

HttpReply deleted(const HandlerCall& call, const std::string& id) {
  ResponseStore* store = call.context.responses();
  const auto found = store ? store->erase(id, call.exchange->request().tenant) : std::nullopt;
  if (!found) return no_such_response(id);
  if (found->running && found->cancel) found->cancel();
  return json_reply(to_text(Json{{"id", id}, {"object", "response"}, {"deleted", true}}));
}

// `running` as it is from now on; what it has written so far is put in its place a little later.
StoredResponse cancelled_one(const StoredResponse& running) {
  StoredResponse out = running;
  Json response = api::own_json(running.json);
  response["status"] = "cancelled";
  out.json = to_text(response);
  out.running = false;
  out.cancel = nullptr;
  return out;
}

HttpReply cancelled(const HandlerCall& call, const std::string& id) {
  auto found = find_response(call, id);
  if (!found) return no_such_response(id);
  if (!found->background)
    return error_reply(
        {400, "invalid_request_error", "Cannot cancel a synchronous response.", "response_id"});
  if (found->running) {
    const StoredResponse after = cancelled_one(*found);
    if (call.context.responses()->update_running(id, after)) {
      if (found->cancel) found->cancel();
      return json_reply(after.json);
    }
    found = find_response(call, id);  // it has ended, or gone, in this moment
    if (!found) return no_such_response(id);
  }
  return json_reply(found->json);
}

// Text of a query (WHATWG URL 5.1): '+' for a blank, %XX for a byte; any other '%' is itself.
std::string decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char byte = 0;
    const char* const digits = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

std::optional<std::string> query_value(std::string_view query, std::string_view name) {
  while (!query.empty()) {
    const std::string_view item = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(item.size() + 1, query.size()));
    const size_t equals = std::min(item.find('='), item.size());
    if (decoded(item.substr(0, equals)) == name)
      return decoded(item.substr(std::min(equals + 1, item.size())));
  }
  return std::nullopt;
}

// What the query of GET /v1/responses/{id} asks for.
struct AskedEvents {
  bool stream = false;
  size_t first = 0;  // number of the first event
};

Result<AskedEvents> asked_events(std::string_view query) {
  AskedEvents out;
  if (const auto stream = query_value(query, "stream"))
    out.stream = *stream == "true" || *stream == "True" || *stream == "1";
  const auto after = query_value(query, "starting_after");
  if (!after) return out;
  size_t number = 0;
  const auto [end, error] = std::from_chars(after->data(), after->data() + after->size(), number);
  if (error != std::errc{} || end != after->data() + after->size() || number > INT32_MAX)
    return Error{Code::invalid_argument, "starting_after should be the sequence number of an event",
                 "starting_after"};
  out.first = number + 1;
  return out;
}

api::ApiError query_error(const Error& error) {
  return {400, "invalid_request_error", error.text, error.param};
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
  const auto prompt = prompt_of(http, *request, context);
  if (!prompt) return error_reply(request_error(prompt.error()));
  return json_reply(api::count_tokens_json(static_cast<int64_t>(prompt->ids.size())));
}

}  // namespace

void handle_response(const HandlerCall& call) {
  const HttpRequest& request = call.exchange->request();
  const std::string id = response_id(request.path);
  if (request.method == "DELETE") return call.exchange->send(deleted(call, id));
  const auto found = find_response(call, id);
  if (!found) return call.exchange->send(no_such_response(id));
  const auto asked = asked_events(request.query);
  if (!asked) return call.exchange->send(error_reply(query_error(asked.error())));
  // HEAD: no events may follow, and whole answers are those that end with their head.
  if (!asked->stream || request.method == "HEAD")
    return call.exchange->send(json_reply(found->json));
  if (!found->events)
    return call.exchange->send(error_reply(
        {400, "invalid_request_error",
         "This response cannot be streamed because it was not created with background=true.",
         "stream"}));
  follow_events(call.exchange, call.thread, found->events, asked->first);
}

void handle_cancel_response(const HandlerCall& call) {
  call.exchange->send(cancelled(call, response_id(call.exchange->request().path)));
}

void handle_count_tokens(const HandlerCall& call) {
  if (!call.context.services()) return call.exchange->send(unready(call.context));
  reply_aside(call, count_tokens);
}

}  // namespace m2::server
