#include "ops/unpack_step.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/ops_cpu.h"
#include "ops/sample_row.h"

namespace m2::ops::cpu {

void unpack_step(const Exec&, const StepSizes& sizes, Tensor packed, Tensor previous,
                 int64_t padded, const BatchLayout& to, Tensor sample_rows) {
  const int32_t* from = packed.as<int32_t>();
  const auto take = [&](Tensor out, int64_t count) {
    std::copy_n(from, count, out.as<int32_t>());
    from += count;
  };
  take(to.token_ids, sizes.tokens);
  take(to.positions, sizes.tokens);
  take(to.slots, sizes.tokens);
  take(to.query_starts, sizes.sequences + 1);
  take(to.context_lens, sizes.sequences);
  for (int64_t s = 0; s < sizes.sequences; ++s) take(to.block_tables.at(s), sizes.width);
  take(to.logit_rows, sizes.rows);
  if (sizes.sampled) take(sample_rows, sizes.rows * kSampleRowWords);

  int32_t* ids = to.token_ids.as<int32_t>();
  for (int64_t t = 0; t < sizes.tokens; ++t)
    if (ids[t] < 0) ids[t] = previous.as<int32_t>()[(-1 - ids[t]) * kSampledRowWords + 1];
  const SampleRow inert;
  for (int64_t t = sizes.tokens; t < padded; ++t) {
    ids[t] = 0;
    to.positions.as<int32_t>()[t] = 0;
    to.slots.as<int32_t>()[t] = -1;
    to.query_starts.as<int32_t>()[t + 1] = static_cast<int32_t>(t + 1);
    to.context_lens.as<int32_t>()[t] = 0;
    to.logit_rows.as<int32_t>()[t] = static_cast<int32_t>(t);
    if (sizes.sampled)
      std::memcpy(sample_rows.as<int32_t>() + t * kSampleRowWords, &inert, sizeof(inert));
  }
}

}  // namespace m2::ops::cpu
