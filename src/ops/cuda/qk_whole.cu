#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kDim = 128, kRotary = 64;  // of the heads that this form knows
constexpr int kHeadThreads = kDim / 8;   // 8 dims each
constexpr int kMostThreads = 1024;

__device__ __forceinline__ void as_floats(uint4 from, float (&to)[8]) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 as_bf16(const float (&from)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  return {words[0], words[1], words[2], words[3]};
}

// Norm over all q heads and over all k heads of a token, rotation, and the store of k and v: one
// block a token that holds its whole row in registers, so that nothing is read twice and q may be
// overwritten. Bytes: T (q + 2 kv) 128 * 2 read, as many written. Bound: latency for few tokens,
// then bandwidth. The sums are in one order whatever the batch.
__global__ void __launch_bounds__(kMostThreads) qk_whole_kernel(QkNormRope args) {
  __shared__ float sums[2][kMostThreads / kWarp];
  const Heads heads = args.heads;
  const int head = threadIdx.x / kHeadThreads, piece = threadIdx.x % kHeadThreads;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const bool is_q = head < heads.q, is_k = !is_q && head < heads.q + heads.kv;
  const int64_t token = blockIdx.x;
  uint4 weights = {};
  if (is_q || is_k)
    weights = reinterpret_cast<const uint4*>(
        is_q ? args.q_norm : args.k_norm)[threadIdx.x - (is_q ? 0 : heads.q * kHeadThreads)];
  wait_for_previous();
  let_next_start();
  auto* row = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.qkv.data) +
                                       token * args.qkv.stride);
  const uint4 raw = row[threadIdx.x];
  const int slot = args.slots[token];
  const auto* angles = reinterpret_cast<const float4*>(args.angles + token * kRotary);
  const int turn = piece % 4 * 2;  // the first of its 8 pairs, in fours
  const float4 cosines[2] = {angles[turn], angles[turn + 1]};
  const float4 sines[2] = {angles[turn + kRotary / 8], angles[turn + kRotary / 8 + 1]};

  float value[8];
  as_floats(raw, value);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = fmaf(value[i], value[i], squares);
  const float q_share = warp_sum(is_q ? squares : 0.0f);
  const float k_share = warp_sum(is_k ? squares : 0.0f);
  if (lane == 0) {
    sums[0][warp] = q_share;
    sums[1][warp] = k_share;
  }
  __syncthreads();
  const bool there = lane < static_cast<int>(blockDim.x) / kWarp;
  const float q_sum = warp_sum(there ? sums[0][lane] : 0.0f);
  const float k_sum = warp_sum(there ? sums[1][lane] : 0.0f);

  if (is_q || is_k) {
    const float mean =
        is_q ? q_sum / static_cast<float>(args.full_q) : k_sum / static_cast<float>(args.full_k);
    const float factor = 1.0f / sqrtf(mean + args.eps);
    float by[8];
    as_floats(weights, by);
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = value[i] * factor * by[i];
  }
  const float cosine[8] = {cosines[0].x, cosines[0].y, cosines[0].z, cosines[0].w,
                           cosines[1].x, cosines[1].y, cosines[1].z, cosines[1].w};
  const float sine[8] = {sines[0].x, sines[0].y, sines[0].z, sines[0].w,
                         sines[1].x, sines[1].y, sines[1].z, sines[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // Dim i of the first 32 turns with dim i + 32, which is four threads further on.
    const float other = __shfl_xor_sync(~0u, value[i], kRotary / 2 / 8);
    if (!(is_q || is_k) || piece >= kRotary / 8) continue;
    value[i] = piece < kRotary / 16 ? value[i] * cosine[i] - other * sine[i]
                                    : value[i] * cosine[i] + other * sine[i];
  }
  if (is_q) {
    row[threadIdx.x] = as_bf16(value);
    return;
  }
  if (slot < 0) return;  // a padding token of a captured graph
  const int kv_head = (head - heads.q) % heads.kv;
  const int64_t cell = ((slot / args.cache.block_size * static_cast<int64_t>(heads.kv) + kv_head) *
                            args.cache.block_size +
                        slot % args.cache.block_size) *
                           kHeadThreads +
                       piece;
  void* cache = is_k ? args.cache.k : args.cache.v;
  if (args.cache.dtype == DType::bf16) {
    static_cast<uint4*>(cache)[cell] = is_k ? as_bf16(value) : raw;
    return;
  }
  const float scale = is_k ? args.cache.k_scale : args.cache.v_scale;
#pragma unroll
  for (int i = 0; i < 8; ++i) value[i] /= scale;
  static_cast<uint2*>(cache)[cell] = {
      __nv_fp8x4_e4m3(float4{value[0], value[1], value[2], value[3]}).__x,
      __nv_fp8x4_e4m3(float4{value[4], value[5], value[6], value[7]}).__x};
}

}  // namespace

bool qk_whole_fits(const QkNormRope& args) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const int threads = (args.heads.q + 2 * args.heads.kv) * kHeadThreads;
  return args.heads.dim == kDim && args.heads.rotary == kRotary && threads <= kMostThreads &&
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
