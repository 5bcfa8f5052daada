#pragma once

#include "ops/cuda/device.cuh"

// How a warp chooses a token's experts: what route's kernels and the experts of one token share.
namespace m2::ops::cuda {

// A number whose order as an unsigned integer is the float's; NaN is the least, but above 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return 1;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// What an expert's logit makes of it: its score, and the number by whose order experts are chosen.
__device__ __forceinline__ ExpertScore score_of(float logit, float bias) {
  const float score = 1.0f / (1.0f + expf(-logit));
  return {ordered(score + bias), score};
}

// What lane l < top of a warp has chosen: an expert, its place among the token's in ascending
// order, and its weight.
struct Choice {
  int32_t id, place;
  float weight;
};

// By a whole warp; lane l looks after experts l, l + 32, ... kEach of them.
// scores: sigmoid(logit) [experts] in shared memory; bias: [experts].
template <int kEach>
__device__ __forceinline__ Choice choose(const float* scores, const float* bias, int experts,
                                         int top) {
  constexpr uint32_t kNone = ~0u;
  const int lane = threadIdx.x % kWarp;
  uint32_t key[kEach];  // 0: not there, or taken
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + i * kWarp;
    key[i] = e < experts ? ordered(scores[e] + bias[e]) : 0;
  }
  uint32_t mine = kNone;  // lane i < top keeps the i-th choice
  for (int pick = 0; pick < top; ++pick) {
    uint32_t best[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) best[i] = key[i];
#pragma unroll
    for (int half = kEach / 2; half; half /= 2)
#pragma unroll
      for (int i = 0; i < half; ++i) best[i] = max(best[i], best[i + half]);
    const uint32_t largest = warp_max(best[0]);
    uint32_t those = 0;  // the first of equals has the lowest i, then the lowest lane
#pragma unroll
    for (int i = 0; i < kEach; ++i) those |= key[i] == largest ? 1u << i : 0;
    const uint32_t chosen =
        warp_min(those ? (__ffs(static_cast<int>(those)) - 1) * kWarp + lane : kNone);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (lane + i * kWarp == static_cast<int>(chosen)) key[i] = 0;
    if (lane == pick) mine = chosen;
  }
  // Ascending order of id; then the sum in that order.
  int place = 0;
  for (int i = 0; i < top; ++i) place += __shfl_sync(~0u, mine, i) < mine;
  const float score = lane < top ? scores[mine] : 0.0f;
  float sum = 0.0f;
  for (int i = 0; i < top; ++i) {
    const unsigned owner = __ballot_sync(~0u, lane < top && place == i);
    sum += __shfl_sync(~0u, score, __ffs(static_cast<int>(owner)) - 1);
  }
  return {static_cast<int32_t>(mine), place, score / (sum > 0.0f ? sum : 1.0f)};
}

// The keys and scores of up to kChoiceExperts experts, in shared memory, and room to choose in. A
// key is what ordered() makes of score and bias, 0 past the last expert.
struct alignas(16) ChoiceTable {
  static constexpr int kEach = kChoiceExperts / kWarp;  // neighbouring experts a lane looks after
  uint32_t keys[kChoiceExperts];
  float scores[kChoiceExperts];
  uint2 candidates[kWarp];  // key and id, in ascending order of id
  uint32_t largest[kWarp];  // in the end the chosen ids, ascending
  bool inert;               // the token pads the batch
};

// By the lanes of a warp: what choose_few() or choose_one() has left in the table, and each one's
// share of the scores' sum in that order. `scores`: null where the table has them.
__device__ __forceinline__ void store_few(const ChoiceTable& table, const ExpertScore* scores,
                                          int top, int32_t* ids, float* weights) {
  const int lane = threadIdx.x % kWarp;
  const int id = table.inert || lane >= top ? -1 : static_cast<int>(table.largest[lane]);
  const float score = id < 0 ? 0.0f : scores ? scores[id].score : table.scores[id];
  float sum = 0.0f;
#pragma unroll 1
  for (int i = 0; i < top; ++i) sum += __shfl_sync(~0u, score, i);
  if (lane >= top) return;
  ids[lane] = id;
  weights[lane] = score / (sum > 0.0f ? sum : 1.0f);
}

// The keys of the experts that a lane looks after.
__device__ __forceinline__ void read_keys(const ChoiceTable& table, int lane,
                                          uint32_t (&key)[ChoiceTable::kEach]) {
#pragma unroll
  for (int i = 0; i < ChoiceTable::kEach; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(&table.keys[lane * ChoiceTable::kEach + i]);
    key[i] = four.x;
    key[i + 1] = four.y;
    key[i + 2] = four.z;
    key[i + 3] = four.w;
  }
}

// choose() by a whole warp, in fewer steps: with every lane's largest key, the `top`-th largest of
// those is a bound that few keys reach, and these are compared each with each. Lane l returns the
// l-th of the chosen in ascending order of id, which table.largest has too; past the last, -1.
__device__ __forceinline__ int choose_few(ChoiceTable& table, int top) {
  constexpr int kEach = ChoiceTable::kEach;
  const int lane = threadIdx.x % kWarp;
  const uint32_t before = (1u << lane) - 1;
  uint32_t key[kEach];
  read_keys(table, lane, key);
  uint32_t largest = key[0];
#pragma unroll
  for (int i = 1; i < kEach; ++i) largest = max(largest, key[i]);
  table.largest[lane] = largest;
  __syncwarp();
  int above = 0;
#pragma unroll 1
  for (int i = 0; i < kWarp; i += 4) {
    const uint4 four = *reinterpret_cast<const uint4*>(&table.largest[i]);
    above += (four.x > largest) + (four.y > largest) + (four.z > largest) + (four.w > largest);
  }
  const uint32_t bound = max(warp_min(above < top ? largest : ~0u), 1u);
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine |= key[i] >= bound ? 1u << i : 0;
  int count = __popc(mine), place = 0, all = 0;
#pragma unroll
  for (int bit = 0; bit < 4; ++bit) {
    const uint32_t lanes = __ballot_sync(~0u, count >> bit & 1);
    place += __popc(lanes & before) << bit;
    all += __popc(lanes) << bit;
  }
  uint32_t chosen = 0;  // of the lane's
  if (all <= kWarp) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (mine >> i & 1)
        table.candidates[place++] = {key[i], static_cast<uint32_t>(lane * kEach + i)};
    __syncwarp();
    const uint2 own = lane < all ? table.candidates[lane] : uint2{0, 0};
    int rank = 0;  // the first of equals comes first
#pragma unroll 2
    for (int i = 0; i < all; ++i) {
      const uint32_t other = table.candidates[i].x;
      rank += other > own.x || (other == own.x && i < lane);
    }
    const bool wins = lane < all && rank < top;
    const uint32_t winners = __ballot_sync(~0u, wins);
    if (wins) table.largest[__popc(winners & before)] = own.y;
    chosen = winners;
    __syncwarp();
    return lane < __popc(chosen) ? static_cast<int>(table.largest[lane]) : -1;
  }
  // Many equals: one after another.
  for (int pick = 0; pick < top; ++pick) {
    uint32_t best = 0, at = ~0u;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (!(chosen >> i & 1) && key[i] > best) {
        best = key[i];
        at = lane * kEach + i;
      }
    const uint32_t most = warp_max(best);
    const uint32_t first = warp_min(best == most ? at : ~0u);
    if (first / kEach == static_cast<uint32_t>(lane)) chosen |= 1u << first % kEach;
  }
  __syncwarp();
  count = __popc(chosen);
  place = 0;
#pragma unroll
  for (int bit = 0; bit < 4; ++bit)
    place += __popc(__ballot_sync(~0u, count >> bit & 1) & before) << bit;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (chosen >> i & 1) table.largest[place++] = lane * kEach + i;
  __syncwarp();
  return lane < top ? static_cast<int>(table.largest[lane]) : -1;
}

// Out of the way of what runs.
__device__ __noinline__ inline int choose_among_many(ChoiceTable& table, int top) {
  return choose_few(table, top);
}

// The same of keys that a warp holds, lane l those of experts 8 l .. 8 l + 7, in as few steps that
// wait for one another as can be: every block does it before it can ask for weights. A lane returns
// the expert it has chosen, or -1, and its place among the chosen in ascending order of id, in
// which table.largest has them too.
__device__ __forceinline__ int2 choose_one(ChoiceTable& table,
                                           const uint32_t (&key)[ChoiceTable::kEach], int top) {
  constexpr int kEach = ChoiceTable::kEach;
  const int lane = threadIdx.x % kWarp;
  const uint32_t before = (1u << lane) - 1;
  table.candidates[lane] = {};
  if (lane == 0) table.inert = false;  // or there are no keys
  uint32_t largest = key[0];
#pragma unroll
  for (int i = 1; i < kEach; ++i) largest = max(largest, key[i]);
  // Half of each, so that a difference's sign says which is larger; equal halves only let more keys
  // reach the bound.
  const auto halved = static_cast<int>(largest / 2);
  table.largest[lane] = largest / 2;
  __syncwarp();
  int above = 0, more = 0;
#pragma unroll
  for (int i = 0; i < kWarp; i += 4) {
    const int4 four = *reinterpret_cast<const int4*>(&table.largest[i]);
    above += (halved - four.x) >> 31;
    more += (halved - four.y) >> 31;
    above += (halved - four.z) >> 31;
    more += (halved - four.w) >> 31;
  }
  const uint32_t bound = max(warp_min(-(above + more) < top ? largest : ~0u), 1u);
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine |= key[i] >= bound ? 1u << i : 0;
  const int count = __popc(mine);
  int place = 0, all = 0;
#pragma unroll
  for (int bit = 0; bit < 4; ++bit) {
    const uint32_t lanes = __ballot_sync(~0u, count >> bit & 1);
    place += __popc(lanes & before) << bit;
    all += __popc(lanes) << bit;
  }
  if (all > kWarp) {  // hardly ever
#pragma unroll
    for (int i = 0; i < kEach; ++i) table.keys[lane * kEach + i] = key[i];
    __syncwarp();
    return {choose_among_many(table, top), lane};
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (mine >> i & 1)
      table.candidates[place++] = {key[i], static_cast<uint32_t>(lane * kEach + i)};
  __syncwarp();
  // Each with each; they stand in ascending order of id, and the first of equals comes first.
  const uint2 own = table.candidates[lane];
  int rank = 0;
  // Past the last there are zeros.
  constexpr int kAtOnce = 8;
#pragma unroll 1
  for (int first = 0; first < all; first += kAtOnce)
#pragma unroll
    for (int i = first; i < first + kAtOnce; i += 2) {
      const uint4 two = *reinterpret_cast<const uint4*>(&table.candidates[i]);
      rank += two.x >= (i < lane ? own.x : own.x + 1);
      rank += two.z >= (i + 1 < lane ? own.x : own.x + 1);
    }
  const bool wins = lane < all && rank < top;
  const uint32_t winners = __ballot_sync(~0u, wins);
  const int of_winners = __popc(winners & before);
  if (lane < top && lane >= __popc(winners)) table.largest[lane] = ~0u;  // none
  if (wins) table.largest[of_winners] = own.y;
  return {wins ? static_cast<int>(own.y) : -1, of_winners};
}

}  // namespace m2::ops::cuda
