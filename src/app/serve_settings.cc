#include "app/serve_settings.h"

#include <algorithm>

#include "app/device_options.h"
#include "app/environment.h"
#include "app/version.h"
#include "base/metrics.h"
#include "model/forward.h"

namespace m2::app {
namespace {

// Flags whose values this version does not model are refused, not ignored.
Result<void> refuse_unmodelled(const Values& values) {
  struct Choice {
    const char* flag;
    std::vector<std::string_view> values;
  };
  const Choice choices[] = {
      {"dtype", {"auto", "bfloat16"}},
      {"load-format", {"auto", "safetensors", "fastsafetensors", "runai_streamer", "dummy"}},
      {"quantization", {"", "fp8"}},
      {"logprobs-mode", {"raw_logprobs"}},
      {"scheduling-policy", {"fcfs", "priority"}},
      {"late-system", {"fold", "drop"}},
      {"chat-template-content-format", {"auto", "string", "openai"}},
  };
  for (const Choice& choice : choices) {
    const std::string value = values.text(choice.flag);
    if (std::find(choice.values.begin(), choice.values.end(), value) == choice.values.end())
      return fail(Code::unsupported, "--{} {} is not supported (chose from {{ {} }})", choice.flag,
                  value, fmt::join(choice.values, ","));
  }
  if (values.integer("block-size") != model::kBlockSize)
    return fail(Code::unsupported, "--block-size {}: only {} is supported",
                *values.integer("block-size"), model::kBlockSize);
  return {};
}

// Flags that size something must be positive, and not beyond what a size can be.
Result<void> check_sizes(const Values& values) {
  struct Bound {
    const char* flag;
    int64_t least, most;
  };
  constexpr Bound kBounds[] = {
      {"port", 0, 65535},
      {"optimization-level", 0, 3},
      {"io-threads", 1, 64},
      {"ssl-cert-reqs", 0, 2},
      {"keep-alive-seconds", 1, 86400},
      {"h11-max-incomplete-event-size", 1024, 16 << 20},
      {"h11-max-header-count", 1, 10000},
      {"threads", 0, 1024},
      {"master-port", 1, 65535},
      {"data-parallel-rpc-port", 1, 65535},
      {"rank-deadline-seconds", 1, 86400},
      {"rank-start-seconds", 1, 86400},
      {"drain-seconds", 0, 86400},
      {"shutdown-timeout", 0, 86400},
      {"engine-deadline-seconds", 1, 86400},
      {"live-deadline-seconds", 1, 86400},
      {"max-num-seqs", 1, 65536},
      {"max-num-batched-tokens", 1, 1 << 20},
      {"max-queued-requests", 1, 1 << 20},
      {"max-logprobs", 0, 1000},
      {"stream-interval", 1, 1 << 20},
      {"long-prefill-token-threshold", 0, 1 << 30},
      {"kv-cache-memory-bytes", 1, int64_t{1} << 50},
      {"num-gpu-blocks-override", 1, INT32_MAX / model::kBlockSize},  // slots are i32
  };
  for (const auto& [flag, least, most] : kBounds) {
    const std::optional<int64_t> value = values.integer(flag);
    if (value && (*value < least || *value > most))
      return fail(Code::invalid_argument, "--{} must be from {} to {}, got {}", flag, least, most,
                  *value);
  }
  const double share = *values.number("gpu-memory-utilization");
  if (!(share > 0 && share <= 1))
    return fail(Code::invalid_argument, "--gpu-memory-utilization must be in (0, 1], got {}",
                share);
  return {};
}

// An empty key would lock everybody out, and nobody asks for an empty name: both come of shell
// variables without a value.
Result<void> check_words(const Values& values) {
  for (const char* flag : {"api-key", "served-model-name"})
    for (const std::string& word : values.list(flag))
      if (word.empty()) return fail(Code::invalid_argument, "--{}: a value is empty", flag);
  return {};
}

// Options that mean nothing without another. A key without its certificate would even mean plain
// HTTP where HTTPS was meant.
Result<void> check_pairs(const Values& values) {
  if (values.flag("enable-log-outputs") && !values.flag("enable-log-requests"))
    return fail(Code::invalid_argument,
                "Error: --enable-log-outputs requires --enable-log-requests");
  if (!values.given("ssl-certfile"))
    for (const char* flag : {"ssl-keyfile", "ssl-ca-certs", "ssl-ciphers", "enable-ssl-refresh"})
      if (values.given(flag))
        return fail(Code::invalid_argument, "--{} needs --ssl-certfile", flag);
  return {};
}

std::vector<std::string> split_at_commas(std::string_view text) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    if (comma > 0) out.emplace_back(text.substr(0, comma));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return out;
}

}  // namespace

Result<void> check_serve_values(const Values& values) {
  M2_TRY_VOID(refuse_unmodelled(values));
  M2_TRY_VOID(check_sizes(values));
  M2_TRY_VOID(check_words(values));
  M2_TRY_VOID(check_graphs(values));
  return check_pairs(values);
}

Result<int64_t> choose_max_model_len(const Values& values, const model::ModelConfig& config) {
  const int64_t longest = config.max_position_embeddings;
  const int64_t asked = values.integer("max-model-len").value_or(-1);
  if (asked == -1) return longest;
  if (asked < 1)
    return fail(Code::invalid_argument, "--max-model-len must be at least 1, got {}", asked);
  if (asked > longest)
    return fail(Code::invalid_argument,
                "--max-model-len {} is longer than the model's max_position_embeddings {}", asked,
                longest);
  return asked;
}

Result<server::ServerOptions> server_options(const Values& values, const ModelSettings& settings) {
  server::ServerOptions out;
  out.host = values.text("host");
  out.port = static_cast<int>(*values.integer("port"));
  out.uds = values.text("uds");
  out.tls.certificate_file = values.text("ssl-certfile");
  out.tls.key_file = values.text("ssl-keyfile");
  out.tls.ca_file = values.text("ssl-ca-certs");
  out.tls.client_certificate =
      static_cast<server::TlsOptions::ClientCertificate>(*values.integer("ssl-cert-reqs"));
  out.tls.ciphers = values.text("ssl-ciphers");
  out.tls.refresh = values.flag("enable-ssl-refresh");
  out.root_path = values.text("root-path");
  while (out.root_path.ends_with('/')) out.root_path.pop_back();
  out.cors = {values.list("allowed-origins"), values.list("allowed-methods"),
              values.list("allowed-headers"), values.flag("allow-credentials")};
  out.unlogged_paths = split_at_commas(values.text("disable-access-log-for-endpoints"));
  out.openapi = !values.flag("disable-fastapi-docs");
  out.limits.keep_alive_idle = *values.integer("keep-alive-seconds") * kSecond;
  out.limits.max_header_lines = static_cast<size_t>(*values.integer("h11-max-header-count"));
  if (values.given("h11-max-incomplete-event-size"))
    out.limits.max_header_line = out.limits.max_header_bytes =
        static_cast<size_t>(*values.integer("h11-max-incomplete-event-size"));
  out.api_keys = values.list("api-key");
  out.isolate_api_keys = values.flag("isolate-api-keys");
  out.served_model_names = values.list("served-model-name");
  out.version = kVersion;
  out.io_threads = static_cast<int>(*values.integer("io-threads"));
  out.drain_seconds = static_cast<double>(
      values.integer("shutdown-timeout").value_or(*values.integer("drain-seconds")));
  out.engine_deadline_seconds = static_cast<double>(*values.integer("engine-deadline-seconds"));
  out.live_deadline_seconds = static_cast<double>(*values.integer("live-deadline-seconds"));
  out.access_log = !values.flag("disable-uvicorn-access-log");
  out.log_requests = values.flag("enable-log-requests");
  out.priority_scheduling = values.text("scheduling-policy") == "priority";
  out.enable_request_id_headers = values.flag("enable-request-id-headers");
  M2_TRY(out.reasoning_parser, text::reasoning_parser_named(values.text("reasoning-parser")));
  M2_TRY(out.tool_call_parser, text::tool_call_parser_named(values.text("tool-call-parser")));
  out.enable_auto_tool_choice = values.flag("enable-auto-tool-choice");
  out.constrain_auto_tools = values.flag("constrain-auto-tools");
  out.exclude_tools_when_tool_choice_none = values.flag("exclude-tools-when-tool-choice-none");
  out.response_role = values.text("response-role");
  out.trust_request_chat_template = values.flag("trust-request-chat-template");
  out.default_chat_template_kwargs = values.json("default-chat-template-kwargs");
  out.late_system =
      values.text("late-system") == "drop" ? server::LateSystem::drop : server::LateSystem::fold;
  const std::string format = values.text("chat-template-content-format");
  out.content_format = format == "string"   ? server::ContentFormat::string
                       : format == "openai" ? server::ContentFormat::parts
                                            : server::ContentFormat::as_sent;
  out.return_tokens_as_token_ids = values.flag("return-tokens-as-token-ids");
  out.enable_prompt_tokens_details = values.flag("enable-prompt-tokens-details");
  out.keep_turns = values.flag("keep-turns");
  out.store_responses = values.flag("enable-responses-store");
  out.enable_force_include_usage = values.flag("enable-force-include-usage");
  out.enable_tokenizer_info_endpoint = values.flag("enable-tokenizer-info-endpoint");
  out.max_logprobs = *values.integer("max-logprobs");
  out.stream_interval = *values.integer("stream-interval");
  out.generation_defaults = settings.generation;
  return out;
}

engine::EngineConfig engine_config(const Values& values, const model::ModelConfig& config,
                                   const StepDefaults& defaults, engine::TokenId id_limit,
                                   const std::string& name, int64_t index) {
  engine::EngineConfig out;
  out.index = index;
  out.max_num_seqs = values.integer("max-num-seqs").value_or(defaults.sequences);
  out.max_num_batched_tokens = values.integer("max-num-batched-tokens").value_or(defaults.tokens);
  out.max_queued_requests = *values.integer("max-queued-requests");
  out.prefix_caching = values.flag("enable-prefix-caching");
  out.cache_dtype = values.text("kv-cache-dtype");
  out.chunked_prefill = values.flag("enable-chunked-prefill");
  out.long_prefill_token_threshold = *values.integer("long-prefill-token-threshold");
  out.policy = values.text("scheduling-policy") == "priority" ? engine::SchedulingPolicy::priority
                                                              : engine::SchedulingPolicy::fcfs;
  for (const int64_t id : config.eos_token_ids)
    out.eos_token_ids.push_back(static_cast<engine::TokenId>(id));
  out.id_limit = id_limit;
  out.seed = static_cast<uint64_t>(*values.integer("seed"));
  out.max_logprobs = static_cast<int32_t>(*values.integer("max-logprobs"));
  out.log_interval =
      values.flag("disable-log-stats")
          ? 0
          : static_cast<Nanos>(stats_interval_seconds() * static_cast<double>(kSecond));
  out.metric_labels = fmt::format("model_name=\"{}\",engine=\"{}\"", label_value(name), index);
  return out;
}

}  // namespace m2::app
