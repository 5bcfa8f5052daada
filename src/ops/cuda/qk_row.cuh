#pragma once

#include "ops/cuda/device.cuh"

// A token's row of q, k and v in a block's registers, 8 dims a thread: what the kernels that norm,
// turn and store in one go have in common.
namespace m2::ops::cuda {

constexpr int kQkDim = 128, kQkRotary = 64;  // of the heads that this form knows
constexpr int kHeadThreads = kQkDim / 8;

__device__ __forceinline__ void as_floats(uint4 from, float (&to)[8]) {
  const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 as_bf16(const float (&from)[8]) {
  return {pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]),
          pack_bf16(from[6], from[7])};
}

// Where the cache has a token's key or value of a head, in rows of one: `slot` >= 0 names the block
// and the token's place in it.
__device__ __forceinline__ int64_t cache_row(const QkNormRope& args, int slot, int kv_head) {
  return (slot / args.cache.block_size * static_cast<int64_t>(args.heads.kv) + kv_head) *
             args.cache.block_size +
         slot % args.cache.block_size;
}

// A thread's part of a token: heads in the order of qkv, kHeadThreads threads each.
struct QkPiece {
  const QkNormRope& args;
  int64_t token;
  int head = threadIdx.x / kHeadThreads, piece = threadIdx.x % kHeadThreads;
  bool is_q, is_k;
  uint4 weights = {}, raw;
  float value[8];
  int slot;
  float4 cosines[2], sines[2];

  // Before wait_for_previous(): asks for the norms' weights alone.
  __device__ __forceinline__ QkPiece(const QkNormRope& of, int64_t which) : args(of), token(which) {
    const Heads& heads = args.heads;
    is_q = head < heads.q;
    is_k = !is_q && head < heads.q + heads.kv;
    if (is_q || is_k)
      weights = reinterpret_cast<const uint4*>(
          is_q ? args.q_norm : args.k_norm)[threadIdx.x - (is_q ? 0 : heads.q * kHeadThreads)];
  }
  __device__ __forceinline__ uint4* row() const {
    return reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.qkv.data) +
                                    token * args.qkv.stride);
  }
  // After it: the numbers, where they go, and how far they turn.
  __device__ __forceinline__ void load() {
    raw = row()[threadIdx.x];
    slot = args.slots[token];
    const auto* angles = reinterpret_cast<const float4*>(args.angles + token * kQkRotary);
    const int turn = piece % 4 * 2;  // the first of its 8 pairs, in fours
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      cosines[i] = angles[turn + i];
      sines[i] = angles[turn + kQkRotary / 8 + i];
    }
  }
  __device__ __forceinline__ void widen() {
    as_floats(raw, value);
  }
  // By all threads, given the sums of squares over all ranks' heads. kStepwise: which of the
  // rotation's products is rounded is what qk_norm_rope_kernel has, whose bytes these then are.
  template <bool kStepwise>
  __device__ __forceinline__ void norm_turn_store(float q_sum, float k_sum) {
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
      const float other = __shfl_xor_sync(~0u, value[i], kQkRotary / 2 / 8);
      if (!(is_q || is_k) || piece >= kQkRotary / 8) continue;
      const bool first = piece < kQkRotary / 16;
      if (kStepwise && !first)
        value[i] = __fmaf_rn(other, sine[i], __fmul_rn(value[i], cosine[i]));
      else
        value[i] = __fmaf_rn(value[i], cosine[i], __fmul_rn(other, first ? -sine[i] : sine[i]));
    }
    if (is_q) {
      row()[threadIdx.x] = as_bf16(value);
      return;
    }
    if (slot < 0) return;  // a padding token of a captured graph
    const Heads& heads = args.heads;
    const int kv_head = (head - heads.q) % heads.kv;
    const int64_t cell = cache_row(args, slot, kv_head) * kHeadThreads + piece;
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
};

}  // namespace m2::ops::cuda
