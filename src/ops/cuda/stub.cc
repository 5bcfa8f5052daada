// The CUDA bodies of a build without CUDA: reaching one is a bug, since such a build never makes a
// CUDA device.
#include "ops/cuda/ops_cuda.h"

namespace m2::ops::cuda {
namespace {

[[noreturn]] void no_cuda() {
  M2_CHECK(false, "this build has no GPU support; configure it with -DM2_CUDA=ON");
  std::abort();
}

}  // namespace

void embed(const Exec&, Tensor, Tensor, int64_t, Tensor) {
  no_cuda();
}
void embed_and_angles(const Exec&, Tensor, Tensor, int64_t, Tensor, Tensor, float, Tensor) {
  no_cuda();
}
void gather_rows(const Exec&, Tensor, Tensor, Tensor) {
  no_cuda();
}
void sum_rows(const Exec&, Tensor, Tensor, Tensor) {
  no_cuda();
}
bool wants_quantised() {
  return false;
}
void quantise(const Exec&, Tensor, const Quantised&) {
  no_cuda();
}
void requantise(const Exec&, const Linear&) {
  no_cuda();
}
void rms_norm(const Exec&, Tensor, Tensor, float, Tensor, const Quantised&) {
  no_cuda();
}
void add_rms_norm(const Exec&, Tensor, Tensor, Tensor, float, Tensor, const Quantised&) {
  no_cuda();
}
void linear(const Exec&, Tensor, std::span<const Linear>, Tensor, const Quantised&,
            const RowOwners&) {
  no_cuda();
}
bool linear_reads_quantised(const Exec&, const Tensor&, std::span<const Linear>) {
  no_cuda();
}
void rope_angles(const Exec&, Tensor, float, Tensor) {
  no_cuda();
}
void qk_sum_squares(const Exec&, Tensor, const HeadShape&, Tensor) {
  no_cuda();
}
void qk_norm_rope_store(const Exec&, Tensor, Tensor, Tensor, Tensor, int64_t, int64_t, float,
                        Tensor, Tensor, const HeadShape&, const KvCache&) {
  no_cuda();
}
void qk_norm_rope_store_whole(const Exec&, Tensor, Tensor, Tensor, Tensor, float, Tensor, Tensor,
                              const HeadShape&, const KvCache&) {
  no_cuda();
}
void paged_attention(const Exec&, Tensor, const KvCache&, const BatchLayout&, const HeadShape&,
                     Tensor, const Quantised&) {
  no_cuda();
}
int64_t route_workspace_bytes(int64_t, int64_t, int64_t) {
  no_cuda();
}
void route(const Exec&, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor) {
  no_cuda();
}
int64_t attention_workspace_bytes(int64_t, int64_t, const HeadShape&) {
  no_cuda();
}
int64_t sample_scratch_bytes(int64_t, int64_t) {
  no_cuda();
}
void sample(const Exec&, Tensor, int64_t, const SampleInput&, Tensor, const SampleOutput&) {
  no_cuda();
}
void unpack_step(const Exec&, const StepSizes&, Tensor, Tensor, int64_t, const BatchLayout&,
                 Tensor) {
  no_cuda();
}
int64_t experts_scratch_bytes(const Experts&, int64_t, int64_t) {
  no_cuda();
}
void experts(const Exec&, Tensor, const Experts&, Tensor, Tensor, Tensor, Tensor, const Quantised&,
             const AddNorm*, const RowOwners&) {
  no_cuda();
}
bool experts_read_quantised(const Exec&, const Tensor&, const Experts&, int64_t) {
  no_cuda();
}
void route_experts(const Exec&, Tensor, const Routing&, const Experts&, Tensor, Tensor, Tensor,
                   Tensor, const Quantised&, const AddNorm*, UnsummedExperts*) {
  no_cuda();
}
bool decodes_layer(const Exec&, const DecodeLayer&, const KvCache&, const BatchLayout&,
                   const HeadShape&, const DecodeTensors&, const DecodeRanks&) {
  no_cuda();
}
void decode_layer(const Exec&, const DecodeLayer&, const KvCache&, const BatchLayout&,
                  const HeadShape&, const DecodeTensors&, const DecodeBefore*, const AddNorm*,
                  const DecodeRanks&) {
  no_cuda();
}
bool decodes_rows(const Exec&, const DecodeLayer&, const KvCache&, const BatchLayout&,
                  const HeadShape&, const DecodeTensors&, const DecodeRanks&) {
  no_cuda();
}
UnsummedExperts decode_rows(const Exec&, const DecodeLayer&, const KvCache&, const BatchLayout&,
                            const HeadShape&, const DecodeTensors&, const DecodeRanks&) {
  no_cuda();
}
double read_rate(const Exec&, Tensor) {
  no_cuda();
}
double multiply_rate(const Exec&, Multiplier) {
  no_cuda();
}

}  // namespace m2::ops::cuda
