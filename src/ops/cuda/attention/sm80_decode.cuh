#pragma once

#include "ops/cuda/attention/pages.cuh"

namespace m2::ops::cuda {

constexpr int kDecodeWarps = 4;

// Four dims of one token and q head, from dim on; the warp has them all.
__device__ __forceinline__ void store_dims(const AttentionArgs& args, int64_t token, int q_head,
                                           int dim, float (&value)[4]) {
  const int64_t row = token * args.out.stride + q_head * kDim + dim;
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    store_number(args.out.data, args.out.dtype, row + i, value[i]);
    value[i] = to_float(__float2bfloat16_rn(value[i]));
    most = fmaxf(most, fabsf(value[i]));
  }
  if (!args.quantised.values) return;
#pragma unroll
  for (int offset = 16; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float scale = f8_scale(most, args.quantised.powers);
  const int64_t cell = token * args.heads.q + q_head;  // a head is a block of 128
  *reinterpret_cast<uint32_t*>(args.quantised.values + cell * kDim + dim) =
      to_f8(value[0], value[1], value[2], value[3], 1.0f / scale);
  if (dim == 0) args.quantised.scales[cell] = scale;
}

// Joins the parts of one token and q head, first to last; a warp has a head. Other multiprocessors
// may have written the parts while this kernel ran: nothing is read through L1.
__device__ __forceinline__ void join_parts(const AttentionArgs& args, int sequence, int token,
                                           int q_head, int parts) {
  const int dim = threadIdx.x % kWarp * 4;
  const int64_t cell = (static_cast<int64_t>(sequence) * args.heads.q + q_head) * args.splits;
  const float* totals = args.workspace +
                        static_cast<int64_t>(args.sequences) * args.heads.q * args.splits * kDim +
                        cell * 2;
  // Eight parts are asked for at once.
  constexpr int kAhead = 8;
  float largest = -INFINITY, sum = 0.0f, value[4] = {};
  for (int first = 0; first < parts; first += kAhead) {
    float part_largest[kAhead], part_sum[kAhead];
    float4 part_value[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const bool there = first + i < parts;
      part_largest[i] = there ? __ldcg(totals + 2 * (first + i)) : -INFINITY;
      part_sum[i] = there ? __ldcg(totals + 2 * (first + i) + 1) : 0.0f;
      part_value[i] = there ? __ldcg(reinterpret_cast<const float4*>(
                                  args.workspace + (cell + first + i) * kDim + dim))
                            : float4{};
    }
    float top = largest;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) top = fmaxf(top, part_largest[i]);
    const float before = exp2f(largest - top);
    sum *= before;
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] *= before;
    largest = top;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float factor = exp2f(part_largest[i] - top);
      sum = fmaf(part_sum[i], factor, sum);
      value[0] = fmaf(part_value[i].x, factor, value[0]);
      value[1] = fmaf(part_value[i].y, factor, value[1]);
      value[2] = fmaf(part_value[i].z, factor, value[2]);
      value[3] = fmaf(part_value[i].w, factor, value[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) value[i] *= args.cache.v_scale / sum;
  store_dims(args, token, q_head, dim, value);
}

// How many parts of a sequence and KV head have been left; zeros between launches, since counting
// wraps. Only for who is alone on the GPU (Exec::alone): two launches never count at once.
__device__ unsigned int parts_left[kMostJoins];

// The part of a sequence and KV head that a block attends to.
struct DecodePart {
  int part, head, sequence, token, context;
  int pages, each;  // of the context, of a part
  int begin, end;   // the part's pages
  bool there;       // the sequence decodes and has the part

  DecodePart() = default;
  __device__ __forceinline__ explicit DecodePart(const AttentionArgs& args)
      : DecodePart(args, args.by_parts ? blockIdx.z : blockIdx.y, blockIdx.x,
                   args.by_parts ? blockIdx.y : blockIdx.z) {}
  __device__ __forceinline__ DecodePart(const AttentionArgs& args, int part, int head, int sequence)
      : part(part), head(head), sequence(sequence) {
    token = args.query_starts[sequence];
    const int next = args.query_starts[sequence + 1];
    context = args.context_lens[sequence];
    pages = (context + kPage - 1) / kPage;
    each = args.splits == 1 ? pages : pages_per_split(pages, args.heads.kv);
    begin = part * each;
    end = min(pages, begin + each);
    there = next - token == 1 && begin < end;
  }
};

// Steps 2 j and 2 j + 1 of the query's rows of the KV head, as a lane multiplies them.
template <class Page>
__device__ __forceinline__ uint4 load_queries(const AttentionArgs& args, const DecodePart& of,
                                              int j) {
  const int group = args.heads.q / args.heads.kv, g = threadIdx.x % kWarp / 4;
  if (g >= group) return uint4{};
  return Page::load_query(static_cast<const uint8_t*>(args.q.data) +
                              (of.token * args.q.stride + (of.head * group + g) * kDim) * 2,
                          j);
}
template <class Page>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, const DecodePart& of,
                                             uint32_t (&q)[8][2]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint4 piece = load_queries<Page>(args, of, j);
    q[2 * j][0] = piece.x;
    q[2 * j][1] = piece.y;
    q[2 * j + 1][0] = piece.z;
    q[2 * j + 1][1] = piece.w;
  }
}

// What the block's threads wrote before they met is seen by who sees what this thread writes next.
__device__ __forceinline__ void fence() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Largest logits and sums of weights of each warp's heads.
using WarpTotals = float[kDecodeWarps][2][8];

// The warp's sums into shared memory. values: of each warp [8][kDim + 4], warp_floats apart.
template <class Page>
__device__ __forceinline__ void hand_over(Running& state, float* values, int warp_floats,
                                          WarpTotals& totals) {
  constexpr int kRow = kDim + 4;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2)
      state.sum[h] += __shfl_xor_sync(~0u, state.sum[h], offset);
    if (g == 0) {
      totals[warp][0][2 * t + h] = state.largest[h];
      totals[warp][1][2 * t + h] = state.sum[h];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int dim;
      const float4 four = Page::dims(state.values, i, h, dim);
      *reinterpret_cast<float4*>(values + warp * warp_floats + (2 * t + h) * kRow + dim) = four;
    }
  }
}

// What the block's warps have handed over of one head, together: the largest logit, the sum of
// weights, and the weighted sum of V, four dims a lane.
struct HeadSums {
  float largest, sum = 0.0f, value[4] = {};

  __device__ __forceinline__ HeadSums(const float* values, int warp_floats,
                                      const WarpTotals& totals, int h) {
    constexpr int kRow = kDim + 4;
    static_assert(kWarp * 4 == kDim, "a warp has a head's dims");
    const int dim = threadIdx.x % kWarp * 4;
    largest = totals[0][0][h];
    for (int w = 1; w < kDecodeWarps; ++w) largest = fmaxf(largest, totals[w][0][h]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float factor = exp2f(totals[w][0][h] - largest);  // 0 for a warp without pages
      sum = fmaf(totals[w][1][h], factor, sum);
      const float4 own =
          *reinterpret_cast<const float4*>(values + w * warp_floats + h * kRow + dim);
      value[0] = fmaf(own.x, factor, value[0]);
      value[1] = fmaf(own.y, factor, value[1]);
      value[2] = fmaf(own.z, factor, value[2]);
      value[3] = fmaf(own.w, factor, value[3]);
    }
  }
};

// They become the part's share of the output, or the output: a warp a head.
__device__ __forceinline__ void store_heads(const AttentionArgs& args, const DecodePart& of,
                                            const float* values, int warp_floats,
                                            const WarpTotals& totals) {
  const int lane = threadIdx.x % kWarp, group = args.heads.q / args.heads.kv, dim = lane * 4;
  for (int h = threadIdx.x / kWarp; h < group; h += kDecodeWarps) {
    HeadSums head(values, warp_floats, totals, h);
    auto& [largest, sum, value] = head;
    const int q_head = of.head * group + h;
    if (of.each >= of.pages) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] *= args.cache.v_scale / sum;
      store_dims(args, of.token, q_head, dim, value);
      continue;
    }
    const int64_t cell =
        (static_cast<int64_t>(of.sequence) * args.heads.q + q_head) * args.splits + of.part;
    *reinterpret_cast<float4*>(args.workspace + cell * kDim + dim) =
        float4{value[0], value[1], value[2], value[3]};
    if (lane < 2) {
      float* part_totals =
          args.workspace + static_cast<int64_t>(args.sequences) * args.heads.q * args.splits * kDim;
      part_totals[cell * 2 + lane] = lane ? sum : largest;
    }
  }
}

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

__device__ __forceinline__ int load_again(const int* pointer) {
  int value;
  asm volatile("ld.volatile.shared.s32 %0, [%1];"
               : "=r"(value)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(pointer))));
  return value;
}

__device__ __forceinline__ float2 load_again(const float2* pointer) {
  float2 value;
  asm volatile("ld.volatile.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(pointer))));
  return value;
}
__device__ __forceinline__ void put_away(float2* pointer, const float (&value)[2]) {
  asm volatile("st.volatile.shared.v2.f32 [%0], {%1, %2};" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(pointer))),
               "f"(value[0]), "f"(value[1]));
}

// The page of a part that a warp attends to, every fourth; the next one comes into its place.
template <class Page>
struct PageInTurn {
  Page page;

  // `place`: where a page's keys and values begin, in bytes; < 0: there is no such page.
  __device__ __forceinline__ void ask_keys(const Cache& cache, int64_t place) {
    if (place >= 0) page.load_keys(static_cast<const uint8_t*>(cache.k) + place, load_once);
  }
  __device__ __forceinline__ void ask_values(const Cache& cache, int64_t place) {
    if (place >= 0) page.load_values(static_cast<const uint8_t*>(cache.v) + place, load_once);
  }
  __device__ __forceinline__ void ask(const Cache& cache, int64_t place) {
    ask_keys(cache, place);
    ask_values(cache, place);
  }

  // Attends to a context's page `number`, and asks for the one at `next` as soon as the keys, and
  // then the values, have been multiplied.
  __device__ __forceinline__ void attend(const AttentionArgs& args, int context,
                                         const uint4 (&query)[4][kWarp], int number, int64_t next,
                                         Running& state) {
    float logits[4] = {}, factor[2];
    uint32_t weights[2];
    multiply_keys(
        page, [&](int j) { return load_again(&query[j][threadIdx.x % kWarp]); }, logits);
    ask_keys(args.cache, next);
    const int valid = context - number * kPage;
    if (valid < kPage) page.clear_values_from(valid);
    weigh<Page>(logits, valid, args.scale * args.cache.k_scale * kLog2E, state, factor, weights);
    add_values(page, factor, weights, state);
    ask_values(args.cache, next);
  }
};

// Decoded tokens (sequences with one token in this step): one block a (KV head, part of the
// context, sequence), the KV head's q heads packed as mma's 8 columns. Each warp takes every fourth
// page; K and V are asked for anew as soon as they have been multiplied, the first page, if it is
// not the newest token's, before the kernel in front has ended. Parts, pages and their order depend
// on the token's own context alone. Parts are left in the workspace. Bytes: S ctx kv 2 * 256 (FP8:
// 128), FLOPs: 4 S ctx q 128. Bound: bandwidth of memory, if a page's chain of instructions has no
// registers spilled.
template <class Page>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, 4)
    sm80_attention_decode(AttentionArgs args) {
  constexpr int kWarpFloats = 8 * (kDim + 4);
  __shared__ __align__(16) float values[kDecodeWarps * kWarpFloats];
  __shared__ uint4 query[4][kWarp];
  __shared__ WarpTotals totals;
  const DecodePart of(args);
  if (!of.there) {
    // No kernel may end before the one in front of it has: its first block sees to that.
    if (of.part == 0 && of.head == 0 && of.sequence == 0) wait_for_previous();
    return;
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, first = of.begin + warp;

  // The id of the warp's lane-th page from the i-th on; < 0: there is none.
  const auto ids_from = [&](int i) {
    const int page = first + (i + lane) * kDecodeWarps;
    return page < of.end ? args.block_tables[of.sequence * args.table_stride + page] : -1;
  };
  int ids = ids_from(0);
  PageInTurn<Page> in_turn;
  const auto place_of = [&](int i) {
    const int id = __shfl_sync(~0u, ids, i % kWarp);
    return id < 0 ? -1 : (int64_t{1} * id * args.heads.kv + of.head) * Page::kBytes;
  };
  int64_t place = place_of(0);
  const bool early = first < min(of.end, of.pages - 1);
  if (early) in_turn.ask(args.cache, place);
  wait_for_previous();
  let_next_start();
  const uint4 piece = load_queries<Page>(args, of, warp);
  if (!early) in_turn.ask(args.cache, place);
  query[warp][lane] = piece;
  __syncthreads();

  Running state;
  int i = 0;
  for (int page = first; page < of.end; page += kDecodeWarps) {
    ++i;
    if (i % kWarp == 0) ids = ids_from(i);
    place = place_of(i);
    in_turn.attend(args, of.context, query, page, place, state);
  }
  hand_over<Page>(state, values, kWarpFloats, totals);
  __syncthreads();
  store_heads(args, of, values, kWarpFloats, totals);
}

// What a block knows of its part while it attends to it, in shared memory: registers are a page's.
struct PartInHand {
  int token, context, pages, each;
  int end;                 // the part's last page, and one
  int left[kDecodeWarps];  // tokens of the context from the warp's first page on
};

// The warp's every fourth page of a part. `page` has been asked for, and `ids` are the part's: the
// lane's is that of the warp's lane-th page, < 0 if there is none. ask_keys(id), ask_values(id),
// ids_from(number): of the pages from a lane's `number` on.
template <class Page, class AskKeys, class AskValues, class Ids>
__device__ __forceinline__ void attend_to_part(const AttentionArgs& args, Page& page, int ids,
                                               const uint4 (&query)[4][kWarp],
                                               const PartInHand& part, AskKeys ask_keys,
                                               AskValues ask_values, Ids ids_from, float2* sum,
                                               Running& state) {
  const auto take_sum = [&] {
    const auto [first, second] = load_again(sum);
    state.sum[0] = first;
    state.sum[1] = second;
  };
  put_away(sum, state.sum);
#pragma unroll 1
  for (int i = 0; __shfl_sync(~0u, ids, i % kWarp) >= 0;) {
    const int left = load_again(&part.left[threadIdx.x / kWarp]) - i * (kPage * kDecodeWarps);
    ++i;
    if (i % kWarp == 0) {
      const int number =
          (load_again(&part.context) - left) / kPage + (threadIdx.x % kWarp + 1) * kDecodeWarps;
      ids = ids_from(number, load_again(&part.end));
    }
    const int next = __shfl_sync(~0u, ids, i % kWarp);
    float logits[4] = {}, factor[2];
    uint32_t weights[2];
    multiply_keys(
        page, [&](int j) { return load_again(&query[j][threadIdx.x % kWarp]); }, logits);
    ask_keys(next);
    if (left < kPage) page.clear_values_from(left);
    take_sum();
    weigh<Page>(logits, left, args.scale * args.cache.k_scale * kLog2E, state, factor, weights);
    put_away(sum, state.sum);
    add_values(page, factor, weights, state);
    ask_values(next);
  }
  take_sum();
  __syncwarp();
}

// FP8 leaves registers for sm80_attention_join beside.
template <class Page>
constexpr int kDecodeRegisters = Page::kBytes == Bf16Page::kBytes ? 128 : 112;

// sm80_attention_decode, to the same bytes, by blocks that go on: a block has a (KV head, part of
// the context, sequence), then the part as many later as the grid has. kByPart: the grid's slowest
// dimension is the part and not the sequence, so that of a graph's full tables all parts that exist
// stand in front of those that do not; of many sequences these are better passed on the way. What a
// page does not need is in shared memory, so that no register is spilled; where parts are short,
// ids are asked for with the lengths.
template <class Page, bool kByPart>
__global__ void M2_MOST_REGISTERS(kDecodeRegisters<Page>)
    sm80_attention_decode_onward(AttentionArgs args) {
  constexpr int kWarpFloats = 8 * (kDim + 4);
  __shared__ __align__(16) float values[kDecodeWarps * kWarpFloats];
  __shared__ uint4 query[4][kWarp];
  __shared__ WarpTotals totals;
  __shared__ PartInHand in_hand;
  const auto of_grid = [](int number) {
    DecodePart of;
    of.part = number;
    of.head = blockIdx.x;
    of.sequence = kByPart ? blockIdx.y : blockIdx.z;
    return of;
  };
  Page page;
  const auto place = [&](int id) {
    return (int64_t{1} * id * args.heads.kv + blockIdx.x) * Page::kBytes;
  };
  const auto ask_keys = [&](int id) {
    if (id >= 0) page.load_keys(static_cast<const uint8_t*>(args.cache.k) + place(id), load_once);
  };
  const auto ask_values = [&](int id) {
    if (id >= 0) page.load_values(static_cast<const uint8_t*>(args.cache.v) + place(id), load_once);
  };
  const auto ask = [&](int id) {
    ask_keys(id);
    ask_values(id);
  };
  const auto ids_from = [&](int number, int end) {
    return number < end
               ? args.block_tables[(kByPart ? blockIdx.y : blockIdx.z) * args.table_stride + number]
               : -1;
  };

  int ids;
  {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    // Where parts are as short as most are, ids come with the lengths.
    const int least = least_pages(args.heads.kv);
    int guessed = -1;
    if (lane * kDecodeWarps < least)
      guessed = ids_from(
          static_cast<int>(kByPart ? blockIdx.z : blockIdx.y) * least + warp + lane * kDecodeWarps,
          static_cast<int>(args.table_stride));
    const DecodePart of(args, kByPart ? blockIdx.z : blockIdx.y, blockIdx.x,
                        kByPart ? blockIdx.y : blockIdx.z);
    if (!of.there) {
      // No kernel may end before the one in front of it has: its first block sees to that.
      if (of.part == 0 && of.head == 0 && of.sequence == 0) wait_for_previous();
      return;
    }
    const int first = of.begin + warp, number = first + lane * kDecodeWarps;
    if (of.each == least)
      ids = number < of.end ? guessed : -1;
    else
      ids = ids_from(number, of.end);
    const int id = __shfl_sync(~0u, ids, 0);
    const bool early = first < min(of.end, of.pages - 1);
    if (early) ask(id);
    if (threadIdx.x == 0) {
      in_hand.token = of.token;
      in_hand.context = of.context;
      in_hand.pages = of.pages;
      in_hand.each = of.each;
      in_hand.end = of.end;
    }
    in_hand.left[warp] = of.context - first * kPage;
    wait_for_previous();
    let_next_start();
    const uint4 piece = load_queries<Page>(args, of, warp);
    if (!early) ask(id);
    query[warp][lane] = piece;
  }
  __syncthreads();

  for (int part = kByPart ? blockIdx.z : blockIdx.y;;) {
    Running state;
    // Where the warp hands over its sums in the end.
    float2* const sum =
        reinterpret_cast<float2*>(values + threadIdx.x / kWarp * kWarpFloats) + threadIdx.x % kWarp;
    attend_to_part(args, page, ids, query, in_hand, ask_keys, ask_values, ids_from, sum, state);
    hand_over<Page>(state, values, kWarpFloats, totals);
    __syncthreads();
    DecodePart of = of_grid(part);
    of.token = load_again(&in_hand.token);
    of.pages = load_again(&in_hand.pages);
    of.each = load_again(&in_hand.each);
    store_heads(args, of, values, kWarpFloats, totals);
    part += kByPart ? gridDim.z : gridDim.y;
    const int begin = part * of.each, end = min(of.pages, begin + of.each);
    if (begin >= end) return;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, first = begin + warp;
    ids = ids_from(first + lane * kDecodeWarps, end);
    ask(__shfl_sync(~0u, ids, 0));
    in_hand.left[warp] = load_again(&in_hand.context) - first * kPage;
    if (threadIdx.x == 0) in_hand.end = end;
    __syncthreads();
  }
}

// A row of the workspace: a sequence's q head, and what was left of it.
struct LeftHead {
  int sequence, q_head, token;
  int parts;  // 0: none, or its only part has written the output

  __device__ __forceinline__ LeftHead(const AttentionArgs& args, int row)
      : sequence(row / args.heads.q), q_head(row % args.heads.q) {
    token = args.query_starts[sequence];
    const bool decodes = args.query_starts[sequence + 1] - token == 1;
    const int pages = decodes ? (args.context_lens[sequence] + kPage - 1) / kPage : 0;
    const int each = pages_per_split(pages, args.heads.kv);
    parts = each < pages ? (pages + each - 1) / each : 0;
  }
};

// Joins the parts that were left: a warp a head. It begins beside the blocks in front, where they
// leave registers, and lets the next kernel start, which so stands ready when the last parts are
// there. Bytes: parts * 130 * 4 a head. Bound: latency.
constexpr int kJoinHeads = 4;  // of a block: few, so that it has room beside the blocks in front

__global__ void M2_MOST_REGISTERS(64) sm80_attention_join(AttentionArgs args) {
  let_next_start();
  const int rows = args.sequences * args.heads.q;
  bool waited = false;
  for (int row = blockIdx.x * kJoinHeads + threadIdx.x / kWarp; row < rows;
       row += gridDim.x * kJoinHeads) {
    const LeftHead head(args, row);
    if (!waited) wait_for_previous();
    waited = true;
    if (head.parts > 0) join_parts(args, head.sequence, head.token, head.q_head, head.parts);
  }
  if (!waited) wait_for_previous();
}

// The same, to the same bytes, of fewer heads: a block each, a warp a quarter of its dims, so that
// all parts of a context of some thousand tokens are asked for at once.
constexpr int kJoinWarps = 4;

__global__ void M2_MOST_REGISTERS(64) sm80_attention_join_at_once(AttentionArgs args) {
  static_assert(kDim == kJoinWarps * kWarp);
  constexpr int kAhead = 32, kEight = 8, kRounds = kAhead / kEight;  // of parts
  __shared__ float of_warp[kJoinWarps];
  let_next_start();
  const LeftHead head(args, blockIdx.x);
  const int lane = threadIdx.x % kWarp, dim = threadIdx.x;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * args.splits;
  const float* const values = args.workspace + cell * kDim + dim;
  const auto* const totals = reinterpret_cast<const float2*>(
      args.workspace + static_cast<int64_t>(gridDim.x) * args.splits * kDim + cell * 2);
  wait_for_previous();
  if (head.parts == 0) return;
  float largest = -INFINITY, sum = 0.0f, value = 0.0f;
  for (int first = 0; first < head.parts; first += kAhead) {
    // A lane has the largest logit and the sum of one part.
    const float2 total =
        first + lane < head.parts ? __ldcg(totals + first + lane) : float2{-INFINITY, 0.0f};
    float part[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      part[i] =
          first + i < head.parts ? __ldcg(values + static_cast<int64_t>(first + i) * kDim) : 0.0f;
    // As join_parts goes on, eight parts after eight.
    float top = total.x, tops[kRounds];
#pragma unroll
    for (int offset = 1; offset < kEight; offset *= 2)
      top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
#pragma unroll
    for (int r = 0; r < kRounds; ++r)
      tops[r] = fmaxf(r ? tops[r - 1] : largest, __shfl_sync(~0u, top, r * kEight));
    top = tops[0];
#pragma unroll
    for (int r = 1; r < kRounds; ++r)
      if (lane / kEight == r) top = tops[r];
    const float factor = exp2f(total.x - top);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (first + r * kEight >= head.parts) continue;
      const float before = exp2f(largest - tops[r]);
      sum *= before;
      value *= before;
      largest = tops[r];
#pragma unroll
      for (int i = r * kEight; i < (r + 1) * kEight; ++i) {
        const float by = __shfl_sync(~0u, factor, i);
        sum = fmaf(__shfl_sync(~0u, total.y, i), by, sum);
        value = fmaf(part[i], by, value);
      }
    }
  }
  value *= args.cache.v_scale / sum;
  store_number(args.out.data, args.out.dtype,
               head.token * args.out.stride + head.q_head * kDim + dim, value);
  if (!args.quantised.values) return;
  value = to_float(__float2bfloat16_rn(value));
  float most = fabsf(value);
#pragma unroll
  for (int offset = 16; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  if (lane == 0) of_warp[threadIdx.x / kWarp] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kJoinWarps; ++w) most = fmaxf(most, of_warp[w]);
  const float scale = f8_scale(most, args.quantised.powers);
  float four[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = __shfl_sync(~0u, value, lane / 4 * 4 + i);
  const int64_t to = int64_t{1} * head.token * args.heads.q + head.q_head;
  if (dim % 4 == 0)
    *reinterpret_cast<uint32_t*>(args.quantised.values + to * kDim + dim) =
        to_f8(four[0], four[1], four[2], four[3], 1.0f / scale);
  if (dim == 0) args.quantised.scales[to] = scale;
}

}  // namespace m2::ops::cuda
