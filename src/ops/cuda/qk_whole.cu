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
  launch(stream, qk_whole_kernel,
         {dim3(static_cast<unsigned>(args.qkv.rows)), dim3(static_cast<unsigned>(threads))}, args);
}

}  // namespace m2::ops::cuda
