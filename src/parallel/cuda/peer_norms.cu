#include "ops/cuda/expert_results.cuh"
#include "ops/cuda/row_sum.cuh"
#include "parallel/cuda/peer_words.cuh"

namespace m2::parallel::cuda {
namespace {

// What a rank brings to a sum: its numbers in memory,
struct OwnNumbers {
  static constexpr bool kLetsNextFirst = true;
  uint4 own = {};
  __device__ __forceinline__ OwnNumbers(const PeerSumNorm& work, const ops::UnsummedExperts&,
                                        unsigned, unsigned, unsigned pack, bool has) {
    if (has) own = static_cast<const uint4*>(work.sum.x)[pack];
  }
  __device__ __forceinline__ uint4 numbers(const ops::UnsummedExperts&) const { return own; }
  static __device__ __forceinline__ void finish(const ops::UnsummedExperts&) {}
};

// or what its experts have left, which is one kernel less than a sum of it in memory. The kernel
// after this one asks for its weights at once, and what is read here would come behind them: so it
// starts when all has been asked for.
struct OwnExperts {
  static constexpr bool kLetsNextFirst = false;
  ops::cuda::ExpertColumns columns;
  __device__ __forceinline__ OwnExperts(const PeerSumNorm&, const ops::UnsummedExperts& left,
                                        unsigned row, unsigned packs, unsigned pack, bool has)
      : columns(
            static_cast<const uint4*>(left.results) + (has ? pack + row * (kTop - 1) * packs : 0),
            packs, left.ids + row * kTop, left.weights + row * kTop) {}
  __device__ __forceinline__ uint4 numbers(const ops::UnsummedExperts& left) const {
    return columns.sum(left.first_expert, left.experts);
  }
  // As clear_counters() does.
  static __device__ __forceinline__ void finish(const ops::UnsummedExperts& left) {
    if (blockIdx.x != 0) return;
    for (int i = threadIdx.x; i < left.counts; i += blockDim.x) left.done[i] = 0;
    if (threadIdx.x != 0) return;
    *left.next_tile = 0;
    atomicAdd(left.posted, 1u);
  }

 private:
  static constexpr unsigned kTop = ops::UnsummedExperts::kTop;
};

// A cluster of kParts blocks a row, whose threads together are those of rms_norm_kernel
// (ops/cuda/norm.cu), to the same bytes; 8 columns of a thread are a word, which comes over the
// link instead of from memory. Bytes: 6 of a column read (of experts 20), as many written, and a
// row each way over every link. Bound: latency, to which a row's words on one multiprocessor would
// add.
template <int kRanks, int kParts, class Own>
__global__ void __launch_bounds__(kNormThreads / kParts)
    small_sum_norm_kernel(const __grid_constant__ PeerSumNorm work,
                          const __grid_constant__ ops::UnsummedExperts experts) {
  using T = __nv_bfloat16;
  constexpr int kThreads = kNormThreads / kParts;
  static_assert(kThreads % kWarp == 0 && kSumNormColumns == 8 * kNormThreads);
  __shared__ typename RowSum<kParts>::Shared shared;
  RowSum<kParts> row_sum(shared);
  const unsigned row = blockIdx.x / kParts, part = blockIdx.x % kParts;
  const unsigned thread = part * kThreads + threadIdx.x;
  const auto columns = static_cast<unsigned>(work.columns), packs = columns / 8;
  const unsigned pack = row * packs + thread;
  const bool has = thread < packs;
  Summands<kRanks> words(work.sum);
  uint4 weights = {}, kept = {};
  if (has) weights = static_cast<const uint4*>(work.weight)[thread];
  wait_for_previous();
  if (Own::kLetsNextFirst) let_next_start();
  // Asked for before the account of rounds is waited for.
  const Own brought(work, experts, row, packs, pack, has);
  if (has) kept = static_cast<const uint4*>(work.residual)[pack];
  words.begin(row);
  if (!Own::kLetsNextFirst) let_next_start();
  if (has) {
    const uint4 own = under_way(brought.numbers(experts));
    words.send_to_all(pack, own);
    const Group<T> change = words.template sum_of_all<T>(pack, own);
    kept = sum_of_eight(kept, reinterpret_cast<const uint4&>(change));
    static_cast<uint4*>(work.residual)[pack] = kept;
  }
  norm_eight({static_cast<uint4*>(work.out), work.quantised, work.quantised_scales, work.powers},
             row_sum, kept, weights, work.eps, static_cast<int>(columns), static_cast<int>(thread),
             pack, has);
  if (part == 0 && threadIdx.x < kWarp) words.count(row, gridDim.x / kParts);
  Own::finish(experts);
}

// A block a token, 8 dims of q, k or v a thread; a word a token and rank. The sums of squares are
// added up as qk_sum_squares_kernel does (ops/cuda/qk_norm_rope.cu). Bytes: T (q + 2 kv) 128 * 2
// read, as many written, and a word each way over every link. Bound: latency.
constexpr int kMostQkThreads = 512;
constexpr unsigned kFewTokens = 64;
__global__ void __launch_bounds__(kMostQkThreads)
    small_sum_qk_kernel(const __grid_constant__ PeerQkNorm work) {
  __shared__ float shares[2][kMostQkThreads / kWarp];
  __shared__ float2 sums;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t token = blockIdx.x;
  QkPiece mine(work.qk, token);
  Words words(work.sum);
  // Attention takes longer to start than this does, and has pages to ask for; but those of many
  // contexts would stand in the way. What it reads before its own wait, tables and older pages, was
  // there before the norm in front of q, k and v began.
  const bool few = gridDim.x <= kFewTokens;
  if (few) let_next_start();
  wait_for_previous();
  if (!few) let_next_start();
  mine.load();
  words.begin(blockIdx.x);

  mine.widen();
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i += 2)
    squares =
        fmaf(mine.value[i], mine.value[i], fmaf(mine.value[i + 1], mine.value[i + 1], squares));
  const float q_share = warp_sum(mine.is_q ? squares : 0.0f);
  const float k_share = warp_sum(mine.is_k ? squares : 0.0f);
  if (lane == 0) {
    shares[0][warp] = q_share;
    shares[1][warp] = k_share;
  }
  __syncthreads();
  if (warp == 0) {
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const int of_q = work.qk.heads.q * kHeadThreads / kWarp;
    const float q_sum = warp_sum(lane < of_q ? shares[0][lane] : 0.0f);
    const float k_sum = warp_sum(lane < warps - of_q ? shares[1][of_q + lane] : 0.0f);
    float2 part = {q_sum, k_sum};  // of rank `lane`
    const PeerSum& sum = work.sum;
    if (lane < sum.ranks && lane != sum.rank) {
      send(words.place(lane, sum.rank, token), {__float_as_uint(q_sum), __float_as_uint(k_sum)});
      const uint2 numbers = receive(words.place(sum.rank, lane, token), sum.given_up);
      part = {__uint_as_float(numbers.x), __uint_as_float(numbers.y)};
    }
    __syncwarp();
    float2 total = {__shfl_sync(~0u, part.x, 0), __shfl_sync(~0u, part.y, 0)};
    for (int r = 1; r < sum.ranks; ++r) {
      total.x += __shfl_sync(~0u, part.x, r);
      total.y += __shfl_sync(~0u, part.y, r);
    }
    if (lane == 0) sums = total;
  }
  __syncthreads();
  mine.norm_turn_store<true>(sums.x, sums.y);
  if (warp == 0) words.count(blockIdx.x, gridDim.x);
}

}  // namespace

bool small_peer_sum_qk_fits(const QkNormRope& args) {
  const int threads = (args.heads.q + 2 * args.heads.kv) * kHeadThreads;
  return args.qkv.rows <= kWordRows && args.heads.q % (kWarp / kHeadThreads) == 0 &&
         threads <= kMostQkThreads && qk_whole_fits(args);
}

void launch_small_peer_sum_qk(void* stream, const PeerQkNorm& work) {
  const int threads = (work.qk.heads.q + 2 * work.qk.heads.kv) * kHeadThreads;
  launch(stream, small_sum_qk_kernel,
         LaunchShape{dim3(static_cast<unsigned>(work.qk.qkv.rows)),
                     dim3(static_cast<unsigned>(threads))},
         work);
}

namespace {
template <int kParts, class Own>
void launch_parts(void* stream, const PeerSumNorm& work, const ops::UnsummedExperts& experts) {
  LaunchShape shape{dim3(static_cast<unsigned>(work.sum.count / work.columns * kParts)),
                    dim3(kNormThreads / kParts)};
  shape.cluster = kParts;
  with_ranks(work.sum.ranks, [&](auto ranks) {
    launch(stream, small_sum_norm_kernel<ranks, kParts, Own>, shape, work, experts);
  });
}
}  // namespace

void launch_small_peer_sum_norm(void* stream, const PeerSumNorm& work) {
  device_major() >= 9 ? launch_parts<4, OwnNumbers>(stream, work, {})
                      : launch_parts<1, OwnNumbers>(stream, work, {});
}
void launch_small_peer_experts_norm(void* stream, const PeerExpertsNorm& work) {
  launch_parts<4, OwnExperts>(stream, work.norm, work.experts);  // Hopper's leave their results
}

}  // namespace m2::parallel::cuda
