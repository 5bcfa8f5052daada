#include "ops/cuda/hopper.cuh"
#include "ops/cuda/norm_row.cuh"
#include "ops/cuda/qk_row.cuh"
#include "parallel/cuda/peer_words.cuh"

namespace m2::parallel::cuda {
namespace {

// What warps of a row have, met in every block of its cluster.
template <int kParts>
class RowSum {
 public:
  static constexpr int kWarps = kNormThreads / kWarp;
  struct Shared {
    alignas(16) float of_warp[kWarps];
    uint64_t met;
  };
  // By all threads of all blocks. No fence of memory: that would wait for what is on its way to
  // other GPUs.
  __device__ explicit RowSum(Shared& shared) : shared_(shared) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kParts > 1) {
      if (threadIdx.x == 0) {
        barrier_init(&shared.met, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      }
      __syncwarp();
      if (threadIdx.x == 0) barrier_expect(&shared.met, sizeof(shared.of_warp));
      asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
#endif
  }
  // The sum of every thread's `value` in the order of block_sum() of kNormThreads threads, of which
  // this one is `thread`.
  __device__ float operator()(float value, int thread) {
    const int lane = thread % kWarp, warp = thread / kWarp;
    value = warp_sum(value);
    if constexpr (kParts > 1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      if (lane < kParts)
        asm volatile(
            "{\n"
            ".reg .b32 there, barrier;\n"
            "mapa.shared::cluster.u32 there, %0, %2;\n"
            "mapa.shared::cluster.u32 barrier, %1, %2;\n"
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [there], %3, [barrier];\n"
            "}\n" ::"r"(shared_address(shared_.of_warp + warp)),
            "r"(shared_address(&shared_.met)), "r"(lane), "f"(value)
            : "memory");
#endif
      barrier_wait(&shared_.met, 0);
    } else {
      if (lane == 0) shared_.of_warp[warp] = value;
      __syncthreads();
    }
    // As warp_sum() of 12 numbers and zeros.
    static_assert(kWarps == 12);
    float4 of[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) of[i] = reinterpret_cast<const float4*>(shared_.of_warp)[i];
    return ((of[0].x + of[2].x + of[1].x) + (of[0].z + of[2].z + of[1].z)) +
           ((of[0].y + of[2].y + of[1].y) + (of[0].w + of[2].w + of[1].w));
  }

 private:
  Shared& shared_;
};

// A cluster of kParts blocks a row, whose threads together are those of rms_norm_kernel
// (ops/cuda/norm.cu), to the same bytes; 8 columns of a thread are a word, which comes over the
// link instead of from memory. Bytes: 6 of a column read, as many written, and a row each way over
// every link. Bound: latency, to which a row's words on one multiprocessor would add.
template <int kRanks, int kParts>
__global__ void __launch_bounds__(kNormThreads / kParts)
    small_sum_norm_kernel(const __grid_constant__ PeerSumNorm work) {
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
  uint4 weights = {}, own = {}, kept = {};
  if (has) weights = static_cast<const uint4*>(work.weight)[thread];
  wait_for_previous();
  let_next_start();
  // Asked for before the account of rounds is waited for.
  if (has) {
    own = static_cast<const uint4*>(work.sum.x)[pack];
    kept = static_cast<const uint4*>(work.residual)[pack];
  }
  words.begin(row);
  float value[8] = {}, squares = 0.0f;
  if (has) {
    own = under_way(own);
    words.send_to_all(pack, own);
    as_floats(kept, value);
    const Group<T> change = words.template sum_of_all<T>(pack, own);
    float by[8];
    as_floats(reinterpret_cast<const uint4&>(change), by);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] += by[i];
    kept = as_bf16(value);
    as_floats(kept, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) squares = fmaf(value[i], value[i], squares);
    static_cast<uint4*>(work.residual)[pack] = kept;
  }
  const float mean = row_sum(squares, static_cast<int>(thread)) / static_cast<float>(columns);
  const float factor = 1.0f / sqrtf(mean + work.eps);
  // As store_normed() does (ops/cuda/norm_row.cuh), by whole warps.
  float by[8];
  as_floats(weights, by);
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] = value[i] * factor * by[i];
  const uint4 normed = as_bf16(value);
  if (has) static_cast<uint4*>(work.out)[pack] = normed;
  if (work.quantised) {
    as_floats(normed, value);
    float most = fmaxf(largest_of(value[0], value[1], value[2], value[3]),
                       largest_of(value[4], value[5], value[6], value[7]));
#pragma unroll
    for (int offset = 8; offset; offset /= 2)
      most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
    const float scale = f8_scale(most, work.powers), inverse = 1.0f / scale;
    if (has) {
      reinterpret_cast<uint2*>(work.quantised)[pack] = {
          to_f8(value[0], value[1], value[2], value[3], inverse),
          to_f8(value[4], value[5], value[6], value[7], inverse)};
      if (thread % 16 == 0) work.quantised_scales[pack / 16] = scale;
    }
  }
  if (part == 0 && threadIdx.x < kWarp) words.count(row, gridDim.x / kParts);
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
  Words words(work.sum);
  wait_for_previous();
  let_next_start();
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
template <int kParts>
void launch_parts(void* stream, const PeerSumNorm& work) {
  LaunchShape shape{dim3(static_cast<unsigned>(work.sum.count / work.columns * kParts)),
                    dim3(kNormThreads / kParts)};
  shape.cluster = kParts;
  with_ranks(work.sum.ranks, [&](auto ranks) {
    launch(stream, small_sum_norm_kernel<ranks, kParts>, shape, work);
  });
}
}  // namespace

void launch_small_peer_sum_norm(void* stream, const PeerSumNorm& work) {
  device_major() >= 9 ? launch_parts<4>(stream, work) : launch_parts<1>(stream, work);
}

}  // namespace m2::parallel::cuda
