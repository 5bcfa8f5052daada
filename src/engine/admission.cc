#include "engine/admission.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace m2::engine {
namespace {

bool within(float value, float low, float high) {
  return value >= low && value <= high;
}

bool known(std::span<const TokenId> ids, TokenId id_limit) {
  return std::ranges::all_of(ids, [&](TokenId id) { return id >= 0 && id < id_limit; });
}

Result<void> check_numbers(const SamplingParams& params, int32_t max_logprobs) {
  const auto bad = [](const char* name) {
    return fail(Code::invalid_argument, "{} is out of range", name);
  };
  if (!(params.temperature >= 0) || !std::isfinite(params.temperature)) return bad("temperature");
  if (!(params.top_p > 0) || params.top_p > 1) return bad("top_p");
  if (params.top_k < 0) return bad("top_k");
  if (!within(params.min_p, 0, 1)) return bad("min_p");
  if (!within(params.presence_penalty, -2, 2)) return bad("presence_penalty");
  if (!within(params.frequency_penalty, -2, 2)) return bad("frequency_penalty");
  if (!(params.repetition_penalty > 0) || !std::isfinite(params.repetition_penalty))
    return bad("repetition_penalty");
  if (params.max_tokens < 1) return bad("max_tokens");
  if (params.min_tokens < 0 || params.min_tokens > params.max_tokens) return bad("min_tokens");
  if (params.logprobs < -1 || params.logprobs > max_logprobs) return bad("logprobs");
  if (params.prompt_logprobs < -1 || params.prompt_logprobs > max_logprobs)
    return bad("prompt_logprobs");
  return {};
}

Result<void> check_ids(const Request& request, TokenId id_limit) {
  const auto bad = [&](const char* name) {
    return fail(Code::invalid_argument, "{} has a token id outside the vocabulary of {}", name,
                id_limit);
  };
  const SamplingParams& params = request.params;
  if (!known(request.prompt, id_limit)) return bad("the prompt");
  if (!known(params.stop_token_ids, id_limit)) return bad("stop_token_ids");
  if (!known(params.allowed_token_ids, id_limit)) return bad("allowed_token_ids");
  for (const auto& [id, bias] : params.logit_bias) {
    if (!known({&id, 1}, id_limit)) return bad("logit_bias");
    if (!within(bias, -100, 100))
      return fail(Code::invalid_argument, "logit_bias must be within [-100, 100]");
  }
  for (const auto& word : params.bad_words) {
    if (word.empty()) return fail(Code::invalid_argument, "bad_words has an empty sequence");
    if (!known(word, id_limit)) return bad("bad_words");
  }
  return {};
}

}  // namespace

Result<void> check_request(const Request& request, const EngineConfig& config,
                           const model::StepModel::Limits& limits) {
  const auto size = static_cast<int64_t>(request.prompt.size());
  if (size == 0) return fail(Code::invalid_argument, "The decoder prompt cannot be empty");
  if (size + 1 > limits.max_model_len)
    return fail(Code::invalid_argument,
                "The decoder prompt (length {}) plus the number of requested output tokens (at "
                "least 1) is longer than the maximum model length of {}. Make sure that "
                "`max_model_len` is no smaller than the number of text tokens (prompt + requested "
                "output tokens).",
                size, limits.max_model_len);
  const int64_t pool = limits.num_blocks * limits.block_size;
  if (size > pool)
    return fail(Code::invalid_argument,
                "The prompt has {} tokens but the KV cache holds only {}. Shorten the prompt, or "
                "give the server more memory for the KV cache.",
                size, pool);
  M2_TRY_VOID(check_ids(request, config.id_limit));
  return check_numbers(request.params, config.max_logprobs);
}

int64_t max_size_of(const Request& request, const model::StepModel::Limits& limits) {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t room =
      std::min(limits.max_model_len, limits.num_blocks * limits.block_size + 1) - prompt;
  return prompt + std::min(request.params.max_tokens, room);
}

}  // namespace m2::engine
