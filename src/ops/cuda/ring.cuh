#pragma once

#include "ops/cuda/hopper.cuh"
#include "ops/cuda/stream.cuh"

// Hopper's form of the decode product (stream.cuh): one block a multiprocessor, which runs through
// its share of the row tiles. A producer warp keeps shared memory full of weights by bulk copies,
// so that reading never pauses for the arithmetic, for a tile's end or for the tokens' numbers;
// eight warps multiply, with the tokens' fragments in registers for as long as the tokens stay the
// same. A result is the same bytes as stream.cuh's.
namespace m2::ops::cuda {

constexpr int kRingThreads = kStreamThreads + kWarp;
constexpr int kRingMaxSlots = 32;
constexpr int kRingBytes = 196608;  // for weights in flight

// Shared memory of the ring. A slot holds one tile: 8, 16 or 32 rows of K bytes.
struct RingShared {
  float totals[2][kStreamWarps][8][kWarp];
  uint64_t full[kRingMaxSlots];
  uint64_t empty[kRingMaxSlots];
};
constexpr int kRingSharedBytes = static_cast<int>(sizeof(RingShared)) + kRingBytes;

// --- the loop ------------------------------------------------------------------------------------

// What a tile is: filled in by the operation.
struct RingTile {
  const uint8_t* upper = nullptr;  // the first half of the rows (of 8: all), consecutive in memory
  const uint8_t* lower = nullptr;  // the other half, or null
  int upper_rows = 0, lower_rows = 0;  // how many of them exist
};

__device__ __forceinline__ uint4 load_shared(const uint8_t* pointer) {
  return *reinterpret_cast<const uint4*>(pointer);
}

// Runs tiles [begin, end) of Work, whose columns are 64 * chunks f8_e4m3 weights. kChunks is the
// most chunks a warp has: so many fragments and scales it keeps in registers.
//
// Of Work it needs:
// - kRows, the rows of a tile: 8 (no lower half), 16, or 32 (then one scale for all rows of a
// block)
// - RingTile tile(index): where the weights lie; asked by the producer
// - all_asked(): the producer has asked for its last tile
// - scales(index, &upper, &lower, &first_column): asked one tile ahead
// - bool new_tokens(index): the tokens differ from those of the tile before
// - const uint8_t* token(index): the lane's token (g), its first byte for the lane; null if none
// - kStores, and store(index, i, sum) for i < kStores; sum(r, lane) is a total as mma_bf16 has them
template <int kChunks, class Work>
__device__ __forceinline__ void run_ring(Work& work, int begin, int end, int chunks, int slots) {
  extern __shared__ __align__(128) uint8_t ring_memory[];
  auto& shared = *reinterpret_cast<RingShared*>(ring_memory);
  uint8_t* weights = ring_memory + sizeof(RingShared);
  static_assert(sizeof(RingShared) % 128 == 0, "slots begin at 128-byte borders");
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row_bytes = chunks * kStreamChunk;
  const int slot_bytes = Work::kRows * row_bytes;

  if (threadIdx.x == 0) {
    for (int i = 0; i < slots; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], kStreamThreads);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncthreads();

  if (warp == kStreamWarps) {
    if (lane != 0) return;
    for (int index = begin, slot = 0, round = 0; index < end; ++index) {
      if (round > 0) barrier_wait(&shared.empty[slot], (round - 1) & 1);
      const RingTile tile = work.tile(index);
      const int upper_bytes = tile.upper_rows * row_bytes;
      const int lower_bytes = tile.lower ? tile.lower_rows * row_bytes : 0;
      uint8_t* to = weights + slot * slot_bytes;
      barrier_expect(&shared.full[slot], upper_bytes + lower_bytes);
      bulk_copy(to, tile.upper, upper_bytes, &shared.full[slot]);
      if (lower_bytes > 0)
        bulk_copy(to + Work::kRows / 2 * row_bytes, tile.lower, lower_bytes, &shared.full[slot]);
      if (++slot == slots) {
        slot = 0;
        ++round;
      }
    }
    work.all_asked();
    return;
  }

  wait_for_previous();
  let_next_start();
  const int group = lane / 4;
  const int first_chunk = share_begin(chunks, warp);
  const int count = share_begin(chunks, warp + 1) - first_chunk;
  uint32_t tokens[kChunks][4][2];
  float upper_next[kChunks] = {}, lower_next[kChunks] = {};
  // The scales of a tile are asked for while the tile before it is waited for.
  const auto ask_scales = [&](int index) {
    const float* upper_scales;
    const float* lower_scales;
    int first_column;
    work.scales(index, upper_scales, lower_scales, first_column);
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      if (i < count) {
        const int block = (first_column + (first_chunk + i) * kStreamChunk) / 128;
        upper_next[i] = __ldg(upper_scales + block);
        if (Work::kRows == 16) lower_next[i] = __ldg(lower_scales + block);
      }
  };
  if (begin < end) ask_scales(begin);
  for (int index = begin, slot = 0, round = 0; index < end; ++index) {
    if (index == begin || work.new_tokens(index)) {
      const uint8_t* token = work.token(index);
#pragma unroll
      for (int i = 0; i < kChunks; ++i)
        if (i < count) token_fragments<true>(token, first_chunk + i, tokens[i]);
    }
    float upper_scale[kChunks], lower_scale[kChunks];
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      upper_scale[i] = upper_next[i] * kF8Half;
      lower_scale[i] = lower_next[i] * kF8Half;
    }
    if (index + 1 < end) ask_scales(index + 1);

    barrier_wait(&shared.full[slot], round & 1);
    const uint8_t* mine = weights + slot * slot_bytes + group * row_bytes +
                          first_chunk * kStreamChunk + lane_weight_offset<true>();
    constexpr int kParts = Work::kRows == 32 ? 2 : 1;  // of 16 rows, or of 8
    float total[kParts][4] = {};
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      if (i < count) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          uint32_t a[4][4] = {};
          const uint8_t* at = mine + part * 16 * row_bytes + i * kStreamChunk;
          const uint4 upper = load_shared(at);
          uint4 lower = {};
          if (Work::kRows >= 16) lower = load_shared(at + 8 * row_bytes);
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            widen_f8(word_of(upper, step), a[step][0], a[step][2]);
            if (Work::kRows >= 16) widen_f8(word_of(lower, step), a[step][1], a[step][3]);
          }
          float d[4] = {};
#pragma unroll
          for (int step = 0; step < 4; ++step)
            mma_bf16(d, a[step], tokens[i][step][0], tokens[i][step][1]);
          const float s1 = Work::kRows == 16 ? lower_scale[i] : upper_scale[i];
          total[part][0] = fmaf(upper_scale[i], d[0], total[part][0]);
          total[part][1] = fmaf(upper_scale[i], d[1], total[part][1]);
          total[part][2] = fmaf(s1, d[2], total[part][2]);
          total[part][3] = fmaf(s1, d[3], total[part][3]);
        }
      }
    barrier_arrive(&shared.empty[slot]);
    if (++slot == slots) {
      slot = 0;
      ++round;
    }

    // Two buffers in turn: whoever is behind reads one while the others fill the other.
    auto& totals = shared.totals[index & 1];
#pragma unroll
    for (int r = 0; r < Work::kRows / 4; ++r) totals[warp][r][lane] = total[r / 4][r % 4];
    asm volatile("bar.sync 1, %0;" ::"n"(kStreamThreads) : "memory");
    if (threadIdx.x < Work::kStores) {
      work.store(index, threadIdx.x, [&](int r, int owner) {
        float sum = totals[0][r][owner];
#pragma unroll
        for (int w = 1; w < kStreamWarps; ++w) sum += totals[w][r][owner];
        return sum;
      });
    }
  }
}

// How many slots fit, and the tiles of a block.
inline int ring_slots(int slot_bytes) {
  const int slots = kRingBytes / slot_bytes;
  return slots > kRingMaxSlots ? kRingMaxSlots : slots;
}
__device__ __forceinline__ int ring_begin(int tiles, int block) {
  return static_cast<int>(static_cast<int64_t>(tiles) * block / gridDim.x);
}

}  // namespace m2::ops::cuda
