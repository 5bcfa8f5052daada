#include <algorithm>

#include "ops/cuda/attention/sm90_prefill.cuh"

namespace m2::ops::cuda {

void launch_prefill_tiles(void* stream, const AttentionArgs& args) {
  const int64_t tiles = args.q.rows / tiled::kRows + args.sequences;  // at most so many
  LaunchShape shape{
      dim3(static_cast<unsigned>(std::min<int64_t>(multiprocessors(), tiles * args.heads.q))),
      dim3(tiled::kThreads)};
  shape.shared_bytes = tiled::kSharedBytes;
  const bool f8 = args.cache.dtype == DType::f8_e4m3;
  CUtensorMap keys = {}, values = {};
  if (!f8) {
    const int64_t rows = args.cache.blocks * args.heads.kv * kPage;
    keys = tensor_map(args.cache.k, rows, kDim * 2, kDim * 2, kPage);
    values = tensor_map(args.cache.v, rows, kDim * 2, kDim * 2, kPage);
  }
  launch(stream, f8 ? sm90_attention_prefill<true> : sm90_attention_prefill<false>, shape, keys,
         values, args);
}

}  // namespace m2::ops::cuda
