#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/result.h"
#include "parallel/world.h"

namespace m2::parallel {

// Processes that meet over TCP. Process 0 listens; the others come to it and say which ranks they
// hold, until all have come; then every pair connects, and nobody listens any more. Processes are
// numbered in the order of their ranks.
struct Meeting {
  bool first = true;                  // process 0
  Range share{0, 1};                  // ranks of this process; none, perhaps, in process 0 alone
  int64_t ranks = 1;                  // of all
  std::string address = "127.0.0.1";  // process 0 listens on it, the others connect to it
  int port = 29501;
  int64_t channels = 1;
  // What must be equal everywhere: {"version": ..., "config": ..., ...}. A difference is refused at
  // start, naming it and both values.
  Json terms = Json::object();
  Nanos patience = 600 * kSecond;  // how long to wait for the others to come
};

// A mesh of processes. Wires stay good after it is gone.
class TcpMesh : public Links {
 public:
  // Fails, in words, if the address cannot be had, somebody does not come, or does not agree.
  // Strangers that connect while it waits are dropped.
  static Result<std::unique_ptr<TcpMesh>> connect(const Meeting& meeting);

  // Which process holds which ranks, and which one this is.
  const Placement& placement() const { return placement_; }

  std::unique_ptr<Wire> wire(int64_t channel, std::vector<int64_t> processes) override;
  std::unique_ptr<Bell> bell(int64_t channel, Bell::Ears ears) override;

 private:
  class Socket;
  friend class MeshBuilder;
  friend class TcpBell;
  friend class TcpWire;
  TcpMesh() = default;

  Placement placement_;
  std::vector<std::string> names_;                             // "process 1 (10.0.0.2)"
  std::vector<std::vector<std::shared_ptr<Socket>>> sockets_;  // [process][channel]
};

}  // namespace m2::parallel
