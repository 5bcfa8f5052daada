#include "ops/cuda/norm_row.cuh"
#include "ops/cuda/qk_row.cuh"
#include "parallel/cuda/peer_words.cuh"

namespace m2::parallel::cuda {
namespace {

// A block a row, as rms_norm_kernel has it (ops/cuda/norm.cu), to the same bytes; 8 columns are two
// words, which come over the link instead of from memory.
template <int kMost>
__global__ void __launch_bounds__(kNormThreads) small_sum_norm_kernel(const PeerSumNorm work) {
  using T = __nv_bfloat16;
  __shared__ float scratch[33];
  const int64_t row = blockIdx.x, columns = work.columns, packs = columns / 8;
  float by[8];
  if (threadIdx.x < packs) load_weights(work.weight, work.weight_dtype, threadIdx.x * 8, by);
  wait_for_previous();
  let_next_start();
  auto* const residual =
      reinterpret_cast<Pack8<T>*>(static_cast<T*>(work.residual) + row * columns);
  const auto* const x = static_cast<const uint4*>(work.sum.x) + row * packs;
  // Asked for before the account of rounds is waited for.
  uint4 first = {};
  Pack8<T> held = {};
  if (threadIdx.x < packs) {
    first = x[threadIdx.x];
    held = residual[threadIdx.x];
  }
  const Words words(work.sum);
  for (int64_t p = threadIdx.x; p < packs; p += kNormThreads) {
    const uint4 numbers = p == threadIdx.x ? first : x[p];
    words.send_to_all(2 * (row * packs + p), {numbers.x, numbers.y});
    words.send_to_all(2 * (row * packs + p) + 1, {numbers.z, numbers.w});
  }
  float sum = 0.0f;
  for (int64_t p = threadIdx.x; p < packs; p += kNormThreads) {
    Pack8<T> pack = p == threadIdx.x ? held : residual[p];
    const uint4 numbers = p == threadIdx.x ? first : x[p];
    const uint2 halves[2] = {{numbers.x, numbers.y}, {numbers.z, numbers.w}};
    Group<T, 8> change[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      change[h] = words.sum_of_all<T, kMost>(2 * (row * packs + p) + h,
                                             reinterpret_cast<const Group<T, 8>&>(halves[h]));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      T& kept = pack.values[i];
      kept = from_float<T>(to_float(kept) + to_float(change[i / 4].number[i % 4]));
      sum = fmaf(to_float(kept), to_float(kept), sum);
    }
    residual[p] = pack;
    if (p == threadIdx.x) held = pack;
  }

  const float mean = block_sum(sum, scratch) / static_cast<float>(columns);
  const float factor = 1.0f / sqrtf(mean + work.eps);
  const QuantisedRows quantised{work.quantised, work.quantised_scales, work.powers};
  for (int64_t p = threadIdx.x; p < packs; p += kNormThreads) {
    if (p != threadIdx.x) {
      held = residual[p];
      load_weights(work.weight, work.weight_dtype, p * 8, by);
    }
    store_normed(held, by, factor, static_cast<T*>(work.out) + row * columns, p, row, columns,
                 quantised);
  }
}

// A block a token, 8 dims of q, k or v a thread; a word a token and rank. The sums of squares are
// added up as qk_sum_squares_kernel does (ops/cuda/qk_norm_rope.cu). Bytes: T (q + 2 kv) 128 * 2
// read, as many written, and a word each way over every link. Bound: latency.
constexpr int kMostQkThreads = 512;
__global__ void __launch_bounds__(kMostQkThreads)
    small_sum_qk_kernel(const __grid_constant__ PeerQkNorm work) {
  __shared__ float shares[2][kMostQkThreads / kWarp];
  __shared__ float2 sums;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t token = blockIdx.x;
  QkPiece mine(work.qk, token);
  wait_for_previous();
  let_next_start();
  mine.load();
  const Words words(work.sum);

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
}

}  // namespace

bool small_peer_sum_qk_fits(const QkNormRope& args) {
  const int threads = (args.heads.q + 2 * args.heads.kv) * kHeadThreads;
  return args.qkv.rows <= kSumBlocks && args.heads.q % (kWarp / kHeadThreads) == 0 &&
         threads <= kMostQkThreads && qk_whole_fits(args);
}

void launch_small_peer_sum_qk(void* stream, const PeerQkNorm& work) {
  const int threads = (work.qk.heads.q + 2 * work.qk.heads.kv) * kHeadThreads;
  launch(stream, small_sum_qk_kernel,
         LaunchShape{dim3(static_cast<unsigned>(work.qk.qkv.rows)),
                     dim3(static_cast<unsigned>(threads))},
         work);
}

void launch_small_peer_sum_norm(void* stream, const PeerSumNorm& work) {
  const int64_t rows = work.sum.count / work.columns;
  launch(stream, work.sum.ranks <= 4 ? small_sum_norm_kernel<4> : small_sum_norm_kernel<kMostPeers>,
         LaunchShape{dim3(static_cast<unsigned>(rows)), dim3(kNormThreads)}, work);
}

}  // namespace m2::parallel::cuda
