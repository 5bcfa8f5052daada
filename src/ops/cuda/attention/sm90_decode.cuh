#pragma once

#include "ops/cuda/attention/sent_parts.cuh"
#include "ops/cuda/hopper.cuh"

namespace m2::ops::cuda {

// Pages a warp has in shared memory or under way: two blocks a multiprocessor have 192 KB.
constexpr int kDecodeRing = 24 * 1024;  // a warp
template <class Page>
constexpr int kDecodeSlots = kDecodeRing / (2 * Page::kBytes);
constexpr int kDecodeRings = kDecodeWarps * kDecodeRing;

// Of few parts: each q head of each sequence has kMostSent rows.
constexpr int kMostSent = 32;
__device__ __forceinline__ bool sends_parts(const AttentionArgs& args, int parts) {
  return args.join && parts > 1 && parts <= kMostSent &&
         args.sequences * args.heads.q * kMostSent <= kSentRows;
}
__device__ __forceinline__ int sent_row(const AttentionArgs& args, const DecodePart& of, int h,
                                        int part) {
  const int q_head = of.head * (args.heads.q / args.heads.kv) + h;
  return (of.sequence * args.heads.q + q_head) * kMostSent + part;
}

// The block's part of its heads is sent: a warp a head.
__device__ __forceinline__ void send_part(const AttentionArgs& args, const DecodePart& of,
                                          const float* values, int warp_floats,
                                          const WarpTotals& totals) {
  const int lane = threadIdx.x % kWarp, group = args.heads.q / args.heads.kv;
  for (int h = threadIdx.x / kWarp; h < group; h += kDecodeWarps) {
    const HeadSums head(values, warp_floats, totals, h);
    uint4* const to = sent_parts + sent_row(args, of, h, of.part) * kSentWords;
    send_part_word(to + lane, head.value[0], head.value[1], head.value[2], head.value[3]);
    if (lane < 2)
      send_part_word(to + kDim / 4 + lane, head.largest, head.sum, head.largest, head.sum);
  }
}

// Each of the block's heads is joined by the block of one of the last parts, which are asked for
// last; use(h) for those of this warp. No block waits for one that begins after it but for these
// few.
template <class Use>
__device__ __forceinline__ void for_joined_heads(const AttentionArgs& args, const DecodePart& of,
                                                 int parts, Use use) {
  const int group = args.heads.q / args.heads.kv, warp = threadIdx.x / kWarp;
  for (int h = parts - 1 - of.part; h < group; h += parts)
    if (warp == kDecodeWarps - 1 - h / parts % kDecodeWarps) use(h);
}

// What the block's warps have handed over is left as its part, and the block that leaves the last
// one joins all of them. values: of each warp [8][kDim + 4], warp_floats apart.
__device__ __forceinline__ void leave_part(const AttentionArgs& args, const DecodePart& of,
                                           const float* values, int warp_floats,
                                           const WarpTotals& totals) {
  const int warp = threadIdx.x / kWarp, group = args.heads.q / args.heads.kv;
  store_heads(args, of, values, warp_floats, totals);
  if (!args.join || of.each >= of.pages) return;

  __shared__ bool last;
  const int parts = (of.pages + of.each - 1) / of.each;
  __syncthreads();
  if (threadIdx.x == 0) {
    fence();
    last = atomicInc(&parts_left[of.sequence * args.heads.kv + of.head],
                     static_cast<unsigned>(parts - 1)) == static_cast<unsigned>(parts - 1);
    fence();
  }
  __syncthreads();
  if (!last) return;
  for (int h = warp; h < group; h += kDecodeWarps)
    join_parts(args, of.sequence, of.token, of.head * group + h, parts);
}

// sm80_attention_decode, to the same bytes, with pages brought to shared memory by bulk copies some
// ahead: so few warps have enough under way, and pages are asked for before the kernel in front has
// ended, which writes nothing but the query and the newest token's page. Bound: bandwidth; for few
// tokens the latency of the query and of the last page.
template <class Page>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, 2)
    sm90_attention_decode(AttentionArgs args) {
  extern __shared__ __align__(128) uint8_t rings[];
  constexpr int kSlots = kDecodeSlots<Page>;
  __shared__ uint64_t full[kDecodeWarps][kSlots];
  const DecodePart of(args);
  if (!of.there) {
    // No kernel may end before the one in front of it has: its first block sees to that.
    if (of.part == 0 && of.head == 0 && of.sequence == 0) wait_for_previous();
    return;
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint8_t* ring = rings + warp * kDecodeRing;
  if (lane == 0) {
    for (int slot = 0; slot < kSlots; ++slot) barrier_init(&full[warp][slot], 1);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  __syncwarp();

  // Lane l holds the id of the warp's page 32 n + l, and of the one 32 later.
  const int32_t* table = args.block_tables + of.sequence * args.table_stride;
  const auto page_at = [&](int i) { return of.begin + warp + i * kDecodeWarps; };
  const auto id_of_lane = [&](int first) {
    const int page = page_at(first + lane);
    return page < of.end ? table[page] : 0;
  };
  int ids = id_of_lane(0), later_ids = id_of_lane(kWarp);
  const auto ask = [&](int i, int id) {
    if (lane != 0) return;
    const int slot = i % kSlots;
    uint8_t* to = ring + slot * 2 * Page::kBytes;
    const int64_t at = (int64_t{1} * id * args.heads.kv + of.head) * Page::kBytes;
    barrier_expect(&full[warp][slot], 2 * Page::kBytes);
    bulk_copy(to, static_cast<const uint8_t*>(args.cache.k) + at, Page::kBytes, &full[warp][slot],
              once_policy());
    bulk_copy(to + Page::kBytes, static_cast<const uint8_t*>(args.cache.v) + at, Page::kBytes,
              &full[warp][slot], once_policy());
  };
  const int parts = (of.pages + of.each - 1) / of.each;
  // Words that are looked at are in L2 by then.
  if (sends_parts(args, parts))
    for_joined_heads(args, of, parts, [&](int h) {
      const auto* const first =
          reinterpret_cast<const uint8_t*>(sent_parts + sent_row(args, of, h, 0) * kSentWords);
      for (int at = lane * 128; at < parts * kSentWords * 16; at += kWarp * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(first + at));
    });
  int asked = 0;
  for (; asked < kSlots && page_at(asked) < min(of.end, of.pages - 1); ++asked)
    ask(asked, __shfl_sync(~0u, ids, asked));
  if (args.heads.kv <= 2) let_next_start();  // a rank's o asks for few weights, and takes a while
  wait_for_previous();
  let_next_start();
  for (; asked < kSlots && page_at(asked) < of.end; ++asked)
    ask(asked, __shfl_sync(~0u, ids, asked));
  uint32_t q[8][2] = {};
  load_queries<Page>(args, of, q);

  Running state;
  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
  int slot = 0, round = 0;
  for (int i = 0; page_at(i) < of.end; ++i) {
    if (i > 0 && i % kWarp == 0) {
      ids = later_ids;
      later_ids = id_of_lane(i + kWarp);
    }
    barrier_wait(&full[warp][slot], round & 1);
    const uint8_t* at = ring + slot * 2 * Page::kBytes;
    Page registers;
    load_page(registers, at, at + Page::kBytes,
              [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); });
    __syncwarp();  // the slot is free
    if (page_at(i + kSlots) < of.end) {
      const int within = i % kWarp + kSlots;
      ask(i + kSlots, __shfl_sync(~0u, within < kWarp ? ids : later_ids, within % kWarp));
    }
    const int valid = of.context - page_at(i) * kPage;
    if (valid < kPage) registers.clear_values_from(valid);
    attend_page(registers, q, valid, log2_scale, state);
    if (++slot == kSlots) {
      slot = 0;
      ++round;
    }
  }
  __shared__ WarpTotals totals;
  auto* const sums = reinterpret_cast<float*>(rings);
  hand_over<Page>(state, sums, kDecodeRing / 4, totals);
  __syncthreads();
  if (!sends_parts(args, parts)) return leave_part(args, of, sums, kDecodeRing / 4, totals);
  send_part(args, of, sums, kDecodeRing / 4, totals);
  for_joined_heads(args, of, parts, [&](int h) {
    const int q_head = of.head * (args.heads.q / args.heads.kv) + h, row = sent_row(args, of, h, 0);
    parts <= 16 ? join_few_sent<16>(args, of.token, q_head, row, parts)
                : join_few_sent<32>(args, of.token, q_head, row, parts);
  });
}

}  // namespace m2::ops::cuda
