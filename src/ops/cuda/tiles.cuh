#pragma once

#include <cuda.h>

#include "ops/cuda/hopper.cuh"

// The prefill form of a matrix product on Hopper: both sides f8_e4m3, tiles of 128 tokens x 128
// weight rows, one block a multiprocessor that runs through its tiles. A producer warp keeps a ring
// of 128-wide K steps in shared memory by tensor copies; two warpgroups multiply 64 tokens each
// with wgmma. The tensor cores' sums are taken into FP32 registers every 128 columns of K (or 64)
// with the scales of that stretch, which also keeps them exact enough: on their own they hold about
// 14 bits.
namespace m2::ops::cuda {

constexpr int kTileTokens = 128, kTileWeights = 128, kTileStep = 128;
constexpr int kTileStages = 6;
constexpr int kTileStageBytes = (kTileTokens + kTileWeights) * kTileStep;
constexpr int kTileSharedBytes = kTileStages * kTileStageBytes + 1024;  // aligned by hand
constexpr int kTileConsumers = 256;
constexpr int kTileThreads = kTileConsumers + 128;

// d (+)= a b^T: 64 tokens x 128 weight rows, 32 of K, operands in shared memory as 128-byte rows in
// the 128-byte swizzle. A thread holds for columns 8 j + 2 t + {0, 1} row g of its warp's 16 in
// d[4 j + {0, 1}] and row g + 8 in d[4 j + {2, 3}].
__device__ __forceinline__ void wgmma_64x128x32(float (&d)[64], uint64_t a, uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, "
      "%56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1;\n"
      "}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#else
  __trap();  // compiled for sm_90 instead of sm_90a
#endif
}
__device__ __forceinline__ void wgmma_begin() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_finish() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
// Shared memory at `address` (1024-byte border + 32 a step) as a wgmma operand: rows of 128 bytes,
// swizzled, eight rows every 1024 bytes.
__device__ __forceinline__ uint64_t operand(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | (address >> 4 & 0x3fff);
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap* map, int column,
                                            int row, uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
#endif
}
// Into the blocks of the cluster in `blocks` (a bit each), at the same place, with the same
// barrier.
__device__ __forceinline__ void tensor_copy_to_all(uint32_t to, const CUtensorMap* map, int column,
                                                   int row, uint64_t* barrier, int blocks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)),
      "h"(static_cast<uint16_t>(blocks))
      : "memory");
#endif
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#endif
}
__device__ __forceinline__ void tensor_copy_3d(uint32_t to, const CUtensorMap* map, int c0, int c1,
                                               int c2, uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4}], [%5];" ::"r"(to),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(barrier))
      : "memory");
#endif
}
__device__ __forceinline__ void tensor_copy_5d(uint32_t to, const CUtensorMap* map, int c0, int c1,
                                               int c2, int c3, int c4, uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4, %5, %6}], [%7];" ::"r"(to),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(shared_address(barrier))
      : "memory");
#endif
}

// One tile's place: tokens [token, token + tokens) of the quantised rows, and the weights' first
// row(s) in the tensor map (two halves of 64, which may lie apart).
struct TilePlace {
  int token = 0, tokens = 0;
  int upper_row = 0, lower_row = 0;
};

// Runs tiles blockIdx.x, blockIdx.x + gridDim.x, ... of Work:
//   int tiles, columns                       how many, and K
//   const CUtensorMap *tokens, *weights      boxes of 128 rows and of 64 rows, 128 columns wide
//   TilePlace place(int tile)
//   void factors(tile, place, stretch, row0, row1, upper, lower)   scales of one stretch of K: of
//                                            the thread's two tokens, of the weights' two halves
//   void store(tile, place, row, total)      row: the thread's first token within the tile
// kStretches: stretches of K a step of 128 has, 1 or 2.
template <int kStretches, class Work>
__device__ __forceinline__ void run_tiles(Work& work) {
  extern __shared__ uint8_t tile_memory[];
  __shared__ uint64_t full[kTileStages], empty[kTileStages];
  const uint32_t base = (shared_address(tile_memory) + 1023) & ~1023u;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kTileStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kTileConsumers / kWarp);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();
  const int steps = (work.columns + kTileStep - 1) / kTileStep;

  if (warp >= kTileConsumers / kWarp) {
    give_registers<40>();
    if (warp == kTileConsumers / kWarp && lane == 0) {
      int slot = 0, round = 0;
      for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        const TilePlace place = work.place(tile);
        for (int step = 0; step < steps; ++step) {
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
          const uint32_t to = base + slot * kTileStageBytes;
          const uint32_t weights = to + kTileTokens * kTileStep;
          barrier_expect(&full[slot], kTileStageBytes);
          tensor_copy(to, work.tokens, step * kTileStep, place.token, &full[slot]);
          tensor_copy(weights, work.weights, step * kTileStep, place.upper_row, &full[slot]);
          tensor_copy(weights + 64 * kTileStep, work.weights, step * kTileStep, place.lower_row,
                      &full[slot]);
          if (++slot == kTileStages) {
            slot = 0;
            ++round;
          }
        }
      }
    }
  } else {
    take_registers<232>();
    const int row = warp * 16 + lane / 4;  // of the tile; the other is row + 8
    int slot = 0, round = 0;
    for (int tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
      const TilePlace place = work.place(tile);
      const bool busy = warp / 4 * 64 < place.tokens;  // the warpgroup has tokens
      float total[64] = {};
      for (int step = 0; step < steps; ++step) {
        float scales[kStretches][4];
#pragma unroll
        for (int s = 0; s < kStretches; ++s)
          work.factors(tile, place, step * kStretches + s, row, scales[s][0], scales[s][1],
                       scales[s][2], scales[s][3]);
        barrier_wait(&full[slot], round & 1);
        if (busy) {
          const uint32_t tokens = base + slot * kTileStageBytes + warp / 4 * 64 * kTileStep;
          const uint32_t weights = base + slot * kTileStageBytes + kTileTokens * kTileStep;
#pragma unroll
          for (int s = 0; s < kStretches; ++s) {
            float d[64];
            wgmma_begin();
#pragma unroll
            for (int k = 0; k < 4 / kStretches; ++k) {
              const int offset = (s * (4 / kStretches) + k) * 32;
              wgmma_64x128x32(d, operand(tokens + offset), operand(weights + offset), k > 0);
            }
            wgmma_finish();
            const float f00 = scales[s][0] * scales[s][2], f10 = scales[s][1] * scales[s][2];
            const float f01 = scales[s][0] * scales[s][3], f11 = scales[s][1] * scales[s][3];
#pragma unroll
            for (int j = 0; j < 16; ++j) {
              total[4 * j] = fmaf(d[4 * j], j < 8 ? f00 : f01, total[4 * j]);
              total[4 * j + 1] = fmaf(d[4 * j + 1], j < 8 ? f00 : f01, total[4 * j + 1]);
              total[4 * j + 2] = fmaf(d[4 * j + 2], j < 8 ? f10 : f11, total[4 * j + 2]);
              total[4 * j + 3] = fmaf(d[4 * j + 3], j < 8 ? f10 : f11, total[4 * j + 3]);
            }
          }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&empty[slot]);
        if (++slot == kTileStages) {
          slot = 0;
          ++round;
        }
      }
      if (busy) work.store(tile, place, row, total);
    }
  }
}

// --- quantising activations ----------------------------------------------------------------------

// A warp quantises 128 columns of a row, from `begin` on: x bf16, columns a multiple of 4.
__device__ __forceinline__ void quantise_stretch(uint2 pairs, bool there, bool powers, uint8_t* to,
                                                 float* scale) {
  float value[4] = {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
                    __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
  float most = largest_of(value[0], value[1], value[2], value[3]);
#pragma unroll
  for (int offset = 16; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float factor = f8_scale(most, powers);
  if (there)
    *reinterpret_cast<uint32_t*>(to) = to_f8(value[0], value[1], value[2], value[3], 1.0f / factor);
  if (threadIdx.x % kWarp == 0) *scale = factor;
}

// A warp quantises kQuantiseAhead stretches of 128 columns of a row, from stretch `first` on: for
// each f8_scale() of its numbers, and x / scale as f8_e4m3. scales [columns / 128 rounded up].
constexpr int kQuantiseAhead = 6;
__device__ __forceinline__ void quantise_stretches(const __nv_bfloat16* x, int columns, int first,
                                                   bool powers, uint8_t* to, float* scales) {
  const int lane = threadIdx.x % kWarp, stretches = (columns + 127) / 128;
  uint2 pairs[kQuantiseAhead];
#pragma unroll
  for (int i = 0; i < kQuantiseAhead; ++i) {
    const int column = (first + i) * 128 + lane * 4;
    pairs[i] = column < columns ? *reinterpret_cast<const uint2*>(x + column) : uint2{};
  }
#pragma unroll
  for (int i = 0; i < kQuantiseAhead; ++i) {
    const int column = (first + i) * 128 + lane * 4;
    if (first + i < stretches)
      quantise_stretch(pairs[i], column < columns, powers, to + column, scales + first + i);
  }
}
// Warps that share a row.
__host__ __device__ inline int quantise_warps(int columns) {
  return (columns + kQuantiseAhead * 128 - 1) / (kQuantiseAhead * 128);
}

// --- host side -----------------------------------------------------------------------------------

// A map of `rows` rows of `columns` bytes, `stride` bytes apart, for boxes of box_rows x 128 bytes
// in the 128-byte swizzle. Columns and rows past the end read as zeros. In tensor_map.cu.
CUtensorMap tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows);

// The same for two boxes at once, columns c .. c + 127 and then c + 128 .. c + 255. Coordinates: 0,
// row, column / 128. columns a multiple of 128.
CUtensorMap double_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows);

// A map over w13 of all experts (two blocks of `rows` rows each) for boxes of 8 rows of the first
// block over the same 8 of the second, four times: 64 rows, of 2 x 128 columns. Coordinates: 0, 0,
// 0, (expert * 2 * rows + row) / 8, column / 128. rows a multiple of 32, columns of 128.
CUtensorMap paired_rows_map(const void* data, int64_t experts, int64_t rows, int64_t columns);

}  // namespace m2::ops::cuda
