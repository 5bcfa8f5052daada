#pragma once

#include <memory>

#include "parallel/comm.h"

namespace m2::parallel {

// Ranks on GPUs that are threads of one process and reach each other's memory (over NVLink, or
// PCIe): they sum by themselves, FP32 in ascending order of rank and rounded once, as ranks on the
// host do, and small sums take one flight instead of NCCL's several. What only moves goes through
// `inner`, a communicator of the same ranks and device. `host` is one of the same ranks in host
// memory, for the ranks to find each other, and stays as long as they do. Every rank calls this on
// its own thread at the same time; if they are not of this kind all get `inner` back. A group of
// one is of it: its sums are the same kernels, which wait for nobody.
//
// abort() ends a sum under way, as it does inner's collectives. No rank may be destroyed before all
// have come to the end of their streams.
Result<std::unique_ptr<Comm>> sum_through_peers(std::unique_ptr<Comm> inner, Comm& host,
                                                Device device);

}  // namespace m2::parallel
