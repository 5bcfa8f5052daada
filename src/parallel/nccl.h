#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "parallel/comm.h"

namespace m2::parallel {

// What the ranks of a group share to find each other; made by one of them.
using NcclId = std::array<std::byte, 128>;
Result<NcclId> make_nccl_id();

// Ranks on GPUs, through NCCL (libnccl.so.2, loaded here at run time; its C interface has been the
// same since version 2.10). Tensors are in memory of `device`, and collectives are enqueued on
// exec.stream: status() tells of failures that have shown so far. Every rank calls this on its own
// thread, with its device in use, at the same time.
//
// Sums are made in NCCL's order and dtype, not in FP32 in ascending order of rank; all ranks hold
// the same bytes, and the same arrangement gives the same sums again. There is no deadline: the
// watchdog of the engine aborts.
Result<std::unique_ptr<Comm>> make_nccl_comm(const NcclId& id, Device device, int64_t rank,
                                             int64_t size);

}  // namespace m2::parallel
