#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace m2::app::bench {

// What one request of a run asks.
struct BenchRequest {
  std::string prompt;
  int64_t prompt_len = 0;  // tokens
  int64_t output_len = 0;  // tokens
};

// What came of it (contract.md 6.2). An event is a chunk with non-empty `choices`. Seconds.
struct RequestResult {
  bool success = false;
  int64_t prompt_len = 0;
  int64_t output_tokens = 0;  // as the server counted; 0: it did not say
  double start_time = 0;      // just before the POST, on the run's clock
  double ttft = 0;            // to the first event
  double latency = 0;         // to the last event
  std::vector<double> itl;    // from each event to the next
  std::string text;
  std::string error;
};

}  // namespace m2::app::bench
