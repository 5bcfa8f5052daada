#include "parallel/comm.h"

#include "ops/norm.h"

namespace m2::parallel {

void Comm::all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm) {
  all_reduce(exec, x);
  ops::add_rms_norm(exec, norm.residual, x, norm.weight, norm.eps, norm.out, norm.quantised);
}

bool Comm::takes_experts(const Tensor&, const ops::AddNorm&) const {
  return false;
}
void Comm::all_reduce_experts_norm(const Exec&, Tensor, const ops::UnsummedExperts&,
                                   const ops::AddNorm&) {
  M2_CHECK(false, "experts are to be summed first");
}

// Every rank looks after all rows.
void Comm::introduce(const Tensor&) {}
ops::RowOwners Comm::row_owners(const Tensor&) const {
  return {};
}
ops::DecodePeers Comm::decode_peers() const {
  return {};
}
void Comm::norm_own_rows(const Exec& exec, Tensor x, const ops::AddNorm& norm, NormedRows) {
  all_reduce_norm(exec, x, norm);
}
void Comm::gather_own_rows(const Exec&, const Tensor&, std::span<const Tensor>) {}

void Comm::all_reduce_qk_norm(const Exec& exec, const ops::QkNorm& work) {
  ops::qk_sum_squares(exec, work.qkv, work.heads, work.sums);
  all_reduce(exec, work.sums);
  ops::qk_norm_rope_store(exec, work.qkv, work.sums, work.q_norm, work.k_norm, work.full_q,
                          work.full_k, work.eps, work.angles, work.slots, work.heads, work.cache);
}

}  // namespace m2::parallel
