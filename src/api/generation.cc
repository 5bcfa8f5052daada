#include "api/generation.h"

namespace m2::api {

Result<void> read_value(const Json& value, StreamOptions& out) {
  if (!value.is_object()) return fail(Code::invalid_argument, "Input should be a valid dictionary");
  static const Fields<StreamOptions> fields =
      Fields<StreamOptions>()
          .field("include_usage", &StreamOptions::include_usage)
          .field("continuous_usage_stats", &StreamOptions::continuous_usage_stats);
  std::vector<std::string> unknown;
  return fields.read(value, out, unknown);
}

Json schema_of(const StreamOptions*) {
  const Json boolean = {{"type", "boolean"}};
  return {{"type", "object"},
          {"properties", {{"include_usage", boolean}, {"continuous_usage_stats", boolean}}}};
}

Result<void> read_truncation_side(const Json& value, bool& at_end) {
  if (value != "left" && value != "right")
    return fail(Code::invalid_argument, "Input should be 'left' or 'right'");
  at_end = value == "right";
  return {};
}

Result<void> read_one_or_many(const Json& value, std::vector<std::string>& out) {
  if (value.is_array()) return read_value(value, out);
  out.clear();
  return read_value(value, out.emplace_back());
}

Result<void> read_logit_bias(const Json& value, std::vector<std::pair<std::string, double>>& out) {
  if (!value.is_object()) return fail(Code::invalid_argument, "Input should be a valid dictionary");
  out.clear();
  for (const auto& [id, bias] : value.items()) {
    out.emplace_back(id, 0.0);
    M2_TRY_VOID(read_value(bias, out.back().second));
  }
  return {};
}

Result<void> check_generation_fields(const GenerationFields& fields) {
  if (fields.stream_options && !fields.stream)
    return invalid("stream_options", "Stream options can only be defined when `stream=True`.");
  if (fields.prompt_logprobs) {
    if (fields.stream && (*fields.prompt_logprobs > 0 || *fields.prompt_logprobs == -1))
      return invalid("prompt_logprobs", "`prompt_logprobs` are not available when `stream=True`.");
    if (*fields.prompt_logprobs < -1)
      return invalid("prompt_logprobs", "`prompt_logprobs` must be a positive value or -1.");
  }
  if (fields.thinking_token_budget && *fields.thinking_token_budget < -1)
    return invalid("thinking_token_budget",
                   fmt::format("thinking_token_budget must be a non-negative integer, or -1 for "
                               "no bound, got {}.",
                               *fields.thinking_token_budget));
  if (fields.stream_interval && *fields.stream_interval < 1)
    return invalid("stream_interval", fmt::format("stream_interval must be at least 1, got {}.",
                                                  *fields.stream_interval));
  if (fields.cache_salt && fields.cache_salt->empty())
    return invalid("cache_salt", "Parameter 'cache_salt' must be a non-empty string if provided.");
  return {};
}

}  // namespace m2::api
