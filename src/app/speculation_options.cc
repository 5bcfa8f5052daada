#include "app/speculation_options.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace m2::app {
namespace {

using engine::SpeculationConfig;

constexpr const char* kFlag = "--speculative-config";

// An integer from 1 on; nothing if it is not given.
Result<std::optional<int64_t>> count_of(const Json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::optional<int64_t>();
  constexpr int64_t kMost = 1 << 20;
  if (!found->is_number_integer() || *found < Json(1) || *found > Json(kMost))
    return fail(Code::invalid_argument, "{}: {} takes an integer from 1 to {}, not {}", kFlag, key,
                kMost, found->dump());
  return std::optional(found->get<int64_t>());
}

// vLLM takes the method as the model, too.
Result<void> check_method(const Json& config) {
  std::string method;
  for (const char* key : {"model", "method"}) {
    const auto found = config.find(key);
    if (found == config.end() || found->is_null()) continue;
    method = found->is_string() ? found->get<std::string>() : found->dump();
  }
  if (method == "ngram" || method == "[ngram]") return {};
  if (method.empty())
    return fail(Code::invalid_argument, "{} needs a method: {{\"method\": \"ngram\"}}", kFlag);
  const char* why = method.find("mtp") != std::string::npos
                        ? ": the checkpoints of this family hold no MTP layers"
                        : "";
  return fail(Code::unsupported, "{}: the method {} is not supported{} (chose from {{ ngram }})",
              kFlag, method, why);
}

}  // namespace

Result<std::optional<SpeculationConfig>> read_speculation(const Values& values) {
  if (!values.given("speculative-config")) return std::optional<SpeculationConfig>();
  const Json config = values.json("speculative-config");
  M2_TRY_VOID(check_method(config));
  constexpr std::array<std::string_view, 5> kKeys = {"method", "model", "num_speculative_tokens",
                                                     "prompt_lookup_min", "prompt_lookup_max"};
  for (const auto& [key, value] : config.items())
    if (std::ranges::find(kKeys, key) == kKeys.end())
      return fail(Code::invalid_argument, "{}: unknown key '{}' (known: {})", kFlag, key,
                  fmt::join(kKeys, ", "));
  M2_TRY(const std::optional<int64_t> tokens, count_of(config, "num_speculative_tokens"));
  M2_TRY(const std::optional<int64_t> least, count_of(config, "prompt_lookup_min"));
  M2_TRY(const std::optional<int64_t> most, count_of(config, "prompt_lookup_max"));
  SpeculationConfig out;
  out.most_tokens = tokens.value_or(out.most_tokens);
  out.least_match = least.value_or(std::min(out.least_match, most.value_or(out.least_match)));
  out.most_match = most.value_or(std::max(out.most_match, out.least_match));
  if (out.least_match > out.most_match)
    return fail(Code::invalid_argument, "{}: prompt_lookup_min={} must be <= prompt_lookup_max={}",
                kFlag, out.least_match, out.most_match);
  return std::optional(out);
}

int64_t drafted_rows(const std::optional<SpeculationConfig>& speculation, int64_t max_num_seqs,
                     int64_t max_num_batched_tokens) {
  constexpr int64_t kMost = 256;  // each has a block table of its own
  if (!speculation) return 0;
  const int64_t each = std::min(speculation->most_tokens, engine::kMostDraft);
  return std::max<int64_t>(
      std::min({max_num_seqs * each, kMost, max_num_batched_tokens - max_num_seqs}), 0);
}

}  // namespace m2::app
