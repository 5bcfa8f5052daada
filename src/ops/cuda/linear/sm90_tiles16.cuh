#pragma once

#include <type_traits>

#include "ops/cuda/linear/sm90_tiles.cuh"
#include "ops/cuda/wgmma16.cuh"

// The same tiles for BF16: no scales, and K in steps of 64 columns, whose sums the FP32 registers
// take over one after another as in sm90_flow16.cuh, so that a token's numbers are the same bytes
// in either form.
namespace m2::ops::cuda {

// One tile's place: tokens [token, token + tokens) of x, and weight rows from `row` on, of which
// `halves` times 128 exist.
struct Tile16Place {
  int token = 0, tokens = 0;
  int row = 0, halves = 0;
  int matrix = 0;  // the number of the part; -1: no more tiles
};

// Tiles of all parts, one part after another; within a part the token tiles of 128 rows follow one
// another, so that the rows are read from memory once.
struct LinearTiles16 : LinearStore {
  const LinearMaps& maps;
  const CUtensorMap* tokens;
  const CUtensorMap* weights;
  int token_tiles;  // with one that may be missing, where blocks go in pairs
  int tile_halves;
  int tiles = 0, row_bytes = 0;
  int part = 0, first_tile = 0;

  __device__ __forceinline__ int tiles_of(int i) const {
    const int rows = tile_halves * 128;
    return (args.part[i].rows + rows - 1) / rows * token_tiles;
  }
  // The part a tile lies in. Tiles come in ascending order, so this only moves on.
  __device__ __forceinline__ void go_to(int tile) {
    while (tile - first_tile >= tiles_of(part)) first_tile += tiles_of(part++);
    weights = &maps.weight[part];
  }
  __device__ __forceinline__ Tile16Place place(int tile) {
    go_to(tile);
    const int token = (tile - first_tile) % token_tiles * kTileTokens;
    const int row = (tile - first_tile) / token_tiles * tile_halves * 128;
    return {token, max(0, min(kTileTokens, static_cast<int>(args.x.rows) - token)), row,
            min(tile_halves, (args.part[part].rows - row + 127) / 128), part};
  }
  template <int kHalves>
  __device__ __forceinline__ void store(const Tile16Place& place, int first, int halves, int row,
                                        const float (&total)[kHalves][64]) const {
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
      if (half < halves) store_half(place, first + half, row, total[half]);
  }
  __device__ __forceinline__ void store_half(const Tile16Place& place, int which, int row,
                                             const float (&total)[64]) const {
    store_rows_from(place, place.row + which * 128, row, total);
  }
};

// The step's tokens and weights on their way into a stage at `to`, `done` when they are there. One
// thread's.
template <bool kShares>
__device__ __forceinline__ void ask_for_step16(const LinearTiles16& work, const Tile16Place& place,
                                               int rank, int token_boxes, uint32_t to, int column,
                                               uint64_t* done) {
  for (int box = 0; box < token_boxes; ++box)
    tensor_copy(to + box * kTileBoxBytes, work.tokens, column, place.token + box * kTileBox, done);
  for (int box = rank; box < 2 * place.halves; box += kShares ? 2 : 1) {
    const uint32_t weights = to + (2 + box) * kTileBoxBytes;
    const int row = place.row + box * kTileBox;
    if (kShares)
      tensor_copy_to_all(weights, work.weights, column, row, done, 3);
    else
      tensor_copy(weights, work.weights, column, row, done);
  }
}

// Runs tiles blockIdx.x, blockIdx.x + gridDim.x, ... kShares: the two blocks of a cluster have the
// same weight rows, of which each copies half into both.
template <int kHalves, bool kShares>
__device__ __forceinline__ void run_tiles16(LinearTiles16& work) {
  constexpr int kStageBytes = (2 + 2 * kHalves) * kTileBoxBytes;
  constexpr int kStages = kTileRing / kStageBytes;
  constexpr int kBlocks = kShares ? 2 : 1;
  static_assert(kStages <= kTileMaxStages);
  extern __shared__ uint8_t tile_memory[];
  __shared__ uint64_t full[kTileMaxStages], empty[kTileMaxStages];
  __shared__ Tile16Place places[kTilePlaces];
  const uint32_t base = (shared_address(tile_memory) + 1023) & ~1023u;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kBlocks * kTileConsumers / kWarp);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();
  if constexpr (kBlocks > 1) meet_cluster();
  const int steps = (work.row_bytes + kTileStep - 1) / kTileStep;

  if (warp >= kTileConsumers / kWarp) {
    give_registers<40>();
    int slot = 0, round = 0;
    const auto wait_for_slot = [&] {
      if (round > 0) barrier_wait(&empty[slot], (round - 1) & 1);
    };
    const auto next_slot = [&] {
      if (++slot == kStages) {
        slot = 0;
        ++round;
      }
    };
    const int first_tile = static_cast<int>(blockIdx.x), all_blocks = static_cast<int>(gridDim.x);
    if (warp == kTileConsumers / kWarp && lane == 0) {
      const int rank = blockIdx.x % kBlocks;
      int count = 0;
      for (int tile = first_tile; tile < work.tiles; tile += all_blocks, ++count) {
        const Tile16Place place = work.place(tile);
        const int token_boxes = (place.tokens + kTileBox - 1) / kTileBox;
        const int bytes = (token_boxes + 2 * place.halves) * kTileBoxBytes;
        for (int step = 0; step < steps; ++step) {
          wait_for_slot();
          if (step == 0) places[count % kTilePlaces] = place;
          uint64_t* const done = &full[slot];
          const uint32_t to = base + slot * kStageBytes;
          const int column = step * kTileStep;
          barrier_expect(done, bytes);
          ask_for_step16<kShares>(work, place, rank, token_boxes, to, column, done);
          next_slot();
        }
      }
      wait_for_slot();  // the consumers hear of the end as they do of a tile
      places[count % kTilePlaces].matrix = -1;
      barrier_arrive(&full[slot]);
    }
  } else {
    take_registers<232>();
    const int group = __shfl_sync(~0u, warp / 4, 0);
    // Addresses, once and for all.
    uint32_t full_at, empty_at;
    asm volatile("mov.u32 %0, %1;" : "=r"(full_at) : "r"(shared_address(full)));
    asm volatile("mov.u32 %0, %1;" : "=r"(empty_at) : "r"(shared_address(empty)));
    if constexpr (kBlocks > 1) empty_at = address_in_block(empty_at, lane % kBlocks);
    uint32_t slot = 0, parity = 0;
    for (int count = 0;; ++count) {
      barrier_wait(full_at + slot * 8, parity);  // with a tile's first stage comes its place
      const Tile16Place place = places[count % kTilePlaces];
      if (place.matrix < 0) break;
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
      float total[kHalves][64] = {};
      const auto next_slot = [&] {
        const bool last = slot == kStages - 1;
        slot = last ? 0 : slot + 1;
        parity ^= last ? 1 : 0;
      };
      const auto hand_back = [&] {
        if (lane < kBlocks) arrive_in_cluster(empty_at + slot * 8);
      };
      const auto multiply = [&]<int kUnits>(std::integral_constant<int, kUnits>) {
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          barrier_wait(full_at + slot * 8, parity);
          const uint32_t stage = slot * (kStageBytes / 16);
#pragma unroll
          for (int half = 0; half < kUnits; ++half) {
            float d[64];
            wgmma_begin();
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const uint64_t a = operand_from(tokens_low + stage + 2 * k);
              const uint64_t b =
                  operand_from(weights_low + stage + (half * (2 * kTileBoxBytes / 16) + 2 * k));
              wgmma_64x128x16<false>(d, a, b, k > 0);
            }
            wgmma_finish();
            if (half == kUnits - 1) hand_back();
            float(&sum)[64] = total[half];
#pragma unroll
            for (int i = 0; i < 64; ++i) sum[i] += d[i];
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
      work.template store<kHalves>(place, first, halves, row, total);
    }
  }
  // Nobody leaves while the other block still copies into it or hands stages back.
  if constexpr (kBlocks > 1) meet_cluster();
}

// Bytes: N K 2 + T (K + N) 2, FLOPs: 2 T N K on the BF16 tensor cores. Bound: these, from about 350
// tokens on.
template <int kHalves, bool kShares>
__global__ void __launch_bounds__(kTileThreads, 1)
    sm90_linear_tiles16(const __grid_constant__ LinearArgs args,
                        const __grid_constant__ LinearMaps maps,
                        const __grid_constant__ RowOwners owners) {
  wait_for_previous();
  let_next_start();
  constexpr int kBlocks = kShares ? 2 : 1;
  const int per_cluster = kBlocks * kTileTokens;
  const int token_tiles = (static_cast<int>(args.x.rows) + per_cluster - 1) / per_cluster * kBlocks;
  LinearTiles16 work{{args, owners}, maps, &maps.x, &maps.weight[0], token_tiles, kHalves};
  work.row_bytes = static_cast<int>(args.x.columns) * 2;
  for (int i = 0; i < args.parts; ++i) work.tiles += work.tiles_of(i);
  run_tiles16<kHalves, kShares>(work);
}

}  // namespace m2::ops::cuda
