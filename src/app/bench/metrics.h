#pragma once

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app/bench/request_result.h"

namespace m2::app::bench {

enum class Metric : uint8_t { ttft, tpot, itl, e2el };
constexpr Metric kMetrics[] = {Metric::ttft, Metric::tpot, Metric::itl, Metric::e2el};

// "ttft", ...; nothing if it is none of them.
std::optional<Metric> metric_named(std::string_view name);
std::string_view metric_name(Metric metric);

// A metric's distribution over a run, in milliseconds.
struct Distribution {
  double mean = 0, median = 0, deviation = 0;
  std::vector<double> percentiles;  // in the order asked for
};

// A service level: the metric (ttft, tpot or e2el) within so many milliseconds.
using ServiceLevel = std::pair<Metric, double>;

// A run in numbers (contract.md 6.6). Only requests that succeeded count, but for `failed`.
struct Summary {
  double duration = 0;  // seconds
  int64_t completed = 0, failed = 0;
  int64_t input_tokens = 0, output_tokens = 0;
  double request_throughput = 0, output_throughput = 0, total_throughput = 0;  // a second
  std::optional<double> goodput;  // requests that met every service level, a second
  double peak_output = 0;         // most events in one second from the earliest start on
  int64_t peak_concurrent = 0;    // most requests whose seconds hold the same one
  Distribution ttft, tpot, itl, e2el;
  std::vector<int64_t> output_lens;  // of each request; 0: it failed

  const Distribution& of(Metric metric) const;
};

// `results` with their output_tokens known. Percents are in [0, 100].
Summary summarise(std::span<const RequestResult> results, double duration,
                  std::span<const double> percents, std::span<const ServiceLevel> levels);

}  // namespace m2::app::bench
