#include "ops/experts.h"

#include <algorithm>
#include <utility>

#include "ops/cpu/expert_pairs.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/tiles.h"
#include "ops/instruction_set.h"

namespace m2::ops::cpu {

Pairs place_pairs(const Experts& experts, int64_t tokens, int64_t top, Placer& placer) {
  const int64_t count = experts.count();
  Pairs pairs{};
  pairs.starts = placer.place<int32_t>(count + 1);
  pairs.active = placer.place<int32_t>(count);
  pairs.tokens = placer.place<int32_t>(tokens * top);
  pairs.weights = placer.place<float>(tokens * top);
  return pairs;
}

void sort_pairs(const Experts& experts, const Tensor& ids, const Tensor& weights, Pairs& pairs) {
  const int64_t count = experts.count();
  const int64_t choices = ids.elements();
  const int64_t top = ids.size(1);
  const int32_t* id = ids.as<int32_t>();
  const auto expert_of = [&](int64_t choice) {
    const int64_t distance = id[choice] - experts.first_expert;
    if (experts.expert_step == 1) return distance;
    return distance % experts.expert_step == 0 ? distance / experts.expert_step : -1;
  };
  std::fill(pairs.starts, pairs.starts + count + 1, 0);
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t e = expert_of(i);
    if (e >= 0 && e < count) ++pairs.starts[e];
  }
  int32_t next = 0;
  for (int64_t e = 0; e <= count; ++e) next += std::exchange(pairs.starts[e], next);
  for (int64_t i = 0; i < choices; ++i) {
    const int64_t e = expert_of(i);
    if (e < 0 || e >= count) continue;
    const int32_t at = pairs.starts[e]++;
    pairs.tokens[at] = static_cast<int32_t>(i / top);
    pairs.weights[at] = weights.as<float>()[i];
  }
  // Each start has moved to the next expert's: move them back.
  for (int64_t e = count; e > 0; --e) pairs.starts[e] = pairs.starts[e - 1];
  pairs.starts[0] = 0;
  for (int64_t e = 0; e < count; ++e)
    if (pairs.starts[e + 1] > pairs.starts[e])
      pairs.active[pairs.active_count++] = static_cast<int32_t>(e);
}

namespace {

bool for_tiles(const Experts& experts) {
  const DType dtype = experts.w13.dtype();
  return dtype == DType::f8_e4m3 || dtype == DType::bf16;
}

}  // namespace

int64_t experts_scratch_bytes(const Experts& experts, int64_t tokens, int64_t top) {
  const int64_t by_rows = experts_by_rows_bytes(experts, tokens, top);
  if (!tiles_supported() || !for_tiles(experts)) return by_rows;
  return std::max(by_rows, experts_by_tiles_bytes(experts, tokens, top));
}

void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out) {
  if (use_tiles() && for_tiles(experts))
    return experts_by_tiles(exec, x, experts, ids, weights, scratch, out);
  experts_by_rows(exec, x, experts, ids, weights, scratch, out);
}

}  // namespace m2::ops::cpu
