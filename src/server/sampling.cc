#include "server/sampling.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "api/fields.h"

namespace m2::server {
namespace {

using engine::SamplingParams;
using engine::TokenId;

using api::invalid;

// A float as Python prints it: the texts below are compared by clients.
std::string python_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

// Beyond this a float in the sampler would overflow or lose all meaning.
constexpr double kLargest = 1e6;

Result<void> check_temperature(double value) {
  if (value < 0)
    return invalid("temperature",
                   fmt::format("temperature must be non-negative, got {}.", python_number(value)));
  if (value > kLargest)
    return invalid("temperature", fmt::format("temperature must be at most {}, got {}.",
                                              python_number(kLargest), python_number(value)));
  return {};
}

Result<void> check_penalties(double presence, double frequency, double repetition) {
  if (presence < -2 || presence > 2)
    return invalid("presence_penalty", fmt::format("presence_penalty must be in [-2, 2], got {}.",
                                                   python_number(presence)));
  if (frequency < -2 || frequency > 2)
    return invalid("frequency_penalty", fmt::format("frequency_penalty must be in [-2, 2], got {}.",
                                                    python_number(frequency)));
  if (repetition <= 0)
    return invalid("repetition_penalty",
                   fmt::format("repetition_penalty must be greater than zero, got {}.",
                               python_number(repetition)));
  if (repetition > kLargest || repetition < 1 / kLargest)
    return invalid("repetition_penalty",
                   fmt::format("repetition_penalty must be in [1e-06, 1000000.0], got {}.",
                               python_number(repetition)));
  return {};
}

Result<void> check_filters(double top_p, int64_t top_k, double min_p) {
  if (!(top_p > 0 && top_p <= 1))
    return invalid("top_p", fmt::format("top_p must be in (0, 1], got {}.", python_number(top_p)));
  if (top_k < -1)
    return invalid("top_k",
                   fmt::format("top_k must be 0 (disable), or at least 1, got {}.", top_k));
  if (min_p < 0 || min_p > 1)
    return invalid("min_p", fmt::format("min_p must be in [0, 1], got {}.", python_number(min_p)));
  return {};
}

// Fills the numbers that shape the distribution, the model's defaults where nothing was sent.
Result<void> fill_distribution(const api::GenerationFields& fields,
                               const GenerationDefaults& defaults, SamplingParams& out) {
  double temperature = fields.temperature.value_or(defaults.temperature.value_or(1));
  double top_p = fields.top_p.value_or(defaults.top_p.value_or(1));
  int64_t top_k = fields.top_k.value_or(defaults.top_k.value_or(0));
  double min_p = fields.min_p.value_or(defaults.min_p.value_or(0));
  const double repetition =
      fields.repetition_penalty.value_or(defaults.repetition_penalty.value_or(1));
  M2_TRY_VOID(check_penalties(fields.presence_penalty, fields.frequency_penalty, repetition));
  M2_TRY_VOID(check_temperature(temperature));
  M2_TRY_VOID(check_filters(top_p, top_k, min_p));

  constexpr double kCoolest = 0.01, kGreedy = 1e-5;
  if (temperature > 0) temperature = std::max(temperature, kCoolest);
  if (temperature < kGreedy) {
    top_p = 1;
    top_k = 0;
    min_p = 0;
    if (fields.n > 1)
      return invalid("n", fmt::format("n must be 1 when using greedy sampling, got {}.", fields.n));
  }
  out.temperature = static_cast<float>(temperature);
  out.top_p = std::max(static_cast<float>(top_p), 1e-10f);
  out.top_k = static_cast<int32_t>(std::clamp<int64_t>(top_k, 0, INT32_MAX));
  out.min_p = static_cast<float>(min_p);
  out.presence_penalty = static_cast<float>(fields.presence_penalty);
  out.frequency_penalty = static_cast<float>(fields.frequency_penalty);
  out.repetition_penalty = static_cast<float>(repetition);
  if (fields.seed && *fields.seed != -1) out.seed = static_cast<uint64_t>(*fields.seed);
  return {};
}

Result<void> check_count(std::string_view param, size_t count, int64_t limit) {
  if (static_cast<int64_t>(count) <= limit) return {};
  return invalid(param,
                 fmt::format("{} has {} entries, at most {} are allowed.", param, count, limit));
}

Result<void> fill_logit_bias(const api::GenerationFields& fields, const Limits& limits,
                             const ModelServices& model, SamplingParams& out) {
  M2_TRY_VOID(check_count("logit_bias", fields.logit_bias.size(), limits.max_token_ids));
  for (const auto& [text, bias] : fields.logit_bias) {
    int64_t id = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (error != std::errc() || end != text.data() + text.size())
      return invalid("logit_bias",
                     fmt::format("Found token_id `{}` in logit_bias but token_id must be an "
                                 "integer or string representing an integer",
                                 text.substr(0, 40)));
    if (id < 0 || id >= model.vocab_size)
      return invalid("logit_bias",
                     fmt::format("token_id(s) [{}] in logit_bias contain out-of-vocab "
                                 "token ids. Vocabulary size: {}",
                                 id, model.vocab_size));
    out.logit_bias.emplace_back(static_cast<TokenId>(id),
                                static_cast<float>(std::clamp(bias, -100.0, 100.0)));
  }
  return {};
}

Result<void> fill_allowed_ids(const api::GenerationFields& fields, const Limits& limits,
                              const ModelServices& model, SamplingParams& out) {
  if (!fields.allowed_token_ids) return {};
  if (fields.allowed_token_ids->empty())
    return invalid("allowed_token_ids", "allowed_token_ids is not None and empty!");
  M2_TRY_VOID(
      check_count("allowed_token_ids", fields.allowed_token_ids->size(), limits.max_token_ids));
  for (const int64_t id : *fields.allowed_token_ids) {
    if (id < 0 || id >= model.tokenizer->id_limit())
      return invalid("allowed_token_ids", "allowed_token_ids contains out-of-vocab token id!");
    out.allowed_token_ids.push_back(static_cast<TokenId>(id));
  }
  return {};
}

Result<void> fill_stop_ids(const api::GenerationFields& fields, const Limits& limits,
                           const ModelServices& model, SamplingParams& out) {
  M2_TRY_VOID(check_count("stop_token_ids", fields.stop_token_ids.size(), limits.max_token_ids));
  auto ids = checked_ids(fields.stop_token_ids, model);
  if (!ids) return invalid("stop_token_ids", ids.error().text);
  out.stop_token_ids = std::move(*ids);
  return {};
}

// A word is forbidden both where a text begins and after a space, as far as the latter is one more
// token of the same length (as vLLM decides it).
Result<void> fill_bad_words(const api::GenerationFields& fields, const Limits& limits,
                            const text::Tokenizer& tokenizer, SamplingParams& out) {
  M2_TRY_VOID(check_count("bad_words", fields.bad_words.size(), limits.max_bad_words));
  for (const std::string& word : fields.bad_words) {
    const size_t begin = std::min(word.find_first_not_of(" \t\n\r\f\v"), word.size());
    const std::string bare = word.substr(begin);
    if (bare.empty()) return invalid("bad_words", "bad_words cannot contain an empty string.");
    if (bare.size() > limits.max_bad_word_bytes)
      return invalid("bad_words", fmt::format("a bad word has {} bytes, at most {} are allowed.",
                                              bare.size(), limits.max_bad_word_bytes));
    auto plain = tokenizer.encode(bare, text::AddedTokens::none);
    auto spaced = tokenizer.encode(" " + bare, text::AddedTokens::none);
    if (plain.empty()) continue;
    const bool is_other = spaced.size() == plain.size() && spaced.front() != plain.front();
    out.bad_words.push_back(std::move(plain));
    if (is_other) out.bad_words.push_back(std::move(spaced));
  }
  return {};
}

// Whether some allowed token can always be chosen: not if min_tokens masks all that end the text,
// or bad_words forbids the rest.
Result<void> check_choice_remains(const SamplingParams& params, const ModelServices& model) {
  if (params.allowed_token_ids.empty()) return {};
  const auto masked = [&](TokenId id) {
    const bool ends = std::ranges::count(model.eos_token_ids, id) > 0 ||
                      std::ranges::count(params.stop_token_ids, id) > 0;
    const bool forbidden =
        std::any_of(params.bad_words.begin(), params.bad_words.end(),
                    [&](const auto& word) { return word.size() == 1 && word[0] == id; });
    return forbidden || (ends && params.min_tokens > 0);
  };
  if (!std::all_of(params.allowed_token_ids.begin(), params.allowed_token_ids.end(), masked))
    return {};
  return invalid("allowed_token_ids",
                 "allowed_token_ids holds only tokens that min_tokens or bad_words forbid.");
}

Result<int32_t> logprob_count(std::string_view param, const char* kind,
                              const std::optional<int64_t>& wanted, const ServerOptions& options,
                              const ModelServices& model) {
  if (!wanted) return -1;
  if (*wanted < -1)
    return invalid(param, fmt::format("{} must be non-negative or -1, got {}.", param, *wanted));
  const int64_t count = *wanted == -1 ? model.vocab_size : *wanted;
  if (count > options.max_logprobs)
    return invalid(param, fmt::format("Requested {} logprobs of {}, which is greater than max "
                                      "allowed: {}",
                                      kind, count, options.max_logprobs));
  return static_cast<int32_t>(count);
}

Result<void> check_stop_strings(const api::GenerationFields& fields, const Limits& limits) {
  if (fields.stop.size() > limits.max_stop_strings)
    return invalid("stop", fmt::format("stop has {} strings, at most {} are allowed.",
                                       fields.stop.size(), limits.max_stop_strings));
  for (const std::string& stop : fields.stop) {
    if (stop.empty()) return invalid("stop", "stop cannot contain an empty string.");
    if (stop.size() > limits.max_stop_bytes)
      return invalid("stop", fmt::format("a stop string has {} bytes, at most {} are allowed.",
                                         stop.size(), limits.max_stop_bytes));
  }
  return {};
}

bool is_salt(const std::string& salt) {
  return std::all_of(salt.begin(), salt.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

// What this server does not do, refused by name rather than silently left out.
Result<void> check_served(const api::GenerationFields& fields) {
  if (fields.use_beam_search) return invalid("use_beam_search", "use_beam_search is not supported");
  return {};
}

Result<void> check_counts(const api::GenerationFields& fields, const Limits& limits) {
  if (fields.n < 1) return invalid("n", fmt::format("n must be at least 1, got {}.", fields.n));
  if (fields.n > limits.max_n)
    return invalid("n", fmt::format("n must be at most {}, got {}.", limits.max_n, fields.n));
  if (fields.min_tokens < 0)
    return invalid("min_tokens", fmt::format("min_tokens must be greater than or equal to 0, got "
                                             "{}.",
                                             fields.min_tokens));
  if (fields.cache_salt &&
      (fields.cache_salt->size() > limits.max_cache_salt || !is_salt(*fields.cache_salt)))
    return invalid("cache_salt",
                   fmt::format("Parameter 'cache_salt' must be at most {} characters of "
                               "[A-Za-z0-9_-].",
                               limits.max_cache_salt));
  return {};
}

}  // namespace

Result<SamplingParams> sampling_params(const api::GenerationFields& fields,
                                       const LogprobsWanted& logprobs, const ServerOptions& options,
                                       const ModelServices& model) {
  SamplingParams out;
  const Limits& limits = options.limits;
  M2_TRY_VOID(check_served(fields));
  M2_TRY_VOID(check_counts(fields, limits));
  M2_TRY_VOID(fill_distribution(fields, options.generation_defaults, out));
  M2_TRY_VOID(check_stop_strings(fields, limits));
  M2_TRY_VOID(fill_stop_ids(fields, limits, model, out));
  M2_TRY_VOID(fill_logit_bias(fields, limits, model, out));
  M2_TRY_VOID(fill_allowed_ids(fields, limits, model, out));
  M2_TRY_VOID(fill_bad_words(fields, limits, *model.tokenizer, out));
  M2_TRY(out.logprobs, logprob_count("logprobs", "sample", logprobs.sample, options, model));
  M2_TRY(out.prompt_logprobs,
         logprob_count("prompt_logprobs", "prompt", logprobs.prompt, options, model));
  out.min_tokens = fields.min_tokens;
  out.ignore_eos = fields.ignore_eos;
  M2_TRY_VOID(check_choice_remains(out, model));
  return out;
}

Result<void> forbid_token(TokenId id, const ModelServices& model, SamplingParams& params) {
  if (id < 0) return {};
  params.bad_words.push_back({id});
  return check_choice_remains(params, model);
}

Result<void> check_asked_length(const AskedLength& asked, const ModelServices& model) {
  if (!asked.max_tokens) return {};
  if (*asked.max_tokens < 1)
    return invalid(asked.name,
                   fmt::format("max_tokens must be at least 1, got {}.", *asked.max_tokens));
  // The missing blank and the doubled name are vLLM's.
  if (asked.reserved() > model.max_model_len)
    return invalid(asked.name,
                   fmt::format("{}={}cannot be greater than max_model_len=max_total_tokens={}. "
                               "Please request fewer output tokens.",
                               asked.name, *asked.max_tokens, model.max_model_len));
  return {};
}

Result<void> check_text_length(std::span<const std::string_view> texts,
                               const api::GenerationFields& fields, const AskedLength& asked,
                               const ModelServices& model) {
  if (fields.truncate_prompt_tokens) return {};
  const int64_t context = model.max_model_len, wanted = asked.reserved();
  const int64_t most = (context - wanted) * model.max_token_bytes;
  int64_t bytes = 0, characters = 0;
  for (const std::string_view text : texts) bytes += static_cast<int64_t>(text.size());
  if (bytes <= most) return {};
  for (const std::string_view text : texts)
    characters +=
        std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
  if (characters <= most) return {};
  return invalid(
      "input_text",
      fmt::format("You passed {} input characters and requested {} output tokens. However, the "
                  "model's context length is only {} tokens, resulting in a maximum input length "
                  "of {} tokens (at most {} characters). Please reduce the length of the input "
                  "prompt.",
                  characters, wanted, context, context - wanted, most));
}

void set_thinking_budget(const api::GenerationFields& fields, const text::Tokenizer& tokenizer,
                         SamplingParams& out) {
  if (fields.thinking_token_budget.value_or(-1) < 0) return;
  for (const char* end : {"</think>", "<minimax:tool_call>"})
    if (const TokenId id = tokenizer.id_of(end); id >= 0) out.thinking_ends.push_back(id);
  out.thinking_budget = *fields.thinking_token_budget;
}

Result<void> truncate_prompt(const api::GenerationFields& fields, const AskedLength& asked,
                             const ModelServices& model, std::vector<TokenId>& prompt) {
  if (!fields.truncate_prompt_tokens) return {};
  const int64_t wanted = *fields.truncate_prompt_tokens;
  if (wanted < -1 || wanted == 0)
    return invalid(
        "truncate_prompt_tokens",
        fmt::format("truncate_prompt_tokens must be an integer >= 1 or -1, got {}", wanted));
  const int64_t room = model.max_model_len - asked.reserved();
  if (wanted > room)
    return invalid("truncate_prompt_tokens",
                   fmt::format("truncate_prompt_tokens={} cannot be greater than max_model_len - "
                               "max_tokens = {}. Please request a smaller truncation size.",
                               wanted, room));
  const auto kept = static_cast<size_t>(wanted == -1 ? room : wanted);
  if (prompt.size() <= kept) return {};
  if (fields.truncate_at_end)
    prompt.resize(kept);
  else
    prompt.erase(prompt.begin(), prompt.end() - static_cast<int64_t>(kept));
  return {};
}

Result<int64_t> output_limit(const AskedLength& asked, int64_t min_tokens, size_t prompt_tokens,
                             const ServerOptions& options, const ModelServices& model) {
  const auto length = static_cast<int64_t>(prompt_tokens);
  const int64_t context = model.max_model_len, wanted = asked.reserved();
  if (length == 0) return invalid("prompt", "The decoder prompt cannot be empty");
  if (asked.at_most && length >= context)
    return invalid("input_tokens", fmt::format("{} tokens > {} maximum", length, context - 1));
  if (length > context - wanted)
    return invalid(
        "input_tokens",
        fmt::format("You passed {} input tokens and requested {} output tokens. However, "
                    "the model's context length is only {} tokens, resulting in a "
                    "maximum input length of {} tokens. Please reduce the length of the "
                    "input prompt.",
                    length, wanted, context, context - wanted));
  if (length == context)
    return invalid("input_tokens",
                   fmt::format("The decoder prompt (length {}) plus the number of requested output "
                               "tokens (at least 1) is longer than the maximum model length of {}. "
                               "Make sure that `max_model_len` is no smaller than the number of "
                               "text tokens (prompt + requested output tokens).",
                               length, context));
  int64_t limit = std::min(context - length, asked.max_tokens.value_or(INT64_MAX));
  if (options.generation_defaults.max_new_tokens)
    limit = std::min(limit, std::max<int64_t>(1, *options.generation_defaults.max_new_tokens));
  if (min_tokens > limit)
    return invalid("min_tokens", fmt::format("min_tokens must be less than or equal to "
                                             "max_tokens={}, got {}.",
                                             limit, min_tokens));
  return limit;
}

Result<std::vector<TokenId>> checked_ids(std::span<const int64_t> ids, const ModelServices& model) {
  std::vector<TokenId> out;
  out.reserve(ids.size());
  for (const int64_t id : ids) {
    if (id < 0 || id >= model.vocab_size)
      return invalid("prompt", fmt::format("Token id {} is out of vocabulary", id));
    out.push_back(static_cast<TokenId>(id));
  }
  return out;
}

}  // namespace m2::server
