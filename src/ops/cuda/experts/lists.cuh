#pragma once

#include <cooperative_groups.h>

#include "ops/cuda/device.cuh"
#include "ops/cuda/experts/launch.h"
#include "ops/cuda/part_of_row.cuh"

namespace m2::ops::cuda {

constexpr int kListThreads = 1024;

// Exclusive prefix sum over the block of one number a thread; `total` gets the sum of all.
__device__ __forceinline__ int block_prefix(int value, int* scratch, int& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int inclusive = value;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_up_sync(~0u, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == kWarp - 1) scratch[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    int sums = lane < static_cast<int>(blockDim.x) / kWarp ? scratch[lane] : 0;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(~0u, sums, offset);
      if (lane >= offset) sums += other;
    }
    scratch[lane] = sums;
  }
  __syncthreads();
  const int before = (warp ? scratch[warp - 1] : 0) + inclusive - value;
  total = scratch[kWarp - 1];
  __syncthreads();
  return before;
}

// use(pair, expert) for those of the pairs [begin, end) whose expert is held here; 8 ids are read
// at a time.
template <class Use>
__device__ __forceinline__ void for_pairs(const ExpertsArgs& args, int begin, int end, Use use) {
  constexpr int kAhead = 8;
  for (int first = begin + threadIdx.x; first < end; first += kAhead * kListThreads) {
    int expert[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int pair = first + i * kListThreads;
      expert[i] = pair < end ? args.ids[pair] - args.first_expert : -1;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (expert[i] >= 0 && expert[i] < args.experts) use(first + i * kListThreads, expert[i]);
  }
}

// How many tiles (sm90_tiles.cuh) the tokens of an expert make of the same weights: one for each
// 256 tokens, whose last may be 129 and more, and one of the rest. Both counts, of an expert or of
// all before it, stand in one number.
__device__ __forceinline__ int tile_pairs(int tokens) {
  return (tokens + 127) / 256;
}
__device__ __forceinline__ int tile_rests(int tokens) {
  return tokens > tile_pairs(tokens) * 256 ? 1 : 0;
}
constexpr int kRestsBit = 16;
__device__ __forceinline__ int tile_counts(int tokens) {
  return tile_pairs(tokens) | tile_rests(tokens) << kRestsBit;
}

// Groups the pairs by expert. One cluster, each block with its share of the pairs; experts <=
// kListThreads. The order of the pairs within an expert is not fixed, and nothing depends on it: a
// pair's results are the same in any column. Bytes: a few kB. Bound by latency.
template <int kBlocks>
__global__ void __launch_bounds__(kListThreads) list_pairs(ExpertsArgs args) {
  __shared__ int counts[kListThreads];
  __shared__ int scratch[kWarp];
  wait_for_previous();
  let_next_start();
  const int pairs = static_cast<int>(args.x.rows) * args.top, rank = blockIdx.x;
  const int first = pairs / kBlocks * rank;
  const int last = rank == kBlocks - 1 ? pairs : first + pairs / kBlocks;
  counts[threadIdx.x] = 0;
  __syncthreads();
  for_pairs(args, first, last, [&](int, int expert) { atomicAdd(&counts[expert], 1); });
  const int expert = threadIdx.x;
  int count = 0, before = 0;  // of all blocks, of those before this one
  if constexpr (kBlocks > 1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
    cluster.sync();
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int there = cluster.map_shared_rank(counts, i)[expert];
      count += there;
      before += i < rank ? there : 0;
    }
    cluster.sync();
#endif
  } else {
    __syncthreads();
    count = counts[expert];
  }
  int total;
  const int begin = block_prefix(count, scratch, total);
  counts[expert] = begin + before;  // from here on: where the next pair goes
  __syncthreads();
  if (args.position)
    for (int pair = first + threadIdx.x; pair < last; pair += kListThreads)
      args.position[pair] = -1;
  __syncthreads();
  for_pairs(args, first, last, [&](int pair, int mine) {
    const int place = atomicAdd(&counts[mine], 1);
    args.order[place] = pair;
    if (args.position) args.position[pair] = place;
  });
  if (rank != 0) return;

  int active, groups;
  const int place = block_prefix(count > 0 ? 1 : 0, scratch, active);
  int4* entries = reinterpret_cast<int4*>(args.groups + 4);
  if (args.group_pairs > 0) {
    int group = block_prefix((count + args.group_pairs - 1) / args.group_pairs, scratch, groups);
    for (int done = 0; done < count; done += args.group_pairs, ++group)
      entries[group] = {expert, begin + done, min(args.group_pairs, count - done), 0};
  } else {
    // For tiles: of each expert all, and the tile_counts() of those before it.
    const int before = block_prefix(tile_counts(count), scratch, groups);
    if (count > 0) entries[place] = {expert, begin, count, before};
  }
  if (expert < args.experts) {
    args.offsets[expert] = begin;
    if (count > 0) args.active[1 + place] = expert;
  }
  if (threadIdx.x == 0) {
    args.offsets[args.experts] = total;
    args.active[0] = active;
    args.groups[0] = args.group_pairs > 0 ? groups : active;
    args.groups[1] = groups;
    args.groups[2] = args.groups[3] = 0;  // tiles of both halves taken so far
  }
}

// What the u-th block row works on: an expert and its pairs, order[begin .. begin + count).
struct Unit {
  int expert = 0, begin = 0, count = 0;
};

// A step of one token needs no lists: its pairs are its experts.
__device__ __forceinline__ Unit unit_of(const ExpertsArgs& args, int u) {
  if (args.x.rows == 1) {
    const int expert = args.ids[u] - args.first_expert;
    return {expert, u, expert >= 0 && expert < args.experts ? 1 : 0};
  }
  if (u >= args.active[0]) return {};
  const int expert = args.active[1 + u];
  const int begin = args.offsets[expert];
  return {expert, begin, args.offsets[expert + 1] - begin};
}

__device__ __forceinline__ int pair_at(const ExpertsArgs& args, int position) {
  return args.x.rows == 1 ? position : args.order[position];
}

// Some pairs of one expert, at most group_pairs, which a pass over its weights takes together.
struct Group {
  int expert, begin, count;
};

// As list_pairs and sm90_experts_gather leave them.
__device__ __forceinline__ Group listed_group(const ExpertsArgs& args, int i) {
  const int4 entry = *reinterpret_cast<const int4*>(args.groups + 4 + 4 * i);
  return {entry.x, entry.y, entry.z};
}

// The step's groups: of one token its experts here; otherwise list_pairs has written them.
struct Groups {
  const ExpertsArgs& args;
  uint32_t held = 0;  // one token: which of its places are held here

  // By whole warps.
  __device__ __forceinline__ void find() {
    if (args.x.rows != 1) return;
    const int lane = threadIdx.x % kWarp;
    const int id = lane < args.top ? args.ids[lane] - args.first_expert : -1;
    held = __ballot_sync(~0u, id >= 0 && id < args.experts);
  }
  __device__ __forceinline__ int count() const {
    return args.x.rows == 1 ? __popc(held) : args.groups[0];
  }
  __device__ __forceinline__ Group at(int i) const {
    if (args.x.rows == 1) {
      uint32_t later = held;
      for (; i > 0; --i) later &= later - 1;
      const int place = __ffs(static_cast<int>(later)) - 1;
      return {args.ids[place] - args.first_expert, place, 1};
    }
    return listed_group(args, i);
  }
};

// out[t] = sum over the token's experts here, in ascending order, of weight * result. A thread owns
// kColumns neighbouring columns of one token and asks for 8 results before it adds the first.
// Bytes: T top H 4 (or 2) read, T H 2 written. Bound: bandwidth, latency for few tokens.
constexpr int kCombineThreads = 128;

// The next call's groups begin at 0.
__device__ __forceinline__ void clear_counters(const ExpertsArgs& args) {
  if (!args.done || blockIdx.x != 0 || blockIdx.y != 0) return;
  const int pairs = static_cast<int>(args.x.rows) * args.top;
  const int groups = counted_groups(args.experts, pairs, args.group_pairs);
  for (int i = threadIdx.x; i < groups; i += blockDim.x) args.done[i] = 0;
  if (!args.next_tile || threadIdx.x != 0) return;
  *args.next_tile = 0;
  atomicAdd(args.posted, 1u);  // without waiting for what was there
}

// Token i of a launch. Where rows go to other ranks, one for each of them in turns, and not all
// ranks to the same: else all links would end at one rank after another.
__device__ __forceinline__ int64_t nth_token(const ExpertsArgs& args, const RowOwners& owners,
                                             int64_t i) {
  if (owners.ranks == 0) return i;
  const int64_t run = (args.x.rows + owners.ranks - 1) / owners.ranks;
  return (i + owners.rank) % owners.ranks * run + i / owners.ranks;
}

template <class Result, int kColumns, bool kWhole>
__global__ void __launch_bounds__(kCombineThreads, kColumns == 8 ? 5 : 1)
    combine_pairs(ExpertsArgs args, const __grid_constant__ RowOwners owners) {
  constexpr int kAhead = 8;
  struct alignas(sizeof(Result) * kColumns) Pack {
    Result values[kColumns];
  };
  const int64_t token = nth_token(args, owners, blockIdx.y);
  const bool few = args.x.rows <= kFewTokens;
  const int column = (blockIdx.x * kCombineThreads + threadIdx.x) * kColumns;
  wait_for_previous();
  let_next_start();
  clear_counters(args);
  if (column >= args.hidden || token >= args.x.rows) return;
  float sum[kColumns] = {};
  for (int first = 0; first < args.top; first += kAhead) {
    bool held[kAhead];
    float weight[kAhead];
    Pack result[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t pair = token * args.top + first + i;
      const bool there = first + i < args.top;
      const int expert = there ? args.ids[pair] - args.first_expert : -1;
      held[i] = expert >= 0 && expert < args.experts;
      weight[i] = there ? args.weights[pair] : 0.0f;
    }
    // Nothing but loads in between: with a branch or a conversion they come one after another.
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const Result* from = reinterpret_cast<const Result*>(args.results) +
                           (token * args.top + first + i) * args.hidden + column;
      result[i] = {};
      if constexpr (kWhole) {
        if (held[i] || (few && first + i < args.top))
          result[i] = *reinterpret_cast<const Pack*>(from);
      } else {
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (held[i] && column + c < args.hidden) result[i].values[c] = from[c];
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (held[i])
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          sum[c] = fmaf(weight[i], to_float(result[i].values[c]), sum[c]);
  }
  void* const to = output_row(args.out, owners, token);
  if (kColumns == 8 && args.wide_stores) {
    uint4 eight;
    auto* pairs = reinterpret_cast<__nv_bfloat162*>(&eight);
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) pairs[c / 2] = __floats2bfloat162_rn(sum[c], sum[c + 1]);
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(to) + column) = eight;
    return;
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c)
    if (column + c < args.hidden) store_number(to, args.out.dtype, column + c, sum[c]);
}

// The same sum of bf16 results, added to the residual, and the norm of that: the bytes of
// combine_pairs and rms_norm_kernel. One block a token, 8 columns a thread; everything it reads is
// asked for at once. Bytes: T top H 2 + T H 4 read, T H 5 written. Bound: latency for few tokens,
// then bandwidth.
__global__ void __launch_bounds__(kNormThreads) combine_and_norm(ExpertsArgs args) {
  constexpr int kAhead = 8;
  __shared__ float scratch[33];
  const int64_t token = blockIdx.x;
  const int column = threadIdx.x * 8;
  const bool mine = column < args.hidden;
  float by[8];
  if (mine) load_weights(args.after.weight, args.after.weight_dtype, column, by);
  wait_for_previous();
  clear_counters(args);
  using Pack = Pack8<__nv_bfloat16>;
  auto* residual = reinterpret_cast<Pack*>(static_cast<__nv_bfloat16*>(args.after.residual.data) +
                                           token * args.after.residual.stride + column);
  Pack kept = {};
  if (mine) kept = *residual;
  float sum[8] = {};
  for (int first = 0; first < args.top; first += kAhead) {
    int expert[kAhead];
    float weight[kAhead];
    Pack result[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t pair = token * args.top + first + i;
      const bool there = first + i < args.top;
      expert[i] = there ? args.ids[pair] - args.first_expert : -1;
      weight[i] = there ? args.weights[pair] : 0.0f;
      if (there && mine)
        result[i] = *reinterpret_cast<const Pack*>(
            reinterpret_cast<const __nv_bfloat16*>(args.results) + pair * args.hidden + column);
    }
    // Only now: the next kernel asks for all its weights at once, and what is read here would come
    // behind them.
    if (first == 0) let_next_start();
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      // What stands there for an expert that is not held here is no number.
      if (expert[i] < 0 || expert[i] >= args.experts || !mine) continue;
#pragma unroll
      for (int c = 0; c < 8; ++c) sum[c] = fmaf(weight[i], to_float(result[i].values[c]), sum[c]);
    }
  }
  const float squares = add_to_residual(kept, sum);
  const float mean = block_sum(mine ? squares : 0.0f, scratch) / static_cast<float>(args.hidden);
  const float factor = 1.0f / sqrtf(mean + args.after.eps);
  if (!mine) return;
  *residual = kept;
  store_normed(kept, by, factor,
               static_cast<__nv_bfloat16*>(args.after.out.data) + token * args.after.out.stride,
               threadIdx.x, token, args.hidden, args.after.quantised);
}

// The sums of many tokens: kPartedColumns, bf16 results, at most kCombineAhead experts a token.

constexpr int kCombineAhead = 8;

// The thread's part of a token's sum, everything that it reads asked for at once; kHeld: nothing of
// experts that are not held here. By whole warps.
template <bool kHeld>
__device__ __forceinline__ void sum_of_experts(const ExpertsArgs& args, int64_t token,
                                               const PartOfRow<2>& part, float (&sum)[2][8]) {
  const auto* results =
      reinterpret_cast<const uint4*>(args.results) + token * args.top * kNormThreads + part.first;
  const int lane = threadIdx.x % kWarp;
  const int64_t pair = token * args.top + lane;
  const int chosen = lane < args.top ? args.ids[pair] - args.first_expert : -1;
  const float weighs = lane < args.top ? args.weights[pair] : 0.0f;
  const bool here = chosen >= 0 && chosen < args.experts;
  const unsigned held = kHeld ? __ballot_sync(~0u, here) : 0;
  uint4 result[kCombineAhead][2];
#pragma unroll
  for (int e = 0; e < kCombineAhead; ++e)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (kHeld ? held >> e & 1 : e < args.top)
        result[e][i] = results[e * kNormThreads + i * PartOfRow<2>::kStep];
#pragma unroll
  for (int e = 0; e < kCombineAhead; ++e) {
    const float weight = __shfl_sync(~0u, weighs, e);
    // What stands there for an expert that is not held here is no number.
    if (!__shfl_sync(~0u, here ? 1 : 0, e)) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t words[4] = {result[e][i].x, result[e][i].y, result[e][i].z, result[e][i].w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 value = floats_of(words[c]);
        sum[i][2 * c] = fmaf(weight, value.x, sum[i][2 * c]);
        sum[i][2 * c + 1] = fmaf(weight, value.y, sum[i][2 * c + 1]);
      }
    }
  }
}

// As combine_pairs, to bf16 rows at 16 bytes' borders: half as many threads a token as there are
// packs of eight, three tokens a multiprocessor with all they read under way.
__global__ void __launch_bounds__(PartOfRow<2>::kThreads, 3)
    combine_rows(ExpertsArgs args, const __grid_constant__ RowOwners owners) {
  const PartOfRow<2> part;
  const int64_t token = nth_token(args, owners, blockIdx.x);
  wait_for_previous();
  let_next_start();
  clear_counters(args);
  if (token >= args.x.rows) return;
  float sum[2][8] = {};
  sum_of_experts<true>(args, token, part, sum);
  auto* to = static_cast<uint4*>(output_row(args.out, owners, token)) + part.first;
#pragma unroll
  for (int i = 0; i < 2; ++i)
    to[i * PartOfRow<2>::kStep] = {pack_bf16(sum[i][0], sum[i][1]), pack_bf16(sum[i][2], sum[i][3]),
                                   pack_bf16(sum[i][4], sum[i][5]),
                                   pack_bf16(sum[i][6], sum[i][7])};
}

// As combine_and_norm, with the norm's weights in bf16 at 16 bytes' borders: three tokens a
// multiprocessor instead of one.
__global__ void __launch_bounds__(PartOfRow<2>::kThreads, 3)
    combine_and_norm_rows(ExpertsArgs args) {
  using Part = PartOfRow<2>;
  __shared__ alignas(16) float of_warp[kNormThreads / kWarp];
  const Part part;
  const int64_t token = blockIdx.x;
  wait_for_previous();
  let_next_start();
  clear_counters(args);
  auto* residual = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.after.residual.data) +
                                            token * args.after.residual.stride);
  uint4 kept[2];
  float sum[2][8] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) kept[i] = residual[part.first + i * Part::kStep];
  sum_of_experts<false>(args, token, part, sum);
  float squares[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    squares[i] = add_to_residual(reinterpret_cast<Pack8<__nv_bfloat16>&>(kept[i]), sum[i]);
    residual[part.first + i * Part::kStep] = kept[i];
  }
  const float mean = Part::sum(squares, of_warp) / static_cast<float>(kPartedColumns);
  part.store(kept, static_cast<const uint4*>(args.after.weight),
             1.0f / sqrtf(mean + args.after.eps),
             static_cast<__nv_bfloat16*>(args.after.out.data) + token * args.after.out.stride,
             token, args.after.quantised);
}

}  // namespace m2::ops::cuda
