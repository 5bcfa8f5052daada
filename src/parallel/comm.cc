#include "parallel/comm.h"

#include "ops/norm.h"

namespace m2::parallel {

void Comm::all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm) {
  all_reduce(exec, x);
  ops::add_rms_norm(exec, norm.residual, x, norm.weight, norm.eps, norm.out, norm.quantised);
}

}  // namespace m2::parallel
