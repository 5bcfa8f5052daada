#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"
#include "server/options.h"

namespace m2::server {

// The HTTP server. Starts before the model is loaded, so that its port answers (503 with the
// progress) meanwhile; ready() attaches the model.
//
//   Server server(options, metrics);
//   M2_TRY_VOID(server.start());
//   ... load, make the engine with `server` as its EventSink ...
//   server.ready(services);
//   server.wait();              // until drained by a signal, or stop()
//
// All methods are thread-safe but the constructor and destructor.
class Server : public engine::EventSink {
 public:
  // `metrics` outlives the server and may be shared with the engine.
  Server(ServerOptions options, Metrics& metrics);
  ~Server() override;  // stops

  // Binds the port and starts the threads. Fails if the address cannot be bound.
  Result<void> start();
  int port() const;  // bound; after start()

  // "/health, Methods: GET, HEAD" of every route, for the log.
  std::vector<std::string> route_lines() const;

  // One line for clients that ask before ready(): "loading weights, 40%".
  void set_progress(std::string progress);
  void ready(ModelServices services);

  // Ends what is under way with an error event and closes everything. (A signal first refuses new
  // requests, and lets those under way finish for options.drain_seconds.)
  void stop();
  // Returns once the server has stopped.
  void wait();

  void on_events(std::vector<engine::Event>&& events) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace m2::server
