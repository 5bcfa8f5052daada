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

// VLLM_LOGGING_LEVEL, else `fallback` (--uvicorn-log-level). An error if that is no log level.
Result<std::string> log_level(const std::string& fallback);

// Seconds between the engine's statistics lines (VLLM_LOG_STATS_INTERVAL, 10).
double stats_interval_seconds();

// M2_MICRO: the folder of the model that commands take without a MODEL; naming one is its flag.
std::string micro_model_variable();

// The processes that OpenMPI's mpirun has started with this one, and which of them this is
// (OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_RANK, and among those of its host
// OMPI_COMM_WORLD_LOCAL_RANK; --distributed-executor-backend mp ignores them). One process if there
// are none.
struct MpiLaunch {
  int64_t processes = 1;
  int64_t process = 0;
  int64_t local_process = 0;
};
MpiLaunch mpi_launch();

// OPENAI_API_KEY, for the programs that ask a server; each has --api-key.
std::string client_api_key();

}  // namespace m2::app
