#include "ops/decode_layer.h"

#include "ops/check_tensor.h"
#include "ops/cuda/ops_cuda.h"
#include "ops/route.h"

namespace m2::ops {

bool decodes_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                   const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                   const DecodeRanks& ranks) {
  return exec.device.kind == DeviceKind::cuda &&
         cuda::decodes_layer(exec, layer, cache, layout, heads, tensors, ranks);
}

void decode_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeBefore* before, const AddNorm* after, const DecodeRanks& ranks) {
  check_cache(cache, heads);
  check_quantised(tensors.quantised_hidden, tensors.hidden);
  check_route(tensors.hidden, layer.gate, layer.routing_bias, tensors.ids, tensors.weights,
              layout.slots);
  M2_CHECK(decodes_layer(exec, layer, cache, layout, heads, tensors, ranks));
  M2_CHECK(ranks.size == 1 || (!before && after));
  cuda::decode_layer(exec, layer, cache, layout, heads, tensors, before, after, ranks);
}

bool decodes_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeRanks& ranks) {
  return exec.device.kind == DeviceKind::cuda &&
         cuda::decodes_rows(exec, layer, cache, layout, heads, tensors, ranks);
}

UnsummedExperts decode_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                            const BatchLayout& layout, const HeadShape& heads,
                            const DecodeTensors& tensors, const DecodeRanks& ranks) {
  check_cache(cache, heads);
  check_quantised(tensors.quantised_hidden, tensors.hidden);
  check_route(tensors.hidden, layer.gate, layer.routing_bias, tensors.ids, tensors.weights,
              layout.slots);
  M2_CHECK(decodes_rows(exec, layer, cache, layout, heads, tensors, ranks));
  return cuda::decode_rows(exec, layer, cache, layout, heads, tensors, ranks);
}

}  // namespace m2::ops
