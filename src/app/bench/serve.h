#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/bench/arrivals.h"
#include "app/bench/load_generator.h"
#include "app/bench/metrics.h"
#include "app/options.h"

namespace m2::app::bench {

// `m2 bench serve`: its command, for parsing and help.
const Command& serve_bench_command();

// Sends the run that the values describe, and prints what contract.md 6.5 says.
Result<void> run_serve_bench(const Values& values);

enum class Protocol : uint8_t { completions, chat };

// What a run is, read from the command line and checked.
struct ServeBench {
  Protocol protocol = Protocol::completions;
  std::string backend, base_url;
  Target target;
  std::string model;          // empty: the server's first
  std::string request_model;  // the name in requests, if another
  std::string tokenizer;      // folder or hub name
  std::string dataset;
  size_t num_prompts = 0;
  uint64_t seed = 0;
  ArrivalPlan arrivals;
  std::optional<int64_t> max_concurrency;
  int64_t num_warmups = 0;
  double ready_seconds = 0;
  std::vector<Metric> metrics;
  std::vector<double> percents;
  std::vector<ServiceLevel> levels;
  std::string request_id_prefix;
  bool ignore_eos = false;
  std::optional<int64_t> logprobs;
  Json sampling = Json::object();    // temperature, ...
  Json extra_body = Json::object();  // wins over all else
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Errors name the option and what it takes. `api_key` may be empty.
Result<ServeBench> read_serve_bench(const Values& values, const std::string& api_key);

// The body of one request.
std::string request_body(const ServeBench& bench, const BenchRequest& request);

// {label or backend}-{rate}qps[-concurrency{N}]-{model's last part}-{date}.json
std::string result_file_name(const ServeBench& bench, const std::string& label,
                             const std::string& date);

}  // namespace m2::app::bench
