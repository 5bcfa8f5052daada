#include <climits>

#include "ops/cuda/expert_results.cuh"
#include "ops/cuda/rank_words.cuh"
#include "ops/cuda/row_sum.cuh"

namespace m2::ops::cuda {
namespace {

// A cluster of four blocks, 8 columns a thread: small enough to stand beside the blocks of the
// experts and to have begun before these have ended. The sum has the order of combine_pairs, that
// over ranks and the norm those of Comm::all_reduce_norm. Bytes: 16 results of a column read, a row
// each way over every link. Bound: latency.
constexpr int kParts = 4, kThreads = kNormThreads / kParts;

template <int kMost>
__global__ void __launch_bounds__(kThreads, 1)
    sm90_rank_experts(const __grid_constant__ RankExperts args) {
  __shared__ typename RowSum<kParts>::Shared shared;
  const RowSum<kParts> row_sum(shared);
  const DecodePeers& peers = args.peers;
  const unsigned thread = blockIdx.x * kThreads + threadIdx.x;
  const uint4 by = static_cast<const uint4*>(args.left.norm)[thread];
  wait_for_previous();
  const ExpertColumns results(static_cast<const uint4*>(args.left.results) + thread, kNormThreads,
                              args.left.ids, args.left.weights);
  auto* residual = static_cast<uint4*>(args.residual) + thread;
  uint4 kept = load_written(residual);
  // Counted by the kernel of the layer's first half.
  const uint32_t turn =
      *static_cast<const volatile uint32_t*>(&words_of(peers, peers.rank)->launches) % 2;
  // Only now: the next kernel asks for all its weights at once, and what is read here would come
  // behind them.
  let_next_start();
  const uint64_t keep = keep_policy();
  const uint4 own = under_way(results.sum(0, INT_MAX));
  // Where a rank finds what another tells it.
  const auto place = [&](int rank, int by_rank) {
    return reinterpret_cast<uint4*>(words_of(peers, rank)->experts[turn][by_rank]) + thread;
  };
#pragma unroll
  for (int i = 1; i < kMost; ++i) {  // not all ranks to the same one at once
    if (i >= peers.ranks) break;
    const int rank = peers.rank + i < peers.ranks ? peers.rank + i : peers.rank + i - peers.ranks;
    tell_words(place(rank, peers.rank), own, keep);
  }
  kept = sum_of_eight(
      kept, sum_of_ranks<kMost, kNormThreads, true>(peers, place(peers.rank, 0), own, keep));
  *residual = kept;
  norm_eight({static_cast<uint4*>(args.hidden), args.quantised.values, args.quantised.scales,
              args.quantised.powers},
             row_sum, kept, by, args.eps, 8 * kNormThreads, static_cast<int>(thread), thread, true);
  // What nobody waits for comes last: as clear_counters() does, and the words' room for the launch
  // after the next, of which a peer tells only after it has heard of this rank's next.
#pragma unroll
  for (int r = 0; r < kMost; ++r)
    if (r < peers.ranks && r != peers.rank) *place(peers.rank, r) = {};
  if (thread < ExpertColumns::kTop + 2) args.left.done[thread] = 0;
  if (thread == 0) {
    *args.left.next_tile = 0;
    atomicAdd(args.left.posted, 1u);
  }
}

}  // namespace

void launch_rank_experts(void* stream, const RankExperts& args) {
  static_assert(8 * kNormThreads == AttendShape::kHidden);
  LaunchShape shape{dim3(kParts), dim3(kThreads)};
  shape.cluster = kParts;
  launch(stream,
         args.peers.ranks <= 2   ? sm90_rank_experts<2>
         : args.peers.ranks <= 4 ? sm90_rank_experts<4>
                                 : sm90_rank_experts<8>,
         shape, args);
}

}  // namespace m2::ops::cuda
