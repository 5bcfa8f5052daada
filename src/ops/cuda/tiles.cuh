#pragma once

#include <cuda.h>

#include <type_traits>

#include "ops/cuda/wgmma8.cuh"

// The prefill form of a matrix product on Hopper: both sides f8_e4m3, tiles of 128 tokens x 256 (or
// 128) weight rows, one block a multiprocessor that runs through its tiles. A producer warp keeps a
// ring of 128-wide K steps in shared memory by tensor copies, another brings their scales; two
// warpgroups multiply 64 tokens each with wgmma, 128 rows at a time, or of 64 tokens and fewer 128
// rows each. The tensor cores' sums are taken into FP32 registers every 128 columns of K (or 64)
// with the scales of that stretch, which also keeps them exact enough: on their own they hold about
// 14 bits. Two blocks of a cluster copy what they have in common into both.
// What bounds it: between one product's end and the next one's start a warpgroup must do little
// (64 additions a thread and as few other instructions as can be), since only the other warpgroup
// multiplies meanwhile; the producer warp, which has some 1,300 cycles a step (few copies, of
// addresses that are known to be uniform); and L2, which gives 48 KB for 8.4 MFLOP, or 32 KB where
// weights are shared.
namespace m2::ops::cuda {

constexpr int kTileTokens = 128, kTileStep = 128;
constexpr int kTileHalf = 128;  // weight rows a warpgroup multiplies at once
constexpr int kTileBox = 64;    // rows of a copy
constexpr int kTileBoxBytes = kTileBox * kTileStep;
constexpr int kTileMaxStages = 6;
constexpr int kTileFew = 32;     // tokens up to which the sides are exchanged
constexpr int kTilePlaces = 16;  // more tiles than stages and those told ahead, so that the oldest
                                 // has been read
constexpr int kTileConsumers = 256;
constexpr int kGatherWarps = 2;  // where tokens lie anywhere
constexpr int kTileThreads = kTileConsumers + 128;
// Dynamic shared memory, from a 1024-byte border on: the ring; of each stage the scales of one or
// two stretches, of 128 tokens and of 4 times 64 weight rows; for each warp a place to turn its
// results into whole rows, and what it tells the other warps.
constexpr int kTileRing = 192 * 1024;
constexpr int kTileScaleBytes = (kTileTokens + 8) * 4;
constexpr int kTileWarpsAt = kTileRing + kTileMaxStages * 2 * kTileScaleBytes;
constexpr int kTileWarpBytes = 2048 + 128 + 2 * 2 * kTileFew;
constexpr int kTileSharedBytes = kTileWarpsAt + 8 * kTileWarpBytes + 1024;

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
__device__ __forceinline__ void wgmma_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_wait_for_all() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
// Both at once.
__device__ __forceinline__ void wgmma_finish() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
// What is computed of the numbers stays on its side of this point: the compiler does not know that
// wgmma works on while it waits for nothing.
template <int kCount>
__device__ __forceinline__ void pin(float (&numbers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(numbers[i])::"memory");
}
// Returns when all but the last kPending groups are done. `results`: what they have written, which
// may not be read before.
template <int kPending, int kCount>
__device__ __forceinline__ void wgmma_wait(float (&results)[kCount]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
  pin(results);
}
// Shared memory at `address` (1024-byte border + 32 a step) as a wgmma operand: rows of 128 bytes,
// swizzled, eight rows every 1024 bytes.
__device__ __forceinline__ uint64_t operand(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | (address >> 4 & 0x3fff);
}
// The same from the lower half of the descriptor: address / 16 and the flag in bit 16.
__device__ __forceinline__ uint32_t operand_low(uint32_t address) {
  return address >> 4 | 1u << 16;
}
__device__ __forceinline__ uint64_t operand_from(uint32_t low) {
  return static_cast<uint64_t>(0x40000040u) << 32 | low;
}
// What all lanes have alike, known to be so: then what is made of it needs no lane's registers.
// wgmma's operands are uniform; addresses that differ by lane for all that is known take a dozen
// instructions each.
__device__ __forceinline__ uint32_t alike(uint32_t value) {
  return __shfl_sync(~0u, value, 0);
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
__device__ __forceinline__ void tensor_copy_3d_to_all(uint32_t to, const CUtensorMap* map, int c0,
                                                      int c1, int c2, uint64_t* barrier,
                                                      int blocks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(barrier)),
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
                                               int c2, int c3, int c4, uint64_t* barrier,
                                               uint64_t policy) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(to),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(shared_address(barrier)),
      "l"(policy)
      : "memory");
#endif
}
// With a policy of L2's, too.
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap* map, int column,
                                            int row, uint64_t* barrier, uint64_t policy) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}
__device__ __forceinline__ void tensor_copy_3d(uint32_t to, const CUtensorMap* map, int c0, int c1,
                                               int c2, uint64_t* barrier, uint64_t policy) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

// What the two blocks of a cluster have in common, which each copies half of into both.
enum class TileShare { nothing, tokens, weights, either };

// One tile's place: tokens [token, token + tokens) of the quantised rows, and the first rows of its
// first half in the weights' map: 64, and 64 more that may lie apart. `halves` of 128 rows exist.
struct TilePlace {
  int token = 0, tokens = 0;
  int upper_row = 0, lower_row = 0;
  int halves = 0;
  int unit = 0;    // the first half's number within the matrix
  int matrix = 0;  // the number of the expert or part
  TileShare share = TileShare::nothing;
};

// What all lanes have alike, known to be so (alike()).
__device__ __forceinline__ TilePlace alike(const TilePlace& place) {
  const auto of = [](int value) { return __shfl_sync(~0u, value, 0); };
  return {of(place.token),     of(place.tokens),
          of(place.upper_row), of(place.lower_row),
          of(place.halves),    of(place.unit),
          of(place.matrix),    static_cast<TileShare>(of(static_cast<int>(place.share)))};
}

// `barrier`: of any block of the cluster.
__device__ __forceinline__ void arrive_in_cluster(uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
#endif
}
__device__ __forceinline__ uint32_t address_in_block(uint32_t address, int rank) {
  uint32_t there = address;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
#endif
  return there;
}
__device__ __forceinline__ float shared_float(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address));
  return value;
}
__device__ __forceinline__ float2 shared_float2(uint32_t address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address));
  return value;
}

// Tiles in the order in which clusters become free, so that those which share weights run at about
// the same time however long they take: who began together would soon be many tiles apart, and L2
// holds what memory gives in 10 us. The cluster's first block takes numbers two tiles ahead and
// tells both: a number that is waited for, or told by a release of the cluster's, which is a fence
// of all memory, would cost as much as copies of a step.
struct ClusterQueue {
  int tile[kTilePlaces];
  uint64_t told[kTilePlaces];

  __device__ __forceinline__ void init() {
    for (uint64_t& barrier : told) {
      barrier_init(&barrier, 1);
      barrier_expect(&barrier, 4);
    }
  }
  // By one thread of the first block.
  template <int kBlocks>
  __device__ __forceinline__ void tell(int number, int count) {
    [[maybe_unused]] const int at = count % kTilePlaces;
#pragma unroll
    for (int rank = 0; rank < kBlocks; ++rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile(
          "st.async.shared::cluster.mbarrier::complete_tx::bytes.s32 [%0], %1, [%2];" ::"r"(
              address_in_block(shared_address(&tile[at]), rank)),
          "r"(number * kBlocks + rank), "r"(address_in_block(shared_address(&told[at]), rank))
          : "memory");
#endif
    }
  }
  __device__ __forceinline__ int wait(int count) {
    const int at = count % kTilePlaces;
    barrier_wait(&told[at], count / kTilePlaces & 1);
    return *reinterpret_cast<volatile int*>(&tile[at]);
  }
  // By one thread of the block, behind its wait: the place is for another tile.
  __device__ __forceinline__ void renew(int count) {
    barrier_expect(&told[count % kTilePlaces], 4);
  }
};

// 16 bytes into shared memory, without waiting for them.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#endif
}
// What copy_16 of other threads has brought, for the thread's products to read. Behind the barrier
// that says so: whoever copies would have to wait for its copies first, step by step.
__device__ __forceinline__ void see_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The step's weights, and tokens unless others gather them, on their way into a stage at `to`,
// `done` when they are there. One thread's.
template <TileShare kShare, class Work>
__device__ __forceinline__ void ask_for_step(const Work& work, const TilePlace& place, int rank,
                                             int token_boxes, uint32_t to, int column,
                                             uint64_t* done) {
  const TileShare share = kShare == TileShare::either ? place.share : kShare;
  if (Work::kGathers) {
    // not here
  } else if (share == TileShare::tokens) {
    if (rank < token_boxes)
      tensor_copy_to_all(to + rank * kTileBoxBytes, work.tokens, column,
                         place.token + rank * kTileBox, done, 3);
  } else if (token_boxes == 2) {
    tensor_copy(to, work.all_tokens, column, place.token, done);
  } else if (token_boxes == 1) {
    tensor_copy(to, work.tokens, column, place.token, done);
  }
  const uint32_t weights = to + 2 * kTileBoxBytes;
  if (share != TileShare::weights) {
    for (int half = 0; half < place.halves; ++half)
      work.copy_half(weights + half * (2 * kTileBoxBytes), place, half, column, done);
  } else if (place.halves == 2) {  // one each
    work.copy_half_to_all(weights + rank * (2 * kTileBoxBytes), place, rank, column, done);
  } else {
    tensor_copy_to_all(weights + rank * kTileBoxBytes, work.weights, column,
                       rank == 0 ? place.upper_row : place.lower_row, done, 3);
  }
}

// What most Work does: its tokens lie one after another, and stores need nothing ahead.
struct PlainTiles {
  static constexpr bool kGathers = false;
  __device__ __forceinline__ int ahead(const TilePlace&, int) const { return 0; }
};
// The same, and the 128 rows of a half lie one after another, too.
struct WholeHalves : PlainTiles {
  const CUtensorMap* whole_half;  // boxes of 128 rows

  __device__ __forceinline__ void copy_half(uint32_t to, const TilePlace& place, int half,
                                            int column, uint64_t* done) const {
    tensor_copy(to, whole_half, column, place.upper_row + half * 128, done);
  }
  __device__ __forceinline__ void copy_half_to_all(uint32_t to, const TilePlace& place, int half,
                                                   int column, uint64_t* done) const {
    tensor_copy_to_all(to, whole_half, column, place.upper_row + half * 128, done, 3);
  }
};

// Runs tiles of Work: blockIdx.x, blockIdx.x + gridDim.x, ..., or those that its queue gives.
//   int tiles, columns                       how many, and K
//   int* next                                a zero, to count tiles in; null: in turn
//   const CUtensorMap *tokens, *weights      boxes of 64 rows, 128 columns wide
//   const CUtensorMap* all_tokens            of 128
//   void copy_half(to, place, half, column, done), copy_half_to_all   all 128 rows of a half
//   TilePlace place(int tile)                by a whole warp, tiles in ascending order
//   const float* token_scales(place, i)      of the place's i-th token, stretch after stretch
//   const float* weight_scales(place, half, lower)       of 64 rows
//   int stretches(), weight_scale(stretch)   how many; which of the weights' scales is a stretch's
//   void store(place, first, halves, row, total, turn, ahead)  the halves of the thread's
//                                            warpgroup, from `first` on; row: the thread's first
//                                            token within the tile; turn: another for each tile of
//                                            up to 64 tokens
//   int ahead(place, i)                      what stores need to know of the i-th token, asked for
//                                            before the products: each lane has that of token
//                                            lane % 16 of its warp's 16, or of up to 32 lane
//   kTurnsFew                                whether tiles of up to 32 tokens exchange the sides,
//                                            so that they do not cost as much as 64; they need
//   void store_few(place, group, total, turn, ahead)  two pieces of 64 rows of the warpgroup's
//                                            half, as wgmma_64xNx32 leaves them
//   kGathers                                 whether tokens lie anywhere; they need
//   int token_row(place, i)                  where the place's i-th token lies
//   const uint8_t* token_bytes()             its rows of `columns` bytes, at borders of 16
// kStretches: stretches of K a step of 128 has, 1 or 2.
template <int kHalves, int kStretches, TileShare kShare, class Work>
__device__ __forceinline__ void run_tiles(Work& work) {
  constexpr int kStageBytes = (2 + 2 * kHalves) * kTileBoxBytes;
  constexpr int kStages = kTileRing / kStageBytes;
  constexpr int kBlocks = kShare == TileShare::nothing ? 1 : 2;
  constexpr int kScaleStage = 2 * kTileScaleBytes;
  static_assert(kStages <= kTileMaxStages);
  extern __shared__ uint8_t tile_memory[];
  __shared__ uint64_t full[kTileMaxStages], empty[kTileMaxStages];
  __shared__ TilePlace places[kTilePlaces];
  __shared__ ClusterQueue queue;
  const uint32_t base = (shared_address(tile_memory) + 1023) & ~1023u;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1 + kWarp + (Work::kGathers ? kGatherWarps * kWarp : 0));
      barrier_init(&empty[i], kBlocks * kTileConsumers / kWarp);
    }
    queue.init();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();
  if constexpr (kBlocks > 1) meet_cluster();
  const int steps = (work.columns + kTileStep - 1) / kTileStep;
  const auto tile_at = [&](int count) {
    return Work::kQueued ? queue.wait(count)
                         : static_cast<int>(blockIdx.x) + count * static_cast<int>(gridDim.x);
  };

  if (warp >= kTileConsumers / kWarp) {
    give_registers<40>();
    if (warp == kTileConsumers / kWarp) {
      const int rank = kBlocks > 1 ? blockIdx.x % kBlocks : 0;
      int slot = 0, round = 0;
      // All lanes go the same way, and know it, though one asks for copies: an address that might
      // differ by lane takes a loop.
      const bool takes = Work::kQueued && rank == 0 && lane == 0;
      if (takes) {
        queue.template tell<kBlocks>(atomicAdd(work.next, 1), 0);
        queue.template tell<kBlocks>(atomicAdd(work.next, 1), 1);
      }
      for (int count = 0;; ++count) {
        const int tile = tile_at(count);
        if (Work::kQueued && lane == 0) queue.renew(count);
        if (tile >= work.tiles) {  // the consumers hear of it as they do of a tile
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
          if (Work::kQueued) queue.wait(count + 1);  // the last that comes from the other block
          if (lane != 0) break;
          places[count % kTilePlaces].matrix = -1;
          barrier_arrive(&full[slot]);
          break;
        }
        int coming = 0;  // which takes a while, and is there behind the steps
        if (takes) coming = atomicAdd(work.next, 1);
        const TilePlace place = alike(work.place(tile));
        const int token_boxes = (place.tokens + kTileBox - 1) / kTileBox;
        const int bytes = ((Work::kGathers ? 0 : token_boxes) + 2 * place.halves) * kTileBoxBytes;
        for (int step = 0; step < steps; ++step) {
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
          if (lane == 0) {
            if (step == 0) places[count % kTilePlaces] = place;
            uint64_t* const done = &full[slot];
            barrier_expect(done, bytes);
            ask_for_step<kShare>(work, place, rank, token_boxes, base + slot * kStageBytes,
                                 step * kTileStep, done);
          }
          __syncwarp();
          if (++slot == kStages) {
            slot = 0;
            ++round;
          }
        }
        if (takes) queue.template tell<kBlocks>(coming, count + 2);
        __syncwarp();
      }
    } else if (warp == kTileConsumers / kWarp + 1) {
      // This warp brings the scales.
      int slot = 0, round = 0;
      const int stretches = work.stretches();
      for (int count = 0;; ++count) {
        const int tile = tile_at(count);
        if (tile >= work.tiles) {
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
          arrive_when_copied(&full[slot]);
          break;
        }
        const TilePlace place = work.place(tile);
        const float* of_token[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) of_token[i] = work.token_scales(place, i * kWarp + lane);
        const float* of_weights = work.weight_scales(place, lane / 2 % kHalves, lane % 2);
        for (int step = 0; step < steps; ++step) {
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
#pragma unroll
          for (int s = 0; s < kStretches; ++s) {
            const int stretch = step * kStretches + s;
            const bool there = stretch < stretches;  // else all is zero
            auto* to =
                reinterpret_cast<float*>(tile_memory + (base - shared_address(tile_memory)) +
                                         kTileRing + slot * kScaleStage + s * kTileScaleBytes);
#pragma unroll
            for (int i = 0; i < 4; ++i)
              copy_float(to + i * kWarp + lane, of_token[i] + (there ? stretch : 0), there);
            if (lane < 2 * kHalves)
              copy_float(to + kTileTokens + lane,
                         of_weights + (there ? work.weight_scale(stretch) : 0), there);
          }
          arrive_when_copied(&full[slot]);
          if (++slot == kStages) {
            slot = 0;
            ++round;
          }
        }
      }
    } else if constexpr (Work::kGathers) {
      // These bring tokens, each four rows of eight, 16 bytes a lane, into the places that a tensor
      // copy would give them.
      const int row = 4 * (warp - kTileConsumers / kWarp - 2) + lane / 8, chunk = lane % 8;
      const uint32_t into = base + row * kTileStep + (chunk ^ row) * 16;
      int slot = 0, round = 0;
      for (int count = 0;; ++count) {
        const int tile = tile_at(count);
        if (tile >= work.tiles) {
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
          arrive_when_copied(&full[slot]);
          break;
        }
        const TilePlace place = work.place(tile);
        const int eights = place.halves > 0 ? (place.tokens + 7) / 8 : 0;
        uint32_t from[kTileTokens / 8];
#pragma unroll
        for (int i = 0; i < kTileTokens / 8; ++i)
          from[i] = work.token_row(place, 8 * i + row) * work.columns + chunk * 16;
        for (int step = 0; step < steps; ++step) {
          if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
          const uint8_t* rows;  // known to be at hand, not to be asked for again and again
          asm volatile("mov.u64 %0, %1;" : "=l"(rows) : "l"(work.token_bytes() + step * kTileStep));
          const uint32_t to = into + slot * kStageBytes;
          if (eights == kTileTokens / 8) {
#pragma unroll
            for (int i = 0; i < kTileTokens / 8; ++i)
              copy_16(to + i * 8 * kTileStep, rows + from[i]);
          } else {
#pragma unroll
            for (int i = 0; i < kTileTokens / 8; ++i)
              if (i < eights) copy_16(to + i * 8 * kTileStep, rows + from[i]);
          }
          arrive_when_copied(&full[slot]);
          if (++slot == kStages) {
            slot = 0;
            ++round;
          }
        }
      }
    }
  } else {
    take_registers<232>();
    const int group = __shfl_sync(~0u, warp / 4, 0);
    // Addresses, once and for all.
    uint32_t full_at, empty_at;
    asm volatile("mov.u32 %0, %1;" : "=r"(full_at) : "r"(shared_address(full)));
    asm volatile("mov.u32 %0, %1;" : "=r"(empty_at) : "r"(shared_address(empty)));
    // Of each lane that hands back, whose place it does; 0 of the others.
    if constexpr (kBlocks > 1) empty_at = address_in_block(empty_at, lane % kBlocks);
    if (lane >= kBlocks) empty_at = 0;
    [[maybe_unused]] const int stretches = work.stretches();
    uint32_t slot = 0, parity = 0;
    int turn = 0;  // counts tiles at whose ends the warpgroups may have to meet
    for (int count = 0;; ++count) {
      barrier_wait(full_at + slot * 8, parity);  // with a tile's first stage comes its place
      const TilePlace place = places[count % kTilePlaces];
      if (place.matrix < 0) break;
      const auto next_slot = [&] {
        const bool last = slot == kStages - 1;
        slot = last ? 0 : slot + 1;
        parity ^= last ? 1 : 0;
      };
      const auto hand_back = [&] {
        if (empty_at != 0) arrive_in_cluster(empty_at + slot * 8);
      };
      if constexpr (Work::kTurnsFew) {
        if (__shfl_sync(~0u, place.tokens, 0) <= kTileFew) {
          // Few tokens: a half for each warpgroup, its rows as the side of 64.
          const bool mine = group < __shfl_sync(~0u, place.halves, 0);
          const uint32_t rows_low =
              __shfl_sync(~0u, operand_low(base + (2 + 2 * group) * kTileBoxBytes), 0);
          const uint32_t few_low = __shfl_sync(~0u, operand_low(base), 0);
          const uint32_t few_scales = base + kTileRing + lane % 4 * 8;
          const uint32_t own_scales = base + kTileRing + (kTileTokens + 2 * group) * 4;
          float few[2][16] = {};
          const int ahead = work.ahead(place, lane);
#pragma unroll 1
          for (int step = 0; step < steps; ++step) {
            barrier_wait(full_at + slot * 8, parity);
            if constexpr (Work::kGathers) see_copies();
            const uint32_t stage = slot * (kStageBytes / 16), scales = slot * kScaleStage;
            if (mine) {
              float2 of_few[kStretches][4], by[kStretches];
#pragma unroll
              for (int s = 0; s < kStretches; ++s) {
#pragma unroll
                for (int j = 0; j < 4; ++j)
                  of_few[s][j] = shared_float2(few_scales + scales + s * kTileScaleBytes + j * 32);
                by[s] = shared_float2(own_scales + scales + s * kTileScaleBytes);
              }
#pragma unroll
              for (int s = 0; s < kStretches; ++s) {
                float d[2][16];
                wgmma_begin();
#pragma unroll
                for (int k = 0; k < 4 / kStretches; ++k) {
                  const int offset = (s * (4 / kStretches) + k) * 2;
#pragma unroll
                  for (int i = 0; i < 2; ++i)
                    wgmma_64xNx32<32>(
                        d[i], operand_from(rows_low + stage + (i * (kTileBoxBytes / 16) + offset)),
                        operand_from(few_low + stage + offset), k > 0);
                }
                wgmma_finish();
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                  const float w = i == 0 ? by[s].x : by[s].y;
                  float(&sum)[16] = few[i];
#pragma unroll
                  for (int j = 0; j < 4; ++j) {
                    const float f0 = of_few[s][j].x * w, f1 = of_few[s][j].y * w;
                    sum[4 * j] = fmaf(d[i][4 * j], f0, sum[4 * j]);
                    sum[4 * j + 1] = fmaf(d[i][4 * j + 1], f1, sum[4 * j + 1]);
                    sum[4 * j + 2] = fmaf(d[i][4 * j + 2], f0, sum[4 * j + 2]);
                    sum[4 * j + 3] = fmaf(d[i][4 * j + 3], f1, sum[4 * j + 3]);
                  }
                }
              }
            }
            __syncwarp();
            hand_back();
            next_slot();
          }
          ++turn;
          if (mine) work.store_few(place, group, few, turn, ahead);
          continue;
        }
      }
      // Of 64 tokens and fewer each warpgroup takes a half, of more 64 tokens.
      const bool narrow = kHalves == 2 && place.tokens <= kTileBox;
      const int box = narrow ? 0 : group, first = narrow ? group : 0;
      const int halves = __shfl_sync(~0u,
                                     box * kTileBox >= place.tokens ? 0
                                     : narrow                       ? (group < place.halves ? 1 : 0)
                                                                    : place.halves,
                                     0);
      const int row = box * kTileBox + warp % 4 * 16 + lane / 4;  // and row + 8
      const uint32_t tokens_low = __shfl_sync(~0u, operand_low(base + box * kTileBoxBytes), 0);
      const uint32_t weights_low =
          __shfl_sync(~0u, operand_low(base + (2 + 2 * first) * kTileBoxBytes), 0);
      const uint32_t row_scales = base + kTileRing + row * 4;
      const uint32_t weight_scales = base + kTileRing + (kTileTokens + 2 * first) * 4;
      const int ahead = work.ahead(place, row - lane / 4 + lane % 16);
      float total[kHalves][64] = {};
      const auto multiply = [&]<int kUnits>(std::integral_constant<int, kUnits>) {
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          barrier_wait(full_at + slot * 8, parity);
          if constexpr (Work::kGathers) see_copies();
          const uint32_t stage = slot * (kStageBytes / 16), scales = slot * kScaleStage;
          float row0[kStretches], row1[kStretches];
          float2 weight[kStretches][kUnits];
          const auto load_scales = [&] {
#pragma unroll
            for (int s = 0; s < kStretches; ++s) {
              row0[s] = shared_float(row_scales + scales + s * kTileScaleBytes);
              row1[s] = shared_float(row_scales + scales + s * kTileScaleBytes + 32);
#pragma unroll
              for (int half = 0; half < kUnits; ++half)
                weight[s][half] =
                    shared_float2(weight_scales + scales + s * kTileScaleBytes + half * 8);
            }
          };
#pragma unroll
          for (int half = 0; half < kUnits; ++half) {
#pragma unroll
            for (int s = 0; s < kStretches; ++s) {
              if (s > 0 && step * kStretches + s >= stretches) {  // all is zero
                if (half == kUnits - 1) hand_back();
                continue;
              }
              float d[64];
              wgmma_begin();
#pragma unroll
              for (int k = 0; k < 4 / kStretches; ++k) {
                const int offset = (s * (4 / kStretches) + k) * 2;
                wgmma_64x128x32(
                    d, operand_from(tokens_low + stage + offset),
                    operand_from(weights_low + stage + (half * (2 * kTileBoxBytes / 16) + offset)),
                    k > 0);
              }
              wgmma_commit();
              // Not in front of the products, which would wait for them.
              if (half == 0 && s == 0) load_scales();
              wgmma_wait_for_all();
              if (s == kStretches - 1 && half == kUnits - 1) hand_back();
              const float2 w = weight[s][half];
              const float f00 = row0[s] * w.x, f10 = row1[s] * w.x;
              const float f01 = row0[s] * w.y, f11 = row1[s] * w.y;
              float(&sum)[64] = total[half];
#pragma unroll
              for (int j = 0; j < 16; ++j) {
                sum[4 * j] = fmaf(d[4 * j], j < 8 ? f00 : f01, sum[4 * j]);
                sum[4 * j + 1] = fmaf(d[4 * j + 1], j < 8 ? f00 : f01, sum[4 * j + 1]);
                sum[4 * j + 2] = fmaf(d[4 * j + 2], j < 8 ? f10 : f11, sum[4 * j + 2]);
                sum[4 * j + 3] = fmaf(d[4 * j + 3], j < 8 ? f10 : f11, sum[4 * j + 3]);
              }
            }
          }
          next_slot();
        }
      };
      if (kHalves == 2 && halves == 2) {
        multiply(std::integral_constant<int, kHalves>());
      } else if (halves == 1) {
        multiply(std::integral_constant<int, 1>());
      } else {
        for (int step = 0; step < steps; ++step) {
          barrier_wait(full_at + slot * 8, parity);
          hand_back();
          next_slot();
        }
      }
      if (narrow) ++turn;
      work.template store<kHalves>(place, first, halves, row, total, turn, ahead);
    }
  }
  // Nobody leaves while the other block still copies into it or hands stages back.
  if constexpr (kBlocks > 1) meet_cluster();
}

// A warp's own kTileWarpBytes.
__device__ __forceinline__ uint8_t* tile_warp_memory() {
  extern __shared__ uint8_t tile_memory[];
  const uint32_t start = shared_address(tile_memory);
  return tile_memory + ((start + 1023) & ~1023u) - start + kTileWarpsAt +
         threadIdx.x / kWarp * kTileWarpBytes;
}
// 16 bytes, if `there`: without a branch, so that several are under way.
__device__ __forceinline__ void store_if(bool there, void* to, const uint4& value) {
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.b32 there, %5, 0;\n"
      "@there st.global.v4.u32 [%0], {%1, %2, %3, %4};\n"
      "}\n" ::"l"(to),
      "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(static_cast<int>(there))
      : "memory");
}

// A warp's 16 rows of 128 results as bf16: use(i, chunk, eight) for each 8 columns of the rows
// 4 i + lane / 8, i from 0 to 3.
template <class Use>
__device__ __forceinline__ void store_rows(const float (&total)[64], Use use) {
  uint8_t* memory = tile_warp_memory();
  const int lane = threadIdx.x % kWarp;
  // Lane l has the address of row l % 8 of matrix l / 8: rows 0 to 7 and 8 to 15 of 8 columns, and
  // of the next 8.
  const int row = lane % 16;
  const uint32_t at = shared_address(memory) + row * 128;
#pragma unroll
  for (int part = 0; part < 16; part += 8) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int from = 4 * (part + j) + 2 * i;
        const __nv_bfloat162 pair = __floats2bfloat162_rn(total[from], total[from + 1]);
        word[i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       at + ((j + lane / 16) ^ (row & 7)) * 16),
                   "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
                   : "memory");
#endif
    }
    __syncwarp();
    const int chunk = lane % 8;
    uint4 eight[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = 4 * i + lane / 8;
      eight[i] = *reinterpret_cast<const uint4*>(memory + from * 128 + (chunk ^ (from & 7)) * 16);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) use(i, part + chunk, eight[i]);
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

// The same for two boxes at once, columns c .. c + 127 and then c + 128 .. c + 255, or for `boxes`
// of them. Coordinates: 0, row, column / 128. columns a multiple of 128.
CUtensorMap double_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows, int boxes = 2);

// A map over w13 of all experts (two blocks of `rows` rows each) for boxes of 64 rows of the first
// block and then the same 64 of the second. Coordinates: column, row, 2 * expert.
CUtensorMap halves_map(const void* data, int64_t experts, int64_t rows, int64_t columns);

// A map over w13 of all experts (two blocks of `rows` rows each) for boxes of 8 rows of the first
// block over the same 8 of the second, again and again: box_rows of each, of boxes x 128 columns.
// Coordinates: 0, 0, 0, (expert * 2 * rows + row) / 8, column / 128. rows a multiple of 32, columns
// of 128.
CUtensorMap paired_rows_map(const void* data, int64_t experts, int64_t rows, int64_t columns,
                            int box_rows = 32, int boxes = 2);

}  // namespace m2::ops::cuda
