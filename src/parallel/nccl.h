#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "parallel/comm.h"
#include "parallel/world.h"

namespace m2::parallel {

// What the ranks of a group share to find each other; made by one of them.
using NcclId = std::array<std::byte, 128>;
Result<NcclId> make_nccl_id();

// Ranks on GPUs, through NCCL (libnccl.so.2, loaded here at run time; its C interface has been the
// same since version 2.10). Tensors are in memory of `device`, and collectives are enqueued on
// exec.stream: status() tells of failures that have shown so far. Every rank calls this on its own
// thread at the same time.
//
// Sums are made in NCCL's order and dtype, not in FP32 in ascending order of rank: all ranks hold
// the same bytes, and two ranks those of any order, but with more the order depends on the tensor's
// size and on the place in it (parallel/peers.h keeps it). There is no deadline: who
// waits too long for the stream calls abort(), which ends what is under way there. Graphs in which
// collectives are recorded must be gone before the group is destroyed.
Result<std::unique_ptr<Comm>> make_nccl_comm(const NcclId& id, Device device, int64_t rank,
                                             int64_t size);

// Who adds up what ranks on devices have.
enum class SumsBy : uint8_t {
  peers,  // parallel/peers.h, where it can; else nccl
  nccl,
  host  // parallel/hosted_comm.h, which moves everything too: for ranks that share a device
};

// Gives a rank communicators of `device`, for the groups it has communicators of host memory for.
// Every rank of every group calls this on its own thread at the same time; the groups of a rank
// that fails are aborted.
Result<void> add_device_groups(LocalRank& rank, Device device, SumsBy sums = SumsBy::peers);

}  // namespace m2::parallel
