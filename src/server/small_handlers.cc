#include "server/small_handlers.h"

#include <charconv>
#include <cstring>

#include "api/small_routes.h"
#include "base/process_metrics.h"
#include "server/conversation.h"
#include "server/openapi.h"
#include "server/plan.h"
#include "server/sampling.h"

namespace m2::server {

HttpReply unready(const Context& context) {
  const ModelServices* model = context.services();
  const std::string why = !model               ? "the model is not ready: " + context.progress()
                          : context.draining() ? "the server is shutting down"
                                               : "the engine is not running";
  return error_reply({503, "ServiceUnavailableError", why, {}});
}

std::optional<api::ApiError> refusal_if_full(const Context& context) {
  if (context.under_way() < context.limits().max_requests) return std::nullopt;
  return api::ApiError{429, "rate_limit_error", "too many requests are under way: retry later", {}};
}

void reply_aside(const HandlerCall& call, HttpReply (*make)(const HttpRequest&, Context&)) {
  if (const auto refusal = refusal_if_full(call.context))
    return call.exchange->send(error_reply(*refusal));
  auto slot = std::make_shared<const Context::Slot>(call.context);
  auto reply = std::make_shared<HttpReply>();
  call.thread.run_aside(
      [reply, make, exchange = call.exchange, &context = call.context] {
        *reply = make(exchange->request(), context);
      },
      [reply, slot, exchange = call.exchange] { exchange->send(std::move(*reply)); });
}

namespace {

// "org/model" of "org%2Fmodel"; a percent sign without two hexadecimal digits stays.
std::string percent_decoded(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size(); ++at) {
    unsigned char byte = 0;
    const char* digits = text.data() + at + 1;
    if (text[at] == '%' && at + 2 < text.size() &&
        std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
      out += static_cast<char>(byte);
      at += 2;
    } else {
      out += text[at];
    }
  }
  return out;
}

// /tokenize is open to all: no turn of a key's is looked up for it.
Result<std::vector<text::TokenId>> tokens_of(const api::TokenizeRequest& request,
                                             Context& context) {
  const ModelServices& model = *context.services();
  if (request.prompt) return model.tokenizer->encode(*request.prompt, text::AddedTokens::all);
  M2_TRY(ChatPrompt prompt,
         chat_prompt({request.messages, request.tools, request.add_generation_prompt,
                      request.continue_final_message, request.chat_template,
                      request.chat_template_kwargs, Json()},
                     context.options(), model, {context.turns(), {}}));
  return std::move(prompt.ids);
}

Result<std::string> tokenize(const api::TokenizeRequest& request, Context& context) {
  const ModelServices& model = *context.services();
  M2_TRY_VOID(check_model(request.model, context.options()));
  api::TokenizeReply reply;
  M2_TRY(reply.tokens, tokens_of(request, context));
  reply.max_model_len = model.max_model_len;
  if (request.return_token_strs) {
    reply.token_strs.emplace();
    for (const text::TokenId id : reply.tokens)
      reply.token_strs->push_back(model.tokenizer->decode({&id, 1}, false));
  }
  return api::to_json(reply);
}

Result<std::string> detokenize(const api::DetokenizeRequest& request, Context& context) {
  M2_TRY_VOID(check_model(request.model, context.options()));
  const auto ids = checked_ids(request.tokens, *context.services());
  if (!ids) return api::invalid("tokens", ids.error().text);
  return to_text(Json{{"prompt", context.services()->tokenizer->decode(*ids, false)}});
}

template <class Request>
HttpReply answer_text_request(const HttpRequest& http, Context& context,
                              Result<Request> (*parse)(const Json&, std::vector<std::string>&),
                              Result<std::string> (*run)(const Request&, Context&)) {
  auto body = json_body(http, context.limits());
  if (!body) return error_reply(api::validation_error(body.error()));
  std::vector<std::string> unknown;
  const auto request = parse(*body, unknown);
  if (!request) return error_reply(api::validation_error(request.error()));
  context.note_unknown_fields(unknown);
  auto reply = run(*request, context);
  if (!reply) return error_reply(request_error(reply.error()));
  return json_reply(std::move(*reply));
}

// What a generating request would hand to the engine, one entry a prompt.
Json rendered_prompts(const Plan& plan, const text::Tokenizer& tokenizer) {
  Json prompts = Json::array();
  for (const engine::Request& request : plan.requests)
    prompts.push_back(Json{{"prompt", tokenizer.decode(request.prompt, false)},
                           {"prompt_token_ids", request.prompt},
                           {"max_tokens", request.params.max_tokens}});
  return prompts;
}

HttpReply render_completion(const HttpRequest& request, Context& context) {
  const Planned planned = plan_completion(request, context);
  if (const auto* error = std::get_if<api::ApiError>(&planned)) return error_reply(*error);
  return json_reply(
      to_text(rendered_prompts(std::get<Plan>(planned), *context.services()->tokenizer)));
}

// [the conversation as sent, [its prompt]].
HttpReply render_chat(const HttpRequest& request, Context& context) {
  const Planned planned = plan_chat(request, context);
  if (const auto* error = std::get_if<api::ApiError>(&planned)) return error_reply(*error);
  auto body = json_body(request, context.limits());
  if (!body) return error_reply(api::validation_error(body.error()));
  return json_reply(to_text(
      Json::array({(*body)["messages"],
                   rendered_prompts(std::get<Plan>(planned), *context.services()->tokenizer)})));
}

}  // namespace

void handle_health(const HandlerCall& call) {
  const bool ready = call.context.engine_alive() && !call.context.draining();
  if (!ready) return call.exchange->send(unready(call.context));
  HttpReply reply;
  reply.content_type.clear();
  call.exchange->send(std::move(reply));
}

void handle_livez(const HandlerCall& call) {
  if (call.context.engine_lost()) return call.exchange->send(unready(call.context));
  handle_root(call);
}

void handle_root(const HandlerCall& call) {
  HttpReply reply;
  reply.content_type.clear();
  call.exchange->send(std::move(reply));
}

void handle_version(const HandlerCall& call) {
  call.exchange->send(json_reply(to_text(Json{{"version", call.context.options().version}})));
}

void handle_load(const HandlerCall& call) {
  call.exchange->send(json_reply(to_text(Json{{"server_load", call.context.under_way()}})));
}

void handle_metrics(const HandlerCall& call) {
  HttpReply reply;
  reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply.body = call.metrics.render() + process_metrics();
  call.exchange->send(std::move(reply));
}

void handle_openapi(const HandlerCall& call) {
  call.exchange->send(json_reply(call.openapi));
}

void handle_docs(const HandlerCall& call) {
  HttpReply reply;
  reply.content_type = "text/html; charset=utf-8";
  reply.body = docs_page();
  call.exchange->send(std::move(reply));
}

void handle_models(const HandlerCall& call) {
  const int64_t now = unix_seconds();
  const ModelServices* model = call.context.services();
  if (!model) return call.exchange->send(unready(call.context));
  const auto& names = call.context.options().served_model_names;
  call.exchange->send(json_reply(call.exchange->request().from_anthropic_client
                                     ? api::anthropic_models_json(names, now)
                                     : api::models_json(names, model->max_model_len, now)));
}

void handle_model(const HandlerCall& call) {
  const ModelServices* model = call.context.services();
  if (!model) return call.exchange->send(unready(call.context));
  const HttpRequest& request = call.exchange->request();
  const std::string name =
      percent_decoded(std::string_view(request.path).substr(std::strlen("/v1/models/")));
  if (const auto served = check_model(name, call.context.options()); !served)
    return call.exchange->send(error_reply(request_error(served.error())));
  const auto& names = call.context.options().served_model_names;
  call.exchange->send(
      json_reply(request.from_anthropic_client
                     ? api::anthropic_model_json(name, unix_seconds())
                     : api::model_json(name, names.front(), model->max_model_len, unix_seconds())));
}

void handle_tokenize(const HandlerCall& call) {
  if (!call.context.services()) return call.exchange->send(unready(call.context));
  reply_aside(call, [](const HttpRequest& request, Context& context) {
    return answer_text_request(request, context, api::tokenize_request_from_json, tokenize);
  });
}

void handle_detokenize(const HandlerCall& call) {
  if (!call.context.services()) return call.exchange->send(unready(call.context));
  reply_aside(call, [](const HttpRequest& request, Context& context) {
    return answer_text_request(request, context, api::detokenize_request_from_json, detokenize);
  });
}

void handle_tokenizer_info(const HandlerCall& call) {
  const ModelServices* model = call.context.services();
  if (!model) return call.exchange->send(unready(call.context));
  if (!call.context.options().enable_tokenizer_info_endpoint)
    return call.exchange->send(error_reply(api::http_error(404, "Not Found")));
  Json info;
  info["tokenizer_class"] = "PreTrainedTokenizerFast";
  info["eos_token"] = model->eos_token;
  info["bos_token"] = nullptr;
  info["pad_token"] = nullptr;
  info["model_max_length"] = model->max_model_len;
  info["chat_template"] = model->chat_template_source;
  call.exchange->send(json_reply(to_text(info)));
}

void handle_render_chat(const HandlerCall& call) {
  if (!call.context.services()) return call.exchange->send(unready(call.context));
  reply_aside(call, render_chat);
}

void handle_render_completion(const HandlerCall& call) {
  if (!call.context.services()) return call.exchange->send(unready(call.context));
  reply_aside(call, render_completion);
}

}  // namespace m2::server
