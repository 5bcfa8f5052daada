#include "app/no_effect.h"

#include <algorithm>

namespace m2::app {
namespace {

struct Switch {
  std::string_view name;
  std::string_view why;  // it has no effect; empty: it has one, of its own
};

constexpr std::string_view kKernels = "there is one body of every operation per device";
constexpr std::string_view kGemm = "FP8 products accumulate in FP32 in one way";

// contract.md 5.2, beside those that options name.
constexpr Switch kSwitches[] = {
    {"VLLM_LOGGING_LEVEL", ""},
    {"VLLM_LOG_STATS_INTERVAL", ""},
    {"VLLM_CONFIGURE_LOGGING", "there is one log, on standard error"},
    {"VLLM_ENGINE_READY_TIMEOUT_S", "the engine is a thread of this process"},
    {"VLLM_ALLOW_LONG_MAX_MODEL_LEN", "a context beyond the model's own is refused"},
    {"VLLM_USE_MODELSCOPE", "nothing is downloaded while serving"},
    {"VLLM_CACHE_ROOT", "nothing is compiled or cached on disk"},
    {"VLLM_SERVER_DEV_MODE", "there are no development routes"},
    {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "there is no LoRA"},
    {"VLLM_FUSED_MOE_CHUNK_SIZE", kKernels},
    {"VLLM_MOE_DP_CHUNK_SIZE", kKernels},
    {"VLLM_FLOAT32_MATMUL_PRECISION", "what is FP32 is computed in FP32"},
    {"VLLM_USE_FLASHINFER_SAMPLER", "there is one sampler"},
    {"VLLM_USE_RUST_FRONTEND", "there is one front end"},
    {"VLLM_USE_FLASHINFER_MOE_FP8", kKernels},
    {"VLLM_USE_FLASHINFER_MOE_FP16", kKernels},
    {"VLLM_FLASHINFER_MOE_BACKEND", kKernels},
    {"VLLM_USE_DEEP_GEMM", kGemm},
    {"VLLM_MOE_USE_DEEP_GEMM", kGemm},
    {"VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER", kGemm},
    {"VLLM_DEEP_GEMM_WARMUP", "nothing is compiled at start"},
    {"VLLM_ATTENTION_BACKEND", kKernels},
    {"VLLM_WORKER_MULTIPROC_METHOD", "ranks are threads"},
    {"VLLM_HOST_IP", "ranks are threads"},
    {"VLLM_USE_V1", "there is one engine"},
    {"VLLM_NO_USAGE_STATS", "no statistics are sent anywhere"},
    {"VLLM_DO_NOT_TRACK", "no statistics are sent anywhere"},
    {"VLLM_ALLREDUCE_USE_SYMM_MEM", kKernels},
};

}  // namespace

std::vector<std::string> notes_on_environment(const char* const* variables,
                                              std::span<const Option> options) {
  std::vector<std::string> out;
  for (; *variables; ++variables) {
    const std::string_view entry(*variables);
    const std::string_view name = entry.substr(0, std::min(entry.find('='), entry.size()));
    if (!name.starts_with("VLLM_")) continue;
    const bool is_read = std::any_of(options.begin(), options.end(),
                                     [&](const Option& o) { return o.environment == name; });
    if (is_read) continue;
    const auto known = std::find_if(std::begin(kSwitches), std::end(kSwitches),
                                    [&](const Switch& s) { return s.name == name; });
    if (known == std::end(kSwitches))
      out.push_back(fmt::format("{} is not known here and has no effect", name));
    else if (!known->why.empty())
      out.push_back(fmt::format("{} has no effect here: {}", name, known->why));
  }
  return out;
}

std::vector<std::string> notes_on_options(const Values& values, std::span<const Option> options) {
  constexpr std::string_view kAccepted = "Accepted";
  std::vector<std::string> out;
  for (const Option& option : options) {
    if (!values.given(option.name) || !option.help.starts_with(kAccepted)) continue;
    std::string_view why = option.help.substr(kAccepted.size());
    while (!why.empty() && (why.front() == ';' || why.front() == ',' || why.front() == ' '))
      why.remove_prefix(1);
    if (why.ends_with('.')) why.remove_suffix(1);
    out.push_back(fmt::format("--{} has no effect here: {}", option.name, why));
  }
  return out;
}

}  // namespace m2::app
