#include "server/router.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "api/anthropic_messages.h"
#include "api/openai_chat.h"
#include "api/openai_completions.h"
#include "api/openai_responses.h"
#include "api/small_routes.h"
#include "base/log.h"
#include "server/chat_handlers.h"
#include "server/completion.h"
#include "server/cors.h"
#include "server/message_exchange.h"
#include "server/openapi.h"
#include "server/small_handlers.h"

namespace m2::server {

struct Router::Route {
  std::string_view path;     // one segment may be {id}, which stands for any; {model}: any rest
  std::string_view methods;  // separated by blanks
  void (*handle)(const HandlerCall&) = nullptr;
  Completion::MakePlan make_plan = nullptr;  // generating routes, instead of `handle`
  bool counted = true;                       // in the HTTP metrics
  Json (*body)() = nullptr;                  // schema of the request's body, for /openapi.json
  std::string_view query = {};               // of GET: as in RouteDescription
};

struct Router::Series {
  const Route* route;                  // null: no such route
  std::array<Counter*, 3> requests{};  // 2xx, 4xx, 5xx
  Histogram *duration = nullptr, *request_bytes = nullptr, *reply_bytes = nullptr;
};

namespace {

using Hash = std::array<unsigned char, 32>;

Hash hash_of(std::string_view text) {
  Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash.data());
  return hash;
}

bool has_method(std::string_view methods, std::string_view method) {
  if (method.empty() || method.find(' ') != std::string_view::npos) return false;
  for (size_t at = methods.find(method); at != std::string_view::npos;
       at = methods.find(method, at + 1)) {
    const size_t end = at + method.size();
    const bool whole =
        (at == 0 || methods[at - 1] == ' ') && (end == methods.size() || methods[end] == ' ');
    if (whole) return true;
  }
  return false;
}

// Whether `root` stands at the head of `path`, whole.
bool is_root_path_of(std::string_view root, std::string_view path) {
  return !root.empty() && path.starts_with(root) &&
         (path.size() == root.size() || path[root.size()] == '/');
}

// The key of an Authorization header; empty if it carries none.
std::string_view bearer_key(std::string_view header) {
  constexpr std::string_view kScheme = "bearer ";
  const bool is_bearer =
      header.size() > kScheme.size() &&
      std::equal(kScheme.begin(), kScheme.end(), header.begin(), [](char lower, char c) {
        return (c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c) == lower;
      });
  return is_bearer ? header.substr(kScheme.size()) : std::string_view();
}

// Whether `path` is the route's, `pattern`.
bool matches(std::string_view pattern, std::string_view path) {
  constexpr std::string_view kId = "{id}";
  constexpr std::string_view kModel = "{model}";  // names of models have slashes
  if (pattern.ends_with(kModel)) {
    const std::string_view head = pattern.substr(0, pattern.size() - kModel.size());
    return path.size() > head.size() && path.starts_with(head);
  }
  const size_t id = pattern.find(kId);
  if (id == std::string_view::npos) return pattern == path;
  const std::string_view tail = pattern.substr(id + kId.size());
  if (path.size() <= id + tail.size() || !path.starts_with(pattern.substr(0, id)) ||
      !path.ends_with(tail))
    return false;
  return path.substr(id, path.size() - id - tail.size()).find('/') == std::string_view::npos;
}

HttpReply unauthorized() {
  HttpReply reply;
  reply.status = 401;
  reply.body = R"({"error":"Unauthorized"})";
  reply.error = api::http_error(401, "Unauthorized");
  return reply;
}

// Whether a path is open only to those with a key, if there are keys.
bool needs_key(std::string_view path) {
  return path.starts_with("/v1") || path == "/invocations";
}

// What chats, or what completes.
Json invocation_schema() {
  Json out = api::chat_request_schema();
  const Json completion = api::completion_request_schema();
  for (const auto& [name, field] : completion["properties"].items())
    if (!out["properties"].contains(name)) out["properties"][name] = field;
  out["required"] = Json::array();
  return out;
}

// "GET, HEAD" of "GET HEAD".
std::string comma_separated(std::string_view methods) {
  std::string out(methods);
  for (size_t at = 0; (at = out.find(' ', at)) != std::string::npos; at += 2)
    out.replace(at, 1, ", ");
  return out;
}

HttpReply wrong_method(std::string_view methods) {
  HttpReply reply = error_reply(api::http_error(405, "Method Not Allowed"));
  reply.headers.emplace_back("allow", comma_separated(methods));
  return reply;
}

}  // namespace

Router::Router(Context& context, Metrics& metrics) : context_(context), metrics_(metrics) {
  for (const std::string& key : context.options().api_keys) key_hashes_.push_back(hash_of(key));
  // Every route there is. Paths under /v1 and /invocations need a key if keys are set; the
  // others are open, as contract.md 4.2 has it.
  routes_ = {
      {"/v1/chat/completions", "POST", nullptr, plan_chat, true, api::chat_request_schema},
      {"/v1/completions", "POST", nullptr, plan_completion, true, api::completion_request_schema},
      {"/invocations", "POST", nullptr, plan_invocation, true, invocation_schema},
      {"/v1/chat/completions/render", "POST", handle_render_chat, nullptr, true,
       api::chat_request_schema},
      {"/v1/completions/render", "POST", handle_render_completion, nullptr, true,
       api::completion_request_schema},
      {"/v1/responses", "POST", nullptr, plan_response, true, api::responses_request_schema},
      {"/v1/responses/{id}", "GET HEAD DELETE", handle_response, nullptr, true, nullptr,
       "stream:boolean starting_after:integer"},
      {"/v1/responses/{id}/cancel", "POST", handle_cancel_response},
      {"/v1/messages", "POST", nullptr, plan_message, true, api::messages_request_schema},
      {"/v1/messages/count_tokens", "POST", handle_count_tokens, nullptr, true,
       api::messages_request_schema},
      {"/v1/models", "GET HEAD", handle_models},
      {"/v1/models/{model}", "GET HEAD", handle_model},
      {"/tokenize", "POST", handle_tokenize, nullptr, true, api::tokenize_request_schema},
      {"/detokenize", "POST", handle_detokenize, nullptr, true, api::detokenize_request_schema},
      {"/tokenizer_info", "GET HEAD", handle_tokenizer_info},
      {"/health", "GET HEAD", handle_health, nullptr, false},
      {"/readyz", "GET HEAD", handle_health, nullptr, false},
      {"/livez", "GET HEAD", handle_livez, nullptr, false},
      {"/ping", "GET HEAD POST", handle_health, nullptr, false},
      {"/version", "GET HEAD", handle_version, nullptr, false},
      {"/load", "GET HEAD", handle_load, nullptr, false},
      {"/metrics", "GET HEAD", handle_metrics, nullptr, false},
      {"/openapi.json", "GET HEAD", handle_openapi, nullptr, false},
      {"/docs", "GET HEAD", handle_docs, nullptr, false},
      {"/redoc", "GET HEAD", handle_docs, nullptr, false},
      {"/", "GET HEAD", handle_root, nullptr, false},
  };
  if (!context.options().openapi)
    std::erase_if(routes_, [](const Route& route) {
      return route.handle == handle_openapi || route.handle == handle_docs;
    });
  describe_routes();
  context.set_choices_metric(
      &metrics.histogram("vllm:request_params_n", "Choices asked for of each prompt.",
                         fmt::format("model_name=\"{}\",engine=\"{}\"",
                                     label_value(context.options().served_model_names.front()),
                                     context.options().first_engine),
                         {1, 2, 5, 10, 20}));
  add_series(nullptr, "other");
  for (const Route& route : routes_)
    if (route.counted) add_series(&route, route.methods.substr(0, route.methods.find(' ')));
}

Router::~Router() = default;

std::vector<std::string> Router::route_lines() const {
  std::vector<std::string> out;
  for (const Route& route : routes_)
    out.push_back(fmt::format("{}, Methods: {}", route.path, comma_separated(route.methods)));
  return out;
}

void Router::describe_routes() {
  std::vector<RouteDescription> rows;
  for (const Route& route : routes_)
    rows.push_back({route.path, route.methods, route.body,
                    !key_hashes_.empty() && needs_key(route.path), route.query});
  openapi_ = openapi_text(rows, context_.options().version);
}

const Router::Route* Router::find(std::string_view path) const {
  const auto route = std::find_if(routes_.begin(), routes_.end(),
                                  [&](const Route& r) { return matches(r.path, path); });
  return route == routes_.end() ? nullptr : &*route;
}

// Compares hashes of equal length in constant time, and every key, so that timing tells nothing.
bool Router::authorize(HttpRequest& request) const {
  if (key_hashes_.empty() || !needs_key(request.path)) return true;
  std::string_view key = bearer_key(request.authorization);
  if (key.empty()) key = request.api_key;  // the header of Anthropic's clients
  if (key.empty()) return false;
  const Hash sent = hash_of(key);
  size_t found = key_hashes_.size();
  for (size_t i = 0; i < key_hashes_.size(); ++i)
    if (CRYPTO_memcmp(key_hashes_[i].data(), sent.data(), sent.size()) == 0) found = i;
  if (found == key_hashes_.size()) return false;
  if (key_hashes_.size() > 1 && context_.options().isolate_api_keys)
    request.tenant = fmt::format("key{}", found);
  return true;
}

void Router::handle(std::shared_ptr<Exchange> exchange, IoThread& thread) {
  HttpRequest& request = exchange->request();
  const ServerOptions& options = context_.options();
  request.reply_headers = cors_headers(options.cors, request);
  if (options.enable_request_id_headers && !request.request_id.empty())
    request.reply_headers.emplace_back("x-request-id", request.request_id);
  if (is_root_path_of(options.root_path, request.path))
    request.path.erase(0, options.root_path.size());
  // A slash at the end, which vLLM's front end answers by a redirect to the path without it.
  if (request.path.size() > 1 && request.path.ends_with('/')) request.path.pop_back();
  if (request.method == "OPTIONS") return exchange->send(cors_preflight(options.cors, request));
  if (speaks_anthropic(request.path)) exchange = message_exchange(std::move(exchange));
  if (!authorize(request)) return exchange->send(unauthorized());
  const Route* route = find(request.path);
  if (!route) return exchange->send(error_reply(api::http_error(404, "Not Found")));
  if (!has_method(route->methods, request.method))
    return exchange->send(wrong_method(route->methods));
  if (!route->make_plan) return route->handle({exchange, thread, context_, metrics_, openapi_});
  if (auto refusal = overload()) return exchange->send(error_reply(*refusal));
  Completion::serve(std::move(exchange), thread, context_, route->make_plan);
}

// Why no further generating request is taken now, decided before any work is spent on it.
std::optional<api::ApiError> Router::overload() const {
  const auto unavailable = [](std::string why) {
    return api::ApiError{503, "ServiceUnavailableError", std::move(why), {}};
  };
  if (context_.draining()) return unavailable("the server is shutting down");
  if (!context_.services()) return unavailable("the model is not ready: " + context_.progress());
  if (context_.services()->engine->stats().dead) return unavailable("the engine has stopped");
  return refusal_if_full(context_);
}

// ---- counting

void Router::add_series(const Route* route, std::string_view method) {
  auto series = std::make_unique<Series>();
  series->route = route;
  const std::string labels =
      fmt::format("handler=\"{}\",method=\"{}\"", route ? route->path : "none", method);
  const char* statuses[] = {"2xx", "4xx", "5xx"};
  for (size_t i = 0; i < 3; ++i)
    series->requests[i] = &metrics_.counter(
        "http_requests_total", "Total number of requests by method, status and handler.",
        fmt::format("{},status=\"{}\"", labels, statuses[i]));
  series->duration = &metrics_.histogram("http_request_duration_seconds",
                                         "Seconds from a request's arrival to its answer's end.",
                                         labels, {0.01, 0.1, 0.5, 1, 5, 10, 60, 300});
  const std::vector<double> sizes = {100, 1e3, 1e4, 1e5, 1e6, 1e7};
  series->request_bytes =
      &metrics_.histogram("http_request_size_bytes", "Bytes of request bodies.", labels, sizes);
  series->reply_bytes =
      &metrics_.histogram("http_response_size_bytes", "Bytes of reply bodies.", labels, sizes);
  series_.push_back(std::move(series));
}

void Router::on_answered(const HttpRequest& request, int status, double seconds) {
  const Route* route = find(request.path);
  if (!route || route->counted) {
    const auto series = std::find_if(series_.begin(), series_.end(),
                                     [&](const auto& s) { return s->route == route; });
    const size_t status_class = status < 400 ? 0 : status < 500 ? 1 : 2;
    (*series)->requests[status_class]->add();
    (*series)->duration->observe(seconds);
    (*series)->request_bytes->observe(static_cast<double>(request.body_bytes));
    (*series)->reply_bytes->observe(static_cast<double>(request.reply_bytes));
  }
  const auto& unlogged = context_.options().unlogged_paths;
  if (context_.options().access_log &&
      std::find(unlogged.begin(), unlogged.end(), request.path) == unlogged.end())
    log_info("{} - \"{} {}\" {} {:.1f} ms", request.peer, printable(request.method, 20),
             printable(request.path), status, seconds * 1e3);
}

}  // namespace m2::server
