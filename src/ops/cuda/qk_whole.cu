#include "ops/cuda/part_of_row.cuh"
#include "ops/cuda/qk_row.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kMostThreads = 1024;

// Norm over all q heads and over all k heads of a token, rotation, and the store of k and v: one
// block a token that holds its whole row in registers, so that nothing is read twice and q may be
// overwritten. Bytes: T (q + 2 kv) 128 * 2 read, as many written. Bound: latency for few tokens,
// then bandwidth. The sums are in one order whatever the batch.
__global__ void __launch_bounds__(kMostThreads)
    qk_whole_kernel(const __grid_constant__ QkNormRope args) {
  __shared__ float sums[2][kMostThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  QkPiece mine(args, blockIdx.x);
  wait_for_previous();
  let_next_start();
  mine.load();
  mine.widen();
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = fmaf(mine.value[i], mine.value[i], squares);
  const float q_share = warp_sum(mine.is_q ? squares : 0.0f);
  const float k_share = warp_sum(mine.is_k ? squares : 0.0f);
  if (lane == 0) {
    sums[0][warp] = q_share;
    sums[1][warp] = k_share;
  }
  __syncthreads();
  const bool there = lane < static_cast<int>(blockDim.x) / kWarp;
  const float q_sum = warp_sum(there ? sums[0][lane] : 0.0f);
  const float k_sum = warp_sum(there ? sums[1][lane] : 0.0f);
  mine.norm_turn_store<false>(q_sum, k_sum);
}

// The same to the same bytes in steps of many tokens: a thread has two neighbouring heads' dims
// 8 p .. 8 p + 7, and the next ones 32, 64 and 96 further on, p from 0 to 3, so that dims that turn
// together, and most of each sum, are in one thread. Heads of each kind are even in number.
constexpr int kPairThreads = 4;                              // of two heads
constexpr int kRowsShare = 2 * kHeadThreads / kPairThreads;  // threads of qk_whole_kernel in one

__global__ void __launch_bounds__(kMostThreads / kRowsShare, 5)
    qk_whole_rows_kernel(const __grid_constant__ QkNormRope args) {
  __shared__ float sums[2][kMostThreads / kWarp];
  const Heads& heads = args.heads;
  const int lane = threadIdx.x % kWarp, pair = threadIdx.x / kPairThreads;
  const int piece = threadIdx.x % kPairThreads;
  const int64_t token = blockIdx.x;
  const bool is_q = 2 * pair < heads.q, is_k = !is_q && 2 * pair < heads.q + heads.kv;
  auto* row = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.qkv.data) +
                                       token * args.qkv.stride) +
              2 * pair * kHeadThreads + piece;
  wait_for_previous();
  let_next_start();
  uint4 raw[2][4];
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int j = 0; j < 4; ++j) raw[h][j] = row[h * kHeadThreads + j * kPairThreads];
  const int slot = args.slots[token];
  const auto* angles = reinterpret_cast<const float4*>(args.angles + token * kQkRotary) + piece * 2;
  float cosine[8], sine[8];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    *reinterpret_cast<float4*>(cosine + 4 * i) = angles[i];
    *reinterpret_cast<float4*>(sine + 4 * i) = angles[kQkRotary / 8 + i];
  }
  // As warp_sum() of the two heads' 32 threads in qk_whole_kernel.
  float share = 0.0f;
  if (is_q || is_k) {
    float of[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) of[j] = squares_of(raw[0][j]) + squares_of(raw[1][j]);
    share = (of[0] + of[2]) + (of[1] + of[3]);
  }
  share += __shfl_xor_sync(~0u, share, 2);
  share += __shfl_xor_sync(~0u, share, 1);
  if (piece == 0) {
    sums[0][pair] = is_q ? share : 0.0f;
    sums[1][pair] = is_k ? share : 0.0f;
  }
  __syncthreads();
  const bool there = lane < static_cast<int>(blockDim.x) / kPairThreads;
  const float q_sum = warp_sum(there ? sums[0][lane] : 0.0f);
  const float k_sum = warp_sum(there ? sums[1][lane] : 0.0f);

  float factor = 1.0f;
  if (is_q || is_k) {
    const float mean =
        is_q ? q_sum / static_cast<float>(args.full_q) : k_sum / static_cast<float>(args.full_k);
    factor = 1.0f / sqrtf(mean + args.eps);
  }
  const auto* weights = reinterpret_cast<const uint4*>(is_q ? args.q_norm : args.k_norm) +
                        (2 * pair - (is_q ? 0 : heads.q)) * kHeadThreads + piece;
  if (!is_q && slot < 0) return;  // a padding token of a captured graph
  void* cache = is_k ? args.cache.k : args.cache.v;
  const bool narrow = !is_q && args.cache.dtype != DType::bf16;
  const float scale = is_k ? args.cache.k_scale : args.cache.v_scale;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int kv_head = (2 * pair + h - heads.q) % heads.kv;
    const int64_t cell = cache_row(args, slot, kv_head) * kHeadThreads + piece;
    const auto store = [&](int j, float(&value)[8], const uint4& eight) {
      if (is_q) {
        row[h * kHeadThreads + j * kPairThreads] = eight;
        return;
      }
      if (!narrow) {
        static_cast<uint4*>(cache)[cell + j * kPairThreads] = eight;
        return;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] /= scale;
      static_cast<uint2*>(cache)[cell + j * kPairThreads] = {
          __nv_fp8x4_e4m3(float4{value[0], value[1], value[2], value[3]}).__x,
          __nv_fp8x4_e4m3(float4{value[4], value[5], value[6], value[7]}).__x};
    };
    float value[2][8];
    if (!is_q && !is_k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        as_floats(raw[h][j], value[0]);
        store(j, value[0], raw[h][j]);
      }
      continue;
    }
    const auto normed = [&](int j, float(&to)[8]) {
      float by[8];
      as_floats(raw[h][j], to);
      as_floats(weights[h * kHeadThreads + j * kPairThreads], by);
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i] = to[i] * factor * by[i];
    };
    normed(0, value[0]);
    normed(1, value[1]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float first = value[0][i], second = value[1][i];
      value[0][i] = __fmaf_rn(first, cosine[i], __fmul_rn(second, -sine[i]));
      value[1][i] = __fmaf_rn(second, cosine[i], __fmul_rn(first, sine[i]));
    }
    store(0, value[0], as_bf16(value[0]));
    store(1, value[1], as_bf16(value[1]));
#pragma unroll
    for (int j = 2; j < 4; ++j) {
      normed(j, value[0]);
      store(j, value[0], as_bf16(value[0]));
    }
  }
}

}  // namespace

bool qk_whole_fits(const QkNormRope& args) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const int threads = (args.heads.q + 2 * args.heads.kv) * kHeadThreads;
  return args.heads.dim == kQkDim && args.heads.rotary == kQkRotary && threads <= kMostThreads &&
         threads % kWarp == 0 && args.qkv.dtype == DType::bf16 &&
         args.q_norm_dtype == DType::bf16 && args.k_norm_dtype == DType::bf16 &&
         args.qkv.stride % 8 == 0 && aligned(args.qkv.data) && aligned(args.q_norm) &&
         aligned(args.k_norm) && aligned(args.angles) && aligned(args.cache.k) &&
         aligned(args.cache.v);
}

void launch_qk_whole(void* stream, const QkNormRope& args) {
  if (args.qkv.rows == 0) return;
  const int threads = (args.heads.q + 2 * args.heads.kv) * kHeadThreads;
  const bool even = args.heads.q % 2 == 0 && args.heads.kv % 2 == 0;
  if (many_rows(args.qkv.rows) && even && threads % (kRowsShare * kWarp) == 0)
    return launch(stream, qk_whole_rows_kernel, rows_shape(args.qkv.rows, threads / kRowsShare),
                  args);
  launch(stream, qk_whole_kernel,
         {dim3(static_cast<unsigned>(args.qkv.rows)), dim3(static_cast<unsigned>(threads))}, args);
}

}  // namespace m2::ops::cuda
