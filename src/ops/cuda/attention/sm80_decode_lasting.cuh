#pragma once

#include "ops/cuda/attention/sm80_decode.cuh"

namespace m2::ops::cuda {

// 16 bytes of the cache, which are read once: what is written and read again stays in L2.
__device__ __forceinline__ uint4 load_once(const uint8_t* pointer) {
  uint4 value = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  constexpr uint64_t kEvictFirst = 0x12F0000000000000;  // as createpolicy makes it
  asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer), "l"(kEvictFirst)
               : "memory");
#endif
  return value;
}

// From shared memory each time, where the compiler would keep registers.
__device__ __forceinline__ uint4 load_again(const uint4* pointer) {
  uint4 value;
  asm volatile("ld.volatile.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(pointer))));
  return value;
}

// All decoded contexts as one line of pages: sequence after sequence, each once for every KV head.
// A block has a stretch of it, and the parts that begin there.
struct PartWalk {
  DecodePart of;
  int64_t at, stop;  // where the part begins, and the stretch ends

  // Whether the sequence decodes and has a context; then `of` knows them.
  __device__ __forceinline__ bool read(const AttentionArgs& args, int sequence) {
    of.sequence = sequence;
    of.token = args.query_starts[sequence];
    of.context = args.query_starts[sequence + 1] - of.token == 1 ? args.context_lens[sequence] : 0;
    of.pages = (of.context + kPage - 1) / kPage;
    of.each = args.splits == 1 ? of.pages : pages_per_split(of.pages, args.heads.kv);
    return of.pages > 0;
  }
  __device__ __forceinline__ void bound() {
    of.begin = of.part * of.each;
    of.end = min(of.pages, of.begin + of.each);
    of.there = at < stop;
  }
  __device__ __forceinline__ int pages_of_lane(const AttentionArgs& args, int sequence) {
    if (sequence >= args.sequences) return 0;
    const bool one = args.query_starts[sequence + 1] - args.query_starts[sequence] == 1;
    return one ? (args.context_lens[sequence] + kPage - 1) / kPage : 0;
  }
  // The stretch's first part; all lanes of a warp call it.
  __device__ __forceinline__ void first(const AttentionArgs& args) {
    const int lane = threadIdx.x % kWarp;
    int pages = 0;
    for (int i = 0; i < args.sequences; i += kWarp) pages += pages_of_lane(args, i + lane);
#pragma unroll
    for (int offset = 16; offset; offset /= 2) pages += __shfl_xor_sync(~0u, pages, offset);
    const int64_t total = int64_t{1} * pages * args.heads.kv;
    const int least = least_pages(args.heads.kv);
    int64_t stretch = (total + gridDim.x - 1) / gridDim.x;
    // Whole parts and with them often whole heads, which nobody else needs to join, if that leaves
    // few blocks without work.
    const int64_t rounded = (stretch + least - 1) / least * least;
    if (rounded * 16 <= stretch * 17 || stretch < least) stretch = rounded;
    const int64_t from = stretch * blockIdx.x;
    stop = min(total, from + stretch);
    at = stop;
    of.there = false;
    if (from >= total) return;
    int64_t before = 0;
    for (int i = 0; i < args.sequences; i += kWarp) {
      const int mine = pages_of_lane(args, i + lane);
      int end = mine;
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(~0u, end, offset);
        if (lane >= offset) end += other;
      }
      const unsigned here = __ballot_sync(~0u, before + int64_t{1} * end * args.heads.kv > from);
      if (here == 0) {
        before += int64_t{1} * __shfl_sync(~0u, end, kWarp - 1) * args.heads.kv;
        continue;
      }
      const int owner = __ffs(here) - 1;
      before += int64_t{1} * __shfl_sync(~0u, end - mine, owner) * args.heads.kv;
      read(args, i + owner);
      const int64_t within = from - before;
      of.head = static_cast<int>(within / of.pages);
      const int page = static_cast<int>(within % of.pages);
      of.part = (page + of.each - 1) / of.each;
      at = before + int64_t{1} * of.head * of.pages + of.part * of.each;
      if (of.part * of.each >= of.pages) {
        at = before + int64_t{1} * (of.head + 1) * of.pages;
        next_head(args);
      }
      bound();
      return;
    }
  }
  __device__ __forceinline__ void next_head(const AttentionArgs& args) {
    of.part = 0;
    if (++of.head < args.heads.kv) return;
    of.head = 0;
    int sequence = of.sequence + 1;
    while (sequence < args.sequences && !read(args, sequence)) ++sequence;
    if (sequence == args.sequences) at = stop;
  }
  __device__ __forceinline__ void next(const AttentionArgs& args) {
    if (!of.there) return;
    at += of.end - of.begin;
    if (++of.part * of.each >= of.pages) next_head(args);
    bound();
  }
};

// Counts `run` parts of a context that the block has stored; whether they were its last. All of the
// block's threads call it.
__device__ __forceinline__ bool left_last(const AttentionArgs& args, const DecodePart& of, int run,
                                          int parts) {
  __shared__ bool last;
  __syncthreads();
  if (run == parts) return true;
  if (threadIdx.x == 0) {
    unsigned int* counter = &parts_left[of.sequence * args.heads.kv + of.head];
    fence();
    last = atomicAdd(counter, static_cast<unsigned>(run)) + run == static_cast<unsigned>(parts);
    if (last) *counter = 0;
    fence();
  }
  __syncthreads();
  return last;
}

// Joins up to eight parts of two heads, all asked for at once; the second may be none.
__device__ __forceinline__ void join_two(const AttentionArgs& args, const DecodePart& of, int h0,
                                         int h1, int parts) {
  const int dim = threadIdx.x % kWarp * 4, group = args.heads.q / args.heads.kv;
  const float* totals =
      args.workspace + static_cast<int64_t>(args.sequences) * args.heads.q * args.splits * kDim;
  float2 part_total[2][8];
  float4 part_value[2][8];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int h = k ? h1 : h0;
    const int64_t cell =
        (static_cast<int64_t>(of.sequence) * args.heads.q + of.head * group + h) * args.splits;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool there = i < parts && h < group;
      part_total[k][i] = there ? __ldcg(reinterpret_cast<const float2*>(totals + (cell + i) * 2))
                               : float2{-INFINITY, 0.0f};
      part_value[k][i] =
          there ? __ldcg(reinterpret_cast<const float4*>(args.workspace + (cell + i) * kDim + dim))
                : float4{};
    }
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int h = k ? h1 : h0;
    if (h >= group) break;
    float top = -INFINITY, sum = 0.0f, value[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) top = fmaxf(top, part_total[k][i].x);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float factor = exp2f(part_total[k][i].x - top);
      sum = fmaf(part_total[k][i].y, factor, sum);
      value[0] = fmaf(part_value[k][i].x, factor, value[0]);
      value[1] = fmaf(part_value[k][i].y, factor, value[1]);
      value[2] = fmaf(part_value[k][i].z, factor, value[2]);
      value[3] = fmaf(part_value[k][i].w, factor, value[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] *= args.cache.v_scale / sum;
    store_dims(args, of.token, of.head * group + h, dim, value);
  }
}

// Joins all parts of all heads; so do join_two() of a warp each.
__device__ __forceinline__ void join_all(const AttentionArgs& args, const DecodePart& of,
                                         int parts) {
  const int group = args.heads.q / args.heads.kv;
  for (int h = threadIdx.x / kWarp; h < group; h += kDecodeWarps)
    join_parts(args, of.sequence, of.token, of.head * group + h, parts);
}

__device__ __forceinline__ void prefetch_line(const uint8_t* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

// sm80_attention_decode, to the same bytes, by blocks that last: each goes through a stretch of all
// parts, a warp with kUnit pages under way at once. A unit's keys are asked for as soon as the ones
// before are multiplied, its values likewise, over the parts' borders. What the kernel in front
// does not write, all pages but the newest, is asked for before that has ended: one unit into
// registers, one to L2. Bound: bandwidth of memory.
template <class Page, int kUnit, int kBlocks>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, kBlocks)
    sm80_attention_decode_lasting(AttentionArgs args) {
  constexpr int kWarpFloats = 8 * (kDim + 4);
  __shared__ __align__(16) float values[kDecodeWarps * kWarpFloats];
  __shared__ uint4 query[4][kWarp];
  __shared__ PartWalk walks[kDecodeWarps][2];  // each warp's part, and the next
  __shared__ WarpTotals totals;
  __shared__ unsigned int handed;  // warps that have handed over the part
  __shared__ int stored;           // parts that were stored
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto read = [](const uint8_t* from) { return load_once(from); };
  const auto at_of = [&](int id, int head) {
    return (int64_t{1} * id * args.heads.kv + head) * Page::kBytes;
  };
  const auto table_of = [&](const DecodePart& of) {
    return args.block_tables + of.sequence * args.table_stride;
  };
  const auto* keys = static_cast<const uint8_t*>(args.cache.k);
  const auto* cached = static_cast<const uint8_t*>(args.cache.v);

  Page page[kUnit];
  {
    PartWalk walk = {};
    walk.first(args);
    const DecodePart of = walk.of;
    const bool there = of.there;
    int id[kUnit];
    bool early[kUnit];
#pragma unroll
    for (int u = 0; u < kUnit; ++u) {
      const int number = of.begin + warp + u * kDecodeWarps;
      id[u] = there && number < of.end ? table_of(of)[number] : -1;
      early[u] = number < of.pages - 1;
    }
    int later[kUnit];
#pragma unroll
    for (int u = 0; u < kUnit; ++u) {
      const int number = of.begin + warp + (kUnit + u) * kDecodeWarps;
      later[u] = there && number < of.end && number < of.pages - 1 ? table_of(of)[number] : -1;
    }
    if (lane == 0) walks[warp][0] = walk;
    if (threadIdx.x == 0) handed = stored = 0;
#pragma unroll
    for (int u = 0; u < kUnit; ++u)
      if (id[u] >= 0 && early[u])
        page[u].load(keys + at_of(id[u], of.head), cached + at_of(id[u], of.head), read);
#pragma unroll
    for (int u = 0; u < kUnit; ++u)
      if (later[u] >= 0 && lane < Page::kBytes / 128) {
        prefetch_line(keys + at_of(later[u], of.head) + lane * 128);
        prefetch_line(cached + at_of(later[u], of.head) + lane * 128);
      }
    if (!there && blockIdx.x > 0) return;
    wait_for_previous();
    let_next_start();
    if (!there) return;
#pragma unroll
    for (int u = 0; u < kUnit; ++u)
      if (id[u] >= 0 && !early[u])
        page[u].load(keys + at_of(id[u], of.head), cached + at_of(id[u], of.head), read);
    query[warp][lane] = load_queries<Page>(args, of, warp);
  }
  __syncthreads();

  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
  int run = 0;
  for (int n = 0;; ++n) {
    const DecodePart& of = walks[warp][n % 2].of;
    const DecodePart& next = walks[warp][(n + 1) % 2].of;
    // Ids of the part's first 32 pages of the warp, and of the next part's first unit.
    const int first = of.begin + warp, end = of.end, head = of.head;
    int ids = first + lane * kDecodeWarps < end ? table_of(of)[first + lane * kDecodeWarps] : 0;
    if (lane == 0) {
      PartWalk walk = walks[warp][n % 2];
      walk.next(args);
      walks[warp][(n + 1) % 2] = walk;
    }
    __syncwarp();
    int next_ids = -1;
    if (next.there && next.begin + warp + lane * kDecodeWarps < next.end && lane < kUnit)
      next_ids = table_of(next)[next.begin + warp + lane * kDecodeWarps];
    const int next_head = next.head;
    Running state;
    const int context = of.context;
    int64_t at[kUnit];
    for (int i = 0, number = first; number < end; i += kUnit, number += kUnit * kDecodeWarps) {
      float logits[kUnit][4] = {};
#pragma unroll
      for (int u = 0; u < kUnit; ++u)
        if (u == 0 || number + u * kDecodeWarps < end)
          multiply_keys(
              page[u], [&](int j) { return load_again(&query[j][lane]); }, logits[u]);
      const bool more = number + kUnit * kDecodeWarps < end;
      if (more && (i + kUnit) % kWarp == 0) {
        const int mine = number + (kUnit + lane) * kDecodeWarps;
        ids = mine < end ? table_of(of)[mine] : 0;
      }
#pragma unroll
      for (int u = 0; u < kUnit; ++u) {
        const int own = __shfl_sync(~0u, ids, (i + kUnit + u) % kWarp);
        const int other = __shfl_sync(~0u, next_ids, u);
        at[u] = more         ? number + (kUnit + u) * kDecodeWarps < end ? at_of(own, head) : -1
                : other >= 0 ? at_of(other, next_head)
                             : -1;
      }
#pragma unroll
      for (int u = 0; u < kUnit; ++u)
        if (at[u] >= 0) page[u].load_keys(keys + at[u], read);
#pragma unroll
      for (int u = 0; u < kUnit; ++u)
        if (u == 0 || number + u * kDecodeWarps < end) {
          const int valid = context - (number + u * kDecodeWarps) * kPage;
          if (valid < kPage) page[u].clear_values_from(valid);
          float factor[2];
          uint32_t weights[2];
          weigh<Page>(logits[u], valid, log2_scale, state, factor, weights);
          add_values(page[u], factor, weights, state);
        }
#pragma unroll
      for (int u = 0; u < kUnit; ++u)
        if (at[u] >= 0) page[u].load_values(cached + at[u], read);
    }
    if (first >= end) {  // the part has fewer pages than the block warps
#pragma unroll
      for (int u = 0; u < kUnit; ++u) {
        const int other = __shfl_sync(~0u, next_ids, u);
        if (other >= 0)
          page[u].load(keys + at_of(other, next_head), cached + at_of(other, next_head), read);
      }
    }
    // The part before was stored, so its sums may be overwritten.
    while (*static_cast<volatile int*>(&stored) != n) {
    }
    __syncwarp();
    hand_over<Page>(state, values, kWarpFloats, totals);
    ++run;
    const bool more = next.there;
    if (more && next.head == of.head && next.sequence == of.sequence) {
      // Within a context nobody waits: the warp that hands over last stores the part.
      __threadfence_block();
      __syncwarp();
      unsigned int before = 0;
      if (lane == 0) before = atomicInc(&handed, kDecodeWarps - 1);
      if (__shfl_sync(~0u, before, 0) == kDecodeWarps - 1) {
        __threadfence_block();
        store_heads(args, of, values, kWarpFloats, totals, 0, 1);
        __threadfence_block();
        __syncwarp();
        if (lane == 0) *static_cast<volatile int*>(&stored) = n + 1;
      }
      continue;
    }
    __syncthreads();
    const int count = (of.pages + of.each - 1) / of.each;
    const bool join = args.join && count > 1;
    if (!more) {
      store_heads(args, of, values, kWarpFloats, totals, warp, kDecodeWarps);
      if (join && left_last(args, of, run, count)) {
        if (count <= 8)
          join_two(args, of, warp, warp + kDecodeWarps, count);
        else
          join_all(args, of, count);
      }
      return;
    }
    const bool same = next.head == of.head && next.sequence == of.sequence;
    uint4 piece = {};
    if (!same) piece = load_queries<Page>(args, next, warp);
    store_heads(args, of, values, kWarpFloats, totals, warp, kDecodeWarps);
    if (!same) {
      if (join && left_last(args, of, run, count)) join_all(args, of, count);
      run = 0;
      query[warp][lane] = piece;
    }
    if (threadIdx.x == 0) stored = n + 1;
    __syncthreads();
  }
}

}  // namespace m2::ops::cuda
