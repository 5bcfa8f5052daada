#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "app/http_client.h"
#include "base/result.h"

// `m2 run-batch`: files of requests in OpenAI's batch format, one JSON object a line, answered into
// a file of the same kind. What the output already holds is not asked again.

namespace m2::app {

struct BatchJob {
  std::string input, output;  // paths
  int64_t concurrency = 64;   // requests under way
  bool resume = true;         // false: an output that is there is replaced
  int64_t attempts = 6;       // of a request that is refused for overload or cannot be sent
  std::string model;          // for bodies without one; empty: left out
};

struct BatchOutcome {
  int64_t lines = 0;     // of the input, blank ones aside
  int64_t kept = 0;      // were in the output already
  int64_t answered = 0;  // with status 200
  int64_t failed = 0;    // with any other, or not fit to be sent; each has its line too
  bool stopped = false;  // the server went away; run again for the rest
};

// Asks `client`'s server. Shows progress on stderr. Errors: files that cannot be read or written,
// an output that belongs to other requests.
Result<BatchOutcome> run_batch(const BatchJob& job, const HttpClient& client);

// What an interrupted run has left in the output, and the rest of the file: complete lines whose
// request was answered for good stay, lines of failures of the server (5xx, 429, nothing) go.
struct KeptLines {
  std::string text;  // to write back
  std::set<std::string> ids;
};
Result<KeptLines> kept_lines(std::string_view output, const std::set<std::string>& expected);

}  // namespace m2::app
