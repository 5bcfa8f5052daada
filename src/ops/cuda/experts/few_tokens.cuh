#pragma once

#include "ops/cuda/experts/lists.cuh"
#include "ops/cuda/flow.cuh"
#include "ops/cuda/route_choice.cuh"

// What the flow form does for few tokens in place of lists, copies and counters: finds the groups
// in every block, and hands inner values from block to block.
namespace m2::ops::cuda {

// Up to kN tokens need neither lists nor copies of themselves: all of them stand in every
// instruction, and what an expert makes of tokens that did not choose it is dropped. So a group is
// an expert, and of each token its pair with it.
template <int kN>
struct FewGroups {
  static constexpr int kPairs = kFewChoices * kN;
  int count;
  uint32_t tag;                          // PostedInner's
  uint32_t held[kWarp];                  // experts held here and chosen, a bit each
  int before[kWarp];                     // how many, in the words before
  int16_t expert[kPairs];                // ascending
  alignas(16) int8_t place[kPairs][kN];  // the expert's among the token's choices, or -1

  // By the whole block.
  __device__ __forceinline__ void clear() {
    auto* words = reinterpret_cast<uint32_t*>(place);
    for (int i = threadIdx.x; i < kPairs * kN / 4; i += blockDim.x) words[i] = ~0u;
    if (threadIdx.x < kWarp) held[threadIdx.x] = 0;
  }
};

// By threads, two experts each: scores and keys from the router's parts.
__device__ __forceinline__ void add_up_parts(const RouteChoice& route, const float2& bias,
                                             ChoiceTable& table) {
  if (threadIdx.x == kFlowConsumers) table.inert = route.slots && route.slots[0] < 0;
  if (threadIdx.x * 2 >= kChoiceExperts) return;
  uint2 keys = {};
  float2 scores = {};
  if (static_cast<int>(threadIdx.x) * 2 < route.experts) {
    const float* parts = route.parts + threadIdx.x * 2;
    float2 total = {};
#pragma unroll 12
    for (int s = 0; s < route.stretches; ++s) {
      const float2 part = *reinterpret_cast<const float2*>(parts + s * route.experts);
      total.x += part.x;
      total.y += part.y;
    }
    const ExpertScore x = score_of(total.x, bias.x), y = score_of(total.y, bias.y);
    scores = {x.score, y.score};
    keys = {x.key, y.key};
  }
  *reinterpret_cast<uint2*>(&table.keys[threadIdx.x * 2]) = keys;
  *reinterpret_cast<float2*>(&table.scores[threadIdx.x * 2]) = scores;
}

// By a warp: of one token's experts, chosen in `table` if it chooses here, those held here.
__device__ __forceinline__ void find_groups_of_one(const ExpertsArgs& args, ChoiceTable& table,
                                                   FewGroups<8>& groups) {
  const int lane = threadIdx.x % kWarp;
  int id = -1, place = lane;
  if (args.choice.scores) {
    const auto* from = reinterpret_cast<const uint4*>(args.choice.scores) + lane * 4;
    uint32_t key[ChoiceTable::kEach];
    wait_for_previous();
#pragma unroll
    for (int i = 0; i < ChoiceTable::kEach; i += 2) {
      const uint4 two = __ldcg(from + i / 2);
      key[i] = two.x;
      key[i + 1] = two.z;
    }
    const int2 chosen = choose_one(table, key, args.top);
    id = chosen.x;
    place = chosen.y;
  } else if (!args.choice.parts) {
    wait_for_previous();
    id = lane < args.top ? args.ids[lane] : -1;
  } else if (!table.inert) {
    id = choose_few(table, args.top);
  }
  const int expert = id - args.first_expert;
  const bool here = id >= 0 && expert >= 0 && expert < args.experts;
  const unsigned all = __ballot_sync(~0u, here);
  if (here) {
    const int index = __popc(all & ((1u << lane) - 1));
    groups.expert[index] = static_cast<int16_t>(expert);
    // And no other token's.
    *reinterpret_cast<uint2*>(groups.place[index]) = {0xffffff00u | static_cast<uint32_t>(place),
                                                      ~0u};
  }
  if (lane == 0) groups.count = __popc(all);
}

// By a warp: which experts are held here of those in args.ids. The groups are clear before. It
// waits for the kernel in front, which chooses.
template <int kN>
__device__ __forceinline__ void find_groups(const ExpertsArgs& args, FewGroups<kN>& groups) {
  constexpr int kEach = FewGroups<kN>::kPairs / kWarp;
  const int lane = threadIdx.x % kWarp;
  const auto top = static_cast<unsigned>(args.top);
  const unsigned pairs = static_cast<unsigned>(args.x.rows) * top;
  unsigned token[kEach], place[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const unsigned pair = lane + i * kWarp;
    token[i] = pair / top;
    place[i] = pair % top;
    asm volatile("" : "+r"(token[i]), "+r"(place[i]));  // now, while nothing is known yet
  }
  wait_for_previous();
  int expert[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const unsigned pair = lane + i * kWarp;
    expert[i] = pair < pairs ? args.ids[pair] - args.first_expert : -1;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (expert[i] >= args.experts) expert[i] = -1;
    if (expert[i] >= 0) atomicOr(&groups.held[expert[i] / 32], 1u << expert[i] % 32);
  }
  __syncwarp();
  const int own = __popc(groups.held[lane]);
  int sum = own;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += other;
  }
  groups.before[lane] = sum - own;
  if (lane == kWarp - 1) groups.count = sum;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (expert[i] < 0) continue;
    const int word = expert[i] / 32;
    const int index =
        groups.before[word] + __popc(groups.held[word] & ((1u << expert[i] % 32) - 1));
    groups.expert[index] = static_cast<int16_t>(expert[i]);
    groups.place[index][token[i]] = static_cast<int8_t>(place[i]);
  }
}

// Few tokens' inner values on their way between blocks: four bf16, and in the same 16 bytes, which
// are written and read as one, what tells this call's from those of calls before. So nothing else
// says that they are there: no fence, no count.
template <int kN, int kWarps>
struct PostedInner {
  using Places = int8_t[kN];  // of a group, a row of FewGroups::place
  const ExpertsArgs& args;
  uint32_t tag;

  // A token's pair with the group's expert, or -1.
  __device__ __forceinline__ int pair_of(const Places& places, int token) const {
    const int place = places[token];
    return place < 0 ? -1 : token * args.top + place;
  }
  __device__ __forceinline__ uint32_t* at(int pair, int column) const {
    return args.posted + 4 + static_cast<int64_t>(pair) * args.inner + column;
  }
  // By a warp whose lanes 4 g + t have columns column + g of tokens t, unless `pair` is negative:
  // whole sectors of L2.
  __device__ __forceinline__ void put(int pair, int column, float value) const {
    const int lane = threadIdx.x % kWarp;
    const uint32_t own = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    const uint32_t two = own | __shfl_down_sync(~0u, own, 4) << 16;
    const uint32_t more = __shfl_down_sync(~0u, two, 8);
    if (lane % 16 < 4 && pair >= 0)
      asm volatile(
          "st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %3};" ::"l"(at(pair, column + lane / 4)),
          "r"(two), "r"(more), "r"(tag)
          : "memory");
  }
  // What a consumer has asked for: 128 columns of a pair by a warp, four a lane.
  static constexpr int kAhead = 3;
  struct Asked {
    uint4 words[kAhead];
    int where[kAhead];  // token << 16 | column, or -1
  };

  // The tokens that chose the group's expert, a bit each.
  __device__ __forceinline__ static uint32_t chosen(const Places& places) {
    const int lane = threadIdx.x % kWarp;
    return __ballot_sync(~0u, lane < kN && places[lane % kN] >= 0);
  }
  __device__ __forceinline__ void load(const Places& places, int where, uint4& words) const {
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "l"(at(pair_of(places, where >> 16), where & 0xffff))
                 : "memory");
  }
  // From unit `first` of the warp on, pair after pair, without waiting for them.
  __device__ __forceinline__ void ask(const Places& places, int first, Asked& asked) const {
    const int spans = (args.inner + 127) / 128;
    const uint32_t tokens = chosen(places);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      int span = first + i * kWarps;
      uint32_t later = tokens;
      for (; span >= spans && later; span -= spans) later &= later - 1;
      const int column = span * 128 + threadIdx.x % kWarp * 4;
      asked.where[i] =
          later && column < args.inner ? (__ffs(static_cast<int>(later)) - 1) << 16 | column : -1;
      if (asked.where[i] >= 0) load(places, asked.where[i], asked.words[i]);
    }
  }
  // By the consumers, each with what it has asked for from its warp's number on: as soon as they
  // are there, quantised to the tokens' rows in boxes of kN.
  __device__ __forceinline__ void quantise(const Places& places, Asked& asked, uint8_t* to,
                                           float* scales) const {
    const int all = __popc(chosen(places)) * ((args.inner + 127) / 128);
    for (int first = threadIdx.x / kWarp;;) {
      while (true) {
        bool missing = false;
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          missing |= asked.where[i] >= 0 && (asked.words[i].z != tag || asked.words[i].w != tag);
        if (!__any_sync(~0u, missing)) break;
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
          if (asked.where[i] >= 0 && (asked.words[i].z != tag || asked.words[i].w != tag))
            load(places, asked.where[i], asked.words[i]);
      }
      // In a loop: instructions that run once a layer come from far.
#pragma unroll 1
      for (int i = 0; i < kAhead; ++i) {
        const int where = asked.where[0];
        const uint2 pair = {asked.words[0].x, asked.words[0].y};
#pragma unroll
        for (int k = 0; k + 1 < kAhead; ++k) {
          asked.where[k] = asked.where[k + 1];
          asked.words[k] = asked.words[k + 1];
        }
        const float value[4] = {
            __uint_as_float(pair.x << 16), __uint_as_float(pair.x & 0xffff0000u),
            __uint_as_float(pair.y << 16), __uint_as_float(pair.y & 0xffff0000u)};
        float most = where < 0 ? 0.0f : largest_of(value[0], value[1], value[2], value[3]);
        const float other = __shfl_xor_sync(~0u, most, 16);
        if (args.inner_stretch == 128) most = fmaxf(most, other);
#pragma unroll
        for (int offset = 8; offset; offset /= 2)
          most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
        if (where < 0) continue;
        const float scale = f8_scale(most, args.powers);
        const int token = where >> 16, column = where & 0xffff, within = column % kTileStep;
        *reinterpret_cast<uint32_t*>(to + column / kTileStep * (kN * kTileStep) +
                                     token * kTileStep + ((within / 16) ^ (token & 7)) * 16 +
                                     within % 16) =
            to_f8(value[0], value[1], value[2], value[3], 1.0f / scale);
        if (column % args.inner_stretch == 0)
          scales[column / args.inner_stretch * kN + token] = scale;
      }
      first += kAhead * kWarps;
      if (first >= all) return;
      ask(places, first, asked);
    }
  }
};

}  // namespace m2::ops::cuda
