#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/comm.h"
#include "parallel/topology.h"
#include "parallel/wire.h"

namespace m2::parallel {

// A rank of this process and its communicators.
struct LocalRank {
  Topology topology;
  std::unique_ptr<Comm> tensor;   // of host memory
  std::unique_ptr<Comm> engines;  // null unless several engines share experts
  // The first rank of an engine that schedules in another process: the group of its seat there
  // (rank 0) and of it (rank 1). Else null.
  std::unique_ptr<Comm> seat;
  // Of device memory, where ranks compute on devices; else null.
  std::unique_ptr<Comm> device_tensor, device_engines;

  Groups groups() const { return {*tensor, engines.get()}; }
  // What the model's tensors travel through.
  Groups model_groups() const {
    return device_tensor ? Groups{*device_tensor, device_engines.get()} : groups();
  }
};

// An engine that schedules here while its first rank is in another process.
struct RemoteEngine {
  int64_t data_rank;
  std::unique_ptr<Comm> seat;  // rank 0 of the two
};

// Calls between processes that nobody waits for.
class Bell {
 public:
  virtual ~Bell() = default;
  // Tells every other process a number. Any thread. Never waits: a process that has not read many
  // before it does not hear of it.
  virtual void ring(uint64_t number) = 0;

  // Called on a thread of the bell's.
  struct Ears {
    std::function<void(uint64_t number)> heard;
    std::function<void(const Error& who)> gone;  // a process has ended without a word
  };
};

// What processes that have ranks of a group travel through; `channel` numbers the group, the same
// in every process.
class Links {
 public:
  virtual ~Links() = default;
  // `processes` are those taking part, ascending.
  virtual std::unique_ptr<Wire> wire(int64_t channel, std::vector<int64_t> processes) = 0;
  // Between all processes; null if there is none.
  virtual std::unique_ptr<Bell> bell(int64_t channel, Bell::Ears ears) = 0;
};

// `ranks` in equal runs over processes, of which this is one. Precondition: they divide evenly.
Placement place_evenly(int64_t ranks, int64_t processes, int64_t process);

// The ranks of this process, as `where` places shape's. `links` is null for one process. With
// `seats`, all engines schedule in process 0.
std::vector<LocalRank> make_local_ranks(const Topology& shape, const Placement& where, Links* links,
                                        bool seats = false);
// All ranks, in one process.
std::vector<LocalRank> make_local_ranks(const Topology& shape);

// In process 0, with seats: the engines whose first ranks are elsewhere.
std::vector<RemoteEngine> make_remote_engines(const Topology& shape, const Placement& where,
                                              Links* links);

// Channels that these may use: 0 .. channels - 1, of which the last is free for a bell.
int64_t channels_of(const Topology& shape);

}  // namespace m2::parallel
