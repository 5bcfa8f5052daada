#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app/bench/request_result.h"
#include "base/clock.h"
#include "base/result.h"

namespace m2::app::bench {

// Where requests go.
struct Target {
  bool tls = false;
  bool verify = true;  // the server's certificate
  std::string host;
  int port = 80;
  std::string path;                                          // "/v1/completions"
  std::vector<std::pair<std::string, std::string>> headers;  // beside those of HTTP itself
};

// http://host:port/path. Errors name what is wrong with it.
Result<Target> parse_url(const std::string& url);

// What one run sent, heard and cost.
struct LoadReport {
  std::vector<RequestResult> results;  // in the order of the requests
  double duration = 0;                 // seconds, from the start to the last answer
  int64_t events = 0;                  // chunks with choices
  double cpu_seconds = 0;              // of this thread
};

// Sends many streaming completion requests at once and times what comes back: one thread, one event
// loop, for thousands of streams. Connections are kept from one request to the next. Not
// thread-safe; errors of single requests are in their results.
class LoadGenerator {
 public:
  // `max_concurrency` requests at once; 0: no bound.
  LoadGenerator(Target target, int64_t max_concurrency);
  ~LoadGenerator();

  struct Run {
    size_t count = 0;
    std::function<std::string(size_t index)> body;        // of the POST
    std::function<std::string(size_t index)> request_id;  // x-request-id
    std::span<const double> send_at;  // seconds from the start; empty: all at once
    // Optional. Called on this thread: after each answer, and for each event.
    std::function<void(size_t done)> on_done;
    std::function<void(size_t index, const std::string& text, Nanos now)> on_event;
    // Optional, for a server on this machine and plain HTTP: connections are read in turns, and
    // this is called before each; it returns when something may have come. Otherwise each arrival
    // tells the event loop of it, which on a loopback happens within the server's send and is a
    // tenth of its time.
    std::function<void()> wait_for_turn;
  };
  // Returns when every request has been answered or has failed. Fails only if the host cannot be
  // resolved or TLS cannot be set up.
  Result<LoadReport> run(const Run& run);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace m2::app::bench
