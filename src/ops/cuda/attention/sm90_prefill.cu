#include <algorithm>

#include "ops/cuda/attention/sm90_prefill.cuh"

namespace m2::ops::cuda {

void launch_prefill_tiles(void* stream, const AttentionArgs& args) {
  const bool f8 = args.cache.dtype == DType::f8_e4m3;
  LaunchShape shape{dim3(), dim3(tiled::kThreads)};
  shape.shared_bytes = tiled::kSharedBytes;
  shape.cluster = !f8 && args.heads.q / args.heads.kv % 2 == 0 ? 2 : 1;
  const int64_t items = (args.q.rows / tiled::kRows + args.sequences) * args.heads.q;  // at most
  const int64_t clusters = std::min<int64_t>(multiprocessors(), items) / shape.cluster;
  shape.grid = dim3(static_cast<unsigned>(clusters) * static_cast<unsigned>(shape.cluster));
  CUtensorMap keys = {}, values = {};
  if (!f8) {
    const int64_t rows = args.cache.blocks * args.heads.kv * kPage;
    keys = tensor_map(args.cache.k, rows, kDim * 2, kDim * 2, kPage);
    values = tensor_map(args.cache.v, rows, kDim * 2, kDim * 2, kPage);
  }
  launch(stream,
         f8                   ? sm90_attention_prefill<true, 1>
         : shape.cluster == 1 ? sm90_attention_prefill<false, 1>
                              : sm90_attention_prefill<false, 2>,
         shape, keys, values, args);
}

}  // namespace m2::ops::cuda
