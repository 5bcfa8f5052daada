#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/fields.h"

namespace m2::api {

struct StreamOptions {
  bool include_usage = false;
  bool continuous_usage_stats = false;
};

// The fields all generating surfaces share (contract.md 4.3, 4.4), as sent: not given is nullopt or
// the default named there; ranges are checked by the server, which knows the model.
struct GenerationFields {
  std::optional<std::string> model;

  // Sampling.
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  double presence_penalty = 0, frequency_penalty = 0;
  std::optional<int64_t> seed;
  int64_t n = 1;
  std::vector<std::pair<std::string, double>> logit_bias;  // token id in decimal, bias
  std::optional<std::vector<int64_t>> allowed_token_ids;
  std::vector<std::string> bad_words;

  // Length and stopping.
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  bool include_stop_str_in_output = false;

  // The prompt.
  std::optional<int64_t> truncate_prompt_tokens;
  bool truncate_at_end = false;  // truncation_side "right": the prompt's beginning is kept
  std::optional<bool> add_special_tokens;
  std::optional<std::string> cache_salt;
  int64_t priority = 0;

  // The reply.
  bool stream = false;
  std::optional<StreamOptions> stream_options;
  std::optional<int64_t> prompt_logprobs;
  bool skip_special_tokens = true;
  bool echo = false;
  std::optional<bool> return_tokens_as_token_ids;
  bool return_token_ids = false;
  std::optional<int64_t> stream_interval;  // tokens a chunk of a stream
  std::optional<std::string> request_id;

  // What the output must be, as sent.
  Json response_format;     // null if not given
  Json structured_outputs;  // null if not given
  bool use_beam_search = false;

  // Most tokens of reasoning; then its end is forced. -1 and not given: no bound.
  std::optional<int64_t> thinking_token_budget;

  bool include_usage() const { return stream_options && stream_options->include_usage; }
  bool continuous_usage() const {
    return stream_options && stream_options->include_usage &&
           stream_options->continuous_usage_stats;
  }
};

Json schema_of(const StreamOptions*);

// Adds the shared fields to a schema's table.
template <class Request>
void add_generation_fields(Fields<Request>& fields);

// Conflicts that need no knowledge of the model (contract.md 4.5), worded as vLLM words them.
Result<void> check_generation_fields(const GenerationFields& fields);

Result<void> read_value(const Json& value, StreamOptions& out);
// "left" or "right".
Result<void> read_truncation_side(const Json& value, bool& at_end);
// A string or a list of strings.
Result<void> read_one_or_many(const Json& value, std::vector<std::string>& out);
// {"id": bias}, in the order given.
Result<void> read_logit_bias(const Json& value, std::vector<std::pair<std::string, double>>& out);

template <class Request>
void add_generation_fields(Fields<Request>& fields) {
  fields.field("model", &GenerationFields::model)
      .field("temperature", &GenerationFields::temperature)
      .field("top_p", &GenerationFields::top_p)
      .field("min_p", &GenerationFields::min_p)
      .field("repetition_penalty", &GenerationFields::repetition_penalty)
      .field("top_k", &GenerationFields::top_k)
      .field("presence_penalty", &GenerationFields::presence_penalty)
      .field("frequency_penalty", &GenerationFields::frequency_penalty)
      .field("seed", &GenerationFields::seed)
      .field("n", &GenerationFields::n)
      .field("logit_bias",
             [](const Json& value, Request& r) { return read_logit_bias(value, r.logit_bias); },
             {{"type", "object"}, {"additionalProperties", {{"type", "number"}}}})
      .field("allowed_token_ids", &GenerationFields::allowed_token_ids)
      .field("bad_words", &GenerationFields::bad_words)
      .field("max_tokens", &GenerationFields::max_tokens)
      .field("min_tokens", &GenerationFields::min_tokens)
      .field("ignore_eos", &GenerationFields::ignore_eos)
      .field("stop", [](const Json& value, Request& r) { return read_one_or_many(value, r.stop); },
             {{"anyOf", Json::array({{{"type", "string"}},
                                     {{"type", "array"}, {"items", {{"type", "string"}}}}})}})
      .field("stop_token_ids", &GenerationFields::stop_token_ids)
      .field("include_stop_str_in_output", &GenerationFields::include_stop_str_in_output)
      .field("truncate_prompt_tokens", &GenerationFields::truncate_prompt_tokens)
      .field("truncation_side",
             [](const Json& value, Request& r) {
               return read_truncation_side(value, r.truncate_at_end);
             },
             {{"enum", Json::array({"left", "right"})}})
      .field("thinking_token_budget", &GenerationFields::thinking_token_budget)
      .field("add_special_tokens", &GenerationFields::add_special_tokens)
      .field("cache_salt", &GenerationFields::cache_salt)
      .field("priority", &GenerationFields::priority)
      .field("stream", &GenerationFields::stream)
      .field("stream_options", &GenerationFields::stream_options)
      .field("prompt_logprobs", &GenerationFields::prompt_logprobs)
      .field("skip_special_tokens", &GenerationFields::skip_special_tokens)
      .field("echo", &GenerationFields::echo)
      .field("return_tokens_as_token_ids", &GenerationFields::return_tokens_as_token_ids)
      .field("return_token_ids", &GenerationFields::return_token_ids)
      .field("stream_interval", &GenerationFields::stream_interval)
      .field("request_id", &GenerationFields::request_id)
      .field("response_format", &GenerationFields::response_format)
      .field("structured_outputs", &GenerationFields::structured_outputs)
      .field("use_beam_search", &GenerationFields::use_beam_search)
      .ignored({"user", "metadata", "store", "service_tier", "safety_identifier",
                "prompt_cache_key", "length_penalty", "spaces_between_special_tokens", "session_id",
                "prompt_cache_retention"})
      .unserved({"best_of", "kv_transfer_params", "vllm_xargs", "logprob_token_ids",
                 "repetition_detection", "return_prompt_text"});
}

}  // namespace m2::api
