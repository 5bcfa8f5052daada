#pragma once

#include "ops/cuda/experts/few_tokens.cuh"

namespace m2::ops::cuda {

struct ExpertsFlowMaps {
  CUtensorMap x;    // boxes of kN tokens
  CUtensorMap w13;  // boxes of 8 rows of w1, the same 8 of w3, four times
  CUtensorMap w2;   // boxes of 64 rows
};

constexpr int kFlowUpRows = kFlowRows / 2;  // of w1, and the same of w3

// A warp's arrival, one for all of its threads.
__device__ __forceinline__ void warp_arrives(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) barrier_arrive(barrier);
}

// Which tile of the first half comes next: from the producer to all others of the block, a tile
// ahead. After the last a number below zero.
struct TileQueue {
  static constexpr int kPlaces = 4;
  // empty: that all have taken the tile, and that it is counted. computed: by the consumers.
  uint64_t full[kPlaces], empty[kPlaces], computed[kPlaces];
  // The scales of w2 for every second group of the block: those that come, and that nobody needs
  // any more.
  uint64_t scales_full[2], scales_empty[2];
  int tile[kPlaces];

  // Of all, the i-th, and how many arrive at it. `takers`: warps.
  static constexpr int kCount = 3 * kPlaces + 4;
  __device__ __forceinline__ uint64_t* nth(int i, int takers, int& arrivals) {
    arrivals = 1;
    if (i < kPlaces) return &full[i];
    i -= kPlaces;
    if (i < 2) return &scales_empty[i];
    i -= 2;
    arrivals = takers;
    if (i < kPlaces) return &empty[i];
    i -= kPlaces;
    arrivals = kFlowConsumers / kWarp;
    if (i < kPlaces) return &computed[i];
    arrivals = kWarp;
    return &scales_full[i - kPlaces];
  }
  __device__ __forceinline__ void put(int n, int value) {
    const int place = n % kPlaces, round = n / kPlaces;
    if (round > 0) barrier_wait(&empty[place], (round - 1) & 1);
    tile[place] = value;
    barrier_arrive(&full[place]);
  }
  __device__ __forceinline__ int look(int n) {
    barrier_wait(&full[n % kPlaces], n / kPlaces & 1);
    return *static_cast<volatile int*>(&tile[n % kPlaces]);
  }
  __device__ __forceinline__ void leave(int n) { barrier_arrive(&empty[n % kPlaces]); }
  // By every warp of those that take.
  __device__ __forceinline__ int take(int n) {
    const int value = look(n);
    warp_arrives(&empty[n % kPlaces]);
    return value;
  }
};

// Stages of weights: no more under way than keep memory busy, since whatever else a block reads
// comes behind those, and room for what comes while inner values are waited for. By lists fewer
// columns leave more of it, and sm90_experts_gather stands beside the block.
template <int kN, bool kFew>
constexpr int kExpertsStages = kFew ? (kN == 8 ? 11 : 10) : (kN == 8 ? 10 : 8);

// Warpgroups that multiply, tile by tile in turns: two, since one takes about as long over a stage
// as memory does, and longer where a slice of w2 leaves part of it empty.
constexpr int kExpertsTeams = 2;
constexpr int kExpertsConsumers = kExpertsTeams * kFlowConsumers;
// And two warps that fetch, and the one that counts.
constexpr int kExpertsFlowThreads = kExpertsConsumers + 3 * kWarp;
// The stage of a tile behind which the next one is said: by then the counter has answered.
constexpr int kSayBehind = 4;

// What a tile of w1 and w3 has of each, and stretches of K a stage of it.
struct UpTile {
  int rows, stretches;
  __host__ __device__ constexpr int box() const { return 2 * rows * kTileStep; }  // a stretch
  __host__ __device__ constexpr int stage() const { return stretches * box(); }
};
// kBothTeams: of a rank's slices that are so few that even tiles of half the rows are no more than
// blocks. A block has one of them at most, and both teams multiply it, half of K each, whose stages
// come in turns.
template <bool kBothTeams>
constexpr UpTile kUpTile = kBothTeams ? UpTile{kFlowUpRows / 2, 4} : UpTile{kFlowUpRows, 2};
static_assert(kUpTile<true>.stage() == kUpTile<false>.stage());

// In shared memory what the second team's threads have multiplied, until the first's sums are
// there: stretches are added one after another.
struct HalfTile {
  static constexpr int kStretches = 12, kSteps = kStretches / kUpTile<true>.stretches;
  float4 products[kStretches][kFlowConsumers];
  float4 first_half[kFlowConsumers];

  // By the first team, and by the second when the first has handed its sums over.
  __device__ __forceinline__ void hand_over(const float (&sums)[4]) {
    first_half[threadIdx.x % kFlowConsumers] = {sums[0], sums[1], sums[2], sums[3]};
    asm volatile("bar.arrive 4, %0;" ::"n"(2 * kFlowConsumers) : "memory");
  }
  // of_tokens [2 kStretches][8], of_weights [2 kStretches][2].
  __device__ __forceinline__ void add_to(const float* of_tokens, const float* of_weights,
                                         float (&sums)[4]) const {
    const int thread = threadIdx.x % kFlowConsumers;
    asm volatile("bar.sync 4, %0;" ::"n"(2 * kFlowConsumers) : "memory");
    const float4 before = first_half[thread];
    sums[0] = before.x;
    sums[1] = before.y;
    sums[2] = before.z;
    sums[3] = before.w;
#pragma unroll 4
    for (int i = 0; i < kStretches; ++i) {
      const float4 d = products[i][thread];
      const int stretch = kStretches + i;
      const float2 by = reinterpret_cast<const float2*>(of_weights)[stretch];
      const float2 token =
          *reinterpret_cast<const float2*>(of_tokens + stretch * 8 + 2 * (thread % 4));
      sums[0] = fmaf(d.x, token.x * by.x, sums[0]);
      sums[1] = fmaf(d.y, token.y * by.x, sums[1]);
      sums[2] = fmaf(d.z, token.x * by.y, sums[2]);
      sums[3] = fmaf(d.w, token.y * by.y, sums[3]);
    }
  }
};

// Which tile is next, counted in memory, without waiting for the answer. (An addition's is passed
// around the warp at once, since others might add, too.)
__device__ __forceinline__ int take_next(int32_t* counter) {
  int taken;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], 0x7fffffff;"
               : "=r"(taken)
               : "l"(counter)
               : "memory");
  return taken;
}

// Consecutive tiles, a block's.
struct FlowShare {
  int begin, end;
};

// The block's share of `tiles`, fewer than 2^32 over the number of blocks.
__device__ __forceinline__ FlowShare flow_share(uint32_t tiles) {
  return {static_cast<int>(tiles * blockIdx.x / gridDim.x),
          static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x)};
}

// A share group by group: of each the tiles [begin, end).
struct FlowPart {
  int index, begin, end;
  int left, tiles;  // of the share, and of a group

  __device__ __forceinline__ FlowPart(const FlowShare& share, int of_group) : tiles(of_group) {
    left = share.end - share.begin;
    index = static_cast<int>(static_cast<uint32_t>(share.begin) / static_cast<uint32_t>(tiles));
    begin = share.begin - index * tiles;
    end = min(tiles, begin + left);
  }
  __device__ __forceinline__ bool any() const { return left > 0; }
  __device__ __forceinline__ void next() {
    left -= end - begin;
    ++index;
    begin = 0;
    end = min(tiles, left);
  }
};

// Bytes of shared memory that the kernel has of its own.
template <int kN, bool kFew>
constexpr int experts_beside() {
  const size_t groups = sizeof(FewGroups<kN>) + (kN == 8 ? sizeof(ChoiceTable) : 0);
  return static_cast<int>(sizeof(TileQueue) + (kFew ? groups : 0));
}

template <int kValue>
constexpr std::integral_constant<int, kValue> kInt;

// The products of kStretches stretches of a stage, of kSteps instructions each. kBox: bytes of the
// weights' boxes of 128 columns.
template <int kN, int kStretches, int kSteps, int kBox>
__device__ __forceinline__ void begin_products(uint32_t weights, uint32_t tokens,
                                               float (&d)[kStretches][kN / 2]) {
  constexpr int kBoxSteps = kTileStep / 32, kTokenBox = kN * kTileStep;
  const uint32_t a = alike(operand_low(weights)), b = alike(operand_low(tokens));
  wgmma_begin();
#pragma unroll
  for (int s = 0; s < kStretches; ++s)
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const int step = s * kSteps + k, box = step / kBoxSteps, offset = step % kBoxSteps * 32;
      wgmma_64xNx32<kN>(d[s], operand_from(a + (box * kBox + offset) / 16),
                        operand_from(b + (box * kTokenBox + offset) / 16), k > 0);
    }
}

// total += kStretches stretches of a stage, each of kSteps instructions and by its own factors,
// which are read while the products are under way; those past the first `there` are left out.
// of_tokens [kStretches][kN]; of_weights [kStretches] or, kPaired, [kStretches][2] for the thread's
// rows g and g + 8.
template <int kN, int kStretches, int kSteps, bool kPaired, int kBox = kFlowRows* kTileStep>
__device__ __forceinline__ void add_stage(uint32_t weights, uint32_t tokens, int there,
                                          const float* of_tokens, const float* of_weights,
                                          float (&total)[kN / 2]) {
  float d[kStretches][kN / 2];
  begin_products<kN, kStretches, kSteps, kBox>(weights, tokens, d);
  wgmma_commit();
  // While they are under way.
  float2 by[kStretches][kN / 8];
  float upper[kStretches], lower[kStretches];
#pragma unroll
  for (int s = 0; s < kStretches; ++s) {
    if constexpr (kPaired) {
      const float2 both = reinterpret_cast<const float2*>(of_weights)[s];
      upper[s] = both.x;
      lower[s] = both.y;
    } else {
      upper[s] = lower[s] = of_weights[s];
    }
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
      by[s][j] =
          *reinterpret_cast<const float2*>(of_tokens + s * kN + 8 * j + 2 * (threadIdx.x % 4));
  }
  wgmma_wait_for_all();
#pragma unroll
  for (int s = 0; s < kStretches; ++s) {
    if (s > 0 && s >= there) break;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float2 token = by[s][j];
      total[4 * j] = fmaf(d[s][4 * j], token.x * upper[s], total[4 * j]);
      total[4 * j + 1] = fmaf(d[s][4 * j + 1], token.y * upper[s], total[4 * j + 1]);
      total[4 * j + 2] = fmaf(d[s][4 * j + 2], token.x * lower[s], total[4 * j + 2]);
      total[4 * j + 3] = fmaf(d[s][4 * j + 3], token.y * lower[s], total[4 * j + 3]);
    }
  }
}

// Both halves of experts() (sm80_stream.cuh says what they compute) for f8_e4m3 weights, without a
// pause between them: a block first takes tiles of w1 and w3 as it gets on (memory serves some
// multiprocessors a fifth slower than most, so equal shares would end late), then runs through its
// share of w2, whose weights it asks for while the first half still computes. A group's second half
// waits until all its tiles of the first are counted in `done`, or, kFew, until all its inner
// values have come (few_tokens.cuh). Every block has to be running for that; where that is not
// sure, the halves are launched one after the other (`phases`), in equal shares. Bytes: 3 I H
// weights a group, FLOPs: 6 I H a pair. Bound: bandwidth. In a step none of the kernel's
// instructions is at hand when its turn comes: so what runs once stays short, and loops stay loops.
template <int kN, bool kFew, bool kBothTeams = false>
__global__ void __launch_bounds__(kExpertsFlowThreads, 1)
    sm90_experts_flow(const __grid_constant__ ExpertsArgs args,
                      const __grid_constant__ ExpertsFlowMaps maps, const FlowShared shape,
                      int phases, int under_way, int down_under_way) {
  extern __shared__ uint8_t flow_memory[];
  __shared__ FlowBarriers barriers;
  __shared__ TileQueue queue;
  __shared__ uint64_t tokens_there;  // all of those that stay, as the first team has seen
  constexpr int kConsumers = kExpertsConsumers, kConsumerWarps = kConsumers / kWarp;
  __shared__ FewGroups<kFew ? kN : 8> few;
  __shared__ ChoiceTable table;
  const uint32_t start = (shared_address(flow_memory) + 1023) & ~1023u;
  uint8_t* memory = flow_memory + (start - shared_address(flow_memory));
  auto* token_scales = reinterpret_cast<float*>(memory + shape.token_scales_at);
  auto* weight_scales = reinterpret_cast<float*>(memory + shape.weight_scales_at);
  auto* resident_scales = reinterpret_cast<float*>(memory + shape.resident_scales_at);
  auto* group_scales = reinterpret_cast<float*>(memory + shape.more_at);  // [2][blocks, stretches]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  constexpr bool kOne = kFew && kN == 8;  // perhaps one token, which may choose here
  if constexpr (kFew && !kOne) few.clear();
  // As many as there may be, since how many there are is not at hand yet.
  constexpr int kStages = kExpertsStages<kN, kFew>, kRingBarriers = FlowBarriers::count(kStages);
  constexpr int kBarriers = kRingBarriers + TileQueue::kCount + 1;
  const auto nth_barrier = [&](int i, int& arrivals) {
    constexpr int kTeamWarps = kFlowConsumers / kWarp;
    if (i < kRingBarriers) return barriers.nth(i, kStages, arrivals, kTeamWarps);
    i -= kRingBarriers;
    if (i < TileQueue::kCount) return queue.nth(i, kConsumerWarps + (kFew ? 1 : 2), arrivals);
    arrivals = kTeamWarps;
    return &tokens_there;
  };
  // The warp that asks for weights may have to choose first, and does that while the others begin
  // the barriers.
  const auto barriers_begun = [&] {
    if (warp == kConsumerWarps)
      asm volatile("bar.sync 3, %0;" ::"n"(kExpertsFlowThreads) : "memory");
    else
      asm volatile("bar.arrive 3, %0;" ::"n"(kExpertsFlowThreads) : "memory");
  };
  if constexpr (!kOne) {
    begin_barriers(kBarriers, nth_barrier);
  } else if (warp != kConsumerWarps) {
    constexpr int kOthers = kExpertsFlowThreads / kWarp - 1;
    begin_some_barriers(warp - (warp > kConsumerWarps), kOthers, kBarriers, nth_barrier);
    barriers_begun();
  }
  if (threadIdx.x == kConsumers + kWarp) {
    prefetch_map(&maps.w13);
    prefetch_map(&maps.x);
    prefetch_map(&maps.w2);
  }
  const bool one = kOne && args.x.rows == 1, chooses = kOne && args.choice.any();
  float2 bias = {};
  if constexpr (kOne) {
    if (args.choice.parts && static_cast<int>(threadIdx.x) * 2 < args.choice.experts)
      bias = *reinterpret_cast<const float2*>(args.choice.bias + threadIdx.x * 2);
  }
  const bool with_up = phases & 1, with_down = phases & 2;
  const bool counted = phases == 3 && args.next_tile;
  constexpr UpTile kUp = kUpTile<kBothTeams>;
  static_assert(!kBothTeams || (kFew && kN == 8));
  const int up_tiles = (args.inner + kUp.rows - 1) / kUp.rows;
  const int own_tile = static_cast<int>(blockIdx.x);
  int own_group = static_cast<int>(blockIdx.x / static_cast<uint32_t>(up_tiles));
  asm volatile("" : "+r"(own_group));  // computed now, while nothing is known yet
  constexpr int kUpColumns = kUp.stretches * kTileStep;
  const int up_steps = (args.hidden + kUpColumns - 1) / kUpColumns;
  constexpr int kWeightBox = kFlowRows * kTileStep, kTokenBoxes = kUp.stretches * kN * kTileStep;
  // Where an expert's tile of the first half begins in the map.
  const auto up_row = [&](int expert, int tile) {
    return (expert * 2 * args.inner + tile * kUp.rows) / 8;
  };
  // A stage of it, and of the tokens from `first` on, where they come with it.
  const auto ask_for_up = [&](uint32_t to, uint32_t tokens, int row, int step, int first,
                              bool with_tokens, uint64_t* full) {
    tensor_copy_5d(to, &maps.w13, 0, 0, 0, row, step * kUp.stretches, full, once_policy());
    if (with_tokens) tensor_copy_3d(tokens, &maps.x, 0, first, step * kUp.stretches, full);
  };
  // Which step of K the i-th stage of a tile is.
  const auto nth_step = [&](int i) { return kBothTeams ? (i & 1) * HalfTile::kSteps + i / 2 : i; };
  constexpr int kEarly = 3;  // no more than are under way at any time
  int early = 0;             // stages of the first tile that have been asked for
  // The groups are the list's, or found here by the warp that asks for weights, so that nothing
  // stands between that and what it knows.
  if constexpr (kFew) {
    constexpr int kThreads = kExpertsFlowThreads;
    if constexpr (kOne) {
      if (!one) {
        few.clear();
        __syncthreads();
      } else if (args.choice.parts) {
        wait_for_previous();
        add_up_parts(args.choice, bias, table);
        __syncthreads();
      }
    }
    if (warp == kConsumerWarps) {
      if constexpr (kOne)
        one ? find_groups_of_one(args, table, few) : find_groups(args, few);
      else
        find_groups(args, few);
      __syncwarp();
      if constexpr (kOne) barriers_begun();
      asm volatile("bar.arrive 2, %0;" ::"n"(kThreads) : "memory");
      if (lane == 0 && counted && own_group < few.count) {
        early = min(kEarly, up_steps);
        const int rows = up_row(few.expert[own_group], own_tile - own_group * up_tiles);
#pragma unroll 1
        for (int i = 0; i < early; ++i) {
          const int step = nth_step(i);
          barrier_expect(&barriers.full[i], kUp.stage() + kTokenBoxes);
          ask_for_up(start + i * shape.stage_bytes(),
                     start + shape.resident_at + step * kTokenBoxes, rows, step, 0, true,
                     &barriers.full[i]);
        }
      }
    } else {
      wait_for_previous();
      if (threadIdx.x == kThreads - 1) few.tag = *args.posted + 1;
      asm volatile("bar.sync 2, %0;" ::"n"(kThreads) : "memory");
    }
    if constexpr (kOne)
      if (chooses && blockIdx.x == 0 && warp == kConsumerWarps + 2)
        store_few(table, args.choice.scores, args.top, args.ids, args.weights);
  } else {
    wait_for_previous();  // which makes the list: not even how long it is is known before
  }
  const auto group_at = [&](int i) {
    return kFew ? Group{few.expert[i], 0, static_cast<int>(args.x.rows)} : listed_group(args, i);
  };
  // Asked for beside how many there are; past the last there is room, and nothing that is used.
  Group first_group = {};
  if constexpr (!kFew)
    if (warp == kConsumerWarps) {
      const int most = args.experts + static_cast<int>(args.x.rows) * args.top / kN;
      first_group = group_at(min(own_group, most));
    }
  const int group_count = kFew ? few.count : args.groups[0];
  const int down_tiles = args.hidden / kFlowRows;
  const int up_all = with_up ? group_count * up_tiles : 0;
  const int down_all = with_down ? group_count * down_tiles : 0;
  // A second group's inner values would be waited for with nothing else to do: so a share is of one
  // group where that makes no share larger.
  const auto down_share = [&](int last) {
    const int share = static_cast<int>((down_all + gridDim.x - 1) / gridDim.x);
    if (kFew && share > 0 && down_tiles % share == 0) {
      const int begin = share * static_cast<int>(blockIdx.x);
      return FlowShare{min(down_all, begin), min(down_all, begin + share)};
    }
    // Who found no tile left as one of the last has one more of the first half to do than who found
    // it first, and gets as much less of w2: shares in that order, from half of it more to half
    // less.
    if (last < -1) {
      const int blocks = static_cast<int>(gridDim.x);
      const int more = min(args.hidden / args.inner, 2 * down_all / blocks);
      const auto begin = [&](int rank) {
        return static_cast<int>(
            static_cast<uint32_t>(rank * (2 * down_all + more * (blocks - rank))) /
            static_cast<uint32_t>(2 * blocks));
      };
      return FlowShare{begin(-2 - last), begin(-1 - last)};
    }
    return flow_share(down_all);
  };
  // What is said when no tile is left for the block: -2 - i, where it is the i-th to see that.
  const auto no_tile = [&](int next, int end) {
    return counted && end >= static_cast<int>(gridDim.x) ? end - 2 - next : -1;
  };
  const int up_stretches = args.hidden / kTileStep,
            down_stretches = args.inner_stretch == 128 ? args.inner / 128 : args.inner / 64;
  const int down_steps = (args.inner + kFlowColumns - 1) / kFlowColumns;
  const int stretches = max(up_stretches, down_stretches);
  constexpr int kBuffers = flow_scale_buffers(kN);
  // Where a row's steps are two rounds of the ring, a team could take a stage's barrier for that of
  // two rounds before; then one multiplies alone.
  const auto teams_of = [&](int steps) { return steps < 2 * shape.stages ? kExpertsTeams : 1; };
  const int up_teams = teams_of(up_steps), down_teams = teams_of(down_steps);

  if (warp == kConsumerWarps) {
    if (lane != 0) return;
    let_next_start();
    FlowSlot at{early}, coming;
    int asked = early, most = under_way;  // and not known to be there
    const auto next_slot = [&](int bytes) {
#pragma unroll 1
      for (; asked >= most; --asked) {
        barrier_wait(&barriers.full[coming.slot], coming.round & 1);
        coming.next(shape.stages);
      }
      ++asked;
      if (at.round > 0) barrier_wait(&barriers.empty[at.slot], (at.round - 1) & 1);
      barrier_expect(&barriers.full[at.slot], bytes);
      return start + at.slot * shape.stage_bytes();
    };
    // The first tile is the block's own, each later one the first that nobody has taken; it is
    // known, and said, before the one in front is all asked for.
    int end = up_all, tile = own_tile, index = own_group;
    if (!counted) {
      const FlowShare share = flow_share(up_all);
      tile = share.begin;
      end = share.end;
      index = tile / up_tiles;
    }
    int said = tile < end ? tile : -1;
    queue.put(0, said);
    const int say_behind = min(kSayBehind, up_steps - 1);
    Group group = first_group, later = {};
    if ((kFew || !counted) && tile < end) group = group_at(index);
    for (int n = 0; tile < end; ++n) {
      int taken = 0;
      if (counted) taken = take_next(args.next_tile);
      const int row = up_row(group.expert, tile - index * up_tiles);
      // Tokens that stay come with the block's first tile.
      const bool with_tokens = !kFew || n == 0;
      const auto ask = [&](int i) {
        const int step = nth_step(i);
        const uint32_t to = next_slot(kUp.stage() + (with_tokens ? kTokenBoxes : 0));
        ask_for_up(to, kFew ? start + shape.resident_at + step * kTokenBoxes : to + 2 * kWeightBox,
                   row, step, group.begin, with_tokens, &barriers.full[at.slot]);
        at.next(shape.stages);
      };
      int step = n == 0 ? early : 0;
#pragma unroll 1
      for (; step <= say_behind; ++step) ask(step);
      const int next = counted ? static_cast<int>(gridDim.x) + taken : tile + 1;
      said = next < end ? next : no_tile(next, end);
      queue.put(n + 1, said);
      const int next_index =
          static_cast<int>(static_cast<uint32_t>(next) / static_cast<uint32_t>(up_tiles));
      if (next < end) later = group_at(next_index);
#pragma unroll 1
      for (; step < up_steps; ++step) ask(step);
      tile = next;
      index = next_index;
      group = later;
    }
    const bool joined = args.inner % kTileStep == 0;
    const FlowShare down = down_share(said);
    most = down_under_way;
    // By groups: a division takes as long as a tile's products.
    FlowPart part(down, down_tiles);
    for (; part.any(); part.next()) {
      int row = group_at(part.index).expert * args.hidden + part.begin * kFlowRows;
      for (tile = part.begin; tile < part.end; ++tile, row += kFlowRows)
        for (int step = 0; step < down_steps; ++step) {
          const uint32_t to = next_slot(2 * kWeightBox);
          copy_weights(to, kWeightBox, &maps.w2, joined, step, row, &barriers.full[at.slot]);
          at.next(shape.stages);
        }
    }
    return;
  }

  if (warp == kConsumerWarps + 1) {
    let_next_start();
    int tile_count = 0;
    const auto next_buffer = [&] {
      const int buffer = tile_count % kBuffers, round = tile_count / kBuffers;
      ++tile_count;
      if (round > 0) barrier_wait(&barriers.scales_empty[buffer], (round - 1) & 1);
      return buffer;
    };
    int tile = 0;
    for (int n = 0;; ++n) {
      tile = queue.take(n);
      if (tile < 0) break;
      const int index = tile / up_tiles, buffer = next_buffer();
      const Group group = group_at(index);
      const int block = (args.first_inner + tile % up_tiles * kUp.rows) / 128 - args.scale_row;
      const int64_t at =
          (static_cast<int64_t>(group.expert) * args.inner_blocks + block) * args.hidden_blocks;
      float* to = weight_scales + buffer * 2 * stretches;
#pragma unroll 1
      for (int s = lane; s < up_stretches; s += kWarp) {
        copy_float(to + 2 * s, args.w1_scale + at + s, true);
        copy_float(to + 2 * s + 1, args.w3_scale + at + s, true);
      }
      if constexpr (kFew) {
        if (n == 0) {
#pragma unroll 1
          for (int token = 0; token < group.count; ++token)
#pragma unroll 1
            for (int s = lane; s < up_stretches; s += kWarp)
              copy_float(token_scales + s * kN + token,
                         args.token_scales + token * up_stretches + s, true);
        }
      } else {
        const float* from = args.x_scales + static_cast<int64_t>(group.begin) * up_stretches;
        float* scales = token_scales + buffer * stretches * kN;
#pragma unroll 8
        for (int i = lane; i < kN * up_stretches; i += kWarp) {
          const int token = i / up_stretches, stretch = i % up_stretches;
          const bool there = token < group.count;
          copy_float(scales + stretch * kN + token, from + (there ? i : 0), there);
        }
      }
      arrive_when_copied(&barriers.scales_full[buffer]);
    }
    // Of w2, those of a group's tiles at once.
    const FlowShare down = down_share(tile);
    const int count = args.hidden_blocks * down_stretches;  // of a whole group
    int ordinal = 0;
    for (FlowPart part(down, down_tiles); part.any(); part.next(), ++ordinal) {
      const int set = ordinal & 1;
      if (ordinal > 1) barrier_wait(&queue.scales_empty[set], (ordinal / 2 - 1) & 1);
      const float* from = args.w2_scale + static_cast<int64_t>(group_at(part.index).expert) *
                                              args.hidden_blocks * args.inner_blocks;
      const int end = (part.end * kFlowRows + 127) / 128 * down_stretches;
#pragma unroll 1
      for (int i = part.begin * kFlowRows / 128 * down_stretches + lane; i < end; i += kWarp) {
        const int block = i / down_stretches, stretch = i % down_stretches;
        copy_float(group_scales + set * count + i,
                   from + block * args.inner_blocks +
                       (args.first_inner + stretch * args.inner_stretch) / 128 - args.scale_row,
                   true);
      }
      arrive_when_copied(&queue.scales_full[set]);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    return;
  }

  // Counts what the consumers have computed, so that they need not wait until it is seen
  // everywhere.
  if (warp == kConsumerWarps + 2) {
    if (kFew || lane != 0) return;
    let_next_start();
    for (int n = 0;; ++n) {
      const int tile = queue.look(n);
      if (tile < 0) return;
      barrier_wait(&queue.computed[n % TileQueue::kPlaces], n / TileQueue::kPlaces & 1);
      __threadfence();
      if (with_down) atomicAdd(&args.done[tile / up_tiles], 1);
      queue.leave(n);
    }
  }

  let_next_start();
  const int g = lane / 4, t = lane % 4;
  const int team = warp / 4;
  FlowSlot at;
  int tile_count = 0;
  auto* inner_values = static_cast<__nv_bfloat16*>(args.inner_values);
  const PostedInner<kFew ? kN : 8, kConsumerWarps> posted{args, few.tag};
  uint8_t* resident = memory + shape.resident_at;
  // Addresses, once and for all.
  uint32_t full_at, empty_at;
  asm volatile("mov.u32 %0, %1;" : "=r"(full_at) : "r"(shared_address(barriers.full)));
  asm volatile("mov.u32 %0, %1;" : "=r"(empty_at) : "r"(shared_address(barriers.empty)));
  // Some of a tile's stages, every `apart`-th that comes: products(step, where the stage lies).
  const auto stages = [&](auto apart, int steps, auto products) {
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      // A team may be a round ahead of the other: then what the place had before is not taken yet.
      if (at.round > 0) barrier_wait(empty_at + at.slot * 8, (at.round - 1) & 1);
      barrier_wait(full_at + at.slot * 8, at.round & 1);
      products(step, start + at.slot * shape.stage_bytes());
      warp_arrives(&barriers.empty[at.slot]);
      at.next(shape.stages);
      if (apart > 1) at.next(shape.stages);
    }
  };

  // Whether the next tile is the team's; if not, goes past it.
  const auto mine = [&](int teams, int steps) {
    if (team == (tile_count & (teams - 1))) return true;
    at.skip(steps, shape.stages);
    ++tile_count;
    return false;
  };

  int last = 0;
  for (int n = 0;; ++n) {
    const int tile = queue.take(n);
    last = tile;
    if (tile < 0) break;
    if (!kBothTeams && !mine(up_teams, up_steps)) continue;
    if (kFew && n == 1) barrier_wait(&tokens_there, 0);
    const int index = tile / up_tiles;
    const Group group = group_at(index);
    float total[kN / 2] = {};
    const int buffer = tile_count % kBuffers;
    const float* of_tokens = token_scales + (kFew ? 0 : buffer * stretches * kN);
    const float* of_weights = weight_scales + buffer * 2 * stretches;
    barrier_wait(&barriers.scales_full[buffer], tile_count / kBuffers & 1);
    const auto tokens_of = [&](int step, uint32_t stage) {
      return kFew ? start + shape.resident_at + step * kTokenBoxes : stage + 2 * kWeightBox;
    };
    const auto add = [&](int step, uint32_t stage) {
      const int first = kUp.stretches * step;
      add_stage<kN, kUp.stretches, 4, true, kUp.box()>(stage, tokens_of(step, stage),
                                                       up_stretches - first, of_tokens + first * kN,
                                                       of_weights + 2 * first, total);
    };
    if constexpr (!kBothTeams) {
      stages(kInt<1>, up_steps, add);
    } else {
      const FlowSlot here = at;
      at.skip(team, shape.stages);
      auto& half = *reinterpret_cast<HalfTile*>(memory + shape.half_tile_at);
      if (team == 0) {
        stages(kInt<2>, HalfTile::kSteps, add);
        half.hand_over(total);
      } else {
        stages(kInt<2>, HalfTile::kSteps, [&](int step, uint32_t stage) {
          float d[kUp.stretches][4];
          begin_products<8, kUp.stretches, 4, kUp.box()>(
              stage, tokens_of(HalfTile::kSteps + step, stage), d);
          wgmma_finish();
#pragma unroll
          for (int i = 0; i < kUp.stretches; ++i)
            half.products[kUp.stretches * step + i][threadIdx.x % kFlowConsumers] = {
                d[i][0], d[i][1], d[i][2], d[i][3]};
        });
        half.add_to(of_tokens, of_weights, total);
      }
      at = here;
      at.skip(up_steps, shape.stages);
    }
    ++tile_count;
    if (kBothTeams && team == 0) continue;  // the other has the sums
    warp_arrives(&barriers.scales_empty[buffer]);
    if (kFew && n == 0) warp_arrives(&tokens_there);
    // The warp's rows are 8 of w1 and the same 8 of w3.
    const int inner = tile % up_tiles * kUp.rows + warp % 4 * 8 + g;
    if (kBothTeams && warp % 4 >= kUp.rows / 8) continue;  // rows that no stage has
    if constexpr (kFew) {
      const uint32_t chosen = posted.chosen(few.place[index]);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        if (kN > 8 && !(chosen >> 8 * j & 0xff)) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i)
          posted.put(posted.pair_of(few.place[index], 8 * j + 2 * t + i), inner - g,
                     quick_silu(total[4 * j + i]) * total[4 * j + 2 + i]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = 8 * j + 2 * t + i;
          if (token < group.count && inner < args.inner)
            inner_values[static_cast<int64_t>(group.begin + token) * args.inner + inner] =
                __float2bfloat16_rn(quick_silu(total[4 * j + i]) * total[4 * j + 2 + i]);
        }
      warp_arrives(&queue.computed[n % TileQueue::kPlaces]);
    }
  }

  Group group = {}, later = {};
  // A lane's pairs: of neighbouring rows' lanes each has one token, and both rows' results.
  const int own_token = 2 * t + (g & 1);
  int64_t pair[kN / 8];
  // Inner values of two groups in turns, where there is room.
  const int set_bytes = down_steps * 2 * kN * kTileStep, scale_set = down_steps * 4 * kN;
  float* quantised_scales = resident_scales;
  int ordinal = 0;
  for (FlowPart part(down_share(last), down_tiles); part.any(); part.next(), ++ordinal) {
    const int index = part.index;
    group = kFew || ordinal == 0 ? group_at(index) : later;
    if constexpr (!kFew) later = group_at(index + 1);  // or what stands behind the last
    // The group before may still be multiplied, and the tokens are before the first.
    const bool must_meet = shape.sets == 1 || (kFew && ordinal == 0);
    if (shape.sets > 1) {
      resident = memory + shape.resident_at + (ordinal & 1) * set_bytes;
      quantised_scales = resident_scales + (ordinal & 1) * scale_set;
    }
    if constexpr (kFew) {
      typename PostedInner<kN, kConsumerWarps>::Asked asked;
      posted.ask(few.place[index], warp, asked);
      if (must_meet) consumers_meet<kConsumers>();
      posted.quantise(few.place[index], asked, resident, quantised_scales);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
      consumers_meet<kConsumers>();
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
        pair[j] = posted.pair_of(few.place[index], 8 * j + own_token);
    } else {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        const int token = 8 * j + own_token;
        pair[j] = token < group.count ? args.order[group.begin + token] : -1;
      }
      if (with_up && lane == 0) {
        int counted;
        do {
          asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                       : "=r"(counted)
                       : "l"(args.done + index)
                       : "memory");
        } while (counted < up_tiles);
      }
      __syncwarp();
      if (must_meet) consumers_meet<kConsumers>();
      // A warp quantises 128 columns of a pair, or each half of it 64.
      const int width = args.inner_stretch, lanes = width / 4, units = kWarp / lanes;
      const int of_unit = lane % lanes;
#pragma unroll 2
      for (int unit = warp * units + lane / lanes; unit < group.count * down_stretches;
           unit += kConsumerWarps * units) {
        const int token = unit / down_stretches, stretch = unit % down_stretches;
        const int column = stretch * width + of_unit * 4;
        const uint2 pairs = __ldcg(reinterpret_cast<const uint2*>(
            inner_values + static_cast<int64_t>(group.begin + token) * args.inner + column));
        const float value[4] = {
            __uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
            __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
        float most = largest_of(value[0], value[1], value[2], value[3]);
        const uint32_t mates = units == 1 ? ~0u : lane < 16 ? 0xffffu : 0xffff0000u;
        if (units == 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, 16));
#pragma unroll
        for (int offset = 8; offset; offset /= 2)
          most = fmaxf(most, __shfl_xor_sync(mates, most, offset));
        const float scale = f8_scale(most, args.powers);
        const int within = column % kTileStep;
        *reinterpret_cast<uint32_t*>(resident + column / kTileStep * (kN * kTileStep) +
                                     token * kTileStep + ((within / 16) ^ (token & 7)) * 16 +
                                     within % 16) =
            to_f8(value[0], value[1], value[2], value[3], 1.0f / scale);
        if (of_unit == 0) quantised_scales[stretch * kN + token] = scale;
      }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
      consumers_meet<kConsumers>();
    }
    // All are through with the group before.
    if (threadIdx.x == 0 && ordinal > 0) barrier_arrive(&queue.scales_empty[(ordinal - 1) & 1]);
    barrier_wait(&queue.scales_full[ordinal & 1], ordinal / 2 & 1);
    // All have met: so the teams' turns begin anew.
    const FlowSlot here = at;
    at.skip(team * down_steps, shape.stages);
    for (int tile = part.begin + team; team < down_teams && tile < part.end; tile += down_teams) {
      float total[kN / 2] = {};
      const uint32_t tokens = shared_address(resident);
      const int row_block = tile * kFlowRows / 128;
      const float* of_weights =
          group_scales + ((ordinal & 1) * args.hidden_blocks + row_block) * down_stretches;
      stages(kInt<1>, down_steps, [&](int step, uint32_t stage) {
        const auto add = [&](auto stretches, auto steps, int first) {
          add_stage<kN, stretches, steps, false>(
              stage, tokens + step * (2 * kN * kTileStep), down_stretches - first,
              quantised_scales + first * kN, of_weights + first, total);
        };
        // What a slice leaves empty of its last stage is not multiplied.
        if (args.inner_stretch == 128) {
          const int first = 2 * step;
          first + 1 < down_stretches ? add(kInt<2>, kInt<4>, first) : add(kInt<1>, kInt<4>, first);
        } else {
          const int first = 4 * step;
          first + 3 < down_stretches ? add(kInt<4>, kInt<2>, first) : add(kInt<3>, kInt<2>, first);
        }
      });
      const int to = tile * kFlowRows + warp % 4 * 16 + (g & 6);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
        // A lane keeps its own token's two sums and gets the neighbouring row's.
        const uint32_t even = pack_bf16(total[4 * j], total[4 * j + 2]),
                       odd = pack_bf16(total[4 * j + 1], total[4 * j + 3]);
        const uint32_t kept = g & 1 ? odd : even;
        const uint32_t got = __shfl_xor_sync(~0u, g & 1 ? even : odd, 4);
        const uint32_t low = g & 1 ? got : kept, high = g & 1 ? kept : got;
        if (pair[j] < 0) continue;
        auto* results = reinterpret_cast<uint32_t*>(reinterpret_cast<__nv_bfloat16*>(args.results) +
                                                    pair[j] * args.hidden + to);
        results[0] = __byte_perm(low, high, 0x5410);
        results[4] = __byte_perm(low, high, 0x7632);
      }
      at.skip((down_teams - 1) * down_steps, shape.stages);
    }
    at = here;
    at.skip((part.end - part.begin) * down_steps, shape.stages);
  }
}

// Groups the pairs by expert, in their order, and brings each pair's token, which is quantised
// already, to the pair's place: what list_pairs does for one kernel more. Every block counts all
// pairs, at most kFlowPairs; block t brings token t's. Bytes: T H read, P H written. Bound by
// latency.
constexpr int kGatherThreads = 256;
__global__ void __launch_bounds__(kGatherThreads, 4) sm90_experts_gather(ExpertsArgs args) {
  constexpr int kWarps = kGatherThreads / kWarp, kAhead = 6;
  constexpr int kEach = kMostExperts / kGatherThreads;  // experts of a thread
  static_assert(kFlowPairs <= 0x7fff, "two counts in an int");
  __shared__ __align__(16) int begins[kMostExperts];
  __shared__ int16_t experts[kFlowPairs];
  __shared__ int sums[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int pairs = static_cast<int>(args.x.rows) * args.top;
  *reinterpret_cast<int4*>(&begins[kEach * threadIdx.x]) = {};
  static_assert(kEach == 4);
  __syncthreads();
  wait_for_previous();
  let_next_start();
#pragma unroll 2
  for (int pair = threadIdx.x; pair < pairs; pair += kGatherThreads) {
    const int expert = args.ids[pair] - args.first_expert;
    const bool here = expert >= 0 && expert < args.experts;
    experts[pair] = static_cast<int16_t>(here ? expert : -1);
    if (here) atomicAdd(&begins[expert], 1);
  }
  // Asked for before it is known where to.
  const int64_t token = blockIdx.x;
  const int words = args.hidden / 16, stretches = args.hidden / kTileStep;
  const auto* from = reinterpret_cast<const uint4*>(args.token_f8 + token * args.hidden);
  const float* from_scales = args.token_scales + token * stretches;
  uint4 row[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    if (lane + i * kWarp < words) row[i] = from[lane + i * kWarp];
  const float scale = lane < stretches ? from_scales[lane] : 0.0f;
  __syncthreads();
  // Of each expert its pairs, and above them its groups; then how many come before.
  int counts[kEach], sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int count = begins[kEach * threadIdx.x + i];
    counts[i] = count | (count + args.group_pairs - 1) / args.group_pairs << 16;
    sum += counts[i];
  }
  int before = sum;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(~0u, before, offset);
    if (lane >= offset) before += other;
  }
  if (lane == kWarp - 1) sums[warp] = before;
  before -= sum;
  __syncthreads();
  int all = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) before += sums[i];
    all += sums[i];
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int expert = kEach * threadIdx.x + i, begin = before & 0xffff, count = counts[i] & 0xffff;
    begins[expert] = begin;
    if (blockIdx.x == 0) {
      int4* entry = reinterpret_cast<int4*>(args.groups + 4) + (before >> 16);
      for (int done = 0; done < count; done += args.group_pairs)
        *entry++ = {expert, begin + done, min(args.group_pairs, count - done), 0};
    }
    before += counts[i];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) args.groups[0] = all >> 16;
  __syncthreads();
  for (int place = warp; place < args.top; place += kWarps) {
    const int pair = static_cast<int>(token) * args.top + place, expert = experts[pair];
    if (expert < 0) continue;
    int earlier = 0;
#pragma unroll 4
    for (int i = lane; i < pair; i += kWarp) earlier += experts[i] == expert;
    const int64_t position = begins[expert] + warp_sum(earlier);
    if (lane == 0) args.order[position] = pair;
    auto* to = reinterpret_cast<uint4*>(args.x_f8 + position * args.hidden);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (lane + i * kWarp < words) to[lane + i * kWarp] = row[i];
    for (int i = lane + kAhead * kWarp; i < words; i += kWarp) to[i] = from[i];
    float* scales = args.x_scales + position * stretches;
    if (lane < stretches) scales[lane] = scale;
    for (int i = lane + kWarp; i < stretches; i += kWarp) scales[i] = from_scales[i];
  }
}

}  // namespace m2::ops::cuda
