#pragma once

#include <memory>
#include <vector>

#include "parallel/comm.h"
#include "parallel/wire.h"

namespace m2::parallel {

// Ranks as threads of this process: one Comm for each rank, in rank order. Tensors are read where
// they lie; only sums pass through memory of the group.
std::vector<std::unique_ptr<Comm>> make_thread_comms(int64_t size);

// Ranks in several processes, several threads in each: one Comm for each rank of this process. The
// sums, and their bytes, are those of make_thread_comms(placement.size()).
std::vector<std::unique_ptr<Comm>> make_process_comms(const Placement& placement,
                                                      std::unique_ptr<Wire> wire);

}  // namespace m2::parallel
