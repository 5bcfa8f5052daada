#pragma once

#include <memory>

#include "parallel/comm.h"

namespace m2::parallel {

// A communicator of `device`'s memory whose tensors travel through host memory and `host`, which
// outlives it: for ranks that share a GPU, where NCCL wants one each. Sums are host's: FP32, in
// ascending order of rank. Every collective waits for exec.stream, so none can be recorded.
std::unique_ptr<Comm> make_hosted_comm(Comm& host, Device device);

}  // namespace m2::parallel
