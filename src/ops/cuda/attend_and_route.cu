#include "ops/cuda/attend_and_route.h"
#include "ops/cuda/attention/pages.cuh"
#include "ops/cuda/attention/plan.h"
#include "ops/cuda/flow.cuh"
#include "ops/cuda/norm_row.cuh"

// One decoded token's way through the attention half of a layer, in one kernel. The chain of its
// operations is long and each does little: as kernels they spend most of their time waiting for one
// another while memory stands still. Here every multiprocessor keeps one stream of what it will
// need (its rows of q, k and v; its pages; its rows of o; its rows of the router's gate) coming
// into shared memory, in that order and never more than `window` bytes of it under way, since what
// the blocks say to one another comes behind whatever has been asked for before. Between the steps,
// blocks exchange numbers in words that carry the launch's number beside 32 bits of data (the
// LL protocol of NCCL): whoever needs a word reads it until its number is right, so that nothing
// needs a fence, a flag or a pause for all. Every sum has the order that the single operations give
// it.
namespace m2::ops::cuda {
namespace {

constexpr int kHidden = AttendShape::kHidden, kRotary = AttendShape::kRotary;
constexpr int kQHeads = AttendShape::kQHeads, kKvHeads = AttendShape::kKvHeads;
constexpr int kGroup = kQHeads / kKvHeads, kRouted = AttendShape::kExperts;
constexpr int kQ = kQHeads * kDim, kQkvRows = (kQHeads + 2 * kKvHeads) * kDim;
static_assert(AttendShape::kHeadDim == kDim && AttendShape::kBlock == kPage);
constexpr int kConsumers = kNormThreads;  // three warpgroups; a row of hidden is 8 columns a thread
constexpr int kWarpgroups = kConsumers / 128;
constexpr int kThreads = kConsumers + kWarp;

// A block's share: rows of the matrices.
constexpr int kBlockRows = kQkvRows / kAttendBlocks;      // 64: half a head
constexpr int kBlockORows = kHidden / kAttendBlocks;      // 24
constexpr int kBlockExperts = kRouted / kAttendBlocks;    // 2
constexpr int kStretches = kHidden / kTileStep;           // 24 of q, k and v
constexpr int kOStretches = kQ / kTileStep;               // 48 of o
constexpr int kRouteStretches = kHidden / kRouteStretch;  // 12

// Shared memory from a 1024-byte border on. What is loaded:
constexpr int kQkvLoad = kBlockRows * kFlowColumns, kQkvLoads = kHidden / kFlowColumns;
constexpr int kPagesAt = 0, kFirstSlots = 8, kPageSlot = 8192;  // over the first of q, k and v
constexpr int kOAt = kPagesAt + kFirstSlots * kPageSlot;        // and o over the rest
constexpr int kOStretch = 8;                                    // of K a load of o
constexpr int kOLoad = kBlockORows * kTileStep * kOStretch, kOLoads = kOStretches / kOStretch;
// Four more pages stand where the last of o comes to lie when pages have been read.
constexpr int kChainGroups = 3, kGroupSlots = 4, kPageSlots = kChainGroups * kGroupSlots;
constexpr int kOEarly = 4;
static_assert((kPageSlots - kFirstSlots) * kPageSlot <= (kOLoads - kOEarly) * kOLoad);
__device__ __forceinline__ int page_slot_at(int slot) {
  return slot < kFirstSlots ? kPagesAt + slot * kPageSlot
                            : kOAt + kOEarly * kOLoad + (slot - kFirstSlots) * kPageSlot;
}
// Stretches of a row of the gate, and of what it is multiplied with, begin in different banks.
constexpr int kGateStretch = kRouteStretch * 4 + 16;
constexpr int kGateAt = 0, kGateLoad = kBlockExperts * kHidden * 4;  // over the pages
constexpr int kGateBytes = kBlockExperts * kRouteStretches * kGateStretch;
// What blocks work in. Over the pages once they have been read:
constexpr int kOTokensAt = 25 * 1024;                            // o's input: [18][8][128] bytes
constexpr int kOGroups = kBlockORows * kOStretches / kFlowRows;  // 18 products of 64 x 128
constexpr int kOPartsAt = kOTokensAt + kOGroups * 8 * kTileStep;
constexpr int kNormedAt = kOPartsAt + kOStretches * kBlockORows * 4;
static_assert(kNormedAt + kRouteStretches * kGateStretch <= kOAt && kGateBytes <= kOTokensAt);
// Behind everything:
constexpr int kWorkAt = kOAt + kOLoads * kOLoad;
static_assert(kWorkAt >= kQkvLoads * kQkvLoad);
constexpr int kTokensAt = kWorkAt;                       // qkv's input: [3][8][128] bytes
constexpr int kPartsAt = kTokensAt + 3 * 8 * kTileStep;  // f32 [24][64]
constexpr int kResidualAt = kPartsAt + kStretches * kBlockRows * 4;  // bf16 [3072]
constexpr int kSharedBytes = kResidualAt + kHidden * 2 + 1024;
// Over tokens and parts of q, k and v:
constexpr int kQueryAt = kTokensAt;   // bf16 [6][128]
constexpr int kSquaresAt = kPartsAt;  // f32 [896]
constexpr int kJoined = 24;           // parts at once
constexpr int kJoinAt = kPartsAt;     // f32 [24][64]
constexpr int kSquares = (kQHeads + kKvHeads) * kDim / 8;
static_assert(kGroup * kDim * 2 <= kPartsAt - kTokensAt && kSquares * 4 <= kResidualAt - kPartsAt &&
              kJoined * kDim / 2 * 4 <= kResidualAt - kPartsAt);

// A word of an exchange: data, and the launch that wrote it.
constexpr int kMostChains = 4 * 32;        // of a q head
constexpr int kChainWords = kDim / 2 + 1;  // uint4 of two words: values, then largest and sum
struct Exchange {
  unsigned started;                     // blocks of all launches
  unsigned finished;                    // launches
  alignas(16) uint2 raw[kQkvRows / 2];  // the products q, k and v, pairs of bf16
  alignas(16) uint2 squares[kSquares];  // sums of the squares of eight
  alignas(16) uint4 chains[kQHeads][kMostChains][kChainWords];
  alignas(16) uint2 attended[kQ / 2];    // pairs of bf16
  alignas(16) uint2 delta[kHidden / 2];  // pairs of bf16
};
__device__ Exchange exchange;
// What a launch writes into words, and that L2 shall keep them: between two launches more weights
// pass through it than it holds, and a word that has to be fetched from memory first comes late.
struct Launch {
  uint32_t number;
  uint64_t keep;
};
__device__ __forceinline__ uint64_t keep_policy() {
  uint64_t policy = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
__device__ __forceinline__ void put(uint2* to, uint32_t data, const Launch& launch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.gpu.global.L2::cache_hint.v2.u32 [%0], {%1, %2}, %3;" ::"l"(to),
               "r"(data), "r"(launch.number), "l"(launch.keep)
               : "memory");
#endif
}
__device__ __forceinline__ void put(uint4* to, float a, float b, const Launch& launch) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("st.relaxed.gpu.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %2}, %4;" ::"l"(to),
               "r"(__float_as_uint(a)), "r"(launch.number), "r"(__float_as_uint(b)),
               "l"(launch.keep)
               : "memory");
#endif
}
__device__ __forceinline__ uint2 look(const uint2* at, const Launch& launch) {
  uint2 word = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.gpu.global.L2::cache_hint.v2.u32 {%0, %1}, [%2], %3;"
               : "=r"(word.x), "=r"(word.y)
               : "l"(at), "l"(launch.keep)
               : "memory");
#endif
  return word;
}
__device__ __forceinline__ uint4 look(const uint4* at, const Launch& launch) {
  uint4 words = {};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("ld.relaxed.gpu.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(at), "l"(launch.keep)
               : "memory");
#endif
  return words;
}
__device__ __forceinline__ bool has(const uint2& word, const Launch& launch) {
  return word.y == launch.number;
}
__device__ __forceinline__ bool has(const uint4& words, const Launch& launch) {
  return words.y == launch.number && words.w == launch.number;
}
// Reads kCount words, all at once, and those that are not this launch's again until they are. at(i)
// may be null.
template <int kCount, class Word, class At>
__device__ __forceinline__ void await(Word (&words)[kCount], const Launch& launch, At at) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (const Word* from = at(i)) words[i] = look(from, launch);
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    if (const Word* from = at(i))
      while (!has(words[i], launch)) words[i] = look(from, launch);
}

// Before that, of a thread's own: waits for one word, so that those who wait ask L2 for little.
template <class Word>
__device__ __forceinline__ void wait_for_word(const Word* at, const Launch& launch) {
  while (!has(look(at, launch), launch)) __nanosleep(20);
}

__device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}
__device__ __forceinline__ void fence_for_products() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

struct AttendMaps {
  CUtensorMap qkv;  // boxes of 64 rows
  CUtensorMap o;    // boxes of 24 rows, eight times 128 columns
};

// What is under way, oldest first: how many bytes, and the barrier and its phase that say when they
// are there. No more than there are places for pages, so that no barrier is in it twice.
struct UnderWay {
  static constexpr int kMost = kPageSlots;  // (a barrier's phase but one is over)
  uint32_t barrier[kMost], parity[kMost];
  int bytes[kMost];
  unsigned last[kPageSlots];  // each slot's last load, counted from 1
};

struct Shared {
  uint64_t qkv_full[kQkvLoads], qkv_empty[kQkvLoads];
  uint64_t page_full[kPageSlots], page_empty[kPageSlots];
  uint64_t pages_read, o_full[kOLoads], gate_full;
  UnderWay under_way;
  unsigned launch, role;
  float qkv_factor[kStretches];
  float o_scale[2][kOStretches], o_input_scale[kOStretches];
  float squares[kWarp];      // of 256 columns each
  float totals[kJoined][2];  // of parts that are joined
  float scratch[kWarp];
  float route[kBlockExperts][kRouteStretches];
  alignas(16) uint8_t newest[2][kDim * 2];  // the token's own key and value as the cache has them
};

// One of the four chains of pages of a part of the context, of one KV head: every fourth page, as a
// warp of the decode kernel takes them. A block has chains of one KV head only, with ever fewer
// pages.
struct Chain {
  int head, part, fourth, first, pages;
  __device__ __forceinline__ int page(int k) const { return first + 4 * k; }
};
struct Context {
  int tokens, pages, each, parts;
  __device__ __forceinline__ explicit Context(const AttendAndRoute& args) {
    const bool decodes = args.query_starts[1] - args.query_starts[0] == 1;
    tokens = decodes ? args.context_lens[0] : 0;
    pages = (tokens + kPage - 1) / kPage;
    each = pages_per_split(pages, kKvHeads);
    parts = (pages + each - 1) / each;
  }
  __device__ __forceinline__ int chains() const { return parts * 4 * kKvHeads; }
  __device__ __forceinline__ Chain chain(int i) const {
    const int part = i / (4 * kKvHeads), fourth = i / kKvHeads % 4, first = part * each + fourth;
    const int end = min(pages, part * each + each);
    return {i % kKvHeads, part, fourth, first, i < chains() ? max(0, (end - first + 3) / 4) : 0};
  }
};
// Three chains whose pages come in turn, for three groups of warps. A group has slots of its own,
// so that it never waits for a phase of a barrier before it has seen the one before.
struct Turns {
  int begin[kChainGroups], pages[kChainGroups];  // ever fewer
  __device__ __forceinline__ Turns(const Context& context, int i) {
#pragma unroll
    for (int c = 0; c < kChainGroups; ++c) {
      const Chain chain = context.chain(i + c * kAttendBlocks);
      begin[c] = chain.first;
      pages[c] = chain.pages;
    }
  }
  __device__ __forceinline__ int all() const {
    return pages[0] + pages[1] + pages[2];
  }
  // The group that the n-th page in the order in which they come is for, and which of its chain.
  __device__ __forceinline__ int2 turn(int n) const {
    const int m = n - 3 * pages[2], two = 2 * (pages[1] - pages[2]);
    if (m < 0) return {n % 3, n / 3};
    return m < two ? int2{m % 2, pages[2] + m / 2} : int2{0, pages[1] + m - two};
  }
  __device__ __forceinline__ int page(int2 turn) const {
    return (turn.x == 0 ? begin[0] : turn.x == 1 ? begin[1] : begin[2]) + 4 * turn.y;
  }
};

// Most bytes under way: about what memory's latency hides, since all that blocks tell one another
// would stand behind more.
constexpr int kWindow = 48 * 1024;

// Keeps what is under way below a number of bytes.
class Pace {
 public:
  __device__ __forceinline__ explicit Pace(UnderWay& under_way) : under_way_(under_way) {}
  // Before a load of so many bytes whose end the barrier's phase of that parity says.
  __device__ __noinline__ void begin(uint64_t* barrier, uint32_t parity, int bytes) {
    while (count_ == UnderWay::kMost || (count_ > 0 && bytes_ + bytes > kWindow)) wait_for_first();
    const int i = next_++ % UnderWay::kMost;
    under_way_.barrier[i] = shared_address(barrier);
    under_way_.parity[i] = parity;
    under_way_.bytes[i] = bytes;
    ++count_;
    bytes_ += bytes;
    barrier_expect(barrier, bytes);
  }

  // A load that has been asked for by another lane. Precondition: nothing else is under way.
  __device__ __forceinline__ void add(uint64_t* barrier, int bytes) {
    const int i = next_++ % UnderWay::kMost;
    under_way_.barrier[i] = shared_address(barrier);
    under_way_.parity[i] = 0;
    under_way_.bytes[i] = bytes;
    ++count_;
    bytes_ += bytes;
  }

  // How many loads there have been; and waits until the n-th of them is over.
  __device__ __forceinline__ unsigned begun() const { return next_; }
  __device__ __noinline__ void wait_for(unsigned n) {
    while (next_ - count_ < n) wait_for_first();
  }

 private:
  __device__ __forceinline__ void wait_for_first() {
    const int i = (next_ - count_) % UnderWay::kMost;
    barrier_wait(under_way_.barrier[i], under_way_.parity[i]);
    bytes_ -= under_way_.bytes[i];
    --count_;
  }

  UnderWay& under_way_;
  unsigned next_ = 0, count_ = 0;
  int bytes_ = 0;
};

// One warp, whose first lane asks for everything that the block will read, in the order in which it
// will. Many steps with little code: what runs once a launch waits for its instructions.
template <class Page>
__device__ __forceinline__ void load_all(const AttendAndRoute& args, const AttendMaps& maps,
                                         Shared& shared, uint32_t start, uint8_t* memory,
                                         int role) {
  Pace pace(shared.under_way);
  const int lane = threadIdx.x % kWarp;
  const Context context(args);
  const auto id_of_lane = [&](const Turns& turns, int first) {
    return first + lane < turns.all() ? args.block_tables[turns.page(turns.turn(first + lane))] : 0;
  };
  Turns turns(context, role);
  int ids = id_of_lane(turns, 0);
  const auto ask_for_page = [&](int slot, int64_t id) {
    uint64_t* full = &shared.page_full[slot];
    uint8_t* to = memory + page_slot_at(slot);
    const int64_t at = (id * kKvHeads + role % kKvHeads) * Page::kBytes;
    bulk_copy(to, static_cast<const uint8_t*>(args.cache.k) + at, Page::kBytes, full);
    bulk_copy(to + Page::kBytes, static_cast<const uint8_t*>(args.cache.v) + at, Page::kBytes,
              full);
  };
  if (lane == 0)
#pragma unroll 1
    for (int i = 0; i < kQkvLoads; ++i) {
      pace.begin(&shared.qkv_full[i], 0, kQkvLoad);
      tensor_copy_3d(start + i * kQkvLoad, &maps.qkv, 0, role * kBlockRows, i * 2,
                     &shared.qkv_full[i]);
    }
#pragma unroll 1
  for (int i = 0; i < kQkvLoads; ++i) barrier_wait(&shared.qkv_empty[i], 0);
  // The first pages, for which there is room: a lane a page, since one lane takes longer to ask for
  // a page (200 instructions, one after another) than memory to bring it.
  const int2 own_turn = turns.turn(lane);
  const bool own = lane < turns.all() && own_turn.y < kGroupSlots;
  const int own_slot = own_turn.x * kGroupSlots + own_turn.y;
  if (own) {
    barrier_expect(&shared.page_full[own_slot], 2 * Page::kBytes);
    ask_for_page(own_slot, ids);
  }
  const int asked = __popc(__ballot_sync(~0u, own));
  if (lane == 0) pace.wait_for(pace.begun());
#pragma unroll 1
  for (int n = 0; n < asked; ++n) {
    const int slot = __shfl_sync(~0u, own_slot, n);
    if (lane != 0) continue;
    pace.add(&shared.page_full[slot], 2 * Page::kBytes);
    shared.under_way.last[slot] = pace.begun();
  }
  int before[kChainGroups] = {};  // pages of each group's chains before
#pragma unroll 1
  for (int i = role; i < context.chains(); i += kChainGroups * kAttendBlocks) {
    if (i > role) turns = Turns(context, i);
#pragma unroll 1
    for (int n = i > role ? 0 : asked; n < turns.all(); ++n) {
      if (n % kWarp == 0 && (n > 0 || i > role)) ids = id_of_lane(turns, n);
      const int64_t id = __shfl_sync(~0u, ids, n % kWarp);
      if (lane != 0) continue;
      const int2 turn = turns.turn(n);
      const int c = turn.x, of_group = (c == 0   ? before[0]
                                        : c == 1 ? before[1]
                                                 : before[2]) +
                                       turn.y;
      const int slot = c * kGroupSlots + of_group % kGroupSlots, round = of_group / kGroupSlots;
      if (round > 0) {
        barrier_wait(&shared.page_empty[slot], (round - 1) & 1);
        pace.wait_for(shared.under_way.last[slot]);
      }
      pace.begin(&shared.page_full[slot], round & 1, 2 * Page::kBytes);
      shared.under_way.last[slot] = pace.begun();
      ask_for_page(slot, id);
    }
#pragma unroll
    for (int c = 0; c < kChainGroups; ++c) before[c] += turns.pages[c];
  }
  if (lane == 0) {
#pragma unroll 1
    for (int i = 0; i < kOLoads; ++i) {
      if (i == kOEarly) barrier_wait(&shared.pages_read, 0);
      pace.begin(&shared.o_full[i], 0, kOLoad);
      tensor_copy_3d(start + kOAt + i * kOLoad, &maps.o, 0, role * kBlockORows, i * kOStretch,
                     &shared.o_full[i]);
    }
    pace.begin(&shared.gate_full, 0, kGateLoad);
  }
  __syncwarp();
  static_assert(kBlockExperts * kRouteStretches <= kWarp);
  if (lane < kBlockExperts * kRouteStretches)
    bulk_copy(memory + kGateAt + lane * kGateStretch,
              args.gate + role * kBlockExperts * kHidden + lane * kRouteStretch, kRouteStretch * 4,
              &shared.gate_full);
}

__device__ __forceinline__ float2 floats_of(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

// The consumers' sum over their block, as block_sum() has it.
__device__ __forceinline__ float consumers_sum(float value, float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  meet();
  return warp_sum(lane < kConsumers / kWarp ? scratch[lane] : 0.0f);
}

// The weighted sum of the experts' results, added to the residual, and its norm, quantised: every
// block makes the whole row for itself, as combine_and_norm does.
__device__ __forceinline__ void sum_experts(const AttendAndRoute& args, Shared& shared,
                                            uint8_t* memory, const uint4& norm, float weight_scale,
                                            int role) {
  using Pack = Pack8<__nv_bfloat16>;
  constexpr int kAhead = 8;
  const ExpertsLeft& left = args.before;
  const int thread = threadIdx.x;
  Pack kept = static_cast<const Pack*>(args.residual)[thread];
  float sum[8] = {};
#pragma unroll 1
  for (int first = 0; first < left.top; first += kAhead) {
    Pack result[kAhead];
    float weight[kAhead];
    bool there[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int pair = min(first + i, left.top - 1);
      result[i] = static_cast<const Pack*>(left.results)[pair * kConsumers + thread];
      weight[i] = left.weights[pair];
      there[i] = first + i < left.top && left.ids[pair] >= 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (there[i])
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[c] = fmaf(weight[i], to_float(result[i].values[c]), sum[c]);
  }
  const float squares = add_to_residual(kept, sum);
  reinterpret_cast<Pack*>(memory + kResidualAt)[thread] = kept;
  if (role == kAttendBlocks - 1 && thread < left.top + 2) {
    left.done[thread] = 0;  // as many as clear_counters() clears
    if (thread == 0) {
      *left.next_tile = 0;
      atomicAdd(left.posted, 1u);
    }
  }
  const float mean = consumers_sum(squares, shared.scratch) / static_cast<float>(kHidden);
  const float factor = 1.0f / sqrtf(mean + args.eps);
  const uint32_t words[4] = {norm.x, norm.y, norm.z, norm.w};
  float value[8];
  float most = 0.0f;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const float2 by = floats_of(words[c / 2]);
    const float normed = to_float(kept.values[c]) * factor * (c % 2 ? by.y : by.x);
    value[c] = to_float(__float2bfloat16_rn(normed));
    most = fmaxf(most, fabsf(value[c]));
  }
#pragma unroll
  for (int offset = 8; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float scale = f8_scale(most, args.quantised.powers), inverse = 1.0f / scale;
  const int s = thread / 16, piece = thread % 16 / 2;
  *reinterpret_cast<uint2*>(memory + kTokensAt + s / 8 * (8 * kTileStep) + s % 8 * kTileStep +
                            (piece ^ (s % 8)) * 16 + thread % 2 * 8) = {
      to_f8(value[0], value[1], value[2], value[3], inverse),
      to_f8(value[4], value[5], value[6], value[7], inverse)};
  if (thread % 16 == 0) shared.qkv_factor[s] = scale * weight_scale;
}

// The block's 64 rows of q, k and v. Tokens stand in the eight columns of an instruction as eight
// stretches of one token: stretch s in row s % 8 of operand s / 8, so its sums are column s % 8.
__device__ __forceinline__ void multiply_qkv(const AttendAndRoute& args, Shared& shared,
                                             uint32_t start, uint8_t* memory, int role,
                                             const Launch& launch) {
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp % 4;
  const int warpgroup = thread / 128;
  auto* parts = reinterpret_cast<float*>(memory + kPartsAt);
#pragma unroll 1
  for (int i = warpgroup; i < kQkvLoads; i += kWarpgroups) {
    barrier_wait(&shared.qkv_full[i], 0);
    float d[2][4];
    wgmma_begin();
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_64xNx32<8>(
            d[half], operand(start + i * kQkvLoad + half * (kBlockRows * kTileStep) + k * 32),
            operand(start + kTokensAt + (2 * i + half) / 8 * (8 * kTileStep) + k * 32), k > 0);
    wgmma_finish();
    barrier_arrive(&shared.qkv_empty[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int stretch = 2 * i + half, column = stretch % 8, row = warp * 16 + lane / 4;
      if (lane % 4 != column / 2) continue;
      // column % 2 == half: two stretches of a load stand side by side
      parts[stretch * kBlockRows + row] = d[half][half];
      parts[stretch * kBlockRows + row + 8] = d[half][2 + half];
    }
  }
  meet();
  if (thread >= kBlockRows) return;
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kStretches; ++s)
    total = fmaf(parts[s * kBlockRows + thread], shared.qkv_factor[s], total);
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  const int row = role * kBlockRows + thread;
  if (lane % 2 == 0) put(&exchange.raw[row / 2], bits | next << 16, launch);
  // Squares of eight neighbours, added up as the norm's threads do.
  const float value = __uint_as_float(bits << 16);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float of = __shfl_sync(~0u, value, lane / 8 * 8 + i);
    squares = fmaf(of, of, squares);
  }
  if (lane % 8 == 0 && row < kSquares * 8)
    put(&exchange.squares[row / 8], __float_as_uint(squares), launch);
}

// What of the query, the key and the value a thread needs that no kernel right in front writes: two
// neighbouring dims.
struct Early {
  uint32_t q_weights, k_weights;
  float2 cosine, sine;
  int slot;
  __device__ __forceinline__ Early(const AttendAndRoute& args, int head) {
    constexpr int kPairs = kDim / 2;
    const int pair = threadIdx.x % kPairs, turn = pair % (kRotary / 4);
    q_weights = static_cast<const uint32_t*>(args.q_norm)[head * kGroup * kPairs + threadIdx.x];
    k_weights = static_cast<const uint32_t*>(args.k_norm)[head * kPairs + pair];
    cosine = reinterpret_cast<const float2*>(args.angles)[turn];
    sine = reinterpret_cast<const float2*>(args.angles)[kRotary / 4 + turn];
    slot = args.slots[0];
  }
};

// Two neighbouring dims of a head, normed and turned. Dims below 64 stand in one warp, a pair a
// lane.
__device__ __forceinline__ float2 norm_and_turn(float2 value, float factor, uint32_t weights,
                                                const Early& early, int dim) {
  const float2 by = floats_of(weights);
  value.x = value.x * factor * by.x;
  value.y = value.y * factor * by.y;
  const float2 other = {__shfl_xor_sync(~0u, value.x, kRotary / 4),
                        __shfl_xor_sync(~0u, value.y, kRotary / 4)};
  if (dim >= kRotary) return value;
  // The product with the other dim is rounded, in both halves: as qk_whole_kernel has it.
  const float sign = dim < kRotary / 2 ? -1.0f : 1.0f;
  return {__fmaf_rn(value.x, early.cosine.x, __fmul_rn(other.x, sign * early.sine.x)),
          __fmaf_rn(value.y, early.cosine.y, __fmul_rn(other.y, sign * early.sine.y))};
}

// The queries of the block's KV head into shared memory; and, by who attends to the newest page,
// the token's key and value, to the cache too.
template <class Page>
__device__ __forceinline__ void make_queries(const AttendAndRoute& args, Shared& shared,
                                             uint8_t* memory, int head, bool newest,
                                             const Early& early, const Launch& launch) {
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kPairs = kDim / 2;
  const bool is_key = newest && thread < kPairs, is_value = newest && thread / kPairs == 1;
  const int key_at = (kQHeads + head) * kPairs + thread;  // of pairs
  const int value_at = (kQHeads + kKvHeads + head) * kPairs + thread - kPairs;
  constexpr int kTiles = kQkvRows / kBlockRows, kNormedTiles = kSquares / 8;
  if (thread < kNormedTiles)
    wait_for_word(&exchange.squares[thread * 8 + 7], launch);
  else if (thread < kTiles && newest)
    wait_for_word(&exchange.raw[thread * (kBlockRows / 2)], launch);
  meet();
  uint2 word[5];
  await(word, launch, [&](int i) -> const uint2* {
    if (i == 0) return &exchange.raw[head * kGroup * kPairs + thread];
    if (i == 1) return is_key || is_value ? &exchange.raw[is_key ? key_at : value_at] : nullptr;
    const int at = thread + (i - 2) * kConsumers;
    return at < kSquares ? &exchange.squares[at] : nullptr;
  });
  auto* squares = reinterpret_cast<float*>(memory + kSquaresAt);
#pragma unroll
  for (int i = 2; i < 5; ++i)
    if (const int at = thread + (i - 2) * kConsumers; at < kSquares)
      squares[at] = __uint_as_float(word[i].x);
  meet();
  constexpr int kQSums = kQ / 256, kSums = kSquares / kWarp;
#pragma unroll 1
  for (int i = warp; i < kSums; i += kConsumers / kWarp) {
    const float sum = warp_sum(squares[i * kWarp + lane]);
    if (lane == 0) shared.squares[i] = sum;
  }
  meet();
  const float of_lane = lane < kSums ? shared.squares[lane] : 0.0f;
  const float q_sum = warp_sum(lane < kQSums ? of_lane : 0.0f);
  const float k_sum = warp_sum(lane < kQSums ? 0.0f : of_lane);
  const auto factor_of = [&](float sum, int width) {
    const float mean = sum / static_cast<float>(width);
    return 1.0f / sqrtf(mean + args.eps);
  };
  const int dim = thread % kPairs * 2;
  const float2 q =
      norm_and_turn(floats_of(word[0].x), factor_of(q_sum, kQ), early.q_weights, early, dim);
  reinterpret_cast<uint32_t*>(memory + kQueryAt)[thread] = pack_bf16(q.x, q.y);
  if (newest && thread < 2 * kPairs) {
    const float2 raw = floats_of(word[1].x);
    const float2 turned =
        norm_and_turn(raw, factor_of(k_sum, kKvHeads * kDim), early.k_weights, early, dim);
    const float2 value = is_key ? turned : raw;
    const int slot = early.slot;
    const int64_t cell =
        ((slot / kPage * int64_t{1} * kKvHeads + head) * kPage + slot % kPage) * kPairs + dim / 2;
    void* cache = is_key ? args.cache.k : args.cache.v;
    uint8_t* own = shared.newest[is_key ? 0 : 1];
    if (Page::kBytes == kPage * kDim * 2) {
      const uint32_t pair = is_key ? pack_bf16(value.x, value.y) : word[1].x;
      reinterpret_cast<uint32_t*>(own)[dim / 2] = pair;
      if (slot >= 0) static_cast<uint32_t*>(cache)[cell] = pair;
    } else {
      const float scale = is_key ? args.cache.k_scale : args.cache.v_scale;
      const uint16_t pair =
          __nv_cvt_float2_to_fp8x2({value.x / scale, value.y / scale}, __NV_SATFINITE, __NV_E4M3);
      reinterpret_cast<uint16_t*>(own)[dim / 2] = pair;
      if (slot >= 0) static_cast<uint16_t*>(cache)[cell] = pair;
    }
  }
  meet();
}

// The chains of four of twelve warps. Each takes a page's keys of four, and leaves the products
// where the keys were; then all take the values of the four pages, two tiles of 16 dims each.
constexpr int kChainWarps = 4;
template <class Page>
constexpr bool kWide = Page::kBytes == kPage* kDim * 2;  // BF16
// The pair of dims whose sums are word `word` of the first or second half of a chain's words.
template <class Page>
__device__ __forceinline__ int pair_of_word(int half, int word) {
  const int warp = word / 8, g = word % 8;
  return kWide<Page> ? half * (kDim / 4) + g * 4 + warp : g * 8 + 2 * warp + half;
}
template <class Page>
__device__ __forceinline__ void attend_chains(const AttendAndRoute& args, Shared& shared,
                                              uint8_t* memory, const Context& context, int role,
                                              int warp, const Launch& launch) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int c = warp / kChainWarps, mine = warp % kChainWarps;  // group, and of its warps
  uint4 q[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (g < kGroup) q[j] = Page::load_query(memory + kQueryAt + g * kDim * 2, j);
  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
  const auto read = [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); };
  int before = 0;  // pages of the group's chains before
#pragma unroll 1
  for (int i = role; i + c * kAttendBlocks < context.chains(); i += kChainGroups * kAttendBlocks) {
    const Chain chain = context.chain(i + c * kAttendBlocks);
    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {}, values[2][4] = {};
#pragma unroll 1
    for (int first = 0; first < chain.pages; first += kChainWarps) {
      const int there = min(kChainWarps, chain.pages - first);
      const auto slot_of = [&](int k) {
        return c * kGroupSlots + (before + first + k) % kGroupSlots;
      };
      if (mine < there) {
        const int slot = slot_of(mine);
        uint8_t* at = memory + page_slot_at(slot);
        barrier_wait(&shared.page_full[slot], (before + first + mine) / kGroupSlots & 1);
        if (chain.page(first + mine) == context.pages - 1) {
          // The row of the token itself, which memory has not or not yet.
          constexpr int kRow = Page::kBytes / kPage;
          uint8_t* row = at + (context.tokens - 1) % kPage * kRow;
#pragma unroll
          for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int byte = lane * 4; byte < kRow; byte += kWarp * 4)
              *reinterpret_cast<uint32_t*>(row + half * Page::kBytes + byte) =
                  *reinterpret_cast<const uint32_t*>(shared.newest[half] + byte);
          __syncwarp();
        }
        Page page;
        page.load_keys(at, read);
        float logits[4] = {};
        multiply_keys(
            page, [&](int j) { return q[j]; }, logits);
        __syncwarp();
        reinterpret_cast<float4*>(at)[lane] = {logits[0], logits[1], logits[2], logits[3]};
      }
      asm volatile("bar.sync %0, %1;" ::"r"(3 + c), "n"(kChainWarps * kWarp) : "memory");
      float weight[kChainWarps][4], factor[kChainWarps][2], top[kChainWarps][2];
#pragma unroll
      for (int k = 0; k < kChainWarps; ++k) {
        float4 logits = {};
        if (k < there)
          logits = reinterpret_cast<const float4*>(memory + page_slot_at(slot_of(k)))[lane];
        const int valid = k < there ? context.tokens - chain.page(first + k) * kPage : 0;
        weight[k][0] = g < valid ? logits.x * log2_scale : -INFINITY;
        weight[k][1] = g < valid ? logits.y * log2_scale : -INFINITY;
        weight[k][2] = g + 8 < valid ? logits.z * log2_scale : -INFINITY;
        weight[k][3] = g + 8 < valid ? logits.w * log2_scale : -INFINITY;
        top[k][0] = fmaxf(weight[k][0], weight[k][2]);
        top[k][1] = fmaxf(weight[k][1], weight[k][3]);
      }
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2)
#pragma unroll
        for (int k = 0; k < kChainWarps; ++k)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            top[k][h] = fmaxf(top[k][h], __shfl_xor_sync(~0u, top[k][h], offset));
#pragma unroll
      for (int k = 0; k < kChainWarps; ++k)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float now = fmaxf(top[k][h], largest[h]);
          factor[k][h] = exp2f(largest[h] - now);  // the first page has a valid key
          largest[h] = now;
          weight[k][h] = exp2f(weight[k][h] - now);
          weight[k][2 + h] = exp2f(weight[k][2 + h] - now);
          sum[h] = sum[h] * factor[k][h] + (weight[k][h] + weight[k][2 + h]);
        }
#pragma unroll
      for (int k = 0; k < kChainWarps; ++k) {
        if (k >= there) break;
        const uint32_t b0 = transpose8x8(Page::pack(weight[k][0], weight[k][1]));
        const uint32_t b1 = transpose8x8(Page::pack(weight[k][2], weight[k][3]));
        const int slot = slot_of(k);
        const uint8_t* at = memory + page_slot_at(slot) + Page::kBytes;
        // The two tiles' words alone, in the places of a page's first two tiles.
        Page page;
        page.load_values(at + mine * 4, [](const uint8_t* from) {
          return uint4{*reinterpret_cast<const uint32_t*>(from), 0, 0, 0};
        });
        const int valid = context.tokens - chain.page(first + k) * kPage;
        if (valid < kPage) page.clear_values_from(valid);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int r = 0; r < 4; ++r) values[m][r] *= factor[k][r % 2];
          uint32_t a[4];
          page.values(m, a);
          Page::multiply(values[m], a, b0, b1);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.page_empty[slot]);
      }
    }
    before += chain.pages;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2)
        sum[h] += __shfl_xor_sync(~0u, sum[h], offset);
    if (2 * t < kGroup)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        uint4* to = exchange.chains[chain.head * kGroup + 2 * t + h][chain.part * 4 + chain.fourth];
        if (g == 0 && mine == 0) put(&to[kDim / 2], largest[h], sum[h], launch);
          // Pairs of neighbouring dims: of both tiles (BF16), or of a tile's rows (FP8). Lanes
          // write neighbouring words.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float first = kWide<Page> ? values[0][h + 2 * half] : values[half][h];
          const float second = kWide<Page> ? values[1][h + 2 * half] : values[half][h + 2];
          put(&to[half * (kDim / 4) + mine * 8 + g], first, second, launch);
        }
      }
    __syncwarp();
  }
  __syncwarp();
  if (lane == 0) barrier_arrive(&shared.pages_read);
}

// Joins the chains of every part and the parts of half a q head: a warp a part, two dims a lane;
// then a thread a dim. `half` of head `half / 2`.
constexpr int kJoinBlocks = 2 * kQHeads;
template <class Page>
__device__ __forceinline__ void join(const AttendAndRoute& args, Shared& shared, uint8_t* memory,
                                     const Context& context, int half, const Launch& launch) {
  constexpr int kDims = kDim / 2, kAhead = 8;
  auto* joined = reinterpret_cast<float*>(memory + kJoinAt);
  // Of threads that join parts, neighbours have neighbouring dims (FP8: pairs of them).
  const int thread = threadIdx.x, mine = (thread / 2 % 4 * 8 + thread / 8) * 2 + thread % 2;
  const int lane = thread % kWarp, warp = thread / kWarp;
  float largest = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll 1
  for (int first = 0; first < context.parts; first += kJoined) {
    if (first > 0) meet();
#pragma unroll 1
    for (int part = warp; part < min(kJoined, context.parts - first); part += kConsumers / kWarp) {
      const auto* from = exchange.chains[half / 2][(first + part) * 4];
      if (lane < 4) wait_for_word(from + lane * kChainWords + kDims, launch);
      __syncwarp();
      uint4 words[8];
      await(words, launch, [&](int w) -> const uint4* {
        return from + w % 4 * kChainWords + (w < 4 ? half % 2 * kWarp + lane : kDims);
      });
      float top = __uint_as_float(words[4].x);
#pragma unroll
      for (int w = 1; w < 4; ++w) top = fmaxf(top, __uint_as_float(words[4 + w].x));
      float part_sum = 0.0f;
      float2 both = {};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float factor = exp2f(__uint_as_float(words[4 + w].x) - top);
        part_sum = fmaf(__uint_as_float(words[4 + w].z), factor, part_sum);
        both.x = fmaf(__uint_as_float(words[w].x), factor, both.x);
        both.y = fmaf(__uint_as_float(words[w].z), factor, both.y);
      }
      reinterpret_cast<float2*>(joined + part * kDims)[lane] = both;
      if (lane == 0) {
        shared.totals[part][0] = top;
        shared.totals[part][1] = part_sum;
      }
    }
    meet();
    if (thread >= kDims) continue;
    if (context.each >= context.pages) {
      sum = shared.totals[0][1];
      value = joined[mine];
      continue;
    }
#pragma unroll 1
    for (int group = 0; group < min(kJoined, context.parts - first); group += kAhead) {
      const int there = min(kAhead, context.parts - first - group);
      float top = largest;
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (i < there) top = fmaxf(top, shared.totals[group + i][0]);
      const float before = exp2f(largest - top);
      sum *= before;
      value *= before;
      largest = top;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (i >= there) break;
        const float factor = exp2f(shared.totals[group + i][0] - top);
        sum = fmaf(shared.totals[group + i][1], factor, sum);
        value = fmaf(joined[(group + i) * kDims + mine], factor, value);
      }
    }
  }
  if (thread >= kDims) return;
  value = context.parts > 0 ? value * (args.cache.v_scale / sum) : 0.0f;
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  if (lane % 2 == 0)
    put(&exchange.attended[half / 2 * kDims + pair_of_word<Page>(half % 2, mine / 2)],
        bits | next << 16, launch);
}

// The block's 24 rows of o. An instruction's 64 rows are eight rows of eight different places: 1 KB
// of shared memory each, three for a stretch of 128 columns; the eight columns of its other operand
// are the stretches of these places, and what counts of the sums are those of a place with its own
// stretch.
template <class Page>
__device__ __forceinline__ void multiply_o(const AttendAndRoute& args, Shared& shared,
                                           uint32_t start, uint8_t* memory, int role,
                                           const Launch& launch) {
  constexpr int kPlaces = kBlockORows / 8;
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp % 4;
  const int warpgroup = thread / 128;
  if (thread < kJoinBlocks)
    wait_for_word(
        &exchange.attended[thread / 2 * (kDim / 2) + pair_of_word<Page>(thread % 2, kWarp - 1)],
        launch);
  meet();
  uint4 words[4];  // 16 dims: an eighth of a head
  await(words, launch, [&](int i) -> const uint4* {
    return reinterpret_cast<const uint4*>(exchange.attended) + thread * 4 + i;
  });
  float value[16];
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float2 both = floats_of(i % 2 ? words[i / 2].z : words[i / 2].x);
    value[2 * i] = both.x;
    value[2 * i + 1] = both.y;
    most = fmaxf(most, fmaxf(fabsf(both.x), fabsf(both.y)));
  }
#pragma unroll
  for (int offset = 4; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float scale = f8_scale(most, args.quantised.powers), inverse = 1.0f / scale;
  const int stretch = thread / 8, piece = thread % 8;
  if (piece == 0) shared.o_input_scale[stretch] = scale;
  uint4 eights;
  eights.x = to_f8(value[0], value[1], value[2], value[3], inverse);
  eights.y = to_f8(value[4], value[5], value[6], value[7], inverse);
  eights.z = to_f8(value[8], value[9], value[10], value[11], inverse);
  eights.w = to_f8(value[12], value[13], value[14], value[15], inverse);
#pragma unroll
  for (int p = 0; p < kPlaces; ++p) {
    const int place = stretch * kPlaces + p, column = place % 8;
    *reinterpret_cast<uint4*>(memory + kOTokensAt + place / 8 * (8 * kTileStep) +
                              column * kTileStep + (piece ^ column) * 16) = eights;
  }
  fence_for_products();
  meet();
  auto* parts = reinterpret_cast<float*>(memory + kOPartsAt);
  const int row = lane / 4;
  // Two loads' products under way; the code stays short.
  constexpr int kAtOnce = 2;
#pragma unroll 1
  for (int first = 0; first < kOLoads; first += kAtOnce) {
    float d[kAtOnce][4];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) barrier_wait(&shared.o_full[first + i], 0);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int group = (first + i) * kWarpgroups + warpgroup;
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_64xNx32<8>(d[i], operand(start + kOAt + group * (kFlowRows * kTileStep) + k * 32),
                         operand(start + kOTokensAt + group * (8 * kTileStep) + k * 32), k > 0);
    }
    wgmma_finish();
    if (lane % 4 == warp)
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = ((first + i) * kWarpgroups + warpgroup) * 8 + 2 * warp + half;
          parts[place / kPlaces * kBlockORows + place % kPlaces * 8 + row] = d[i][3 * half];
        }
  }
  meet();
  if (thread >= kWarp) return;
  const int mine = min(lane, kBlockORows - 1), first_row = role * kBlockORows;
  const float* scales = shared.o_scale[(first_row + mine) / 128 - first_row / 128];
  float total = 0.0f;
#pragma unroll 8
  for (int s = 0; s < kOStretches; ++s)
    total = fmaf(parts[s * kBlockORows + mine], shared.o_input_scale[s] * scales[s], total);
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  if (lane % 2 == 0 && lane < kBlockORows)
    put(&exchange.delta[(first_row + lane) / 2], bits | next << 16, launch);
}

// residual += o's output, and its norm, by every block for itself; each of the first 24 writes 128
// columns.
__device__ __forceinline__ void norm_row(const AttendAndRoute& args, Shared& shared,
                                         uint8_t* memory, int role, const Launch& launch) {
  using Pack = Pack8<__nv_bfloat16>;
  const int thread = threadIdx.x;
  float by[8];
  load_weights(args.norm, DType::bf16, thread * 8, by);
  if (thread < kAttendBlocks)
    wait_for_word(&exchange.delta[thread * (kBlockORows / 2) + kBlockORows / 2 - 1], launch);
  meet();
  uint4 words[2];
  await(words, launch, [&](int i) -> const uint4* {
    return reinterpret_cast<const uint4*>(exchange.delta) + thread * 2 + i;
  });
  Pack kept = reinterpret_cast<const Pack*>(memory + kResidualAt)[thread];
  const uint32_t pairs[4] = {words[0].x, words[0].z, words[1].x, words[1].z};
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float2 delta = floats_of(pairs[i / 2]);
    kept.values[i] = __float2bfloat16_rn(to_float(kept.values[i]) + (i % 2 ? delta.y : delta.x));
    const float value = to_float(kept.values[i]);
    squares = fmaf(value, value, squares);
  }
  const float mean = consumers_sum(squares, shared.scratch) / static_cast<float>(kHidden);
  const float factor = 1.0f / sqrtf(mean + args.eps);
  float normed[8];
#pragma unroll
  for (int i = 0; i < 8; ++i)
    normed[i] = to_float(from_float<__nv_bfloat16>(to_float(kept.values[i]) * factor * by[i]));
  auto* to = reinterpret_cast<float4*>(memory + kNormedAt + thread / kWarp * kGateStretch) +
             thread % kWarp * 2;
  to[0] = {normed[0], normed[1], normed[2], normed[3]};
  to[1] = {normed[4], normed[5], normed[6], normed[7]};
  if (thread / 16 == role) {
    static_cast<Pack*>(args.residual)[thread] = kept;
    store_normed(kept, by, factor, static_cast<__nv_bfloat16*>(args.hidden), thread, 0, kHidden,
                 args.quantised);
  }
  meet();
}

// The router's logits of the block's experts: a lane a stretch of an expert, since a stretch is
// summed column by column; four stretches of both experts a warp.
__device__ __forceinline__ void route(const AttendAndRoute& args, Shared& shared, uint8_t* memory,
                                      int role) {
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kEach = 4;
  static_assert(kRouteStretch == 8 * kWarp);
  if (warp >= kRouteStretches / kEach) return;
  barrier_wait(&shared.gate_full, 0);
  if (lane < kEach * kBlockExperts) {
    const int expert = lane / kEach, stretch = warp * kEach + lane % kEach;
    const auto* gate = reinterpret_cast<const float4*>(
        memory + kGateAt + (expert * kRouteStretches + stretch) * kGateStretch);
    const auto* x = reinterpret_cast<const float4*>(memory + kNormedAt + stretch * kGateStretch);
    float sum = 0.0f;
#pragma unroll 8
    for (int c = 0; c < kRouteStretch / 4; ++c) {
      const float4 a = x[c], b = gate[c];
      sum = fmaf(a.x, b.x, sum);
      sum = fmaf(a.y, b.y, sum);
      sum = fmaf(a.z, b.z, sum);
      sum = fmaf(a.w, b.w, sum);
    }
    shared.route[expert][stretch] = sum;
  }
  asm volatile("bar.sync 2, %0;" ::"n"(kRouteStretches / kEach * kWarp) : "memory");
  if (thread >= kBlockExperts) return;
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kRouteStretches; ++s) total += shared.route[thread][s];
  args.logits[role * kBlockExperts + thread] = total;
}

// Bytes: 25.2 MB of q, k and v, 18.9 of o, 3.1 of the gate, and the live K and V. Bound: bandwidth,
// and the latency of five exchanges. The last of the launch's blocks to start have no role: one
// multiprocessor may be kept by the kernel in front.
template <class Page>
__global__ void __launch_bounds__(kThreads, 1)
    sm90_attend_and_route(const __grid_constant__ AttendAndRoute args,
                          const __grid_constant__ AttendMaps maps) {
  extern __shared__ uint8_t attend_memory[];
  __shared__ Shared shared;
  const uint32_t start = (shared_address(attend_memory) + 1023) & ~1023u;
  uint8_t* memory = attend_memory + (start - shared_address(attend_memory));
  const int thread = threadIdx.x;
  if (thread == 0) {
    const uint64_t keep = keep_policy();
    unsigned before = 0, place = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("atom.relaxed.gpu.global.add.L2::cache_hint.u32 %0, [%1], 1, %2;"
                 : "=r"(place)
                 : "l"(&exchange.started), "l"(keep)
                 : "memory");
    asm volatile("ld.relaxed.gpu.global.L2::cache_hint.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(&exchange.finished), "l"(keep)
                 : "memory");
#endif
    shared.launch = before + 1;
    shared.role = place - before * gridDim.x;
    prefetch_map(&maps.qkv);
    prefetch_map(&maps.o);
  }
  if (thread < kQkvLoads) {
    barrier_init(&shared.qkv_full[thread], 1);
    barrier_init(&shared.qkv_empty[thread], 128);
  }
  if (thread < kPageSlots) {
    barrier_init(&shared.page_full[thread], 1);
    barrier_init(&shared.page_empty[thread], kChainWarps);
  }
  if (thread < kOLoads) barrier_init(&shared.o_full[thread], 1);
  if (thread == 0) {
    barrier_init(&shared.pages_read, kChainGroups * kChainWarps);
    barrier_init(&shared.gate_full, 1);
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  __syncthreads();
  const Launch launch{shared.launch, keep_policy()};
  if (shared.role >= kAttendBlocks) return;
  const int role = static_cast<int>(shared.role);
  if (thread >= kConsumers) {
    load_all<Page>(args, maps, shared, start, memory, role);
    return;
  }

  // What no kernel of the step has written.
  const int first_row = role * kBlockRows, part = first_row < kQ          ? 0
                                                  : first_row < kQ + 1024 ? 1
                                                                          : 2;
  const int within = first_row - (part == 0 ? 0 : part == 1 ? kQ : kQ + kKvHeads * kDim);
  float weight_scale = 0.0f;
  if (thread % 16 == 0)
    weight_scale =
        __ldg(args.qkv_scale[part] + within / 128 * args.qkv_scale_stride[part] + thread / 16);
  uint4 early_norm = {};
  if (args.before.results) early_norm = static_cast<const uint4*>(args.before.norm)[thread];
  if (thread < 2 * kOStretches) {
    const int block = min(role * kBlockORows / 128 + thread / kOStretches, kHidden / 128 - 1);
    shared.o_scale[thread / kOStretches][thread % kOStretches] =
        __ldg(args.o_scale + block * args.o_scale_stride + thread % kOStretches);
  }
  const Context context(args);
  const Early early(args, role % kKvHeads);
  wait_for_previous();
  let_next_start();
  if (args.before.results) {
    sum_experts(args, shared, memory, early_norm, weight_scale, role);
  } else {
    reinterpret_cast<uint4*>(memory + kResidualAt)[thread] =
        load_written(static_cast<const uint4*>(args.residual) + thread);
    const int s = thread / 16, piece = thread % 16 / 2;
    if (thread % 2 == 0)
      *reinterpret_cast<uint4*>(memory + kTokensAt + s / 8 * (8 * kTileStep) + s % 8 * kTileStep +
                                (piece ^ (s % 8)) * 16) = load_written(args.x_f8 + thread * 8);
    if (thread % 16 == 0) shared.qkv_factor[s] = args.x_scales[s] * weight_scale;
  }
  fence_for_products();
  meet();
  multiply_qkv(args, shared, start, memory, role, launch);
  meet();  // nobody reads qkv's tokens and parts any more
  if (role < context.chains()) {
    // The newest page is the last of its chain.
    const int in_part = (context.pages - 1) % context.each % 4;
    const int chain = ((context.parts - 1) * 4 + in_part) * kKvHeads + role % kKvHeads;
    make_queries<Page>(args, shared, memory, role % kKvHeads, chain % kAttendBlocks == role, early,
                       launch);
  }
  attend_chains<Page>(args, shared, memory, context, role, thread / kWarp, launch);
  if (role < kJoinBlocks) join<Page>(args, shared, memory, context, role, launch);
  meet();  // pages have been read
  multiply_o<Page>(args, shared, start, memory, role, launch);
  norm_row(args, shared, memory, role, launch);
  route(args, shared, memory, role);
  if (role == 0 && thread == 0) exchange.finished = launch.number;
}

}  // namespace

void launch_attend_and_route(void* stream, const AttendAndRoute& args) {
  AttendMaps maps;
  maps.qkv = double_map(args.qkv, kQkvRows, kHidden, kHidden, kBlockRows);
  maps.o = double_map(args.o, kHidden, kQ, kQ, kBlockORows, kOStretch);
  LaunchShape shape{dim3(static_cast<unsigned>(multiprocessors())), dim3(kThreads)};
  shape.shared_bytes = kSharedBytes;
  launch(stream,
         args.cache.dtype == DType::bf16 ? sm90_attend_and_route<Bf16Page>
                                         : sm90_attend_and_route<F8Page>,
         shape, args, maps);
}

}  // namespace m2::ops::cuda
