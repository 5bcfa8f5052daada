#include "ops/sample.h"

#include "ops/check_tensor.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops {

bool can_sample(Device device) {
  return device.kind == DeviceKind::cuda;
}

int64_t sample_scratch_bytes(Device device, int64_t rows, int64_t vocab) {
  return can_sample(device) ? cuda::sample_scratch_bytes(rows, vocab) : 0;
}

void sample(const Exec& exec, Tensor logits, int64_t id_limit, const SampleInput& input,
            Tensor scratch, const SampleOutput& out) {
  M2_CHECK(can_sample(exec.device), "logits are sampled on the host here");
  M2_CHECK(logits.rank() == 2 && id_limit > 0 && id_limit <= logits.size(1), "{}",
           logits.describe());
  const int64_t rows = logits.size(0);
  check_tensor("logits", logits, {DType::f32}, {rows, logits.size(1)});
  check_tensor("rows", input.rows, {DType::i32}, {rows, kSampleRowWords});
  check_tensor("out rows", out.rows, {DType::i32}, {rows, kSampledRowWords});
  check_tensor("top_ids", out.top_ids, {DType::i32}, {rows, out.top_ids.size(1)});
  check_tensor("top_logprobs", out.top_logprobs, {DType::f32}, {rows, out.top_ids.size(1)});
  for (const Tensor& tensor : {input.rows, out.rows, out.top_ids, out.top_logprobs})
    check_dense("rows", tensor);
  M2_CHECK(scratch.dtype() == DType::u8 &&
               scratch.elements() >= sample_scratch_bytes(exec.device, rows, logits.size(1)),
           "scratch {}", scratch.describe());
  if (rows > 0) cuda::sample(exec, logits, id_limit, input, scratch, out);
}

}  // namespace m2::ops
