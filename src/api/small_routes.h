#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "api/openai_chat.h"

// /v1/models, /tokenize, /detokenize, /version (contract.md 4.13).

namespace m2::api {

// `created` in seconds; every name has the first as its root.
std::string models_json(std::span<const std::string> names, int64_t max_model_len, int64_t created);
std::string model_json(const std::string& name, const std::string& root, int64_t max_model_len,
                       int64_t created);
// The same as Anthropic's clients read them.
std::string anthropic_models_json(std::span<const std::string> names, int64_t created);
std::string anthropic_model_json(const std::string& name, int64_t created);

struct TokenizeRequest {
  std::optional<std::string> model;
  std::optional<std::string> prompt;  // or:
  std::vector<ChatMessage> messages;
  Json tools = Json::array();
  std::optional<bool> add_special_tokens;
  std::optional<bool> add_generation_prompt;
  bool continue_final_message = false;
  std::optional<std::string> chat_template;
  Json chat_template_kwargs = Json::object();
  bool return_token_strs = false;
};
Result<TokenizeRequest> tokenize_request_from_json(const Json& body,
                                                   std::vector<std::string>& unknown);

struct TokenizeReply {
  int64_t max_model_len = 0;
  std::vector<int32_t> tokens;
  std::optional<std::vector<std::string>> token_strs;
};
std::string to_json(const TokenizeReply& reply);

struct DetokenizeRequest {
  std::optional<std::string> model;
  std::vector<int64_t> tokens;
};
Result<DetokenizeRequest> detokenize_request_from_json(const Json& body,
                                                       std::vector<std::string>& unknown);

// What the two read, for /openapi.json.
Json tokenize_request_schema();
Json detokenize_request_schema();

}  // namespace m2::api
