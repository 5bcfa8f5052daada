#include "app/environment.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/log.h"

namespace m2::app {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

const char* environment_variable(const char* name) {
  return std::getenv(name);
}

load::HubLocations hub_locations(const std::string& download_dir) {
  return {download_dir,        variable("HF_HUB_CACHE"),   variable("HUGGINGFACE_HUB_CACHE"),
          variable("HF_HOME"), variable("XDG_CACHE_HOME"), variable("HOME")};
}

Result<std::string> log_level(const std::string& fallback) {
  const std::string level = variable("VLLM_LOGGING_LEVEL");
  const std::string& chosen = level.empty() ? fallback : level;
  if (is_log_level(chosen)) return chosen;
  return fail(Code::invalid_argument,
              "{} {}: it is none of debug, info, warning, error and critical",
              level.empty() ? "--uvicorn-log-level" : "VLLM_LOGGING_LEVEL", printable(chosen, 40));
}

double stats_interval_seconds() {
  constexpr double kDefault = 10;
  const std::string text = variable("VLLM_LOG_STATS_INTERVAL");
  double value = kDefault;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value > 0 ? value : kDefault;
}

std::string micro_model_variable() {
  return variable("M2_MICRO");
}

MpiLaunch mpi_launch() {
  const auto number = [](const char* name, int64_t fallback) {
    const std::string text = variable(name);
    int64_t value = fallback;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc{} && end == text.data() + text.size() ? value : fallback;
  };
  const MpiLaunch out{number("OMPI_COMM_WORLD_SIZE", 1), number("OMPI_COMM_WORLD_RANK", 0),
                      number("OMPI_COMM_WORLD_LOCAL_RANK", 0)};
  const bool sane = out.processes >= 1 && out.process >= 0 && out.process < out.processes &&
                    out.local_process >= 0 && out.local_process < out.processes;
  return sane ? out : MpiLaunch{};
}

std::string client_api_key() {
  return variable("OPENAI_API_KEY");
}

}  // namespace m2::app
