#include "api/small_routes.h"

#include <fmt/chrono.h>

#include "api/json_text.h"

namespace m2::api {
namespace {

Json model_permission(int64_t created) {
  return {{"id", "modelperm-m2"},
          {"object", "model_permission"},
          {"created", created},
          {"allow_create_engine", false},
          {"allow_sampling", true},
          {"allow_logprobs", true},
          {"allow_search_indices", false},
          {"allow_view", true},
          {"allow_fine_tuning", false},
          {"organization", "*"},
          {"group", nullptr},
          {"is_blocking", false}};
}

Json model_entry(const std::string& name, const std::string& root, int64_t max_model_len,
                 int64_t created) {
  Json model = {{"id", name},
                {"object", "model"},
                {"created", created},
                {"owned_by", "vllm"},
                {"root", root},
                {"parent", nullptr},
                {"max_model_len", max_model_len}};
  model["permission"] = Json::array({model_permission(created)});
  return model;
}

Json anthropic_model_entry(const std::string& name, int64_t created) {
  return {{"type", "model"},
          {"id", name},
          {"display_name", name},
          {"created_at", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(created))}};
}

}  // namespace

std::string models_json(std::span<const std::string> names, int64_t max_model_len,
                        int64_t created) {
  Json list = Json::array();
  for (const std::string& name : names)
    list.push_back(model_entry(name, names.front(), max_model_len, created));
  Json out;
  out["object"] = "list";
  out["data"] = std::move(list);
  return to_text(out);
}

std::string model_json(const std::string& name, const std::string& root, int64_t max_model_len,
                       int64_t created) {
  return to_text(model_entry(name, root, max_model_len, created));
}

std::string anthropic_models_json(std::span<const std::string> names, int64_t created) {
  Json list = Json::array();
  for (const std::string& name : names) list.push_back(anthropic_model_entry(name, created));
  return to_text(Json{{"data", std::move(list)},
                      {"has_more", false},
                      {"first_id", names.front()},
                      {"last_id", names.back()}});
}

std::string anthropic_model_json(const std::string& name, int64_t created) {
  return to_text(anthropic_model_entry(name, created));
}

namespace {

const Fields<TokenizeRequest>& tokenize_fields() {
  using Request = TokenizeRequest;
  static const Fields<Request> table =
      Fields<Request>()
          .field("model", &Request::model)
          .field("prompt", &Request::prompt)
          .field("messages",
                 [](const Json& value, Request& r) { return read_messages(value, r.messages); })
          .field("tools", [](const Json& value, Request& r) { return read_tools(value, r.tools); })
          .field("add_special_tokens", &Request::add_special_tokens)
          .field("add_generation_prompt", &Request::add_generation_prompt)
          .field("continue_final_message", &Request::continue_final_message)
          .field("chat_template", &Request::chat_template)
          .field("chat_template_kwargs", &Request::chat_template_kwargs)
          .field("return_token_strs", &Request::return_token_strs)
          .ignored({"mm_processor_kwargs"});
  return table;
}

const Fields<DetokenizeRequest>& detokenize_fields() {
  static const Fields<DetokenizeRequest> table = Fields<DetokenizeRequest>()
                                                     .field("model", &DetokenizeRequest::model)
                                                     .field("tokens", &DetokenizeRequest::tokens);
  return table;
}

}  // namespace

Json tokenize_request_schema() {
  return tokenize_fields().schema({});
}

Json detokenize_request_schema() {
  return detokenize_fields().schema({"tokens"});
}

Result<TokenizeRequest> tokenize_request_from_json(const Json& body,
                                                   std::vector<std::string>& unknown) {
  TokenizeRequest request;
  M2_TRY_VOID(tokenize_fields().read(body, request, unknown));
  if (!request.prompt && request.messages.empty())
    return Error{Code::invalid_argument, "prompt: Field required", "prompt"};
  if (request.continue_final_message && request.add_generation_prompt.value_or(false))
    return Error{Code::invalid_argument,
                 "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
                 "continue_final_message"};
  if (!request.chat_template_kwargs.is_object())
    return Error{Code::invalid_argument, "chat_template_kwargs: Input should be a valid dictionary",
                 "chat_template_kwargs"};
  return request;
}

std::string to_json(const TokenizeReply& reply) {
  std::string out = "{\"count\":";
  append_json_integer(out, static_cast<int64_t>(reply.tokens.size()));
  out += ",\"max_model_len\":";
  append_json_integer(out, reply.max_model_len);
  out += ",\"tokens\":";
  append_json_array(out, reply.tokens);
  out += ",\"token_strs\":";
  if (!reply.token_strs) return out + "null}";
  out += '[';
  for (size_t i = 0; i < reply.token_strs->size(); ++i) {
    if (i > 0) out += ',';
    append_json_string(out, (*reply.token_strs)[i]);
  }
  return out + "]}";
}

Result<DetokenizeRequest> detokenize_request_from_json(const Json& body,
                                                       std::vector<std::string>& unknown) {
  DetokenizeRequest request;
  M2_TRY_VOID(detokenize_fields().read(body, request, unknown));
  if (!body.contains("tokens"))
    return Error{Code::invalid_argument, "tokens: Field required", "tokens"};
  return request;
}

}  // namespace m2::api
