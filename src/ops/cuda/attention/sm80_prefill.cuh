#pragma once

#include "ops/cuda/attention/sm80_decode.cuh"

namespace m2::ops::cuda {

constexpr int kPrefillWarps = 8;
constexpr int kQueries = kPrefillWarps * 16;  // tokens of a block, all of one q head
constexpr int kKeys = 64;                     // keys of a tile, four pages
constexpr int kTileBytes = kKeys * kDim * 2;
constexpr int kPrefillShared = 4 * kTileBytes;  // K and V, two tiles each

// 16 bytes into shared memory, or zeros.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool present) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
#endif
}
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}
template <bool kTranspose>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (kTranspose)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
#endif
}

// Where 16-byte piece `piece` of a key's row lies in its tile: pieces are turned by the row, so
// that eight rows at one piece lie in different banks.
__device__ __forceinline__ uint32_t tile_offset(int key, int piece) {
  return static_cast<uint32_t>(key * 256 + ((piece ^ (key & 7)) * 16));
}

// The sequence and its tile of queries that the block works on, counting only sequences of several
// tokens; false if there are fewer tiles.
__device__ __forceinline__ bool find_queries(const AttentionArgs& args, int tile, int& sequence,
                                             int& first) {
  for (sequence = 0; sequence < args.sequences; ++sequence) {
    const int length = args.query_starts[sequence + 1] - args.query_starts[sequence];
    if (length < 2) continue;
    const int tiles = (length + kQueries - 1) / kQueries;
    if (tile < tiles) {
      first = (tiles - 1 - tile) * kQueries;  // the longest work first
      return true;
    }
    tile -= tiles;
  }
  return false;
}

// Sequences of several tokens: one block a (q head, tile of 128 of its tokens); keys and values
// pass through shared memory in tiles of four pages, two of them in flight; softmax in FP32 in
// registers. FLOPs: 4 * 128 a (token, key, q head); bytes: each tile of queries reads its context
// once, mostly from L2. Bound: matrix units (mma.sync, about 60 % of what wgmma reaches).
__global__ void __launch_bounds__(kPrefillWarps* kWarp, 1)
    sm80_attention_prefill(AttentionArgs args) {
  extern __shared__ uint4 shared16[];
  wait_for_previous();
  let_next_start();
  const int head = blockIdx.y;
  int sequence, first;
  if (!find_queries(args, blockIdx.x, sequence, first)) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
  const int start = args.query_starts[sequence];
  const int length = args.query_starts[sequence + 1] - start;
  const int context = args.context_lens[sequence];
  const int kv_head = head / (args.heads.q / args.heads.kv);
  const int32_t* table = args.block_tables + sequence * args.table_stride;
  const int before = context - length;  // tokens of the sequence before this step's

  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(shared16));
  const auto copy_tile = [&](int tile) {
    const uint32_t to = shared + tile % 2 * 2 * kTileBytes;
    const int key_in_page = threadIdx.x / 16, piece = threadIdx.x % 16;
#pragma unroll
    for (int page = 0; page < kKeys / kPage; ++page) {
      const int key = page * kPage + key_in_page;
      const bool present = tile * kKeys + key < context;
      const int64_t id = present ? table[tile * (kKeys / kPage) + page] : 0;
      const int64_t from =
          ((id * args.heads.kv + kv_head) * kPage + key_in_page) * (kDim * 2) + piece * 16;
      const uint32_t at = to + tile_offset(key, piece);
      copy_async(at, static_cast<const uint8_t*>(args.cache.k) + from, present);
      copy_async(at + kTileBytes, static_cast<const uint8_t*>(args.cache.v) + from, present);
    }
    commit_copies();
  };
  copy_tile(0);

  // Rows g and g + 8 of the warp's 16 queries; those past the end repeat the last.
  int position[2];
  uint32_t q[8][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int index = first + warp * 16 + g + half * 8;
    position[half] = before + min(index, length - 1);
    const auto* row = static_cast<const uint8_t*>(args.q.data) +
                      ((start + min(index, length - 1)) * args.q.stride + head * kDim) * 2 + t * 4;
#pragma unroll
    for (int step = 0; step < 8; ++step) {
      q[step][half] = *reinterpret_cast<const uint32_t*>(row + step * 32);
      q[step][2 + half] = *reinterpret_cast<const uint32_t*>(row + step * 32 + 16);
    }
  }

  float out[16][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const float log2_scale = args.scale * kLog2E;
  const int last = before + min(first + kQueries, length) - 1;
  const int tiles = last / kKeys + 1;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_copies<0>();
    __syncthreads();  // this tile is here, and everybody is done with the one before
    if (tile + 1 < tiles) copy_tile(tile + 1);
    const uint32_t keys = shared + tile % 2 * 2 * kTileBytes, values = keys + kTileBytes;

    float logits[8][4] = {};
#pragma unroll
    for (int step = 0; step < 8; ++step) {
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        uint32_t b[4];
        const int key = pair * 16 + lane / 16 * 8 + lane % 8;
        load_matrices<false>(b, keys + tile_offset(key, step * 2 + lane / 8 % 2));
        mma_bf16(logits[2 * pair], q[step], b[0], b[1]);
        mma_bf16(logits[2 * pair + 1], q[step], b[2], b[3]);
      }
    }
    const int first_key = tile * kKeys;
    const bool crosses = first_key + kKeys - 1 > before + first + warp * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& logit = logits[n][2 * half + i];
          const int key = first_key + n * 8 + 2 * t + i;
          logit = crosses && key > position[half] ? -INFINITY : logit * log2_scale;
          top = fmaxf(top, logit);
        }
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(top, largest[half]);  // finite: every row sees key 0 of the first tile
      const float factor = exp2f(largest[half] - top);
      largest[half] = top;
      float added = 0.0f;
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& logit = logits[n][2 * half + i];
          logit = exp2f(logit - top);
          added += logit;
        }
      sum[half] = sum[half] * factor + added;
#pragma unroll
      for (int n = 0; n < 16; ++n) {
        out[n][2 * half] *= factor;
        out[n][2 * half + 1] *= factor;
      }
    }
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint32_t a[4] = {pack_bf16(logits[2 * step][0], logits[2 * step][1]),
                             pack_bf16(logits[2 * step][2], logits[2 * step][3]),
                             pack_bf16(logits[2 * step + 1][0], logits[2 * step + 1][1]),
                             pack_bf16(logits[2 * step + 1][2], logits[2 * step + 1][3])};
#pragma unroll
      for (int pair = 0; pair < 8; ++pair) {
        uint32_t b[4];
        const int key = step * 16 + lane / 8 % 2 * 8 + lane % 8;
        load_matrices<true>(b, values + tile_offset(key, pair * 2 + lane / 16));
        mma_bf16(out[2 * pair], a, b[0], b[1]);
        mma_bf16(out[2 * pair + 1], a, b[2], b[3]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
    sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    const int index = first + warp * 16 + g + half * 8;
    if (index >= length) continue;
    const float factor = 1.0f / sum[half];
    const int64_t row = (start + index) * args.out.stride + head * kDim;
    float most = 0.0f;
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& value = out[n][2 * half + i];
        value *= factor;
        store_number(args.out.data, args.out.dtype, row + n * 8 + 2 * t + i, value);
        value = to_float(__float2bfloat16_rn(value));
        most = fmaxf(most, fabsf(value));
      }
    if (!args.quantised.values) continue;
    // The four lanes of a row have its 128 dims, a block of the quantised output.
    const unsigned row_lanes = 0xfu << (g * 4);
    most = fmaxf(most, __shfl_xor_sync(row_lanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(row_lanes, most, 2));
    const float scale = f8_scale(most, args.quantised.powers), inverse = 1.0f / scale;
    const int64_t cell = static_cast<int64_t>(start + index) * args.heads.q + head;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const __nv_fp8x2_e4m3 pair(
          float2{out[n][2 * half] * inverse, out[n][2 * half + 1] * inverse});
      *reinterpret_cast<uint16_t*>(args.quantised.values + cell * kDim + n * 8 + 2 * t) = pair.__x;
    }
    if (t == 0) args.quantised.scales[cell] = scale;
  }
}

}  // namespace m2::ops::cuda
