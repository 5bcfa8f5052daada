#pragma once

#include <atomic>
#include <cstddef>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "parallel/topology.h"

namespace m2::parallel {

// Which ranks of a group live in which process: consecutive runs, in the order of processes. Of all
// ranks the first process may hold none.
struct Placement {
  std::vector<Range> ranks;  // of each process that has a part in the group
  int64_t process = 0;       // this one, an index of `ranks`

  Range local() const { return ranks[static_cast<size_t>(process)]; }
  int64_t size() const { return ranks.back().begin + ranks.back().count; }
};

// One collective of a group, as its processes name it to each other.
struct Call {
  uint32_t kind = 0;  // of kCallNames
  uint64_t number = 0;
};
constexpr const char* kCallNames[] = {"none",       "all_reduce", "all_gather", "reduce_scatter",
                                      "all_to_all", "gather",     "broadcast",  "barrier"};

// "all_reduce 17"
std::string describe(const Call& call);

// How the processes of a group reach each other. One thread at a time.
class Wire {
 public:
  // Bytes for, or from, a process (an index of Placement::ranks).
  struct Piece {
    int64_t process;
    std::byte* data;
    int64_t bytes;
  };

  virtual ~Wire() = default;

  // Sends and receives all pieces; those for one process travel in their order. Every process must
  // be in the same call, whether it has pieces or not. Fails, naming process and call, if a process
  // is gone, is in another call, or does not answer within `deadline` (0: waits for good); and when
  // `stop` becomes true.
  virtual Result<void> exchange(const Call& call, std::span<const Piece> sends,
                                std::span<const Piece> receives, Nanos deadline,
                                const std::atomic<bool>& stop) = 0;
};

}  // namespace m2::parallel
