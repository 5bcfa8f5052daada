// The peers' sums of a build without CUDA: reaching one is a bug, since such a build never makes a
// CUDA device.
#include "base/check.h"
#include "parallel/cuda/peer_sum.h"

namespace m2::parallel::cuda {

void launch_peer_sum(void*, const PeerSum&) {
  M2_CHECK(false, "this build has no GPU support; configure it with -DM2_CUDA=ON");
}

}  // namespace m2::parallel::cuda
