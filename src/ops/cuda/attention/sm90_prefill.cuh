#pragma once

#include <climits>
#include <type_traits>

#include "ops/cuda/attention/words.cuh"
#include "ops/cuda/tiles.cuh"
#include "ops/cuda/wgmma16.cuh"

// Attention of sequences of several tokens on Hopper, the shape of FlashAttention-3 (Shah et al.
// 2024): tiles of 128 queries of one q head over tiles of 128 keys, counted from position 0. One
// block a multiprocessor runs through its tiles of queries. A producer keeps keys and values in a
// ring; each of two warpgroups has 64 queries. Both products are wgmma, weights go from the first
// to the second in registers, and while one warpgroup computes its softmax the other multiplies.
// Two blocks of a cluster have neighbouring q heads of one KV head, and each copies half of the
// keys and values into both.
// A row's softmax runs in parts of part_keys() keys from position 0 on, whose sums are merged in
// pairs, those pairs in pairs, and so on: a row's bytes are then the same whether one block goes
// through its whole context or several through runs of 2^n parts, as they do where a step has few
// queries behind long contexts. `join_runs` merges what these have left.
// FLOPs: 4 * 128 a (token, key, q head). Bytes: each tile of queries reads its context once, mostly
// from L2: 64 KB for 8.4 MFLOP, half of that in a cluster. Bound: matrix units.
namespace m2::ops::cuda {

namespace tiled {
constexpr int kRows = 128;  // queries of a tile: 64 a warpgroup
constexpr int kKeys = 128;  // keys of a tile, eight pages
constexpr int kPages = kKeys / kPage;
constexpr int kLogWholeTiles = 24;  // tiles of keys, more than any context has, as a power of two
constexpr int kStages = 3;
constexpr int kConsumers = 256, kProducers = 128, kThreads = kConsumers + kProducers;
constexpr int kHalf = kKeys * 128;    // bytes of 64 dims of a tile's keys, or values
constexpr int kOperand = 2 * kHalf;   // of all 128 dims
constexpr int kQueryHalf = 64 * 128;  // of 64 dims of a warpgroup's queries
constexpr int kQueryBytes = 4 * kQueryHalf;
constexpr int kSharedBytes = kQueryBytes + kStages * 2 * kOperand + 1024;  // aligned by hand
// Named barriers: one for each warpgroup alone, one for each one's turn to multiply.
constexpr int kOwnBarrier = 1, kTurnBarrier = 3;

__device__ __forceinline__ void meet(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
// Ordinary writes to shared memory, before wgmma reads them.
__device__ __forceinline__ void publish_to_wgmma() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void store_shared(uint32_t to, uint4 value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

// Values as an operand whose rows are keys: eight keys every 1024 bytes, 64 dims every kHalf.
__device__ __forceinline__ uint64_t value_operand(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(kHalf >> 4) << 16) | (address >> 4 & 0x3fff);
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <bool kHalves>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (kHalves) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    return pack_bf16(low, high);
  }
}

// Where contexts of prompts over FP8 stand widened to f16, which each of their tiles of
// queries would else do for itself: tiles of 128 keys, [capacity, kv_heads, 128, 128], and of
// values. places [sequences]: the sequence's first tile there, or -1.
struct Widened {
  int32_t* places = nullptr;
  uint8_t* keys = nullptr;
  uint8_t* values = nullptr;
  int capacity = 0;
};
// Which of the sequences a launch attends to: all, or of those with a place and those without one.
struct Attended {
  enum { kAll, kPlaced, kOthers } which = kAll;
  const int32_t* places = nullptr;

  __device__ __forceinline__ bool has(int sequence) const {
    return which == kAll || (places[sequence] >= 0) == (which == kPlaced);
  }
};

// How contexts are cut, and where sums of parts are kept. Sums are those of a tile of queries and a
// q head: kSumVectors vectors for each consumer, the last of them largest logits and totals of its
// two rows.
struct Parts {
  float4* kept;   // [blocks, levels, kSumVectors, kConsumers]: of a block, pairs and so on so far
  float4* runs;   // [most_runs, kSumVectors, kConsumers]: of runs of parts that blocks share out
  int log_tiles;  // tiles of keys of a part, as a power of two
  int levels;     // contexts have at most 2^levels parts
  int most_runs;  // 0: contexts are not shared out
  int clusters, heads;  // of the launch; q heads of a cluster

  static constexpr int kSumVectors = kSumBytes / (kConsumers * 16);
  __device__ __forceinline__ float4* kept_by_block() const {
    return kept + static_cast<int64_t>(blockIdx.x) * levels * (kSumVectors * kConsumers);
  }
  __device__ __forceinline__ float4* run(int index) const {
    return runs + static_cast<int64_t>(index) * (kSumVectors * kConsumers);
  }
};

// A sequence's tiles of queries, and of keys of the last of them; none of a decoded token.
__device__ __forceinline__ int2 tiles_of(const AttentionArgs& args, const Attended& of,
                                         int sequence) {
  int length = 0, context = 0;
  if (sequence < args.sequences && of.has(sequence)) {
    length = args.query_starts[sequence + 1] - args.query_starts[sequence];
    context = args.context_lens[sequence];
  }
  if (length < 2) return {0, 0};
  return {(length + kRows - 1) / kRows, (context + kKeys - 1) / kKeys};
}

// Into how long runs contexts are cut, in tiles of keys as a power of two, each cluster taking the
// next run: each lane of a warp estimates for one length when all will have ended. Whole contexts
// where that is as soon. All warps of a launch come to the same.
__device__ __forceinline__ int choose_runs(const AttentionArgs& args, const Attended& of,
                                           const Parts& parts) {
  if (parts.most_runs == 0) return parts.log_tiles + parts.levels;
  const int lane = threadIdx.x % kWarp, log_run = parts.log_tiles + min(lane, parts.levels);
  const int run = 1 << log_run, groups = args.heads.q / parts.heads;
  int whole = 0, rests = 0, rest_tiles = 0, longest = 0, kept = 0;
  for (int group = 0; group < args.sequences; group += kWarp) {
    const int2 mine = tiles_of(args, of, group + lane);
    for (unsigned left = __ballot_sync(~0u, mine.x > 0); left; left &= left - 1) {
      const int one = __ffs(static_cast<int>(left)) - 1;
      const int queries = __shfl_sync(~0u, mine.x, one), keys = __shfl_sync(~0u, mine.y, one);
      const int rest = keys & (run - 1);
      whole += queries * (keys >> log_run);
      if (rest > 0) rests += queries;
      rest_tiles += queries * rest;
      if (keys > run) kept += queries * ((keys + run - 1) >> log_run);
      longest = max(longest, min(keys, run));
    }
  }
  // Rounds of whole runs; what is left of contexts fills the last one first.
  const int rounds = (whole * groups + parts.clusters - 1) / parts.clusters;
  const int more = max(0, whole * groups + rests * groups - rounds * parts.clusters);
  int end = rounds * run;
  if (more > 0) end += (more + parts.clusters - 1) / parts.clusters * (rest_tiles / rests);
  end = max(end, longest);
  // Sums are stored and merged in the time of a tile or two, and by another kernel.
  if (kept > 0) end += 4 + kept * groups * 3 / (2 * parts.clusters);
  if (kept * args.heads.q > parts.most_runs || lane > parts.levels) end = INT_MAX / 2;
  const unsigned best = __ballot_sync(~0u, end == warp_min(end));
  return parts.log_tiles + min(31 - __clz(static_cast<int>(best)), parts.levels);
}

// The tiles of queries, sequence by sequence: of those of a sequence the first runs of keys first,
// and those with the most keys first. Sequences of one token have none.
struct QueryTiles {
  Attended of;
  int log_run;         // tiles of keys of a run, as a power of two
  bool joins = false;  // counts tiles whose context is in several runs, and each once
  int sequence = 0;
  int before = 0;           // what is counted of the sequences before it
  int runs_before = 0;      // runs of theirs whose sums are kept
  int tiles = 0, runs = 0;  // of the sequence

  // False if there are fewer. Otherwise `sequence` is the one with the tile, `index - before` the
  // tile's place among its. All lanes of a warp ask together, for ascending indices.
  __device__ __forceinline__ bool find(const AttentionArgs& args, int index) {
    const int lane = threadIdx.x % kWarp;
    for (; sequence < args.sequences; sequence += kWarp) {
      const int2 mine = tiles_of(args, of, sequence + lane);
      const int cuts = (mine.y + (1 << log_run) - 1) >> log_run;
      const int kept = cuts > 1 ? mine.x * cuts : 0;
      const int counted = joins ? (cuts > 1 ? mine.x : 0) : mine.x * cuts;
      int end = counted, kept_end = kept;  // of this lane's and those before it
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(~0u, end, offset);
        const int other_kept = __shfl_up_sync(~0u, kept_end, offset);
        if (lane >= offset) {
          end += other;
          kept_end += other_kept;
        }
      }
      const unsigned reach = __ballot_sync(~0u, before + end > index);
      if (reach == 0) {
        before += __shfl_sync(~0u, end, kWarp - 1);
        runs_before += __shfl_sync(~0u, kept_end, kWarp - 1);
        continue;
      }
      const int found = __ffs(static_cast<int>(reach)) - 1;
      sequence += found;
      before += __shfl_sync(~0u, end - counted, found);
      runs_before += __shfl_sync(~0u, kept_end - kept, found);
      tiles = __shfl_sync(~0u, mine.x, found);
      runs = __shfl_sync(~0u, cuts, found);
      return true;
    }
    return false;
  }
};

// One tile of queries of one q head, and a run of its context's keys.
struct Item {
  int sequence, first, head;
  int start, length, context;
  int begin, end;  // tiles of keys
  int run;         // where its sums are kept, or -1: it is all of the context

  __device__ __forceinline__ int before() const { return context - length; }
  // Tiles of keys that the queries see.
  __device__ __forceinline__ int seen() const {
    return (before() + min(first + kRows, length) - 1) / kKeys + 1;
  }
  __device__ __forceinline__ void set(const AttentionArgs& args, int of_sequence, int from) {
    sequence = of_sequence;
    first = from;
    start = args.query_starts[sequence];
    length = args.query_starts[sequence + 1] - start;
    context = args.context_lens[sequence];
  }
};

// Items that the kCluster blocks of a cluster work on together: neighbouring q heads.
template <int kCluster>
struct Place {
  int index, step, rank;

  __device__ __forceinline__ Place()
      : index(blockIdx.x / kCluster), step(gridDim.x / kCluster), rank(blockIdx.x % kCluster) {}
};

// The item at `place`, or, where that one's queries see nothing of the run, the next of the
// block's.
template <int kCluster>
__device__ __forceinline__ bool find_item(const AttentionArgs& args, QueryTiles& tiles,
                                          Place<kCluster>& place, Item& item) {
  const int groups = args.heads.q / kCluster;
  for (; tiles.find(args, place.index / groups); place.index += place.step) {
    const int index = place.index / groups - tiles.before;
    const int run = index / tiles.tiles, tile = tiles.tiles - 1 - index % tiles.tiles;
    item.set(args, tiles.sequence, tile * kRows);
    item.head = place.index % groups * kCluster + place.rank;
    item.begin = run << tiles.log_run;
    item.end = min(item.begin + (1 << tiles.log_run), item.seen());
    item.run = -1;
    if (tiles.runs > 1)
      item.run = (tiles.runs_before + tile * tiles.runs + run) * args.heads.q + item.head;
    if (item.begin < item.end) return true;
  }
  return false;
}

struct Ring {
  uint64_t full_k[kStages], full_v[kStages], empty_k[kStages], empty_v[kStages];
};

// --- producing: BF16 by tensor copies ----------------------------------------------------------

// One half of the dims of rows from `row` on, to all blocks of a cluster.
template <int kCluster>
__device__ __forceinline__ void copy_half(uint32_t to, const CUtensorMap* map, int half, int row,
                                          uint64_t* full) {
  if constexpr (kCluster > 1)
    tensor_copy_to_all(to, map, half * 128, row, full, (1 << kCluster) - 1);
  else
    tensor_copy(to, map, half * 128, row, full);
}

// One warp. Each block of a cluster copies its share of the pages, for all of them. Keys past the
// context are left as they are, whatever that is: their logits are not looked at. Values there
// become zeros, since even times zero they could do harm.
template <int kCluster>
__device__ __forceinline__ void copy_tiles(const AttentionArgs& args, QueryTiles finder,
                                           const CUtensorMap* keys, const CUtensorMap* values,
                                           uint32_t ring_memory, Ring& ring) {
  constexpr int kShare = kPages / kCluster;
  Place<kCluster> place;
  const int lane = threadIdx.x % kWarp, half = lane % 2;
  const int page_of_lane = lane / 2 % kShare * kCluster + place.rank;
  const bool copies = lane < 2 * kShare;
  const auto copy = [&](uint32_t to, const CUtensorMap* map, int row, uint64_t* full) {
    copy_half<kCluster>(to, map, half, row, full);
  };
  Item item;
  int step = 0;
  for (; find_item(args, finder, place, item); place.index += place.step) {
    const int32_t* table = args.block_tables + item.sequence * args.table_stride;
    const int kv_head = item.head / (args.heads.q / args.heads.kv);
    const int pages = (item.context + kPage - 1) / kPage;
    const int own = item.begin * kPages + page_of_lane;
    int id = own < pages ? table[own] : 0;
    for (int tile = item.begin; tile < item.end; ++tile, ++step) {
      const int slot = step % kStages;
      const uint32_t parity = (step / kStages - 1) & 1;
      const int first_page = tile * kPages, row = (id * args.heads.kv + kv_head) * kPage;
      const uint32_t to = ring_memory + slot * 2 * kOperand + half * kHalf + page_of_lane * 2048;
      const int next = first_page + kPages + page_of_lane;
      id = next < pages ? table[next] : 0;

      const int present = min(kPages, pages - first_page);
      if (step >= kStages) barrier_wait(&ring.empty_k[slot], parity);
      if (lane == 0) barrier_expect(&ring.full_k[slot], present * 4096);
      __syncwarp();
      if (copies && page_of_lane < present) copy(to, keys, row, &ring.full_k[slot]);

      const int left = item.context - tile * kKeys;
      const int whole = min(kPages, left / kPage);
      if (step >= kStages) barrier_wait(&ring.empty_v[slot], parity);
      if (whole < kPages) {
        const uint32_t v = ring_memory + slot * 2 * kOperand + kOperand;
        const int partial = whole < present ? table[first_page + whole] : 0;
        const auto* from =
            static_cast<const uint8_t*>(args.cache.v) +
            (static_cast<int64_t>(partial) * args.heads.kv + kv_head) * (kPage * kDim * 2);
        for (int piece = lane; piece < (kPages - whole) * kPage * 16; piece += kWarp) {
          const int line = piece / 16, key = whole * kPage + line, chunk = piece % 16;
          uint4 value = {};
          if (key < left) value = load_written(from + line * 256 + chunk * 16);
          store_shared(v + chunk / 8 * kHalf + key * 128 + ((chunk % 8 ^ (key & 7)) << 4), value);
        }
        publish_to_wgmma();
      }
      __syncwarp();
      if (lane == 0) barrier_expect(&ring.full_v[slot], whole * 4096);
      __syncwarp();
      if (copies && page_of_lane < whole) copy(to + kOperand, values, row, &ring.full_v[slot]);
    }
  }
}

// --- producing: FP8, widened to f16 on the way -------------------------------------------------

// A thread's share of a tile's keys, or values, of which 64 threads have charge: 16 dims of every
// eighth key. Those with the upper 64 dims take the other key of a pair, since the two halves of a
// row lie in the same banks.
struct F8Pieces {
  static constexpr int kThreads = kProducers / 2, kPieces = kKeys * 8 / kThreads;
  uint4 piece[kPieces];

  // `from`: the head's first page in the cache, at the thread's dims; `left`: keys that are there.
  __device__ __forceinline__ void load(const uint8_t* from, const int32_t* table, int64_t stride,
                                       int left) {
    const int line = line_of_thread();
    if (left >= kKeys) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
        piece[i] = load_written(from + table[i / 2] * stride + (i % 2 * 8 + line) * kDim);
      return;
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      piece[i] = uint4{};
      if (i * 8 + line < left)
        piece[i] = load_written(from + table[i / 2] * stride + (i % 2 * 8 + line) * kDim);
    }
  }
  __device__ __forceinline__ void store(uint32_t operand_memory) const {
    const int line = line_of_thread(), part = threadIdx.x % 8;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int key = i * 8 + line;
      const uint32_t row = operand_memory + part / 4 * kHalf + key * 128;
      uint4 low, high;
      widen_to_halves(piece[i].x, low.x, low.y);
      widen_to_halves(piece[i].y, low.z, low.w);
      widen_to_halves(piece[i].z, high.x, high.y);
      widen_to_halves(piece[i].w, high.z, high.w);
      const int chunk = part % 4 * 2;
      store_shared(row + ((chunk ^ (key & 7)) << 4), low);
      store_shared(row + (((chunk + 1) ^ (key & 7)) << 4), high);
    }
  }
  static __device__ __forceinline__ int line_of_thread() {
    return threadIdx.x % kThreads / 8 ^ (threadIdx.x % 8 / 4);
  }
};

// Two warps have charge of the keys, two of the values.
__device__ __forceinline__ void widen_tiles(const AttentionArgs& args, QueryTiles finder,
                                            uint32_t ring_memory, Ring& ring) {
  const bool is_key = threadIdx.x % kProducers < F8Pieces::kThreads;
  const auto* cache = static_cast<const uint8_t*>(is_key ? args.cache.k : args.cache.v);
  uint64_t* full = is_key ? ring.full_k : ring.full_v;
  uint64_t* empty = is_key ? ring.empty_k : ring.empty_v;
  const int64_t stride = static_cast<int64_t>(args.heads.kv) * kPage * kDim;
  Place<1> place;
  Item item;
  int step = 0;
  for (; find_item(args, finder, place, item); place.index += place.step) {
    const int32_t* table = args.block_tables + item.sequence * args.table_stride;
    const int kv_head = item.head / (args.heads.q / args.heads.kv);
    const uint8_t* from = cache + kv_head * kPage * kDim + threadIdx.x % 8 * 16;
    for (int tile = item.begin; tile < item.end; ++tile, ++step) {
      const int slot = step % kStages;
      F8Pieces pieces;
      pieces.load(from, table + tile * kPages, stride, item.context - tile * kKeys);
      if (step >= kStages) barrier_wait(&empty[slot], (step / kStages - 1) & 1);
      pieces.store(ring_memory + slot * 2 * kOperand + (is_key ? 0 : kOperand));
      publish_to_wgmma();
      __syncwarp();
      if (threadIdx.x % kWarp == 0) barrier_arrive(&full[slot]);
    }
  }
}

// --- producing: FP8 that stands widened --------------------------------------------------------

// One warp. Each block of a cluster of two copies half of the dims, for both.
template <int kCluster>
__device__ __forceinline__ void copy_widened(const AttentionArgs& args, QueryTiles finder,
                                             const CUtensorMap* keys, const CUtensorMap* values,
                                             uint32_t ring_memory, Ring& ring) {
  Place<kCluster> place;
  const int lane = threadIdx.x % kWarp, half = kCluster > 1 ? place.rank : lane;
  const bool copies = lane < 2 / kCluster;
  const auto copy = [&](uint32_t to, const CUtensorMap* map, int row, uint64_t* full) {
    copy_half<kCluster>(to, map, half, row, full);
  };
  Item item;
  int step = 0;
  for (; find_item(args, finder, place, item); place.index += place.step) {
    const int kv_head = item.head / (args.heads.q / args.heads.kv);
    const int first = finder.of.places[item.sequence];
    for (int tile = item.begin; tile < item.end; ++tile, ++step) {
      const int slot = step % kStages, row = ((first + tile) * args.heads.kv + kv_head) * kKeys;
      const uint32_t parity = (step / kStages - 1) & 1;
      const uint32_t to = ring_memory + slot * 2 * kOperand + half * kHalf;
      if (step >= kStages) barrier_wait(&ring.empty_k[slot], parity);
      if (lane == 0) barrier_expect(&ring.full_k[slot], kOperand);
      __syncwarp();
      if (copies) copy(to, keys, row, &ring.full_k[slot]);
      if (step >= kStages) barrier_wait(&ring.empty_v[slot], parity);
      if (lane == 0) barrier_expect(&ring.full_v[slot], kOperand);
      __syncwarp();
      if (copies) copy(to + kOperand, values, row, &ring.full_v[slot]);
    }
  }
}

// --- consuming ---------------------------------------------------------------------------------

// A warpgroup's 64 queries on their way into shared memory; rows past the end repeat the last.
struct Queries {
  uint4 piece[8];

  __device__ __forceinline__ void load(const AttentionArgs& args, const Item& item, int group) {
    const int thread = threadIdx.x % 128, chunk = thread % 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = item.first + group * 64 + i * 8 + thread / 16;
      const int token = item.start + min(row, item.length - 1);
      piece[i] = *reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(args.q.data) +
                                                 (token * args.q.stride + item.head * kDim) * 2 +
                                                 chunk * 16);
    }
  }
  template <bool kHalves>
  __device__ __forceinline__ void store(uint32_t to) const {
    const int thread = threadIdx.x % 128, chunk = thread % 16;
    const auto convert = [](uint32_t pair) {
      if constexpr (!kHalves) return pair;
      return pack<true>(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    };
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = i * 8 + thread / 16;
      const uint4 value = {convert(piece[i].x), convert(piece[i].y), convert(piece[i].z),
                           convert(piece[i].w)};
      store_shared(to + chunk / 8 * kQueryHalf + row * 128 + ((chunk % 8 ^ (row & 7)) << 4), value);
    }
    publish_to_wgmma();
  }
};

// Running softmax of a thread's two rows, g and g + 8 of its warp's 16. Logits are scaled to powers
// of two.
struct Softmax {
  // The largest logit of a row that sees nothing of a part, as the first rows of a tile see nothing
  // of one that begins at its last. Less than any logit, and finite, so that such a row has zeros.
  static constexpr float kNone = -1e30f;
  float largest[2] = {kNone, kNone}, sum[2] = {};

  // Turns a tile's logits into weights; `factor` is for what was summed before.
  __device__ __forceinline__ void take(float (&logits)[64], float scale, float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = fmaxf(logits[2 * half], logits[2 * half + 1]);
#pragma unroll
      for (int j = 1; j < 16; ++j)
        top = fmaxf(top, fmaxf(logits[4 * j + 2 * half], logits[4 * j + 2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(top, largest[half]);
      factor[half] = exp2_fast((largest[half] - top) * scale);
      largest[half] = top;
      const float offset = top * scale;
      float added[2] = {};
#pragma unroll
      for (int j = 0; j < 16; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& logit = logits[4 * j + 2 * half + i];
          logit = exp2_fast(fmaf(logit, scale, -offset));
          added[i] += logit;
        }
      sum[half] = fmaf(sum[half], factor[half], added[0] + added[1]);
    }
  }
};

// Keys from `first_key` on that a row at `position` does not see.
__device__ __forceinline__ void mask(float (&logits)[64], int first_key, const int (&position)[2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 16; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first_key + j * 8 + 2 * t + i % 2 > position[i / 2]) logits[4 * j + i] = -INFINITY;
}

// --- merging -----------------------------------------------------------------------------------

// What the sums of two parts, or runs of parts, of a row are multiplied with.
struct Shares {
  float before, now;
  bool none;  // the row sees nothing of the latter: what it had stays as it is

  __device__ __forceinline__ float merge(float sum_before, float sum) const {
    return none ? sum_before : fmaf(sum_before, before, __fmul_rn(sum, now));
  }
};
// `largest` and `sum` of the latter become those of both.
__device__ __forceinline__ Shares merge_totals(float largest_before, float sum_before,
                                               float& largest, float& sum, float scale) {
  const float top = fmaxf(largest_before, largest);
  const Shares shares{exp2_fast((largest_before - top) * scale), exp2_fast((largest - top) * scale),
                      largest == Softmax::kNone};
  sum = shares.merge(sum_before, sum);
  largest = top;
  return shares;
}

// Merges a thread's sums with those before them, which it has stored at `from`.
__device__ __forceinline__ void merge_sums(const float4* from, float (&out)[64], Softmax& softmax,
                                           float scale) {
  const float4 totals = __ldcg(from + (Parts::kSumVectors - 1) * kConsumers);
  const Shares low = merge_totals(totals.x, totals.z, softmax.largest[0], softmax.sum[0], scale);
  const Shares high = merge_totals(totals.y, totals.w, softmax.largest[1], softmax.sum[1], scale);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (i % 8 == 0) asm volatile("" ::: "memory");  // not more than there are registers for
    const float4 before = __ldcg(from + i * kConsumers);
    out[4 * i] = low.merge(before.x, out[4 * i]);
    out[4 * i + 1] = low.merge(before.y, out[4 * i + 1]);
    out[4 * i + 2] = high.merge(before.z, out[4 * i + 2]);
    out[4 * i + 3] = high.merge(before.w, out[4 * i + 3]);
  }
}
__device__ __forceinline__ void store_sums(float4* to, const float (&out)[64],
                                           const Softmax& softmax) {
#pragma unroll
  for (int i = 0; i < 16; ++i)
    __stcg(to + i * kConsumers,
           make_float4(out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3]));
  __stcg(to + (Parts::kSumVectors - 1) * kConsumers,
         make_float4(softmax.largest[0], softmax.largest[1], softmax.sum[0], softmax.sum[1]));
}

// Over the four lanes of a row.
__device__ __forceinline__ float row_total(float sum) {
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  return sum;
}

// Two dims of the output from number `to` on, which become what bf16 has made of them; returns the
// larger magnitude.
__device__ __forceinline__ float store_pair(const AttentionArgs& args, int64_t to, float factor,
                                            float& a, float& b) {
  a *= factor;
  b *= factor;
  const uint32_t pair = pack_bf16(a, b);
  if (args.out.dtype == DType::bf16) {
    *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(args.out.data) + to) = pair;
  } else {
    static_cast<float*>(args.out.data)[to] = a;
    static_cast<float*>(args.out.data)[to + 1] = b;
  }
  a = __uint_as_float(pair << 16);
  b = __uint_as_float(pair & 0xffff0000u);
  return fmaxf(fabsf(a), fabsf(b));
}
__device__ __forceinline__ void store_codes(const AttentionArgs& args, int64_t to, float inverse,
                                            float a, float b) {
  const __nv_fp8x2_e4m3 pair(float2{a * inverse, b * inverse});
  *reinterpret_cast<uint16_t*>(args.quantised.values + to) = pair.__x;
}

// Rows g and g + 8: 128 dims, in the four lanes of each.
__device__ __forceinline__ void store_rows(const AttentionArgs& args, const Item& item, int row,
                                           float (&out)[64], Softmax& softmax) {
  const int lane = threadIdx.x % kWarp, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = row_total(softmax.sum[half]);
    const int index = item.first + row + half * 8;
    if (index >= item.length) continue;
    const float factor = args.cache.v_scale / total;
    const int64_t to = (item.start + index) * args.out.stride + item.head * kDim + 2 * t;
    float most = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j)
      most = fmaxf(most, store_pair(args, to + j * 8, factor, out[4 * j + 2 * half],
                                    out[4 * j + 2 * half + 1]));
    if (!args.quantised.values) continue;
    const unsigned row_lanes = 0xfu << (lane / 4 * 4);
    most = fmaxf(most, __shfl_xor_sync(row_lanes, most, 1));
    most = fmaxf(most, __shfl_xor_sync(row_lanes, most, 2));
    const float scale = f8_scale(most, args.quantised.powers), inverse = 1.0f / scale;
    const int64_t cell = static_cast<int64_t>(item.start + index) * args.heads.q + item.head;
#pragma unroll
    for (int j = 0; j < 16; ++j)
      store_codes(args, cell * kDim + j * 8 + 2 * t, inverse, out[4 * j + 2 * half],
                  out[4 * j + 2 * half + 1]);
    if (t == 0) args.quantised.scales[cell] = scale;
  }
}

// A warp hands a slot back, to all blocks of the cluster, since each copies for all.
template <int kCluster>
__device__ __forceinline__ void hand_back(uint64_t* empty) {
  __syncwarp();
  const int lane = threadIdx.x % kWarp;
  if constexpr (kCluster == 1) {
    if (lane == 0) barrier_arrive(empty);
  } else {
    if (lane < kCluster) barrier_arrive_at(empty, lane);
  }
}

// What the second warpgroup does for tiles that are no more than the first one's queries.
template <int kCluster>
__device__ __forceinline__ void pass_on(const Item& item, int& step, Ring& ring) {
  if (item.end - item.begin > 1) arrive(kTurnBarrier, kConsumers);
  for (int tile = item.begin; tile < item.end; ++tile, ++step) {
    if (tile > item.begin) {
      meet(kTurnBarrier + 1, kConsumers);
      if (tile + 1 < item.end) arrive(kTurnBarrier, kConsumers);
    }
    const int slot = step % kStages;
    barrier_wait(&ring.full_k[slot], step / kStages & 1);
    hand_back<kCluster>(&ring.empty_k[slot]);
    barrier_wait(&ring.full_v[slot], step / kStages & 1);
    hand_back<kCluster>(&ring.empty_v[slot]);
  }
}

template <bool kHalves, int kCluster>
__device__ __forceinline__ void attend_tiles(const AttentionArgs& args, const Parts& parts,
                                             QueryTiles finder, uint32_t memory, Ring& ring) {
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);  // as one number of the warp
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const uint32_t queries = memory + group * 2 * kQueryHalf, ring_memory = memory + kQueryBytes;
  const float scale = args.scale * args.cache.k_scale * kLog2E;
  const auto score = [&](float(&logits)[64], int slot) {
    const uint32_t keys = ring_memory + slot * 2 * kOperand;
    wgmma_begin();
#pragma unroll
    for (int s = 0; s < 8; ++s)
      wgmma_64x128x16<kHalves>(logits, operand(queries + s / 4 * kQueryHalf + s % 4 * 32),
                               operand(keys + s / 4 * kHalf + s % 4 * 32), s > 0);
    wgmma_commit();
  };
  const auto add_values = [&](float(&out)[64], const uint32_t(&weights)[32], int slot) {
    const uint32_t values = ring_memory + slot * 2 * kOperand + kOperand;
    wgmma_begin();
#pragma unroll
    for (int s = 0; s < 8; ++s)
      wgmma_64x128x16<kHalves>(out, weights + 4 * s, value_operand(values + s * 2048));
    wgmma_commit();
  };
  const auto pack_weights = [](const float(&logits)[64], uint32_t(&weights)[32]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) weights[i] = pack<kHalves>(logits[2 * i], logits[2 * i + 1]);
  };

  __shared__ float marks[kConsumers];  // never read
  const uint32_t mark = shared_address(marks + threadIdx.x);
  float4* const kept = parts.kept_by_block() + threadIdx.x;
  constexpr int kSums = Parts::kSumVectors * kConsumers;
  Item next;
  Queries next_queries;
  Place<kCluster> place;
  int step = 0;
  bool more = find_item(args, finder, place, next);
  if (more) next_queries.load(args, next, group);
  while (more) {
    const Item item = next;
    // By a vote, which is one number of the warp: else the compiler takes the loops' counts for
    // each lane's own, and so operands' addresses.
    if (kCluster > 1 && __any_sync(~0u, item.first + group * 64 >= item.length)) {
      pass_on<kCluster>(item, step, ring);
      __syncwarp();
      place.index += place.step;
      more = find_item(args, finder, place, next);
      if (more) next_queries.load(args, next, group);
      __syncwarp();
      continue;
    }
    meet(kOwnBarrier + group, 128);  // all have multiplied the queries before
    next_queries.template store<kHalves>(queries);
    meet(kOwnBarrier + group, 128);
    const int row = warp * 16 + lane / 4;  // of the tile; the other is row + 8
    const int position[2] = {item.before() + min(item.first + row, item.length - 1),
                             item.before() + min(item.first + row + 8, item.length - 1)};
    const int whole = item.before() + item.first + group * 64;  // keys up to here need no mask
    float out[64] = {}, logits[64], factor[2];
    uint32_t weights[32];
    Softmax softmax;

    barrier_wait(&ring.full_k[step % kStages], step / kStages & 1);
    score(logits, step % kStages);
    wgmma_wait<0>(logits);
    hand_back<kCluster>(&ring.empty_k[step % kStages]);
    if ((item.begin + 1) * kKeys - 1 > whole) mask(logits, item.begin * kKeys, position);
    softmax.take(logits, scale, factor);
    pack_weights(logits, weights);

    // Scores of a tile and values of the one before are multiplied together; the softmax of the
    // former runs under the latter, and under the other warpgroup's turn.
    const auto next_tile = [&](int tile, auto masked, auto begins_part) {
      const int slot = (step + 1) % kStages, slot_before = step % kStages;
      barrier_wait(&ring.full_k[slot], (step + 1) / kStages & 1);
      meet(kTurnBarrier + group, kConsumers);
      score(logits, slot);
      barrier_wait(&ring.full_v[slot_before], step / kStages & 1);
      add_values(out, weights, slot_before);
      if (group == 0 || tile + 1 < item.end) arrive(kTurnBarrier + (1 - group), kConsumers);
      wgmma_wait<1>(logits);
      hand_back<kCluster>(&ring.empty_k[slot]);
      if constexpr (decltype(masked)::value) mask(logits, tile * kKeys, position);
      Softmax of_part = softmax;
      if constexpr (decltype(begins_part)::value) softmax = Softmax();
      softmax.take(logits, scale, factor);
      // The softmax belongs under the values' product, not behind it, and only a store that depends
      // on it keeps ptxas from waiting first.
      asm volatile("st.volatile.shared.f32 [%0], %1;" ::"r"(mark),
                   "f"(softmax.sum[0] + softmax.sum[1])
                   : "memory");
      wgmma_wait<0>(out);
      hand_back<kCluster>(&ring.empty_v[slot_before]);
      if constexpr (decltype(begins_part)::value) {
        pack_weights(logits, weights);
        // As a counter goes on by one: what two of a size have summed becomes one of twice that.
        const int part = ((tile - 1) >> parts.log_tiles) - (item.begin >> parts.log_tiles);
        float4* sums = kept;
        for (int bits = part; bits & 1; bits >>= 1, sums += kSums)
          merge_sums(sums, out, of_part, scale);
        store_sums(sums, out, of_part);
#pragma unroll
        for (int i = 0; i < 64; ++i) out[i] = 0.0f;
      } else {
#pragma unroll
        for (int i = 0; i < 64; ++i) out[i] *= factor[i / 2 % 2];
        pack_weights(logits, weights);
      }
      ++step;
    };
    if (group == 1 && item.end - item.begin > 1) arrive(kTurnBarrier, kConsumers);
    const int unmasked = (whole + 1) / kKeys, part_tiles = 1 << parts.log_tiles;
    using Yes = std::true_type;
    using No = std::false_type;
    for (int tile = item.begin + 1; tile < item.end; ++tile) {
      const int part_end = min(item.end, (tile + part_tiles - 1) & -part_tiles);
      for (; tile < min(part_end, unmasked); ++tile) next_tile(tile, No(), No());
      for (; tile < part_end; ++tile) next_tile(tile, Yes(), No());
      if (tile < item.end) next_tile(tile, Yes(), Yes());
    }
    barrier_wait(&ring.full_v[step % kStages], step / kStages & 1);
    add_values(out, weights, step % kStages);
    // The next queries are on their way while these are finished and stored.
    place.index += place.step;
    more = find_item(args, finder, place, next);
    if (more) next_queries.load(args, next, group);
    wgmma_wait<0>(out);
    hand_back<kCluster>(&ring.empty_v[step % kStages]);
    ++step;
    // In registers of their own: as long as these are the loop's, ptxas moves all logits to others
    // in each round of it.
    float sums[64];
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("mov.f32 %0, %1;" : "=f"(sums[i]) : "f"(out[i]));
    const float4* before = kept;
    for (int bits = ((item.end - 1) >> parts.log_tiles) - (item.begin >> parts.log_tiles); bits > 0;
         bits >>= 1, before += kSums)
      if (bits & 1) merge_sums(before, sums, softmax, scale);
    if (item.run < 0)
      store_rows(args, item, row, sums, softmax);
    else if (item.first + warp * 16 < item.length)
      store_sums(parts.run(item.run) + threadIdx.x, sums, softmax);
    __syncwarp();  // else the compiler takes the loops' counts for each lane's own
  }
}

}  // namespace tiled

// What the tiles of keys and values are made of. FP8 becomes f16, which holds every e4m3 number
// exactly, and queries and weights are rounded to f16 as well; so queries beyond 65504 are
// infinite.
enum class Feed { bf16, f8, widened };

// kCluster: blocks that share their copies of keys and values, of as many neighbouring q heads of
// one KV head.
template <Feed kFeed, int kCluster>
__global__ void __launch_bounds__(tiled::kThreads, 1)
    sm90_attention_prefill(const __grid_constant__ CUtensorMap keys,
                           const __grid_constant__ CUtensorMap values, AttentionArgs args,
                           tiled::Attended of, tiled::Parts parts) {
  constexpr bool kWidens = kFeed == Feed::f8;
  extern __shared__ uint8_t prefill_memory[];
  __shared__ tiled::Ring ring;
  const uint32_t memory = (shared_address(prefill_memory) + 1023) & ~1023u;
  if (threadIdx.x == 0) {
    for (int i = 0; i < tiled::kStages; ++i) {
      barrier_init(&ring.full_k[i], kWidens ? tiled::F8Pieces::kThreads / kWarp : 1);
      barrier_init(&ring.full_v[i], kWidens ? tiled::F8Pieces::kThreads / kWarp : 1);
      barrier_init(&ring.empty_k[i], kCluster * tiled::kConsumers / kWarp);
      barrier_init(&ring.empty_v[i], kCluster * tiled::kConsumers / kWarp);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    if constexpr (!kWidens) {
      prefetch_map(&keys);
      prefetch_map(&values);
    }
  }
  __syncthreads();
  if constexpr (kCluster > 1) meet_cluster();
  wait_for_previous();
  let_next_start();
  const tiled::QueryTiles finder{of, tiled::choose_runs(args, of, parts)};
  if (threadIdx.x >= tiled::kConsumers) {
    const uint32_t ring_memory = memory + tiled::kQueryBytes;
    if constexpr (kWidens) {
      give_registers<104>();
      tiled::widen_tiles(args, finder, ring_memory, ring);
    } else {
      give_registers<56>();
      if (threadIdx.x < tiled::kConsumers + kWarp) {
        if constexpr (kFeed == Feed::bf16)
          tiled::copy_tiles<kCluster>(args, finder, &keys, &values, ring_memory, ring);
        else
          tiled::copy_widened<kCluster>(args, finder, &keys, &values, ring_memory, ring);
      }
    }
  } else {
    take_registers<kWidens ? 200 : 224>();
    tiled::attend_tiles<kFeed != Feed::bf16, kCluster>(args, parts, finder, memory, ring);
  }
  // Nobody leaves while another block may still copy or arrive here.
  if constexpr (kCluster > 1) meet_cluster();
}

// Merges the sums of runs in the order of their keys, as a block does that has all of a context. A
// block has 16 rows of a tile of queries, its lanes those that a consumer's had, each warp a
// vector. Bytes: kSumBytes a run. Bound: latency.
constexpr int kRunJoinThreads = 512;
__global__ void __launch_bounds__(kRunJoinThreads)
    join_runs(AttentionArgs args, tiled::Attended of, tiled::Parts parts) {
  constexpr int kAtOnce = 4;
  constexpr int kTotals = (tiled::Parts::kSumVectors - 1) * tiled::kConsumers;
  __shared__ float most_of[kRunJoinThreads / kWarp][16];
  wait_for_previous();
  let_next_start();
  const int lane = threadIdx.x % kWarp, vector = threadIdx.x / kWarp, t = lane % 4;
  const int log_run = tiled::choose_runs(args, of, parts), each = args.heads.q * 8;
  const float scale = args.scale * args.cache.k_scale * kLog2E;
  tiled::QueryTiles finder{of, log_run, true};
  for (int index = blockIdx.x; finder.find(args, index / each); index += gridDim.x) {
    const int tile = index / each - finder.before, warp = index % 8;
    tiled::Item item;
    item.set(args, finder.sequence, tile * tiled::kRows);
    item.head = index % each / 8;
    if (item.first + warp * 16 >= item.length) continue;
    const int runs = (item.seen() + (1 << log_run) - 1) >> log_run;
    const int first = (finder.runs_before + tile * finder.runs) * args.heads.q + item.head;
    const int at = warp * kWarp + lane;
    struct Sums {
      float4 out, totals;
    } kept[kMostRunLevels];
    const auto merge = [&](const Sums& before, Sums& sums) {
      const tiled::Shares low = tiled::merge_totals(before.totals.x, before.totals.z, sums.totals.x,
                                                    sums.totals.z, scale);
      const tiled::Shares high = tiled::merge_totals(before.totals.y, before.totals.w,
                                                     sums.totals.y, sums.totals.w, scale);
      sums.out =
          make_float4(low.merge(before.out.x, sums.out.x), low.merge(before.out.y, sums.out.y),
                      high.merge(before.out.z, sums.out.z), high.merge(before.out.w, sums.out.w));
    };
    for (int begin = 0; begin < runs; begin += kAtOnce) {
      Sums some[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float4* from = parts.run(first + min(begin + i, runs - 1) * args.heads.q) + at;
        some[i] = {__ldcg(from + vector * tiled::kConsumers), __ldcg(from + kTotals)};
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (begin + i >= runs) break;
        bool carries = true;
#pragma unroll
        for (int level = 0; level < kMostRunLevels; ++level) {
          if (!carries) continue;
          carries = (begin + i) >> level & 1;
          if (carries)
            merge(kept[level], some[i]);
          else
            kept[level] = some[i];
        }
      }
    }
    Sums sums;
    bool any = false;
#pragma unroll
    for (int level = 0; level < kMostRunLevels; ++level) {
      if ((runs >> level & 1) == 0) continue;
      if (any)
        merge(kept[level], sums);
      else
        sums = kept[level];
      any = true;
    }

    float numbers[2][2] = {{sums.out.x, sums.out.y}, {sums.out.z, sums.out.w}}, most[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = tiled::row_total(half ? sums.totals.w : sums.totals.z);
      const int row = item.first + warp * 16 + lane / 4 + half * 8;
      most[half] = 0.0f;
      if (row < item.length)
        most[half] = tiled::store_pair(
            args, (item.start + row) * args.out.stride + item.head * kDim + vector * 8 + 2 * t,
            args.cache.v_scale / total, numbers[half][0], numbers[half][1]);
      most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 2));
    }
    if (!args.quantised.values) continue;
    __syncthreads();  // all have read the last ones
    if (t == 0) {
      most_of[vector][lane / 4] = most[0];
      most_of[vector][lane / 4 + 8] = most[1];
    }
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item.first + warp * 16 + lane / 4 + half * 8;
      if (row >= item.length) continue;
      float largest = 0.0f;
      for (int i = 0; i < 16; ++i) largest = fmaxf(largest, most_of[i][lane / 4 + half * 8]);
      const float code_scale = f8_scale(largest, args.quantised.powers);
      const int64_t cell = static_cast<int64_t>(item.start + row) * args.heads.q + item.head;
      tiled::store_codes(args, cell * kDim + vector * 8 + 2 * t, 1.0f / code_scale,
                         numbers[half][0], numbers[half][1]);
      if (vector == 0 && t == 0) args.quantised.scales[cell] = code_scale;
    }
  }
}

// Widens the contexts of sequences of several tokens, as many as there is room for, one behind the
// other; zeros up to whole tiles. A warp a page of a KV head's keys, or values, at a time. Bytes:
// context * kv_heads * 128 * 2 read, twice as many written. Bound: bandwidth.
constexpr int kWidenThreads = 256;
__global__ void __launch_bounds__(kWidenThreads)
    widen_contexts(AttentionArgs args, tiled::Widened to) {
  wait_for_previous();
  let_next_start();
  constexpr int kPiece = 8, kPieces = kPage * kDim / kPiece / kWarp;  // numbers; of a lane
  const int lane = threadIdx.x % kWarp, kv_heads = args.heads.kv;
  const int warp = blockIdx.x * (kWidenThreads / kWarp) + threadIdx.x / kWarp;
  const int warps = gridDim.x * (kWidenThreads / kWarp);
  int before = 0;  // tiles of the sequences before these 32
  for (int group = 0; group < args.sequences; group += kWarp) {
    int tiles = 0, context = 0;
    if (group + lane < args.sequences) {
      const int32_t* starts = args.query_starts + group + lane;
      context = args.context_lens[group + lane];
      if (starts[1] - starts[0] > 1) tiles = (context + tiled::kKeys - 1) / tiled::kKeys;
    }
    int end = tiles;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(~0u, end, offset);
      if (lane >= offset) end += other;
    }
    const int place = before + end - tiles;
    const bool fits = tiles > 0 && place + tiles <= to.capacity;
    before += __shfl_sync(~0u, end, kWarp - 1);
    if (warp == 0 && group + lane < args.sequences) to.places[group + lane] = fits ? place : -1;
    for (unsigned left = __ballot_sync(~0u, fits); left; left &= left - 1) {
      const int one = __ffs(static_cast<int>(left)) - 1;
      const int here = __shfl_sync(~0u, context, one), first = __shfl_sync(~0u, place, one);
      const int count = __shfl_sync(~0u, tiles, one) * tiled::kPages * kv_heads * 2;
      const int32_t* table = args.block_tables + (group + one) * args.table_stride;
      for (int i = warp; i < count; i += warps) {
        const int head = i / 2 % kv_heads, page = i / 2 / kv_heads, tokens = here - page * kPage;
        const auto* cache = static_cast<const uint8_t*>(i % 2 ? args.cache.v : args.cache.k);
        uint2 piece[kPieces] = {};
        if (tokens > 0) {
          const auto* from = reinterpret_cast<const uint2*>(
              cache + (static_cast<int64_t>(table[page]) * kv_heads + head) * (kPage * kDim));
#pragma unroll
          for (int j = 0; j < kPieces; ++j)
            if ((j * kWarp + lane) / (kDim / kPiece) < tokens) piece[j] = from[j * kWarp + lane];
        }
        auto* out = reinterpret_cast<uint4*>(
            (i % 2 ? to.values : to.keys) +
            (static_cast<int64_t>((first + page / tiled::kPages) * kv_heads + head) * tiled::kKeys +
             page % tiled::kPages * kPage) *
                (2 * kDim));
#pragma unroll
        for (int j = 0; j < kPieces; ++j) {
          uint4 wide;
          widen_to_halves(piece[j].x, wide.x, wide.y);
          widen_to_halves(piece[j].y, wide.z, wide.w);
          out[j * kWarp + lane] = wide;
        }
      }
    }
  }
}

}  // namespace m2::ops::cuda
