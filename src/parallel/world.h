#pragma once

#include <memory>
#include <vector>

#include "parallel/comm.h"
#include "parallel/topology.h"
#include "parallel/wire.h"

namespace m2::parallel {

// A rank of this process and its communicators (of host memory).
struct LocalRank {
  Topology topology;
  std::unique_ptr<Comm> tensor;
  std::unique_ptr<Comm> engines;  // null unless several engines share experts

  Groups groups() const { return {*tensor, engines.get()}; }
};

// Makes a wire between the processes that have ranks of a group: `channel` numbers the group, the
// same in every process, and `processes` are those taking part, ascending.
class Links {
 public:
  virtual ~Links() = default;
  virtual std::unique_ptr<Wire> wire(int64_t channel, std::vector<int64_t> processes) = 0;
};

// The ranks of process `process` of `processes`, which hold equal runs of shape's ranks, in order.
// `links` is null for one process. Precondition: the ranks divide evenly.
std::vector<LocalRank> make_local_ranks(const Topology& shape, int64_t processes, int64_t process,
                                        Links* links);

// Channels that make_local_ranks() may use: 0 .. channels - 1.
int64_t channels_of(const Topology& shape);

}  // namespace m2::parallel
