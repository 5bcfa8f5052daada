// The peers' sums of a build without CUDA: reaching one is a bug, since such a build never makes a
// CUDA device.
#include "base/check.h"
#include "parallel/cuda/peer_sum.h"

namespace m2::parallel::cuda {

namespace {
void refuse() {
  M2_CHECK(false, "this build has no GPU support; configure it with -DM2_CUDA=ON");
}
}  // namespace

void launch_peer_sum(void*, const PeerSum&) {
  refuse();
}
void launch_shared_peer_sum(void*, const PeerSum&) {
  refuse();
}
void launch_small_peer_sum(void*, const PeerSum&) {
  refuse();
}
void launch_peer_broadcast(void*, const PeerSum&, int) {
  refuse();
}
void launch_peer_columns(void*, const PeerColumns&) {
  refuse();
}
void launch_small_peer_experts_norm(void*, const PeerExpertsNorm&) {
  refuse();
}
void launch_small_peer_sum_norm(void*, const PeerSumNorm&) {
  refuse();
}
void launch_peer_row_norm(void*, const PeerRowNorm&) {
  refuse();
}
void launch_peer_rows(void*, const PeerRows&) {
  refuse();
}
bool small_peer_sum_qk_fits(const ops::cuda::QkNormRope&) {
  return false;
}
void launch_small_peer_sum_qk(void*, const PeerQkNorm&) {
  refuse();
}
void launch_scattered_peer_sum(void*, const PeerShares&) {
  refuse();
}

}  // namespace m2::parallel::cuda
