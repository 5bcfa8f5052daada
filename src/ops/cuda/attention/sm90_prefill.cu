#include <algorithm>
#include <bit>

#include "ops/cuda/attention/sm90_prefill.cuh"

namespace m2::ops::cuda {
namespace {

struct KvMaps {
  CUtensorMap keys = {}, values = {};

  KvMaps() = default;
  KvMaps(const void* k, const void* v, int64_t rows, int box_rows)
      : keys(tensor_map(k, rows, kDim * 2, kDim * 2, box_rows)),
        values(tensor_map(v, rows, kDim * 2, kDim * 2, box_rows)) {}
};

tiled::Parts parts_of(const AttentionPlan& plan, const AttentionArgs& args) {
  tiled::Parts parts = {};
  parts.log_tiles =
      std::countr_zero(static_cast<unsigned>(part_keys(args.heads.kv) / tiled::kKeys));
  if (plan.part_levels < 0) parts.log_tiles = tiled::kLogWholeTiles;
  if (plan.part_levels <= 0) return parts;
  auto* workspace = reinterpret_cast<uint8_t*>(args.workspace) + plan.parts_at;
  parts.levels = plan.part_levels;
  parts.kept = reinterpret_cast<float4*>(workspace);
  parts.runs =
      reinterpret_cast<float4*>(workspace + int64_t{kSumBytes} * kPartBlocks * parts.levels);
  parts.most_runs = plan.shares_parts ? kMostRuns : 0;
  return parts;
}

template <Feed kFeed>
void launch_tiles(void* stream, const AttentionArgs& args, const KvMaps& maps, tiled::Parts parts,
                  const tiled::Attended& of = {}) {
  LaunchShape shape{dim3(), dim3(tiled::kThreads)};
  shape.shared_bytes = tiled::kSharedBytes;
  shape.cluster = kFeed != Feed::f8 && args.heads.q / args.heads.kv % 2 == 0 ? 2 : 1;
  const int64_t items = (args.q.rows / tiled::kRows + args.sequences) * args.heads.q;  // at most
  int64_t blocks = parts.levels > 0 ? std::min(multiprocessors(), kPartBlocks) : multiprocessors();
  if (parts.most_runs == 0) blocks = std::min(blocks, items);
  const int64_t clusters = blocks / shape.cluster;
  parts.clusters = static_cast<int>(clusters);
  parts.heads = shape.cluster;
  shape.grid = dim3(static_cast<unsigned>(clusters) * static_cast<unsigned>(shape.cluster));
  auto kernel = sm90_attention_prefill<kFeed, 1>;
  if constexpr (kFeed != Feed::f8)
    if (shape.cluster == 2) kernel = sm90_attention_prefill<kFeed, 2>;
  launch(stream, kernel, shape, maps.keys, maps.values, args, of, parts);
  if (parts.most_runs > 0)
    launch(stream, join_runs,
           {dim3(static_cast<unsigned>(multiprocessors())), dim3(kRunJoinThreads)}, args, of,
           parts);
}

}  // namespace

void launch_prefill_tiles(void* stream, const AttentionPlan& plan, const AttentionArgs& args) {
  const Cache& cache = args.cache;
  const tiled::Parts parts = parts_of(plan, args);
  if (cache.dtype == DType::bf16) {
    const int64_t rows = cache.blocks * args.heads.kv * kPage;
    return launch_tiles<Feed::bf16>(stream, args, KvMaps(cache.k, cache.v, rows, kPage), parts);
  }
  if (plan.widened_tiles == 0) return launch_tiles<Feed::f8>(stream, args, KvMaps(), parts);
  const int64_t rows = plan.widened_tiles * args.heads.kv * tiled::kKeys;
  auto* workspace = reinterpret_cast<uint8_t*>(args.workspace);
  const tiled::Widened widened{
      reinterpret_cast<int32_t*>(workspace + plan.places_at), workspace + plan.widened_at,
      workspace + plan.widened_at + rows * 2 * kDim, static_cast<int>(plan.widened_tiles)};
  constexpr int kBlocks = 8;  // a multiprocessor
  launch(stream, widen_contexts,
         {dim3(static_cast<unsigned>(kBlocks * multiprocessors())), dim3(kWidenThreads)}, args,
         widened);
  launch_tiles<Feed::widened>(stream, args,
                              KvMaps(widened.keys, widened.values, rows, tiled::kKeys), parts,
                              {tiled::Attended::kPlaced, widened.places});
  if (!plan.widens_all)
    launch_tiles<Feed::f8>(stream, args, KvMaps(), parts,
                           {tiled::Attended::kOthers, widened.places});
}

}  // namespace m2::ops::cuda
