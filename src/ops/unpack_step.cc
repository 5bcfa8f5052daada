#include "ops/unpack_step.h"

#include <algorithm>

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"
#include "ops/sample_row.h"

namespace m2::ops {

int64_t packed_step_words(const StepSizes& sizes) {
  return 3 * sizes.tokens + sizes.sequences + 1 + sizes.sequences + sizes.sequences * sizes.width +
         sizes.rows * (sizes.sampled ? 1 + kSampleRowWords : 1);
}

void unpack_step(const Exec& exec, const StepSizes& sizes, Tensor packed, Tensor previous,
                 int64_t padded, const BatchLayout& to, Tensor sample_rows) {
  check_tensor("packed", packed, {DType::i32}, {packed_step_words(sizes)});
  const int64_t sequences = std::max(padded, sizes.sequences);
  M2_CHECK(padded <= sizes.tokens ||
           (sizes.tokens == sizes.sequences && sizes.rows == sizes.sequences));
  for (const Tensor& tensor : {to.token_ids, to.positions, to.slots})
    M2_CHECK(tensor.dtype() == DType::i32 && tensor.size(0) >= std::max(padded, sizes.tokens));
  M2_CHECK(to.query_starts.size(0) > sequences && to.context_lens.size(0) >= sequences);
  M2_CHECK(to.block_tables.size(0) >= sequences && to.block_tables.size(1) >= sizes.width);
  M2_CHECK(to.logit_rows.size(0) >= std::max(padded, sizes.rows));
  if (sizes.sampled) M2_CHECK(sample_rows.size(0) >= std::max(padded, sizes.rows));
  if (exec.device.kind == DeviceKind::cuda)
    return cuda::unpack_step(exec, sizes, packed, previous, padded, to, sample_rows);
  cpu::unpack_step(exec, sizes, packed, previous, padded, to, sample_rows);
}

}  // namespace m2::ops
