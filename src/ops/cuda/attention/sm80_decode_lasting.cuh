#pragma once

#include "ops/cuda/attention/sm80_decode.cuh"

namespace m2::ops::cuda {

// Blocks that last, a multiprocessor: each warp has 4 KB under way.
constexpr int kLastingBlocks = 4;

// Of 32 sequences, one a lane: those that decode, and their contexts.
struct LaneContexts {
  int token = 0, context = 0, pages = 0;
  int before = 0, all = 0;  // pages of the lanes in front, of all lanes
  bool uneven = false;      // whether a lane's last part may be shorter than others

  LaneContexts() = default;
  // All lanes of a warp call it.
  __device__ __forceinline__ LaneContexts(const AttentionArgs& args, int sequence) {
    const int lane = threadIdx.x % kWarp;
    if (sequence < args.sequences) {
      token = args.query_starts[sequence];
      const int next = args.query_starts[sequence + 1], length = args.context_lens[sequence];
      if (next - token == 1) context = length;
    }
    pages = (context + kPage - 1) / kPage;
    int sum = pages;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += other;
    }
    before = sum - pages;
    all = __shfl_sync(~0u, sum, kWarp - 1);
    uneven = __any_sync(~0u, pages % least_pages(args.heads.kv) != 0);
  }
};

// All decoded contexts as one line of pages: sequence after sequence, each once for every KV head,
// fewer than 2^32. A block has a stretch of it, and the parts whose middle lies there.
struct PartWalk {
  DecodePart of;
  unsigned at, stop;  // where the part begins, and the stretch ends

  // The stretch's first part; all lanes of a warp call it.
  __device__ __forceinline__ void begin(const AttentionArgs& args) {
    const int lane = threadIdx.x % kWarp;
    const unsigned heads = args.heads.kv;
    LaneContexts lanes;
    unsigned total = 0;
    bool uneven = false;
    for (int i = 0; i < args.sequences; i += kWarp) {
      lanes = LaneContexts(args, i + lane);
      total += lanes.all * heads;
      uneven |= lanes.uneven;
    }
    const unsigned stretch = stretch_of(total, uneven, args.heads.kv), from = stretch * blockIdx.x;
    stop = min(total, from + stretch);
    at = stop;
    of.there = false;
    if (from >= total) return;

    int first = 0;        // sequence of the first lane
    unsigned before = 0;  // of the sequences in front
    if (args.sequences > kWarp) {
      for (;; first += kWarp) {
        lanes = LaneContexts(args, first + lane);
        if (before + lanes.all * heads > from) break;
        before += lanes.all * heads;
      }
    }
    const bool beyond = before + (lanes.before + lanes.pages) * heads > from;
    const int owner = __ffs(__ballot_sync(~0u, beyond)) - 1;
    before += __shfl_sync(~0u, lanes.before, owner) * heads;
    of.sequence = first + owner;
    of.token = __shfl_sync(~0u, lanes.token, owner);
    of.context = __shfl_sync(~0u, lanes.context, owner);
    divide(args);
    const unsigned within = from - before, pages = of.pages, each = of.each;
    of.head = static_cast<int>(within / pages);
    of.part = static_cast<int>(within % pages / each);
    if (middle(of.part) < within % pages) ++of.part;
    at = before + of.head * pages + min(pages, of.part * each);
    if (of.part * of.each >= of.pages) next_head(args);
    bound();
  }

  __device__ __forceinline__ void next(const AttentionArgs& args) {
    if (!of.there) return;
    at += of.end - of.begin;
    if (++of.part * of.each >= of.pages) next_head(args);
    bound();
  }

 private:
  // Where contexts are whole parts, whole ones and with them often whole heads, which nobody else
  // needs to join, if that leaves few blocks without work.
  static __device__ __forceinline__ unsigned stretch_of(unsigned total, bool uneven, int kv_heads) {
    const unsigned least = least_pages(kv_heads);
    const unsigned even = (total + gridDim.x - 1) / gridDim.x;
    const unsigned whole = (even + least - 1) / least * least;
    return !uneven && (even < least || whole * 16 <= even * 17) ? whole : even;
  }
  // Of a part, from its context's beginning on.
  __device__ __forceinline__ unsigned middle(int part) const {
    const int begin = part * of.each;
    return begin + min(of.each, of.pages - begin) / 2;
  }
  __device__ __forceinline__ void divide(const AttentionArgs& args) {
    of.pages = (of.context + kPage - 1) / kPage;
    of.each = args.splits == 1 ? of.pages : pages_per_split(of.pages, args.heads.kv);
  }
  // Whether the sequence decodes and has a context.
  __device__ __forceinline__ bool read(const AttentionArgs& args, int sequence) {
    of.sequence = sequence;
    of.token = args.query_starts[sequence];
    of.context = args.query_starts[sequence + 1] - of.token == 1 ? args.context_lens[sequence] : 0;
    divide(args);
    return of.pages > 0;
  }
  __device__ __forceinline__ void next_head(const AttentionArgs& args) {
    of.part = 0;
    if (++of.head < args.heads.kv) return;
    of.head = 0;
    int sequence = of.sequence + 1;
    while (sequence < args.sequences && !read(args, sequence)) ++sequence;
    if (sequence == args.sequences) at = stop;
  }
  __device__ __forceinline__ void bound() {
    of.begin = of.part * of.each;
    of.end = min(of.pages, of.begin + of.each);
    of.there = at - of.begin + middle(of.part) < stop;
  }
};

// A page that will be asked for is brought to L2. All lanes of a warp call it.
template <class Page>
__device__ __forceinline__ void announce(const Cache& cache, int64_t place) {
  const int line = threadIdx.x % kWarp * 128;
  if (place < 0 || line >= Page::kBytes) return;
  for (const void* pages : {cache.k, cache.v})
    asm volatile(
        "prefetch.global.L2 [%0];" ::"l"(static_cast<const uint8_t*>(pages) + place + line));
}

// Joins the parts of heads h, h + kDecodeWarps, ... to the bytes of join_parts(), kParts of each
// asked for at once; heads may be beyond the group.
template <int kHeads, int kParts>
__device__ __forceinline__ void join_at_once(const AttentionArgs& args, const DecodePart& of, int h,
                                             int parts) {
  constexpr int kAhead = 8;  // parts under one largest logit
  static_assert(kParts % kAhead == 0 && kParts <= kWarp);
  const int lane = threadIdx.x % kWarp, dim = lane * 4, group = args.heads.q / args.heads.kv;
  const float* all_totals =
      args.workspace + int64_t{1} * args.sequences * args.heads.q * args.splits * kDim;
  float largest[kHeads], sum[kHeads] = {}, value[kHeads][4] = {};
#pragma unroll
  for (int k = 0; k < kHeads; ++k) largest[k] = -INFINITY;
  for (int first = 0; first < parts; first += kParts) {
    float2 total[kHeads];  // of the lane's part
    float4 part[kHeads][kParts];
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      const int own = h + k * kDecodeWarps, left = own < group ? parts - first : 0;
      const int64_t cell =
          (int64_t{1} * of.sequence * args.heads.q + of.head * group + own) * args.splits + first;
      total[k] = lane < min(left, kParts)
                     ? __ldcg(reinterpret_cast<const float2*>(all_totals + (cell + lane) * 2))
                     : float2{-INFINITY, 0.0f};
#pragma unroll
      for (int i = 0; i < kParts; ++i)
        part[k][i] =
            i < left
                ? __ldcg(reinterpret_cast<const float4*>(args.workspace + (cell + i) * kDim + dim))
                : float4{};
    }
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      if (h + k * kDecodeWarps >= group) break;
      float top = fmaxf(total[k].x, largest[k]);
#pragma unroll
      for (int offset = 1; offset < kAhead; offset *= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
#pragma unroll
      for (int offset = kAhead; offset < kParts; offset *= 2) {
        const float before = __shfl_up_sync(~0u, top, offset);
        if (lane >= offset) top = fmaxf(top, before);
      }
      const float factor = exp2f(total[k].x - top);
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        if (i % kAhead == 0) {
          if (first + i >= parts) break;
          const float here = __shfl_sync(~0u, top, i), before = exp2f(largest[k] - here);
          largest[k] = here;
          sum[k] *= before;
#pragma unroll
          for (float& number : value[k]) number *= before;
        }
        const float weight = __shfl_sync(~0u, factor, i);
        sum[k] = fmaf(__shfl_sync(~0u, total[k].y, i), weight, sum[k]);
        value[k][0] = fmaf(part[k][i].x, weight, value[k][0]);
        value[k][1] = fmaf(part[k][i].y, weight, value[k][1]);
        value[k][2] = fmaf(part[k][i].z, weight, value[k][2]);
        value[k][3] = fmaf(part[k][i].w, weight, value[k][3]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kHeads; ++k) {
    const int own = h + k * kDecodeWarps;
    if (own >= group) break;
#pragma unroll
    for (float& number : value[k]) number *= args.cache.v_scale / sum[k];
    store_dims(args, of.token, of.head * group + own, dim, value[k]);
  }
}

// Counts `run` parts of a context that the block has stored; whether all have now been. All of the
// block's threads call it.
__device__ __forceinline__ bool complete(const AttentionArgs& args, const DecodePart& of, int run,
                                         int parts) {
  __shared__ bool completed;
  __syncthreads();
  if (run == parts) return true;
  if (threadIdx.x == 0) {
    unsigned int* left = &parts_left[of.sequence * args.heads.kv + of.head];
    fence();
    completed = atomicAdd(left, static_cast<unsigned>(run)) + run == static_cast<unsigned>(parts);
    if (completed) *left = 0;
    fence();
  }
  __syncthreads();
  return completed;
}

// Joins all parts of all heads where pages are under way: few at once.
__device__ __forceinline__ void join_all(const AttentionArgs& args, const DecodePart& of,
                                         int parts) {
  const int group = args.heads.q / args.heads.kv;
  for (int h = threadIdx.x / kWarp; h < group; h += kDecodeWarps)
    join_parts(args, of.sequence, of.token, of.head * group + h, parts);
}

// sm80_attention_decode, to the same bytes, by blocks that last: each goes through a stretch of all
// parts, and pages are asked for over the parts' borders. What the kernel in front does not write,
// all pages but the newest, is asked for before that has ended, two pages a warp, the second to L2;
// more would stand in the way of that kernel's end. Bound: bandwidth of memory. kJoins: blocks may
// be asked to join the parts; without, registers are left for those of sm80_attention_join.
template <class Page, bool kJoins>
__global__ void M2_MOST_REGISTERS((kJoins ? 512 : 448) / kLastingBlocks)
    sm80_attention_decode_lasting(AttentionArgs args) {
  constexpr int kWarpFloats = 8 * (kDim + 4);
  constexpr int kPartsAtOnce = 64 / kLastingBlocks;  // half of a thread's registers
  // The warps' sums of a part; a warp may hand over the next part's while others store.
  __shared__ __align__(16) float values[2][kDecodeWarps * kWarpFloats];
  __shared__ uint4 query[4][kWarp];
  __shared__ WarpTotals totals[2];
  __shared__ PartWalk walks[kDecodeWarps][2];  // each warp's part, and the next
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // The id of the part's lane-th page of this warp, from its first-th on; < 0: there is none.
  const auto ids_of = [&](const DecodePart& of, int first) {
    const int number = of.begin + warp + (first + lane) * kDecodeWarps;
    return of.there && number < of.end ? args.block_tables[of.sequence * args.table_stride + number]
                                       : -1;
  };
  const auto place_of = [&](int ids, int i, int head) {
    const int id = __shfl_sync(~0u, ids, i % kWarp);
    return id < 0 ? -1 : (int64_t{1} * id * args.heads.kv + head) * Page::kBytes;
  };
  // The part after the warp's n-th, and the ids of its pages.
  const auto look_ahead = [&](int n) {
    if (lane == 0) {
      PartWalk walk = walks[warp][n % 2];
      walk.next(args);
      walks[warp][(n + 1) % 2] = walk;
    }
    __syncwarp();
    return ids_of(walks[warp][(n + 1) % 2].of, 0);
  };

  PageInTurn<Page> in_turn;
  int ids, next_ids;  // of the part's and the next part's pages
  {
    PartWalk walk = {};
    walk.begin(args);
    const DecodePart& of = walk.of;
    if (!of.there && blockIdx.x > 0) return;  // the first waits: no kernel may end before another
    if (lane == 0) walks[warp][0] = walk;
    ids = ids_of(of, 0);
    const bool newest = of.begin + warp + lane * kDecodeWarps == of.pages - 1;
    const int early = newest ? -1 : ids;
    in_turn.ask(args.cache, place_of(early, 0, of.head));
    announce<Page>(args.cache, place_of(early, 1, of.head));
    __syncwarp();
    next_ids = look_ahead(0);
    wait_for_previous();
    let_next_start();
    if (!of.there) return;
    in_turn.ask(args.cache, place_of(newest ? ids : -1, 0, of.head));
    query[warp][lane] = load_queries<Page>(args, of, warp);
  }
  __syncthreads();

  int run = 0;  // parts of a context one after the other
  for (int n = 0;; ++n) {
    const DecodePart& of = walks[warp][n % 2].of;
    const DecodePart& next = walks[warp][(n + 1) % 2].of;
    const int head = of.head, end = of.end, context = of.context, next_head = next.head;
    Running state;
    int i = 0;  // of the part's pages
    for (int number = of.begin + warp; number < end; number += kDecodeWarps) {
      ++i;
      int64_t place;
      if (number + kDecodeWarps < end) {
        if (i % kWarp == 0) ids = ids_of(of, i);
        place = place_of(ids, i, head);
      } else {
        place = place_of(next_ids, 0, next_head);
      }
      in_turn.attend(args, context, query, number, place, state);
    }
    // The part has fewer pages than the block warps.
    if (i == 0) in_turn.ask(args.cache, place_of(next_ids, 0, next_head));
    float* sums = values[n % 2];
    hand_over<Page>(state, sums, kWarpFloats, totals[n % 2]);
    __syncthreads();
    ++run;
    const int parts = (of.pages + of.each - 1) / of.each;
    const bool join = kJoins && args.join && parts > 1;
    if (!next.there) {
      store_heads(args, of, sums, kWarpFloats, totals[n % 2]);
      if (!join || !complete(args, of, run, parts)) return;
      if (parts <= 8) {
        join_at_once<2, 8>(args, of, warp, parts);
        return;
      }
      for (int h = warp; h < args.heads.q / args.heads.kv; h += kDecodeWarps)
        join_at_once<1, kPartsAtOnce>(args, of, h, parts);
      return;
    }
    const bool ends = next_head != head || next.sequence != of.sequence;
    uint4 piece = {};
    if (ends) piece = load_queries<Page>(args, next, warp);
    store_heads(args, of, sums, kWarpFloats, totals[n % 2]);
    if (ends) {
      if (join && complete(args, of, run, parts)) join_all(args, of, parts);
      run = 0;
      query[warp][lane] = piece;
      __syncthreads();
    } else {
      __syncwarp();  // all lanes are done with `of`
    }
    ids = next_ids;
    next_ids = look_ahead(n + 1);
  }
}

}  // namespace m2::ops::cuda
