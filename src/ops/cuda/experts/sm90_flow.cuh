#pragma once

#include "ops/cuda/experts/few_tokens.cuh"

namespace m2::ops::cuda {

struct ExpertsFlowMaps {
  CUtensorMap x;    // boxes of kN tokens
  CUtensorMap w13;  // boxes of 8 rows of w1, the same 8 of w3, four times
  CUtensorMap w2;   // boxes of 64 rows
};

constexpr int kFlowUpRows = kFlowRows / 2;  // of w1, and the same of w3

// Which tile of the first half comes next: from the producer to all others of the block, a tile
// ahead. -1 after the last.
struct TileQueue {
  static constexpr int kPlaces = 4;
  // empty: that all have taken the tile, and that it is counted. computed: by the consumers.
  uint64_t full[kPlaces], empty[kPlaces], computed[kPlaces];
  int tile[kPlaces];

  // Of all, the i-th, and how many arrive at it.
  static constexpr int kCount = 3 * kPlaces;
  __device__ __forceinline__ uint64_t* nth(int i, int takers, int& arrivals) {
    arrivals = 1;
    if (i < kPlaces) return &full[i];
    arrivals = takers;
    if (i < 2 * kPlaces) return &empty[i - kPlaces];
    arrivals = kFlowConsumers;
    return &computed[i - 2 * kPlaces];
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
  // By every thread of those that take.
  __device__ __forceinline__ int take(int n) {
    const int value = look(n);
    leave(n);
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

// Bytes of shared memory that the kernel has of its own.
template <int kN, bool kFew>
constexpr int experts_beside() {
  const size_t groups = sizeof(FewGroups<kN>) + (kN == 8 ? sizeof(ChoiceTable) : 0);
  return static_cast<int>(sizeof(TileQueue) + (kFew ? groups : 0));
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
template <int kN, bool kFew>
__global__ void __launch_bounds__(kExpertsFlowThreads, 1)
    sm90_experts_flow(const __grid_constant__ ExpertsArgs args,
                      const __grid_constant__ ExpertsFlowMaps maps, const FlowShared shape,
                      int phases, int under_way) {
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
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  constexpr bool kOne = kFew && kN == 8;  // perhaps one token, which may choose here
  if constexpr (kFew && !kOne) few.clear();
  // As many as there may be, since how many there are is not at hand yet.
  constexpr int kStages = kExpertsStages<kN, kFew>, kRingBarriers = FlowBarriers::count(kStages);
  begin_barriers(kRingBarriers + TileQueue::kCount + 1, [&](int i, int& arrivals) {
    if (i < kRingBarriers) return barriers.nth(i, kStages, arrivals);
    i -= kRingBarriers;
    if (i < TileQueue::kCount) return queue.nth(i, kConsumers + kWarp + (kFew ? 0 : 1), arrivals);
    arrivals = kFlowConsumers;
    return &tokens_there;
  });
  if (threadIdx.x == kConsumers) {
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
  const int up_tiles = (args.inner + kFlowUpRows - 1) / kFlowUpRows;
  const int own_tile = static_cast<int>(blockIdx.x);
  int own_group = static_cast<int>(blockIdx.x / static_cast<uint32_t>(up_tiles));
  asm volatile("" : "+r"(own_group));  // computed now, while nothing is known yet
  const int up_steps = (args.hidden + kFlowColumns - 1) / kFlowColumns;
  constexpr int kWeightBox = kFlowRows * kTileStep, kTokenBoxes = 2 * kN * kTileStep;
  // Where an expert's tile of the first half begins in the map.
  const auto up_row = [&](int expert, int tile) {
    return (expert * 2 * args.inner + tile * kFlowUpRows) / 8;
  };
  // A stage of it, and of the tokens from `first` on, where they come with it.
  const auto ask_for_up = [&](uint32_t to, uint32_t tokens, int row, int step, int first,
                              bool with_tokens, uint64_t* full) {
    tensor_copy_5d(to, &maps.w13, 0, 0, 0, row, step * 2, full);
    if (with_tokens) copy_boxes(tokens, kN * kTileStep, &maps.x, true, step, first, full);
  };
  constexpr int kEarly = 3;  // no more than are under way at any time
  int early = 0;             // stages of the first tile that have been asked for
  // The groups are the list's, or found here: of one token by the warp that asks for weights, so
  // that nothing stands between that and what it knows.
  if constexpr (kFew) {
    constexpr int kThreads = kExpertsFlowThreads;
    const auto find_tag = [&] {
      if (threadIdx.x == kThreads - 1) few.tag = *args.posted + 1;
    };
    if (kOne && one) {
      if constexpr (kOne) {
        if (args.choice.parts) {
          wait_for_previous();
          add_up_parts(args.choice, bias, table);
          __syncthreads();
        }
        if (warp == kConsumerWarps) {
          find_groups_of_one(args, table, few);
          __syncwarp();
          asm volatile("bar.arrive 2, %0;" ::"n"(kThreads) : "memory");
          if (lane == 0 && counted && own_group < few.count) {
            early = min(kEarly, up_steps);
            const int rows = up_row(few.expert[own_group], own_tile - own_group * up_tiles);
#pragma unroll 1
            for (int i = 0; i < early; ++i) {
              barrier_expect(&barriers.full[i], 2 * kWeightBox + kTokenBoxes);
              ask_for_up(start + i * shape.stage_bytes(),
                         start + shape.resident_at + i * kTokenBoxes, rows, i, 0, true,
                         &barriers.full[i]);
            }
          }
        } else {
          wait_for_previous();
          find_tag();
          asm volatile("bar.sync 2, %0;" ::"n"(kThreads) : "memory");
        }
        if (chooses && blockIdx.x == 0 && warp == kConsumerWarps + 2)
          store_few(table, args.choice.scores, args.top, args.ids, args.weights);
      }
    } else {
      if constexpr (kOne) {
        few.clear();
        __syncthreads();
      }
      wait_for_previous();
      find_tag();
      find_groups(args, few);
      __syncthreads();
    }
  } else {
    wait_for_previous();  // which makes the list: not even how long it is is known before
  }
  const auto group_at = [&](int i) {
    return kFew ? Group{few.expert[i], 0, static_cast<int>(args.x.rows)} : listed_group(args, i);
  };
  const int group_count = kFew ? few.count : args.groups[0];
  const int down_tiles = args.hidden / kFlowRows;
  const int up_all = with_up ? group_count * up_tiles : 0;
  const int down_all = with_down ? group_count * down_tiles : 0;
  // A second group's inner values would be waited for with nothing else to do: so a share is of one
  // group where that makes no share larger.
  const auto down_share = [&] {
    const int share = static_cast<int>((down_all + gridDim.x - 1) / gridDim.x);
    if (kFew && share > 0 && down_tiles % share == 0) {
      const int begin = share * static_cast<int>(blockIdx.x);
      return FlowShare{min(down_all, begin), min(down_all, begin + share)};
    }
    return flow_share(down_all);
  };
  const int up_stretches = args.hidden / kTileStep,
            down_stretches = args.inner_stretch == 128 ? args.inner / 128 : args.inner / 64;
  const int down_steps = (args.inner + kFlowColumns - 1) / kFlowColumns;
  const int stretches = max(up_stretches, down_stretches);
  constexpr int kBuffers = flow_scale_buffers(kN);
  // Where a row's steps are two rounds of the ring, a team could take a stage's barrier for that of
  // two rounds before; then one multiplies alone.
  const bool in_turns = kFew || max(up_steps, down_steps) < 2 * shape.stages;

  if (warp == kConsumerWarps) {
    if (lane != 0) return;
    let_next_start();
    FlowSlot at{early}, coming;
    int asked = early;  // and not known to be there
    const auto next_slot = [&](int bytes) {
#pragma unroll 1
      for (; asked >= under_way; --asked) {
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
    queue.put(0, tile < end ? tile : -1);
    const int say_behind = min(kSayBehind, up_steps - 1);
    Group group = {}, later = {};
    if (tile < end) group = group_at(index);
    for (int n = 0; tile < end; ++n) {
      int taken = 0;
      if (counted) taken = take_next(args.next_tile);
      const int row = up_row(group.expert, tile - index * up_tiles);
      // Tokens that stay come with the block's first tile.
      const bool with_tokens = !kFew || n == 0;
      const auto ask = [&](int step) {
        const uint32_t to = next_slot(2 * kWeightBox + (with_tokens ? kTokenBoxes : 0));
        ask_for_up(to, kFew ? start + shape.resident_at + step * kTokenBoxes : to + 2 * kWeightBox,
                   row, step, group.begin, with_tokens, &barriers.full[at.slot]);
        at.next(shape.stages);
      };
      int step = n == 0 ? early : 0;
#pragma unroll 1
      for (; step <= say_behind; ++step) ask(step);
      const int next = counted ? static_cast<int>(gridDim.x) + taken : tile + 1;
      queue.put(n + 1, next < end ? next : -1);
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
    const FlowShare down = down_share();
    for (tile = down.begin; tile < down.end; ++tile) {
      const Group group = group_at(tile / down_tiles);
      const int row = group.expert * args.hidden + tile % down_tiles * kFlowRows;
      for (int step = 0; step < down_steps; ++step) {
        const uint32_t to = next_slot(2 * kWeightBox);
        copy_boxes(to, kWeightBox, &maps.w2, joined, step, row, &barriers.full[at.slot]);
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
    for (int n = 0;; ++n) {
      const int tile = queue.take(n);
      if (tile < 0) break;
      const int index = tile / up_tiles, buffer = next_buffer();
      const Group group = group_at(index);
      const int block = (args.first_inner + tile % up_tiles * kFlowUpRows) / 128 - args.scale_row;
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
    const FlowShare down = down_share();
    for (int tile = down.begin; tile < down.end; ++tile) {
      const int buffer = next_buffer();
      const Group group = group_at(tile / down_tiles);
      const int64_t at = (static_cast<int64_t>(group.expert) * args.hidden_blocks +
                          tile % down_tiles * kFlowRows / 128) *
                         args.inner_blocks;
      float* to = weight_scales + buffer * 2 * stretches;
#pragma unroll 1
      for (int s = lane; s < down_stretches; s += kWarp) {
        const float* from =
            args.w2_scale + at + (args.first_inner + s * args.inner_stretch) / 128 - args.scale_row;
        copy_float(to + 2 * s, from, true);
        copy_float(to + 2 * s + 1, from, true);
      }
      arrive_when_copied(&barriers.scales_full[buffer]);
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
  const int g = lane / 4, t = lane % 4, row = warp % 4 * 16 + g;
  const int team = warp / 4;
  FlowSlot at;
  int tile_count = 0;
  auto* inner_values = static_cast<__nv_bfloat16*>(args.inner_values);
  const PostedInner<kFew ? kN : 8, kConsumerWarps> posted{args, few.tag};
  uint8_t* resident = memory + shape.resident_at;
  const auto multiply = [&]<int kStretches>(std::integral_constant<int, kStretches>,
                                            uint32_t tokens, int steps, int count,
                                            const float* of_tokens, float(&total)[kN / 2]) {
    const int buffer = tile_count % kBuffers;
    barrier_wait(&barriers.scales_full[buffer], tile_count / kBuffers & 1);
    for (int step = 0; step < steps; ++step) {
      // A team may be a round ahead of the other: then what the place had before is not taken yet.
      if (at.round > 0) barrier_wait(&barriers.empty[at.slot], (at.round - 1) & 1);
      barrier_wait(&barriers.full[at.slot], at.round & 1);
      const uint32_t stage = start + at.slot * shape.stage_bytes();
      multiply_stage<kN, kStretches>(
          stage, kWeightBox, tokens ? tokens + step * (2 * kN * kTileStep) : stage + 2 * kWeightBox,
          step * kStretches, count, of_tokens, weight_scales + buffer * 2 * stretches, 0, 1, total);
      barrier_arrive(&barriers.empty[at.slot]);
      at.next(shape.stages);
    }
    barrier_arrive(&barriers.scales_empty[buffer]);
    ++tile_count;
  };

  // Whether the next tile is the team's; if not, goes past it.
  const auto mine = [&](int steps) {
    if (team == (in_turns ? tile_count % kExpertsTeams : 0)) return true;
    at.skip(steps, shape.stages);
    ++tile_count;
    return false;
  };

  for (int n = 0;; ++n) {
    const int tile = queue.take(n);
    if (tile < 0) break;
    if (!mine(up_steps)) continue;
    if (kFew && n == 1) barrier_wait(&tokens_there, 0);
    const int index = tile / up_tiles;
    const Group group = group_at(index);
    float total[kN / 2] = {};
    multiply(std::integral_constant<int, 2>(), kFew ? start + shape.resident_at : 0, up_steps,
             up_stretches, token_scales + (kFew ? 0 : tile_count % kBuffers * stretches * kN),
             total);
    if (kFew && n == 0) barrier_arrive(&tokens_there);
    // The warp's rows are 8 of w1 and the same 8 of w3.
    const int inner = tile % up_tiles * kFlowUpRows + warp % 4 * 8 + g;
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
      barrier_arrive(&queue.computed[n % TileQueue::kPlaces]);
    }
  }

  int current = -1;
  Group group = {};
  int64_t pair[kN / 4];
  const FlowShare down = down_share();
  for (int tile = down.begin; tile < down.end; ++tile) {
    const int index = tile / down_tiles;
    if (index != current) {
      current = index;
      group = group_at(index);
      if constexpr (kFew) {
        typename PostedInner<kN, kConsumerWarps>::Asked asked;
        posted.ask(few.place[index], warp, asked);
        consumers_meet<kConsumers>();  // nobody multiplies with the tokens, or the group before,
                                       // any more
        posted.quantise(few.place[index], asked, resident, resident_scales);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
        consumers_meet<kConsumers>();
#pragma unroll
        for (int i = 0; i < kN / 4; ++i)
          pair[i] = posted.pair_of(few.place[index], i / 2 * 8 + 2 * t + i % 2);
      } else {
        if (with_up && threadIdx.x == 0) {
          int counted;
          do {
            asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                         : "=r"(counted)
                         : "l"(args.done + index)
                         : "memory");
          } while (counted < up_tiles);
        }
        consumers_meet<kConsumers>();  // it is there, and nobody multiplies with the group before
                                       // any more
#pragma unroll
        for (int i = 0; i < kN / 4; ++i) {
          const int token = i / 2 * 8 + 2 * t + i % 2;
          pair[i] = token < group.count ? args.order[group.begin + token] : 0;
        }
        // A warp quantises 128 columns of a pair, or each half of it 64.
        const int width = args.inner_stretch, lanes = width / 4, units = kWarp / lanes;
        const int part = lane % lanes;
#pragma unroll 4
        for (int unit = warp * units + lane / lanes; unit < group.count * down_stretches;
             unit += kConsumerWarps * units) {
          const int token = unit / down_stretches, stretch = unit % down_stretches;
          const int column = stretch * width + part * 4;
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
          if (part == 0) resident_scales[stretch * kN + token] = scale;
        }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
        consumers_meet<kConsumers>();
      }
    }
    if (!mine(down_steps)) continue;
    float total[kN / 2] = {};
    if (args.inner_stretch == 128)
      multiply(std::integral_constant<int, 2>(), start + shape.resident_at, down_steps,
               down_stretches, resident_scales, total);
    else
      multiply(std::integral_constant<int, 4>(), start + shape.resident_at, down_steps,
               down_stretches, resident_scales, total);
    const int to = tile % down_tiles * kFlowRows + row;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int token = 8 * j + 2 * t + r % 2;
        if (kFew ? pair[2 * j + r % 2] >= 0 : token < group.count)
          reinterpret_cast<__nv_bfloat16*>(
              args.results)[pair[2 * j + r % 2] * args.hidden + to + r / 2 * 8] =
              __float2bfloat16_rn(total[4 * j + r]);
      }
  }
}

// The sum over a warp's lanes, in all of them.
__device__ __forceinline__ int sum_of_warp(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(~0u, value);
#else
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(~0u, value, offset);
  return value;
#endif
}

// Groups the pairs by expert, in their order, and brings each pair's token, which is quantised
// already, to the pair's place: what list_pairs does for one kernel more. Every block counts all
// pairs, at most kFlowPairs; block t brings token t's. Bytes: T H read, P H written. Bound by
// latency.
constexpr int kGatherThreads = 256;
__global__ void __launch_bounds__(kGatherThreads) sm90_experts_gather(ExpertsArgs args) {
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
    const int64_t position = begins[expert] + sum_of_warp(earlier);
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
