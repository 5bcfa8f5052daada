#pragma once

#include "ops/cuda/mma.cuh"

// The decode form of a matrix product, shared by linear and experts: few tokens, weights streamed
// once from memory into registers. Weights stand on the 16-row side of mma, tokens on the 8-column
// side; a block of 8 warps owns one tile of 16 rows, and its warps split K. Since the order of K
// within a product is free, a lane takes 16 consecutive bytes of a row instead of the pairs that
// mma's picture shows, and the tokens' numbers are permuted alike.
// A result depends on K alone: chunk after chunk within a warp, then warp after warp.
namespace m2::ops::cuda {

constexpr int kStreamWarps = 8;
constexpr int kStreamThreads = kStreamWarps * kWarp;
constexpr int kStreamRows = 16;
constexpr int kStreamChunk = 64;  // of K; half a scale block

// A lane's view of the tile's rows g and g + 8: pointers to their first byte that the lane reads,
// and the scales of their blocks along K.
struct StreamRows {
  const uint8_t* upper;
  const uint8_t* lower;
  const float* upper_scale;
  const float* lower_scale;
  int first_column;  // of the slice in the matrix that the scales cover; a multiple of 64
};

// One 64-wide chunk of both rows.
template <bool kF8>
struct StreamChunk {
  static constexpr int kLoads = kF8 ? 1 : 2;
  uint4 upper[kLoads], lower[kLoads];

  __device__ __forceinline__ void load(const StreamRows& rows, int chunk) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t offset = (static_cast<int64_t>(chunk) * kLoads + i) * 64;
      upper[i] = load_streaming(rows.upper + offset);
      lower[i] = load_streaming(rows.lower + offset);
    }
  }
};

__device__ __forceinline__ uint32_t word_of(const uint4& value, int i) {
  return i == 0 ? value.x : i == 1 ? value.y : i == 2 ? value.z : value.w;
}

// The four 16x16 tiles of a chunk, as mma wants them.
template <bool kF8>
__device__ __forceinline__ void fragments_of(const StreamChunk<kF8>& chunk, uint32_t (&a)[4][4]) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    if constexpr (kF8) {
      widen_f8(word_of(chunk.upper[0], step), a[step][0], a[step][2]);
      widen_f8(word_of(chunk.lower[0], step), a[step][1], a[step][3]);
    } else {
      a[step][0] = word_of(chunk.upper[step / 2], step % 2 * 2);
      a[step][1] = word_of(chunk.lower[step / 2], step % 2 * 2);
      a[step][2] = word_of(chunk.upper[step / 2], step % 2 * 2 + 1);
      a[step][3] = word_of(chunk.lower[step / 2], step % 2 * 2 + 1);
    }
  }
}

// A token's numbers of one chunk that the lane needs; zeros for an absent token (null).
template <bool kF8>
__device__ __forceinline__ void load_token(const uint8_t* token, int chunk, uint4 (&x)[2]) {
  x[0] = x[1] = uint4{};
  if (token) {
    const uint8_t* at = token + static_cast<int64_t>(chunk) * 128;
    x[0] = *reinterpret_cast<const uint4*>(at);
    x[1] = *reinterpret_cast<const uint4*>(at + (kF8 ? 16 : 64));
  }
}

template <bool kF8>
__device__ __forceinline__ void token_fragments(const uint4 (&x)[2], uint32_t (&b)[4][2]) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint32_t low = word_of(x[step / 2], step % 2 * 2);
    const uint32_t high = word_of(x[step / 2], step % 2 * 2 + 1);
    if constexpr (kF8) {
      b[step][0] = times_f8_half(__byte_perm(low, high, 0x5410));
      b[step][1] = times_f8_half(__byte_perm(low, high, 0x7632));
    } else {
      b[step][0] = low;
      b[step][1] = high;
    }
  }
}

template <bool kF8>
__device__ __forceinline__ void token_fragments(const uint8_t* token, int chunk,
                                                uint32_t (&b)[4][2]) {
  uint4 x[2];
  load_token<kF8>(token, chunk, x);
  token_fragments<kF8>(x, b);
}

// Where a lane's bytes begin within a row of weights, and within a token's row.
template <bool kF8>
__device__ __forceinline__ int lane_weight_offset() {
  return threadIdx.x % 4 * 16;
}
template <bool kF8>
__device__ __forceinline__ int lane_token_offset() {
  return threadIdx.x % 4 * (kF8 ? 32 : 16);
}

// A chunk's scales for both rows, 1 for formats without scales.
template <bool kF8>
__device__ __forceinline__ float2 chunk_scales(const StreamRows& rows, int chunk) {
  if constexpr (!kF8) return {1.0f, 1.0f};
  const int block = (rows.first_column + chunk * kStreamChunk) / 128;
  return {__ldg(rows.upper_scale + block), __ldg(rows.lower_scale + block)};
}

// total[n] += the chunk's rows times tokens[n]'s tile of 8. With one tile its numbers are `first`.
template <bool kF8, int kTiles>
__device__ __forceinline__ void multiply_chunk(const StreamChunk<kF8>& weights, float2 scales,
                                               const uint4 (&first)[2],
                                               const uint8_t* const (&tokens)[kTiles], int chunk,
                                               float (&total)[kTiles][4]) {
  uint32_t a[4][4];
  fragments_of(weights, a);
  const float upper_scale = kF8 ? scales.x * kF8Half : 1.0f;
  const float lower_scale = kF8 ? scales.y * kF8Half : 1.0f;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    uint32_t b[4][2];
    if constexpr (kTiles == 1)
      token_fragments<kF8>(first, b);
    else
      token_fragments<kF8>(tokens[n], chunk, b);
    float d[4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) mma_bf16(d, a[step], b[step][0], b[step][1]);
    total[n][0] = fmaf(upper_scale, d[0], total[n][0]);
    total[n][1] = fmaf(upper_scale, d[1], total[n][1]);
    total[n][2] = fmaf(lower_scale, d[2], total[n][2]);
    total[n][3] = fmaf(lower_scale, d[3], total[n][3]);
  }
}

// A warp's share of K. `ready` runs once, after the first weights are on their way and before the
// first token is read.
template <bool kF8, int kTiles, int kAhead, class Ready>
__device__ __forceinline__ void stream_chunks(const StreamRows& rows,
                                              const uint8_t* const (&tokens)[kTiles], int begin,
                                              int end, float (&total)[kTiles][4], Ready ready) {
  StreamChunk<kF8> weights[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (begin + i < end) weights[i].load(rows, begin + i);
  ready();
  for (int chunk = begin; chunk < end; chunk += kAhead) {
    if (chunk != begin) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (chunk + i < end) weights[i].load(rows, chunk + i);
    }
    // One tile: all that the batch needs is asked for before the first weights are waited for.
    uint4 first[kTiles == 1 ? kAhead : 1][2];
    float2 scales[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (kTiles == 1 && chunk + i < end) {
        load_token<kF8>(tokens[0], chunk + i, first[kTiles == 1 ? i : 0]);
        scales[i] = chunk_scales<kF8>(rows, chunk + i);
      }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (chunk + i < end) {
        if (kTiles > 1) scales[i] = chunk_scales<kF8>(rows, chunk + i);
        multiply_chunk<kF8>(weights[i], scales[i], first[kTiles == 1 ? i : 0], tokens, chunk + i,
                            total);
      }
  }
}

// A warp's share [begin, end) of `chunks`.
__device__ __forceinline__ int share_begin(int chunks, int warp) {
  return chunks * warp / kStreamWarps;
}

// Sums of the 8 warps' totals, in the order of the warps; each thread gets items threadIdx.x + 256
// i of [kTiles][4][32], through `use(tile, register, lane, sum)`; see mma_bf16 for what they are.
template <int kTiles>
struct WarpTotals {
  float values[kStreamWarps][kTiles][4][kWarp];

  __device__ void put(const float (&total)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        values[threadIdx.x / kWarp][n][r][threadIdx.x % kWarp] = total[n][r];
  }
  __device__ float sum(int tile, int r, int lane) const {
    float result = values[0][tile][r][lane];
#pragma unroll
    for (int warp = 1; warp < kStreamWarps; ++warp) result += values[warp][tile][r][lane];
    return result;
  }
};

}  // namespace m2::ops::cuda
