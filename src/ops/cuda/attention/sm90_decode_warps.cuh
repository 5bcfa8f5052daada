#pragma once

#include "ops/cuda/attention/sm80_decode_lasting.cuh"
#include "ops/cuda/attention/sm90_decode.cuh"

namespace m2::ops::cuda {

// The step's decoded contexts: what each sequence has, and how many parts of all KV heads it and
// those before it have.
struct PartLine {
  int token[kMostLined], context[kMostLined], ends[kMostLined];

  // By the whole block.
  __device__ __forceinline__ void lay_out(const AttentionArgs& args) {
    const int lane = threadIdx.x % kWarp;
    for (int s = threadIdx.x; s < args.sequences; s += blockDim.x) {
      const int first = args.query_starts[s], next = args.query_starts[s + 1];
      const int length = args.context_lens[s];
      token[s] = first;
      context[s] = next - first == 1 ? length : 0;
      ends[s] = parts_of(context[s], args.heads.kv) * args.heads.kv;
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      int before = 0;
      for (int first = 0; first < args.sequences; first += kWarp) {
        const int s = first + lane;
        int sum = s < args.sequences ? ends[s] : 0;
#pragma unroll
        for (int offset = 1; offset < kWarp; offset *= 2) {
          const int other = __shfl_up_sync(~0u, sum, offset);
          if (lane >= offset) sum += other;
        }
        if (s < args.sequences) ends[s] = before + sum;
        before += __shfl_sync(~0u, sum, kWarp - 1);
      }
    }
    __syncthreads();
  }
  // Whether there are rows for the sequence's parts.
  __device__ __forceinline__ bool sends(int sequence, int group) const {
    return ends[sequence] * group <= kSentRows;
  }
  static __device__ __forceinline__ int parts_of(int context, int kv_heads) {
    const int pages = (context + kPage - 1) / kPage, each = pages_per_split(pages, kv_heads);
    return (pages + each - 1) / each;
  }
  // The item-th part of all, heads of a sequence one after another. All lanes of a warp call it.
  __device__ __forceinline__ DecodePart find(const AttentionArgs& args, int item) const {
    const int lane = threadIdx.x % kWarp;
    DecodePart of;
    of.there = false;
    of.sequence = of.head = of.part = of.token = of.context = of.pages = of.each = 0;
    of.begin = of.end = 0;
    for (int first = 0; first < args.sequences; first += kWarp) {
      const int s = first + lane;
      const unsigned beyond = __ballot_sync(~0u, s < args.sequences && ends[s] > item);
      if (!beyond) continue;
      of.sequence = first + __ffs(beyond) - 1;
      of.there = true;
      break;
    }
    if (!of.there) return of;
    of.token = token[of.sequence];
    of.context = context[of.sequence];
    of.pages = (of.context + kPage - 1) / kPage;
    of.each = pages_per_split(of.pages, args.heads.kv);
    const int parts = (of.pages + of.each - 1) / of.each;
    const int within = item - (of.sequence > 0 ? ends[of.sequence - 1] : 0);
    of.head = within / parts;
    of.part = within % parts;
    of.begin = of.part * of.each;
    of.end = min(of.pages, of.begin + of.each);
    return of;
  }
};

// A part's pages as one warp takes them: those of the warps of sm80_attention_decode one after
// another, from `begin` + warp on every fourth.
struct PageWalk {
  int first, page;  // of the walk's present warp; beyond the part's end when all are done
  __device__ __forceinline__ explicit PageWalk(const DecodePart& of)
      : first(of.begin), page(of.begin) {}
  __device__ __forceinline__ void next(const DecodePart& of) {
    page += kDecodeWarps;
    if (page < of.end) return;
    ++first;
    page = first < of.begin + kDecodeWarps ? first : of.end;
  }
};

// What one warp of sm80_attention_decode hands over of its pages.
struct Chain {
  Running state;  // with the sums of all lanes

  __device__ __forceinline__ void close() {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2)
        state.sum[h] += __shfl_xor_sync(~0u, state.sum[h], offset);
  }
};

// A warp has stored a part in the workspace; if it is the last of its head, the warp joins all.
__device__ __forceinline__ void count_and_join(const AttentionArgs& args, const DecodePart& of) {
  const int parts = (of.pages + of.each - 1) / of.each, group = args.heads.q / args.heads.kv;
  bool last = false;
  __syncwarp();
  if (threadIdx.x % kWarp == 0) {
    fence();
    last = atomicInc(&parts_left[of.sequence * args.heads.kv + of.head],
                     static_cast<unsigned>(parts - 1)) == static_cast<unsigned>(parts - 1);
    fence();
  }
  if (!__shfl_sync(~0u, last, 0)) return;
#pragma unroll 1
  for (int h = 0; h < group; ++h)
    join_parts(args, of.sequence, of.token, of.head * group + h, parts);
}

// sm80_attention_decode, to the same bytes, by warps on their own: each takes whole parts, one
// after another, and sends them (sent_parts.cuh), so that no warp waits for another until all is
// read; then warps join heads. Pages come by bulk copies, over the parts' borders; the first are
// asked for before the kernel in front has ended. Where parts are short and many, this is what
// their ends cost least. Every block has to be running. Bound: bandwidth of memory.
template <class Page>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, 2)
    sm90_attention_decode_warps(AttentionArgs args) {
  extern __shared__ __align__(128) uint8_t rings[];
  constexpr int kSlots = kDecodeSlots<Page>;
  __shared__ uint64_t full[kDecodeWarps][kSlots];
  __shared__ uint4 queries[kDecodeWarps][4][kWarp];  // each lane its own
  __shared__ PartLine line;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int group = args.heads.q / args.heads.kv;
  uint8_t* ring = rings + warp * kDecodeRing;
  if (lane == 0) {
    for (int slot = 0; slot < kSlots; ++slot) barrier_init(&full[warp][slot], 1);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  line.lay_out(args);

  // Parts that follow one another go to different blocks, whose first warps have them first.
  const int workers = static_cast<int>(gridDim.x) * kDecodeWarps;
  int item = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  DecodePart of = line.find(args, item), later = line.find(args, item + workers);
  // Lane l holds the id of the part's l-th page; of more pages one lane reads them one by one.
  const auto ids_of = [&](const DecodePart& part) {
    return part.begin + lane < part.end
               ? args.block_tables[part.sequence * args.table_stride + part.begin + lane]
               : 0;
  };
  int ids = ids_of(of), later_ids = ids_of(later);
  PageWalk asking(of), asking_later(later);
  int asked = 0, taken = 0;
  const auto ask = [&](const DecodePart& part, int part_ids, int page) {
    const int place = page - part.begin;
    int id = __shfl_sync(~0u, part_ids, place % kWarp);
    if (lane == 0) {
      if (place >= kWarp) id = args.block_tables[part.sequence * args.table_stride + page];
      const int slot = asked % kSlots;
      uint8_t* to = ring + slot * 2 * Page::kBytes;
      const int64_t at = (int64_t{1} * id * args.heads.kv + part.head) * Page::kBytes;
      barrier_expect(&full[warp][slot], 2 * Page::kBytes);
      bulk_copy(to, static_cast<const uint8_t*>(args.cache.k) + at, Page::kBytes, &full[warp][slot],
                once_policy());
      bulk_copy(to + Page::kBytes, static_cast<const uint8_t*>(args.cache.v) + at, Page::kBytes,
                &full[warp][slot], once_policy());
    }
    ++asked;
  };
  // Pages of the part and of the next, as there is room; `newest`: those of newest tokens, too.
  const auto ask_some = [&](bool newest) {
    while (asked - taken < kSlots) {
      if (asking.page < of.end) {
        if (!newest && asking.page == of.pages - 1) return;
        ask(of, ids, asking.page);
        asking.next(of);
      } else if (asking_later.page < later.end) {
        if (!newest && asking_later.page == later.pages - 1) return;
        ask(later, later_ids, asking_later.page);
        asking_later.next(later);
      } else {
        return;
      }
    }
  };
  ask_some(false);
  let_next_start();
  wait_for_previous();
  let_next_start();
  ask_some(true);

  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
#pragma unroll 1
  for (; of.there; item += workers) {
#pragma unroll
    for (int j = 0; j < 4; ++j) queries[warp][j][lane] = load_queries<Page>(args, of, j);
    Chain chains[kDecodeWarps];  // the last is the present one
#pragma unroll 1
    for (int c = 0; c < kDecodeWarps; ++c) {
#pragma unroll
      for (int i = 0; i + 1 < kDecodeWarps; ++i) chains[i] = chains[i + 1];
      Running& state = chains[kDecodeWarps - 1].state;
      state = Running();
#pragma unroll 1
      for (int page = of.begin + c; page < of.end; page += kDecodeWarps) {
        const int slot = taken % kSlots;
        barrier_wait(&full[warp][slot], taken / kSlots & 1);
        const uint8_t* at = ring + slot * 2 * Page::kBytes;
        const auto read = [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); };
        const auto query = [&](int j) { return load_again(&queries[warp][j][lane]); };
        // As attend_page() does it, with fewer registers.
        Page registers;
        float logits[4] = {}, factor[2];
        uint32_t weights[2];
        registers.load_keys(at, read);
        multiply_keys(registers, query, logits);
        registers.load_values(at + Page::kBytes, read);
        __syncwarp();  // the slot is free
        ++taken;
        ask_some(true);
        const int valid = of.context - page * kPage;
        if (valid < kPage) registers.clear_values_from(valid);
        weigh<Page>(logits, valid, log2_scale, state, factor, weights);
        add_values(registers, factor, weights, state);
      }
      chains[kDecodeWarps - 1].close();
    }

    // As HeadSums has it.
    float largest[2], sum[2] = {}, value[8][4] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = chains[0].state.largest[h];
#pragma unroll
      for (int w = 1; w < kDecodeWarps; ++w)
        largest[h] = fmaxf(largest[h], chains[w].state.largest[h]);
    }
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const Running& state = chains[w].state;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float factor = exp2f(state.largest[h] - largest[h]);  // 0 where there were no pages
        sum[h] = fmaf(state.sum[h], factor, sum[h]);
#pragma unroll
        for (int m = 0; m < 8; ++m)
#pragma unroll
          for (int r = h; r < 4; r += 2)
            value[m][r] = fmaf(state.values[m][r], factor, value[m][r]);
      }
    }
    const int g = lane / 4, t = lane % 4;
    if (line.sends(of.sequence, group)) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (2 * t + h >= group) break;
        uint4* const to = sent_parts + int64_t{1} * (item * group + 2 * t + h) * kSentWords;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int dim;
          const float4 four = Page::dims(value, i, h, dim);
          send_part_word(to + dim / 4, four.x, four.y, four.z, four.w);
        }
        if (g < 2) send_part_word(to + kDim / 4 + g, largest[h], sum[h], largest[h], sum[h]);
      }
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (2 * t + h >= group) break;
        const int64_t cell =
            (int64_t{1} * of.sequence * args.heads.q + of.head * group + 2 * t + h) * args.splits +
            of.part;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int dim;
          const float4 four = Page::dims(value, i, h, dim);
          *reinterpret_cast<float4*>(args.workspace + cell * kDim + dim) = four;
        }
        float* const totals =
            args.workspace + int64_t{1} * args.sequences * args.heads.q * args.splits * kDim;
        if (g < 2) totals[cell * 2 + g] = g ? sum[h] : largest[h];
      }
      count_and_join(args, of);
    }

    of = later;
    ids = later_ids;
    asking = asking_later;
    later = line.find(args, item + 2 * workers);
    later_ids = ids_of(later);
    asking_later = PageWalk(later);
    ask_some(true);
  }

  // Heads, those of the first sequences by the last blocks, which have fewer parts.
  for (int n = warp * static_cast<int>(gridDim.x) + static_cast<int>(gridDim.x - 1 - blockIdx.x);
       n < args.sequences * args.heads.q; n += workers) {
    const int sequence = n / args.heads.q, q_head = n % args.heads.q, head = q_head / group;
    const int parts = PartLine::parts_of(line.context[sequence], args.heads.kv);
    if (parts == 0 || !line.sends(sequence, group)) continue;
    const int begin = (sequence > 0 ? line.ends[sequence - 1] : 0) + head * parts;
    join_sent(args, line.token[sequence], q_head, begin * group + q_head % group, group, parts);
  }
}

}  // namespace m2::ops::cuda
