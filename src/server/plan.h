#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "api/error.h"
#include "engine/request.h"
#include "server/answer.h"
#include "server/context.h"
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
  std::vector<std::string> stop;
  bool include_stop = false;
  int64_t min_tokens = 0;
  bool skip_special_tokens = true;
};

using Planned = std::variant<Plan, api::ApiError>;

Planned plan_chat(const HttpRequest& request, Context& context);
Planned plan_completion(const HttpRequest& request, Context& context);

// The JSON of a request's body, or why it is none.
Result<Json> json_body(const HttpRequest& request, const Limits& limits);

// The error of a request that cannot be planned. A budget of a parser or of the template that it
// exceeds is its own fault, not overload.
api::ApiError request_error(Error error);

// A model's name as sent is one that is served; null and absent are.
Result<void> check_model(const std::optional<std::string>& name, const ServerOptions& options);

}  // namespace m2::server
