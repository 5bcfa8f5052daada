#pragma once

#include <memory>
#include <optional>

#include "api/error.h"
#include "base/metrics.h"
#include "server/context.h"
#include "server/exchange.h"

// The routes that answer without the engine (contract.md 4.1, 4.13).

namespace m2::server {

struct HandlerCall {
  std::shared_ptr<Exchange> exchange;
  IoThread& thread;
  Context& context;
  Metrics& metrics;
  const std::string& openapi;  // the router's own description
};

// The 503 of a server that cannot answer yet, or no longer: it says why.
HttpReply unready(const Context& context);
// The 429 of a server that has as many requests under way as it may; nothing if it has fewer.
std::optional<api::ApiError> refusal_if_full(const Context& context);
// Runs `make` on a worker thread, because texts may be long, and sends what it returns. Such a
// request is under way like those that generate, and refused like them: the workers are theirs too.
void reply_aside(const HandlerCall& call, HttpReply (*make)(const HttpRequest&, Context&));

void handle_health(const HandlerCall& call);
void handle_livez(const HandlerCall& call);
void handle_root(const HandlerCall& call);
void handle_version(const HandlerCall& call);
void handle_load(const HandlerCall& call);
void handle_metrics(const HandlerCall& call);
void handle_openapi(const HandlerCall& call);
void handle_docs(const HandlerCall& call);
void handle_models(const HandlerCall& call);
void handle_model(const HandlerCall& call);  // of one name, with slashes or with %2F
void handle_tokenize(const HandlerCall& call);
void handle_detokenize(const HandlerCall& call);
void handle_tokenizer_info(const HandlerCall& call);
void handle_render_chat(const HandlerCall& call);
void handle_render_completion(const HandlerCall& call);

}  // namespace m2::server
