#pragma once

#include <string>

#include "app/options.h"
#include "load/hub.h"

// The one place where the environment is read. Every variable has a flag beside it.

namespace m2::app {

// For parse_command_line(): the process's environment.
const char* environment_variable(const char* name);

// Where models may be cached, of the environment and --download-dir.
load::HubLocations hub_locations(const std::string& download_dir);

// VLLM_LOGGING_LEVEL, else `fallback` (--uvicorn-log-level).
std::string log_level(const std::string& fallback);

// Seconds between the engine's statistics lines (VLLM_LOG_STATS_INTERVAL, 10).
double stats_interval_seconds();

// M2_MICRO: the folder of the model that commands take without a MODEL; naming one is its flag.
std::string micro_model_variable();

// OPENAI_API_KEY, for `m2 chat`.
std::string client_api_key();

}  // namespace m2::app
