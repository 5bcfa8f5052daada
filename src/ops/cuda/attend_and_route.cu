#include "ops/cuda/attend_steps.cuh"
#include "ops/cuda/rank_words.cuh"
#include "ops/cuda/route_choice.cuh"

// One decoded token's way through the attention half of a layer, or through what a tensor rank has
// of it, in one kernel. The chain of its operations is long and each does little: as kernels they
// spend most of their time waiting for one another while memory stands still. Here every
// multiprocessor keeps one stream of what it will need (its rows of q, k and v; its pages; its rows
// of o; its rows of the router's gate) coming into shared memory, in that order and never more than
// `window` bytes of it under way, since what the blocks say to one another comes behind whatever
// has been asked for before. Between the steps, blocks exchange numbers in words that carry the
// launch's number beside 32 bits of data (the LL protocol of NCCL): whoever needs a word reads it
// until its number is right, so that nothing needs a fence, a flag or a pause for all. Every sum
// has the order that the single operations give it. Tensor ranks write what they sum over all of
// them into each other's memory (rank_words.cuh): one flight a sum, and no second hop on the way to
// the blocks.
namespace m2::ops::cuda {
namespace {

// Most bytes under way: about what memory's latency hides, since all that blocks tell one another
// would stand behind more.
constexpr int kWindow = 48 * 1024;
constexpr int kPagesBesideO = 3;

// What a GPU has of a layer: all of its KV heads, or as one of several tensor ranks some of them.
template <int kKv>
struct Share {
  static constexpr bool kWhole = kKv == AttendShape::kKvHeads;
  static constexpr int kMostRanks = AttendShape::kKvHeads / kKv;
  static constexpr int kKvHeads = kKv, kQHeads = kKv * kGroup;
  static constexpr int kQ = kQHeads * kDim, kQkvRows = (kQHeads + 2 * kKv) * kDim;
  static constexpr int kOStretches = kQ / kTileStep;  // 48 of o

  // A block's rows of q, k and v: 64, half a head. As operands of products they are places of eight
  // rows of a stretch, as those of o are, eight of which make an instruction's 64 rows.
  static constexpr int kBlockRows = kQkvRows / kAttendBlocks;
  static constexpr int kQkvPlaces = kBlockRows / 8;                            // of a stretch
  static constexpr int kQkvStretches = kQkvPlaces == 1 ? 8 : 16 / kQkvPlaces;  // of a load
  static constexpr int kQkvLoad = kBlockRows * kTileStep * kQkvStretches;
  static constexpr int kQkvLoads = kStretches / kQkvStretches;
  static constexpr int kQkvGroups = kQkvStretches * kQkvPlaces / 8;  // instructions' rows of a load
  static constexpr int kQkvAtOnce = kWindow / kQkvLoad;
  static constexpr int kOPlaces = kBlockORows / 8;
  static constexpr int kOStretch = kOStretches % 8 == 0 ? 8 : kOStretches;  // of K a load of o
  static constexpr int kOLoad = kBlockORows * kTileStep * kOStretch;
  static constexpr int kOLoads = kOStretches / kOStretch;
  static constexpr int kOGroups = (kOPlaces * kOStretches + 7) / 8;  // the last may be part of one
  static constexpr int kORounds = (kOGroups + kWarpgroups - 1) / kWarpgroups;
  static constexpr int kOAtOnce = kWhole ? 2 : kORounds;

  // Shared memory from a 1024-byte border on. What is loaded: of few rows all has its own place. Of
  // more, pages stand over the first of q, k and v; and of all of a layer o over the rest, four
  // pages where the last of o comes to lie when pages have been read, and the gate over the pages.
  static constexpr bool kApart = kKv <= 2;  // pages have their own place
  static constexpr int kQkvBytes = kQkvLoads * kQkvLoad;
  static constexpr int kFirstSlots = kWhole ? 8 : kPageSlots;
  static constexpr int kPagesAt = kApart ? kQkvBytes : 0;
  static constexpr int kOAt = kPagesAt + kFirstSlots * kPageSlot;
  // How many of the slots stand where all is multiplied before the last loads of q, k and v come.
  static constexpr int kReadBefore = (kQkvLoads - kWarpgroups) * kQkvLoad / kPageSlot;
  static constexpr int kEarlySlots = kApart                      ? 0
                                     : kReadBefore < kFirstSlots ? kReadBefore
                                                                 : kFirstSlots;
  static constexpr int kOEarly = 4;  // loads of o before pages have been read
  static_assert(!kWhole || (kPageSlots - kFirstSlots) * kPageSlot <= (kOLoads - kOEarly) * kOLoad);
  static_assert(kFirstSlots % kGroupSlots == 0);  // a group's slots stand one behind another
  static constexpr int kOEnd = kOAt + kOLoads * kOLoad;
  static constexpr int kGateAt = kWhole ? 0 : kOEnd;
  static constexpr int page_slot_at(int slot) {
    return slot < kFirstSlots ? kPagesAt + slot * kPageSlot
                              : kOAt + kOEarly * kOLoad + (slot - kFirstSlots) * kPageSlot;
  }
  // What blocks work in. Over the pages, or q, k and v, once they have been read:
  static constexpr int kOTokensAt = kWhole ? 25 * 1024 : 0;  // o's input: [kOGroups][8][128] bytes
  static constexpr int kOPartsAt = kOTokensAt + kOGroups * 8 * kTileStep;
  static constexpr int kNormedAt = kOPartsAt + kOStretches * kBlockORows * 4;
  static_assert(kNormedAt + kRouteStretches * kGateStretch <= (kApart ? kPagesAt : kOAt) &&
                (!kWhole || kGateBytes <= kOTokensAt));
  // Chains of a q head are joined by blocks of so many dims each, of so many parts at once.
  static constexpr int kJoinPieces = kApart ? 4 : 2;
  static constexpr int kJoinDims = kDim / kJoinPieces, kJoined = 12 * kJoinPieces;
  static constexpr int kJoinBlocks = kJoinPieces * kQHeads;
  // Behind everything:
  static constexpr int kWorkAt = kWhole ? kOEnd : (kGateAt + kGateBytes + 1023) / 1024 * 1024;
  static_assert(kWorkAt >= kQkvBytes);
  // Products of all rounds read something.
  static_assert(kOAt + kORounds * kWarpgroups * kFlowRows * kTileStep <= kWorkAt);
  static constexpr int kTokensAt = kWorkAt;                       // qkv's input: [3][8][128] bytes
  static constexpr int kPartsAt = kTokensAt + 3 * 8 * kTileStep;  // f32 [24][64]
  static constexpr int kResidualAt = kPartsAt + kJoined * kJoinDims * 4;  // bf16 [3072]
  static constexpr int kSharedBytes = kResidualAt + kHidden * 2 + 1024;
  // Over tokens and parts of q, k and v:
  static constexpr int kQueryAt = kTokensAt;   // bf16 [6][128]
  static constexpr int kSquaresAt = kPartsAt;  // f32 [896]
  static constexpr int kJoinAt = kPartsAt;     // f32 [24][64]
  static constexpr int kSquares = (kQHeads + kKv) * kDim / 8;
  static_assert(kGroup * kDim * 2 <= kPartsAt - kTokensAt &&
                kMostRanks * kSquares * 4 <= kResidualAt - kPartsAt &&
                kStretches * kBlockRows * 4 <= kResidualAt - kPartsAt);
  static constexpr int kMostChains = 4 * most_splits(kKv);  // of a q head
};
using Whole = Share<AttendShape::kKvHeads>;

struct Exchange {
  unsigned finished;                           // launches
  alignas(16) uint2 raw[Whole::kQkvRows / 2];  // the products q, k and v, pairs of bf16
  alignas(16) uint2 squares[Whole::kSquares];  // sums of the squares of eight
  alignas(16) uint4 chains[Whole::kQHeads * Whole::kMostChains * kChainWords];
  alignas(16) uint2 attended[Whole::kQ / 2];  // pairs of bf16
  alignas(16) uint2 delta[kHidden / 2];       // pairs of bf16

  // Ranks have fewer heads, of more chains.
  template <class S>
  __device__ __forceinline__ uint4* chains_of(int q_head) {
    static_assert(S::kQHeads * S::kMostChains == Whole::kQHeads * Whole::kMostChains);
    return chains + q_head * (S::kMostChains * kChainWords);
  }
};
__device__ Exchange exchange;
// Where a rank finds what `by` tells it in a launch: columns by eights. Every other launch's words
// have the same place, which is cleared between: a rank tells of its sums in a launch only after it
// has heard of all ranks' squares in it, whose launches before have ended by then.
__device__ __forceinline__ uint4* sums_of(const DecodePeers& peers, int rank, uint32_t launch,
                                          int by) {
  return reinterpret_cast<uint4*>(words_of(peers, rank)->sums[launch % 2][by]);
}

// What is under way, oldest first: how many bytes, and the barrier and its phase that say when they
// are there. No more than there are places for pages, so that no barrier is in it twice.
struct UnderWay {
  static constexpr int kMost = kPageSlots;  // (a barrier's phase but one is over)
  uint32_t barrier[kMost], parity[kMost];
  int bytes[kMost];
  unsigned last[kPageSlots];  // each slot's last load, counted from 1
};

template <class S>
struct Shared {
  uint64_t qkv_full[S::kQkvLoads], qkv_empty[S::kQkvLoads];
  // Of a group's first pages the values have barriers of their own.
  uint64_t page_full[kPageSlots], page_empty[kPageSlots], values_full[kPageSlots];
  uint64_t pages_read, o_full[S::kOLoads], gate_full;
  UnderWay under_way;
  float qkv_factor[kStretches];
  float o_scale[2][S::kOStretches], o_input_scale[S::kOStretches];
  float squares[kWarp];         // of 256 columns each
  float totals[S::kJoined][2];  // of parts that are joined
  float factors[S::kJoinDims / kWarp][S::kJoined], befores[S::kJoinDims / kWarp][S::kJoined / 8];
  float scratch[kWarp];
  float route[kBlockExperts][kRouteStretches];
  alignas(16) uint8_t newest[2][kDim * 2];  // the token's own key and value as the cache has them

  // By every warp of consumers, some of the barriers: the threads of a warp begin theirs one after
  // another, 56 of them take 1.5 us.
  __device__ __forceinline__ void begin_barriers() {
    static_assert(S::kQkvLoads <= kConsumers / kWarp && kPageSlots == kConsumers / kWarp &&
                  S::kOLoads + 2 <= kConsumers / kWarp);
    const int i = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp != 0 || i >= kConsumers / kWarp) return;
    if (i < S::kQkvLoads) {
      barrier_init(&qkv_full[i], 1);
      barrier_init(&qkv_empty[i], 128);
    }
    barrier_init(&page_full[i], 1);
    barrier_init(&page_empty[i], kChainWarps);
    barrier_init(&values_full[i], 1);
    if (i < S::kOLoads) barrier_init(&o_full[i], 1);
    if (i == S::kOLoads) barrier_init(&pages_read, kChainGroups * kChainWarps);
    if (i == S::kOLoads + 1) barrier_init(&gate_full, 1);
  }
};

// One of the four chains of pages of a part of the context, of one KV head: every fourth page, as a
// warp of the decode kernel takes them. A block has chains of one KV head only, with ever fewer
// pages.
struct Chain {
  int head, part, fourth, first, pages;
  __device__ __forceinline__ int page(int k) const { return first + 4 * k; }
};
template <class S>
struct Context {
  int tokens, pages, each, parts;
  // What it is made of: asked for at once, and waited for where it is used.
  struct Lengths {
    int starts[2], tokens;
    __device__ __forceinline__ explicit Lengths(const AttendAndRoute& args)
        : starts{args.query_starts[0], args.query_starts[1]}, tokens(args.context_lens[0]) {}
  };
  Context() = default;
  __device__ __forceinline__ explicit Context(const Lengths& lengths) {
    const bool decodes = lengths.starts[1] - lengths.starts[0] == 1;
    tokens = decodes ? lengths.tokens : 0;
    pages = static_cast<int>((static_cast<unsigned>(tokens) + kPage - 1) / kPage);
    each = pages_per_split(pages, S::kKvHeads);
    parts = (pages + each - 1) / each;
  }
  __device__ __forceinline__ int chains() const { return parts * 4 * S::kKvHeads; }
  __device__ __forceinline__ Chain chain(int i) const {
    const int part = i / (4 * S::kKvHeads), fourth = i / S::kKvHeads % 4,
              first = part * each + fourth;
    const int end = min(pages, part * each + each);
    const bool any = i < chains() && first < end;
    const int count = any ? static_cast<int>(static_cast<unsigned>(end - first + 3) / 4) : 0;
    return {i % S::kKvHeads, part, fourth, first, count};
  }
};
// Whether the block has the chain that ends with the newest page, the last of its chain.
template <class S>
__device__ __forceinline__ bool has_newest(const Context<S>& context, int role) {
  if (role >= context.chains()) return false;
  const int in_part = (context.pages - 1) % context.each % 4;
  const int chain = ((context.parts - 1) * 4 + in_part) * S::kKvHeads + role % S::kKvHeads;
  return chain % kAttendBlocks == role;
}
// Three chains whose pages come in turn, for three groups of warps. A group has slots of its own,
// so that it never waits for a phase of a barrier before it has seen the one before.
template <class S>
struct Turns {
  int begin[kChainGroups], pages[kChainGroups];  // ever fewer
  __device__ __forceinline__ Turns(const Context<S>& context, int i) {
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

// Asks for the keys, or the values, of a KV head's page. By one lane.
template <class S, class Page>
__device__ __forceinline__ void ask_for_page(const AttendAndRoute& args, uint8_t* memory, int slot,
                                             int64_t id, int head, bool values, uint64_t* full) {
  const void* cache = values ? args.cache.v : args.cache.k;
  bulk_copy(memory + S::page_slot_at(slot) + (values ? Page::kBytes : 0),
            static_cast<const uint8_t*>(cache) + (id * S::kKvHeads + head) * Page::kBytes,
            Page::kBytes, full, once_policy());
}

// A warp's group, its number in it, its first chain, and of that the first page that it takes.
template <class S>
struct OwnPage {
  int group, mine, id;  // id < 0: there is none
  Chain chain;
  OwnPage() = default;
  __device__ __forceinline__ OwnPage(const AttendAndRoute& args, const Context<S>& context,
                                     int role)
      : group(threadIdx.x / kWarp / kChainWarps),
        mine(threadIdx.x / kWarp % kChainWarps),
        id(-1),
        chain(context.chain(role + group * kAttendBlocks)) {
    if (mine < chain.pages) id = args.block_tables[chain.page(mine)];
  }
  // Of ranks. There is room for it at first, and each warp asks for its own: one lane takes longer
  // to ask for a page (200 instructions, one after another) than memory to bring it.
  template <class Page>
  __device__ __forceinline__ void ask(const AttendAndRoute& args, Shared<S>& shared,
                                      uint8_t* memory, int role, bool values) const {
    if (threadIdx.x % kWarp != 0 || id < 0) return;
    const int slot = threadIdx.x / kWarp;
    uint64_t* full = values ? &shared.values_full[slot] : &shared.page_full[slot];
    barrier_expect(full, Page::kBytes);
    ask_for_page<S, Page>(args, memory, slot, id, role % S::kKvHeads, values, full);
  }
};

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

  // A load that others have asked for. Precondition: nothing else is under way.
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

// Where the loader waits for the consumers: until queries have been made, or, of all of a layer,
// until all that makes them is there.
template <bool kWaits>
__device__ __forceinline__ void loader_may_go_on() {
  if constexpr (kWaits)
    asm volatile("bar.sync 6, %0;" ::"n"(kThreads) : "memory");
  else
    asm volatile("bar.arrive 6, %0;" ::"n"(kThreads) : "memory");
}

// One warp, whose first lane asks for everything that the block will read, in the order in which it
// will. Many steps with little code: what runs once a launch waits for its instructions.
template <class S, class Page>
__device__ __forceinline__ void load_all(const AttendAndRoute& args, const AttendMaps& maps,
                                         Shared<S>& shared, uint32_t start, uint8_t* memory,
                                         int role) {
  Pace pace(shared.under_way);
  const int lane = threadIdx.x % kWarp;
  const typename Context<S>::Lengths lengths(args);
  if (lane == 0)
#pragma unroll 1
    for (int i = 0; i < S::kQkvLoads; ++i) {
      if (i >= S::kQkvAtOnce) barrier_wait(&shared.qkv_full[i - S::kQkvAtOnce], 0);
      barrier_expect(&shared.qkv_full[i], S::kQkvLoad);
      tensor_copy_3d(start + i * S::kQkvLoad, &maps.qkv, 0, role * S::kBlockRows,
                     i * S::kQkvStretches, &shared.qkv_full[i], once_policy());
    }
  __syncwarp();
  const auto ask_for_o = [&](int i) {  // which the barrier expects already
    tensor_copy_3d(start + S::kOAt + i * S::kOLoad, &maps.o, 0, role * kBlockORows,
                   i * S::kOStretch, &shared.o_full[i], once_policy());
  };
  // Of all of a layer where pages have been. By the whole warp.
  const auto ask_for_gate = [&] {
    static_assert(kBlockExperts * kRouteStretches <= kWarp);
    if (lane == 0) barrier_expect(&shared.gate_full, kGateLoad);
    __syncwarp();
    if (lane < kBlockExperts * kRouteStretches)
      bulk_copy(memory + S::kGateAt + lane * kGateStretch,
                args.gate + role * kBlockExperts * kHidden + lane * kRouteStretch,
                kRouteStretch * 4, &shared.gate_full, once_policy());
  };
  const Context<S> context(lengths);
  const auto id_of_lane = [&](const Turns<S>& turns, int first) {
    return first + lane < turns.all() ? args.block_tables[turns.page(turns.turn(first + lane))] : 0;
  };
  Turns<S> turns(context, role);
  int ids = id_of_lane(turns, 0);
  const int2 own_turn = turns.turn(lane);
  const int own_slot = own_turn.x * kGroupSlots + own_turn.y;
  const bool asks = lane < turns.all() && own_turn.y < kGroupSlots;
  const int asked = __popc(__ballot_sync(~0u, asks));
  // Of all of a layer the first pages are asked for here, by a lane each: behind such a request a
  // warp's next read of shared memory waits until it has been taken, and the consumers' are on the
  // way. A page's place is over a load of q, k and v.
  const auto ask_for_first = [&](bool values) {
    uint64_t* full = values ? &shared.values_full[own_slot] : &shared.page_full[own_slot];
    barrier_expect(full, Page::kBytes);
    ask_for_page<S, Page>(args, memory, own_slot, ids, role % S::kKvHeads, values, full);
  };
  if (S::kWhole && asks) {
    barrier_wait(&shared.qkv_empty[S::page_slot_at(own_slot) / S::kQkvLoad], 0);
    ask_for_first(false);
  }
  __syncwarp();
#pragma unroll 1
  for (int i = 0; i < S::kQkvLoads; ++i)
    barrier_wait(S::kApart ? &shared.qkv_full[i] : &shared.qkv_empty[i], 0);
  if (S::kWhole && role < context.chains()) {
    // The values later than the keys, since what blocks say to one another comes behind what has
    // been asked for before.
    loader_may_go_on<true>();
    if (asks) ask_for_first(true);
    __syncwarp();
  }
  // Of ranks the consumers ask for the first pages about now, or have done so.
  if (asked == turns.all() && role + kChainGroups * kAttendBlocks >= context.chains()) {
    if constexpr (S::kApart) {
      // Behind the words that make queries, and beside the work on pages.
      loader_may_go_on<true>();
      if (lane == 0)
        for (int i = 0; i < S::kOLoads; ++i) {
          barrier_expect(&shared.o_full[i], S::kOLoad);
          ask_for_o(i);
        }
      barrier_wait(&shared.o_full[S::kOLoads - 1], 0);
      return ask_for_gate();
    }
    // There are no others, as in short contexts: o's first load when few are under way, the second
    // behind the last page, then one at a time, since blocks now wait for one another's words.
    const auto page_is_there = [&] { barrier_wait(&shared.values_full[own_slot], 0); };
    const bool last = lane < asked && lane + kPagesBesideO >= asked;
    if (lane < asked && !last) page_is_there();
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < S::kOLoads; ++i) {
      if (i == 1 && last) page_is_there();
      __syncwarp();
      if (lane != 0) continue;
      if (S::kWhole && i == S::kOEarly && turns.pages[kChainGroups - 1] > 0)
        barrier_wait(&shared.pages_read, 0);
      if (i > 0) barrier_wait(&shared.o_full[i - 1], 0);
      barrier_expect(&shared.o_full[i], S::kOLoad);
      ask_for_o(i);
    }
    if (S::kWhole && lane == 0) barrier_wait(&shared.pages_read, 0);
    return ask_for_gate();
  }
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
    if (i > role) turns = Turns<S>(context, i);
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
#pragma unroll 1
      for (const bool values : {false, true})
        ask_for_page<S, Page>(args, memory, slot, id, role % S::kKvHeads, values,
                              &shared.page_full[slot]);
    }
#pragma unroll
    for (int c = 0; c < kChainGroups; ++c) before[c] += turns.pages[c];
  }
  if (lane == 0)
#pragma unroll 1
    for (int i = 0; i < S::kOLoads; ++i) {
      if (S::kWhole && i == S::kOEarly) barrier_wait(&shared.pages_read, 0);
      pace.begin(&shared.o_full[i], 0, S::kOLoad);
      ask_for_o(i);
    }
  ask_for_gate();
}

// The weighted sum of the experts' results, added to the residual, and its norm, quantised: every
// block makes the whole row for itself, as combine_and_norm does.
template <class S>
__device__ __forceinline__ void sum_experts(const AttendAndRoute& args, Shared<S>& shared,
                                            uint8_t* memory, const uint4& norm, float weight_scale,
                                            int role) {
  using Pack = Pack8<__nv_bfloat16>;
  constexpr int kTop = 8;  // of M2
  const ExpertsLeft& left = args.before;
  const int thread = own_thread();
  const auto* results = static_cast<const uint4*>(left.results) + thread;
  Pack kept = static_cast<const Pack*>(args.residual)[thread];
  float sum[8] = {};
  const auto add = [&](const uint4& result, float weight) {
    const uint32_t words[4] = {result.x, result.y, result.z, result.w};
#pragma unroll
    for (int c = 0; c < 8; c += 2) {
      const float2 two = floats_of(words[c / 2]);
      sum[c] = fmaf(weight, two.x, sum[c]);
      sum[c + 1] = fmaf(weight, two.y, sum[c + 1]);
    }
  };
  bool all = false;  // are there, and as many as usual: so all are asked for at once
  if (left.top == kTop) {
    uint4 result[kTop];
#pragma unroll
    for (int i = 0; i < kTop; ++i) result[i] = load_written(results + i * kConsumers);
    const uint4 a = load_written(left.ids), b = load_written(left.ids + 4);
    const uint4 low = load_written(left.weights), high = load_written(left.weights + 4);
    const uint32_t weights[kTop] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < kTop; ++i) add(result[i], __uint_as_float(weights[i]));
    all = static_cast<int>(a.x | a.y | a.z | a.w | b.x | b.y | b.z | b.w) >= 0;
  }
  if (!all) {
#pragma unroll
    for (float& of_column : sum) of_column = 0.0f;
#pragma unroll 1
    for (int i = 0; i < left.top; ++i)
      if (left.ids[i] >= 0) add(results[i * kConsumers], left.weights[i]);
  }
  const float squares = add_to_residual(kept, sum);
  reinterpret_cast<Pack*>(memory + S::kResidualAt)[thread] = kept;
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
  for (int c = 0; c < 4; ++c) {
    const float2 by = floats_of(words[c]);
    const float2 of = floats_of(reinterpret_cast<const uint32_t*>(kept.values)[c]);
    const float2 two = floats_of(pack_bf16(of.x * factor * by.x, of.y * factor * by.y));
    value[2 * c] = two.x;
    value[2 * c + 1] = two.y;
    most = fmaxf(most, fmaxf(fabsf(two.x), fabsf(two.y)));
  }
#pragma unroll
  for (int offset = 8; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float scale = f8_scale(most, args.quantised.powers), inverse = 1.0f / scale;
  const int s = thread / 16, piece = thread % 16 / 2;
  *reinterpret_cast<uint2*>(memory + S::kTokensAt + s / 8 * (8 * kTileStep) + s % 8 * kTileStep +
                            (piece ^ (s % 8)) * 16 + thread % 2 * 8) = {
      to_f8(value[0], value[1], value[2], value[3], inverse),
      to_f8(value[4], value[5], value[6], value[7], inverse)};
  if (thread % 16 == 0) shared.qkv_factor[s] = scale * weight_scale;
}

// The block's rows of q, k and v. Tokens stand in the eight columns of an instruction as eight
// stretches of one token: stretch s in row s % 8 of operand s / 8, so its sums are column s % 8.
template <class S, class Page>
__device__ __forceinline__ void multiply_qkv(const AttendAndRoute& args, Shared<S>& shared,
                                             uint32_t start, uint8_t* memory, int role,
                                             const OwnPage<S>& own_page, const Launch& launch) {
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp % 4;
  const int warpgroup = thread / 128;
  auto* parts = reinterpret_cast<float*>(memory + S::kPartsAt);
  constexpr int kGroups = S::kQkvGroups, kGroupStretches = S::kQkvStretches / kGroups;
#pragma unroll 1
  for (int i = warpgroup; i < S::kQkvLoads; i += kWarpgroups) {
    // All stretches of a load stand in the same operand of the tokens.
    const uint32_t rows = alike(operand_low(start + i * S::kQkvLoad)),
                   tokens = alike(operand_low(start + S::kTokensAt +
                                              S::kQkvStretches * i / 8 * (8 * kTileStep)));
    if (!S::kWhole && i + kWarpgroups >= S::kQkvLoads && thread / kWarp < S::kEarlySlots) {
      // The keys come right behind the last loads, before blocks wait for one another's words.
      if (lane == 0) barrier_wait(&shared.qkv_empty[thread / kWarp * kPageSlot / S::kQkvLoad], 0);
      own_page.template ask<Page>(args, shared, memory, role, false);
    }
    barrier_wait(&shared.qkv_full[i], 0);
    float d[kGroups][4];
    wgmma_begin();
#pragma unroll
    for (int half = 0; half < kGroups; ++half)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_64xNx32<8>(d[half],
                         operand_from(rows + (half * (kFlowRows * kTileStep) + k * 32) / 16),
                         operand_from(tokens + k * 32 / 16), k > 0);
    wgmma_finish();
    if constexpr (!S::kApart) barrier_arrive(&shared.qkv_empty[i]);
#pragma unroll
    for (int half = 0; half < kGroups; ++half)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        // The place that the warp's first or second eight rows are.
        const unsigned place = 2 * warp + upper;
        const int stretch = S::kQkvStretches * i + half * kGroupStretches + place / S::kQkvPlaces;
        const int column = stretch % 8, row = place % S::kQkvPlaces * 8 + lane / 4;
        if (lane % 4 != column / 2) continue;
        // Which of a thread's two columns: two stretches of a load stand side by side, or two
        // places.
        const int odd = S::kQkvPlaces == 8 ? half : S::kQkvPlaces == 1 ? upper : column % 2;
        parts[stretch * S::kBlockRows + row] = odd ? d[half][2 * upper + 1] : d[half][2 * upper];
      }
  }
  meet();
  if constexpr (!S::kApart && !S::kWhole)
    if (thread / kWarp >= S::kEarlySlots)
      own_page.template ask<Page>(args, shared, memory, role, false);
  // The last warps add up: of short contexts they have no pages.
  constexpr int kAdders = S::kBlockRows > kWarp ? S::kBlockRows : kWarp;
  if (thread < kConsumers - kAdders) return;
  const int adder = thread - (kConsumers - kAdders);
  const int mine = kAdders == S::kBlockRows ? adder : min(adder, S::kBlockRows - 1);
  float total = 0.0f;
#pragma unroll 8
  for (int s = 0; s < kStretches; ++s)
    total = fmaf(parts[s * S::kBlockRows + mine], shared.qkv_factor[s], total);
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  const int row = role * S::kBlockRows + mine;
  const bool has_row = kAdders == S::kBlockRows || adder < S::kBlockRows;
  if (has_row && lane % 2 == 0) put(&exchange.raw[row / 2], bits | next << 16, launch);
  // Squares of eight neighbours, added up as the norm's threads do.
  const float value = __uint_as_float(bits << 16);
  float squares = 0.0f;
  if constexpr (S::kWhole) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float of = __shfl_sync(~0u, value, lane / 8 * 8 + i);
      squares = fmaf(of, of, squares);
    }
    if (lane % 8 == 0 && row < S::kSquares * 8)
      put(&exchange.squares[row / 8], __float_as_uint(squares), launch);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float first = __shfl_sync(~0u, value, lane / 8 * 8 + i);
      const float second = __shfl_sync(~0u, value, lane / 8 * 8 + i + 1);
      squares = fmaf(first, first, fmaf(second, second, squares));
    }
    const int rank = lane % 8;
    if (has_row && row < S::kSquares * 8 && rank < args.peers.ranks)
      tell_squares(&words_of(args.peers, rank)->squares[args.peers.rank * S::kSquares + row / 8],
                   squares, launch.of_ranks, launch.keep);
  }
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
template <class S>
__device__ __forceinline__ float2 norm_and_turn(float2 value, float factor, uint32_t weights,
                                                const Early& early, int dim) {
  const float2 by = floats_of(weights);
  value.x = value.x * factor * by.x;
  value.y = value.y * factor * by.y;
  const float2 other = {__shfl_xor_sync(~0u, value.x, kRotary / 4),
                        __shfl_xor_sync(~0u, value.y, kRotary / 4)};
  if (dim >= kRotary) return value;
  // Of the second half the other product is rounded where ranks sum squares (qk_row.cuh).
  if (!S::kWhole && dim >= kRotary / 2)
    return {__fmaf_rn(other.x, early.sine.x, __fmul_rn(value.x, early.cosine.x)),
            __fmaf_rn(other.y, early.sine.y, __fmul_rn(value.y, early.cosine.y))};
  // The product with the other dim is rounded, in both halves: as qk_whole_kernel has it.
  const float sign = dim < kRotary / 2 ? -1.0f : 1.0f;
  return {__fmaf_rn(value.x, early.cosine.x, __fmul_rn(other.x, sign * early.sine.x)),
          __fmaf_rn(value.y, early.cosine.y, __fmul_rn(other.y, sign * early.sine.y))};
}

// The queries of the block's KV head into shared memory; and, by who attends to the newest page,
// the token's key and value, to the cache too.
template <class S, class Page>
__device__ __forceinline__ void make_queries(const AttendAndRoute& args, Shared<S>& shared,
                                             uint8_t* memory, int role, bool newest,
                                             const Early& early, const OwnPage<S>& own_page,
                                             const Launch& launch) {
  const int head = role % S::kKvHeads;
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kPairs = kDim / 2;
  const bool is_key = newest && thread < kPairs, is_value = newest && thread / kPairs == 1;
  const int key_at = (S::kQHeads + head) * kPairs + thread;  // of pairs
  const int value_at = (S::kQHeads + S::kKvHeads + head) * kPairs + thread - kPairs;
  const auto raw_at = [&](int i) -> const uint2* {
    if (i == 0) return &exchange.raw[head * kGroup * kPairs + thread];
    return is_key || is_value ? &exchange.raw[is_key ? key_at : value_at] : nullptr;
  };
  uint2 word[2];  // pairs
  float q_sum, k_sum;
  auto* squares = reinterpret_cast<float*>(memory + S::kSquaresAt);
  constexpr int kQSums = S::kQ / 256, kSums = (S::kSquares + kWarp - 1) / kWarp;
  if constexpr (S::kWhole) {
    // What comes last are the squares of all: a thread looks for all that a block says of them.
    constexpr int kNormedTiles = S::kSquares / 8;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (const uint2* from = raw_at(i)) word[i] = look(from, launch);
    if (thread < kNormedTiles) {
      uint4 words[4];
      await_late(words, launch, [&](int i) {
        return reinterpret_cast<const uint4*>(exchange.squares) + thread * 4 + i;
      });
      auto* to = reinterpret_cast<uint4*>(squares) + thread * 2;
      to[0] = {words[0].x, words[0].z, words[1].x, words[1].z};
      to[1] = {words[2].x, words[2].z, words[3].x, words[3].z};
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (const uint2* from = raw_at(i))
        while (!has(word[i], launch)) {
          __nanosleep(20);
          word[i] = look(from, launch);
        }
    loader_may_go_on<false>();
    meet();
#pragma unroll 1
    for (int i = warp; i < kSums; i += kConsumers / kWarp) {
      const float sum = warp_sum(squares[i * kWarp + lane]);
      if (lane == 0) shared.squares[i] = sum;
    }
    meet();
    const float of_lane = lane < kSums ? shared.squares[lane] : 0.0f;
    q_sum = warp_sum(lane < kQSums ? of_lane : 0.0f);
    k_sum = warp_sum(lane < kQSums ? 0.0f : of_lane);
  } else {
    // Of all ranks, together with the words of this one: one after another looks take a memory's
    // latency each.
    constexpr int kEach = (S::kMostRanks * S::kSquares + kConsumers - 1) / kConsumers;
    const RankSquares* said_at = words_of(args.peers, args.peers.rank)->squares + thread;
    const int count = args.peers.ranks * S::kSquares;
    RankSquares said[kEach];
    int looks = 0;
    bool all, own;
#pragma unroll 1
    do {
      word[0] = word[1] = look(raw_at(0), launch);
      if (is_key || is_value) word[1] = look(raw_at(1), launch);
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        said[i].launch = launch.of_ranks;
        if (thread + i * kConsumers < count)
          said[i] = look_at_squares(said_at + i * kConsumers, launch.keep);
      }
      if constexpr (!S::kApart)
        if (looks == 0) own_page.template ask<Page>(args, shared, memory, role, true);
      all = own = has(word[0], launch) && has(word[1], launch);
#pragma unroll
      for (int i = 0; i < kEach; ++i) all &= said[i].launch == launch.of_ranks;
      if (++looks % kLooksAtPeers == 0 && given_up(args.peers)) all = own;
    } while (!all);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (const int at = thread + i * kConsumers; at < count) squares[at] = said[i].sum;
    meet();
    // Of each rank as qk_sum_squares_kernel adds them up, and then rank after rank.
#pragma unroll 1
    for (int i = warp; i < args.peers.ranks * kSums; i += kConsumers / kWarp) {
      const int at = i % kSums * kWarp + lane;
      const float sum = warp_sum(at < S::kSquares ? squares[i / kSums * S::kSquares + at] : 0.0f);
      if (lane == 0) shared.squares[i] = sum;
    }
    meet();
    constexpr int kLanes = kWarp / S::kMostRanks;  // of a rank
    static_assert(kQSums <= kLanes && S::kMostRanks * kSums <= kWarp);
    const int rank = lane / kLanes, i = lane % kLanes;
    const float* of_rank = shared.squares + rank * kSums;
    const bool there = rank < args.peers.ranks;
    float q_part = there && i < kQSums ? of_rank[i] : 0.0f;
    float k_part = there && i < kSums - kQSums ? of_rank[kQSums + i] : 0.0f;
#pragma unroll
    for (int offset = kLanes / 2; offset; offset /= 2) {
      q_part += __shfl_xor_sync(~0u, q_part, offset);
      k_part += __shfl_xor_sync(~0u, k_part, offset);
    }
    q_sum = __shfl_sync(~0u, q_part, 0);
    k_sum = __shfl_sync(~0u, k_part, 0);
#pragma unroll 1
    for (int r = 1; r < args.peers.ranks; ++r) {
      q_sum += __shfl_sync(~0u, q_part, r * kLanes);
      k_sum += __shfl_sync(~0u, k_part, r * kLanes);
    }
  }
  // Widths over all ranks.
  const float q_width = S::kWhole ? static_cast<float>(S::kQ) : args.full_q;
  const float k_width = S::kWhole ? static_cast<float>(S::kKvHeads * kDim) : args.full_k;
  const auto factor_of = [&](float sum, float width) {
    const float mean = sum / width;
    return 1.0f / sqrtf(mean + args.eps);
  };
  const int dim = thread % kPairs * 2;
  const float2 q = norm_and_turn<S>(floats_of(word[0].x), factor_of(q_sum, q_width),
                                    early.q_weights, early, dim);
  reinterpret_cast<uint32_t*>(memory + S::kQueryAt)[thread] = pack_bf16(q.x, q.y);
  if (newest && thread < 2 * kPairs) {
    const float2 raw = floats_of(word[1].x);
    const float2 turned =
        norm_and_turn<S>(raw, factor_of(k_sum, k_width), early.k_weights, early, dim);
    const float2 value = is_key ? turned : raw;
    const int slot = early.slot;
    const int64_t cell =
        ((slot / kPage * int64_t{1} * S::kKvHeads + head) * kPage + slot % kPage) * kPairs +
        dim / 2;
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

// The chains of four of twelve warps. Each takes a page's keys of four, and leaves its weights
// where the keys were; then all take the values of the four pages, two tiles of 16 dims each. Page
// after page in a loop: instructions that are not at hand take 45 ns for each eight of them.
template <class S, class Page>
__device__ __forceinline__ void attend_chains(const AttendAndRoute& args, Shared<S>& shared,
                                              uint8_t* memory, const Context<S>& context, int role,
                                              const OwnPage<S>& own, const Launch& launch) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int c = own.group, mine = own.mine;
  uint4 q[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (g < kGroup) q[j] = Page::load_query(memory + S::kQueryAt + g * kDim * 2, j);
  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
  const auto read = [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); };
  uint8_t* slots = memory + S::page_slot_at(c * kGroupSlots);
  constexpr int kTopsAt = kWarp * 16;  // in a page's slot, behind its weights
  // The key or value of the token itself, which memory has not or not yet, to its page.
  const auto put_newest = [&](uint8_t* page, int half) {
    constexpr int kRow = Page::kBytes / kPage;
    uint8_t* row = page + (context.tokens - 1) % kPage * kRow;
#pragma unroll
    for (int byte = lane * 4; byte < kRow; byte += kWarp * 4)
      *reinterpret_cast<uint32_t*>(row + byte) =
          *reinterpret_cast<const uint32_t*>(shared.newest[half] + byte);
  };
  int before = 0;  // pages of the group's chains before
#pragma unroll 1
  for (int i = role; i + c * kAttendBlocks < context.chains(); i += kChainGroups * kAttendBlocks) {
    const Chain chain = i == role ? own.chain : context.chain(i + c * kAttendBlocks);
    float2 largest = {-INFINITY, -INFINITY};
    float sum[2] = {}, values[2][4] = {};
#pragma unroll 1
    for (int first = 0; first < chain.pages; first += kChainWarps) {
      const int there = min(kChainWarps, chain.pages - first);
      static_assert(kChainWarps == kGroupSlots);
      const auto slot_of = [&](int k) { return (before + k) % kGroupSlots; };  // of the group's
      float weight[4];  // of the warp's own page
      if (mine < there) {
        const int slot = slot_of(mine) + c * kGroupSlots;
        uint8_t* at = slots + slot_of(mine) * kPageSlot;
        barrier_wait(&shared.page_full[slot], (before + first + mine) / kGroupSlots & 1);
        if (chain.page(first + mine) == context.pages - 1) {
          put_newest(at, 0);
          __syncwarp();
        }
        Page page;
        page.load_keys(at, read);
        float logits[4] = {};
        multiply_keys(
            page, [&](int j) { return q[j]; }, logits);
        const int valid = context.tokens - chain.page(first + mine) * kPage;
#pragma unroll
        for (int r = 0; r < 4; ++r)
          weight[r] = g + r / 2 * 8 < valid ? logits[r] * log2_scale : -INFINITY;
        float2 top = {fmaxf(weight[0], weight[2]), fmaxf(weight[1], weight[3])};
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) {
          top.x = fmaxf(top.x, __shfl_xor_sync(~0u, top.x, offset));
          top.y = fmaxf(top.y, __shfl_xor_sync(~0u, top.y, offset));
        }
        if (g == 0) *reinterpret_cast<float2*>(at + kTopsAt + t * 8) = top;
      }
      group_meets(c);
      const auto top_of = [&](int k) {
        return *reinterpret_cast<const float2*>(slots + slot_of(k) * kPageSlot + kTopsAt + t * 8);
      };
      if (mine < there) {
        // Relative to the largest so far, page by page.
        float2 now = largest;
#pragma unroll 1
        for (int k = 0; k <= mine; ++k) {
          const float2 top = top_of(k);
          now = {fmaxf(top.x, now.x), fmaxf(top.y, now.y)};
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) weight[r] = exp2f(weight[r] - (r % 2 ? now.y : now.x));
        const uint32_t b0 = transpose8x8(Page::pack(weight[0], weight[1]));
        const uint32_t b1 = transpose8x8(Page::pack(weight[2], weight[3]));
        reinterpret_cast<uint4*>(slots + slot_of(mine) * kPageSlot)[lane] = {
            b0, b1, __float_as_uint(weight[0] + weight[2]), __float_as_uint(weight[1] + weight[3])};
        if (before + first == 0) barrier_wait(&shared.values_full[c * kGroupSlots + mine], 0);
        if (chain.page(first + mine) == context.pages - 1)
          put_newest(slots + slot_of(mine) * kPageSlot + Page::kBytes, 1);
      }
      group_meets(c);
#pragma unroll 1
      for (int k = 0; k < there; ++k) {
        const uint8_t* at = slots + slot_of(k) * kPageSlot;
        const uint4 weights = reinterpret_cast<const uint4*>(at)[lane];
        // The two tiles' words alone, in the places of a page's first two tiles.
        Page page;
        page.load_values(at + Page::kBytes + mine * 4, [](const uint8_t* from) {
          return uint4{*reinterpret_cast<const uint32_t*>(from), 0, 0, 0};
        });
        const int valid = context.tokens - chain.page(first + k) * kPage;
        if (valid < kPage) page.clear_values_from(valid);
        const float2 top = top_of(k);
        const float2 now = {fmaxf(top.x, largest.x), fmaxf(top.y, largest.y)};
        // The first page has a valid key, so not inf - inf.
        const float factor[2] = {exp2f(largest.x - now.x), exp2f(largest.y - now.y)};
        largest = now;
        sum[0] = sum[0] * factor[0] + __uint_as_float(weights.z);
        sum[1] = sum[1] * factor[1] + __uint_as_float(weights.w);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int r = 0; r < 4; ++r) values[m][r] *= factor[r % 2];
          uint32_t a[4];
          page.values(m, a);
          Page::multiply(values[m], a, weights.x, weights.y);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.page_empty[slot_of(k) + c * kGroupSlots]);
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
        uint4* to = exchange.chains_of<S>(chain.head * kGroup + 2 * t + h) +
                    (chain.part * 4 + chain.fourth) * kChainWords;
        if (g == 0 && mine == 0) put(&to[kDim / 2], h ? largest.y : largest.x, sum[h], launch);
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

// Joins the chains of every part and the parts of a piece of a q head, two dims of a part a lane;
// then a thread a dim. `piece` of head `piece / kJoinPieces`.
template <class S, class Page>
__device__ __forceinline__ void join(const AttendAndRoute& args, Shared<S>& shared, uint8_t* memory,
                                     const Context<S>& context, int piece, const Launch& launch) {
  constexpr int kDims = S::kJoinDims, kJoined = S::kJoined, kAhead = 8;
  constexpr int kWords = kDims / 2, kTogether = kWarp / kWords;  // parts of a warp
  constexpr int kTotalsAt = kDim / 2;
  auto* joined = reinterpret_cast<float*>(memory + S::kJoinAt);
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp;
  const int head = piece / S::kJoinPieces, first_word = piece % S::kJoinPieces * kWords;
  // Of threads that join parts, neighbours have neighbouring dims (FP8: pairs of them).
  constexpr int kEights = kWords / 8;
  const int mine = (thread / 2 % kEights * 8 + thread / 2 / kEights) * 2 + thread % 2;
  float largest = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll 1
  for (int first = 0; first < context.parts; first += kJoined) {
    if (first > 0) meet();
    const int count = min(kJoined, context.parts - first);
#pragma unroll 1
    for (int begin = warp * kTogether; begin < count; begin += kConsumers / kWarp * kTogether) {
      const auto* chains = exchange.chains_of<S>(head) + first * 4 * kChainWords;
      // Of ranks the chains are as long as one another, and end together: a look less then.
      static_assert(!S::kWhole || kTogether == 1);
      if (lane < (S::kWhole ? 4 : 1))
        wait_for_word(chains + (begin * 4 + lane) * kChainWords + kTotalsAt, launch);
      __syncwarp();
      const int part = begin + lane / kWords;
      if (kTogether > 1 && part >= count) continue;
      const auto* from = chains + part * 4 * kChainWords;
      uint4 words[8];
      const auto word_at = [&](int w) -> const uint4* {
        return from + w % 4 * kChainWords + (w < 4 ? first_word + lane % kWords : kTotalsAt);
      };
      if constexpr (S::kWhole)
        await(words, launch, word_at);
      else
        await_late(words, launch, word_at);
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
      reinterpret_cast<float2*>(joined + part * kDims)[lane % kWords] = both;
      if (lane % kWords == 0) {
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
    // Factors by a lane a part: one after another each takes an exponential's time. Eight parts
    // have one largest, as the kernel that joins has it.
    float* factors = shared.factors[warp];
    float* befores = shared.befores[warp];
#pragma unroll
    for (int from = 0; from < kJoined; from += kWarp) {
      const int part = from + lane;
      const float own = part < count ? shared.totals[part][0] : -INFINITY;
      float of_group = own;
#pragma unroll
      for (int offset = kAhead / 2; offset; offset /= 2)
        of_group = fmaxf(of_group, __shfl_xor_sync(~0u, of_group, offset));
      float top = largest, before = largest;
#pragma unroll
      for (int g = 0; g < kWarp / kAhead; ++g) {
        const float of = __shfl_sync(~0u, of_group, g * kAhead);
        if (g <= lane / kAhead) top = fmaxf(top, of);
        if (g < lane / kAhead) before = fmaxf(before, of);
      }
      if (part < count) factors[part] = exp2f(own - top);
      if (part < count && lane % kAhead == 0) befores[part / kAhead] = exp2f(before - top);
      largest = __shfl_sync(~0u, top, kWarp - 1);
    }
    __syncwarp();
#pragma unroll 1
    for (int group = 0; group < count; group += kAhead) {
      const int there = count - group;
      const float before = befores[group / kAhead];
      sum *= before;
      value *= before;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float factor = factors[group + i], of_part = shared.totals[group + i][1],
                    numbers = joined[(group + i) * kDims + mine];
        if (i >= there) continue;
        sum = fmaf(of_part, factor, sum);
        value = fmaf(numbers, factor, value);
      }
    }
  }
  if (thread >= kDims) return;
  value = context.parts > 0 ? value * (args.cache.v_scale / sum) : 0.0f;
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  const uint32_t next = __shfl_down_sync(kDims < kWarp ? (1u << kDims % kWarp) - 1 : ~0u, bits, 1);
  if (lane % 2 == 0)
    put(&exchange.attended[head * (kDim / 2) + pair_of_word<Page>(first_word + mine / 2)],
        bits | next << 16, launch);
}

// The block's 24 rows of o. An instruction's 64 rows are eight rows of eight different places: 1 KB
// of shared memory each, three for a stretch of 128 columns; the eight columns of its other operand
// are the stretches of these places, and what counts of the sums are those of a place with its own
// stretch. Of the last places there may be fewer than eight: what stands behind them is multiplied
// too, and its sums are dropped.
template <class S, class Page>
__device__ __forceinline__ void multiply_o(const AttendAndRoute& args, Shared<S>& shared,
                                           uint32_t start, uint8_t* memory, int role,
                                           const Launch& launch) {
  constexpr int kPlaces = S::kOPlaces;
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp % 4;
  const int warpgroup = thread / 128;
  // A warp has four stretches (heads), or fewer, a lane four dims of each: so what it reads at once
  // lies side by side.
  constexpr int kWarps = kConsumers / kWarp, kEach = (S::kOStretches + kWarps - 1) / kWarps;
  static_assert(S::kOStretches % kEach == 0);
  const int first_stretch = thread / kWarp * kEach;
  if (S::kOStretches % kWarps == 0 || first_stretch < S::kOStretches) {
    const auto word_at = [&](int i) -> const uint4* {
      return reinterpret_cast<const uint4*>(exchange.attended) + (first_stretch + i) * kWarp + lane;
    };
    uint4 words[kEach];
    if constexpr (S::kWhole) {
      // Their halves are said by two blocks each.
      if (lane < 2 * kEach) {
        const int half = 2 * first_stretch + lane;
        wait_for_word(
            &exchange
                 .attended[half / 2 * (kDim / 2) + pair_of_word<Page>((half % 2 + 1) * kWarp - 1)],
            launch);
      }
      __syncwarp();
      await(words, launch, word_at);
    } else {
      if (lane == 0) wait_for_word(word_at(0), launch);
      __syncwarp();
      await_late(words, launch, word_at);
    }
#pragma unroll 1
    for (int i = 0; i < kEach; ++i) {
      const int stretch = first_stretch + i;
      const float2 low = floats_of(words[0].x), high = floats_of(words[0].z);
#pragma unroll
      for (int k = 0; k + 1 < kEach; ++k) words[k] = words[k + 1];  // the next one's turn
      // NaN counts for nothing; the bits of numbers that are not negative have the numbers' order.
      const float most = fmaxf(largest_of(low.x, low.y, high.x, high.y), 0.0f);
      const float scale =
          f8_scale(__uint_as_float(warp_max(__float_as_uint(most))), args.quantised.powers);
      if (lane == 0) shared.o_input_scale[stretch] = scale;
      const uint32_t fours = to_f8(low.x, low.y, high.x, high.y, 1.0f / scale);
#pragma unroll
      for (int p = 0; p < kPlaces; ++p) {
        const int place = stretch * kPlaces + p, column = place % 8;
        *reinterpret_cast<uint32_t*>(memory + S::kOTokensAt + place / 8 * (8 * kTileStep) +
                                     column * kTileStep + ((lane / 4) ^ column) * 16 +
                                     lane % 4 * 4) = fours;
      }
    }
  }
  fence_for_products();
  meet();
  auto* parts = reinterpret_cast<float*>(memory + S::kOPartsAt);
  const int row = lane / 4;
  // Some loads' products under way; the code stays short.
  constexpr int kAtOnce = S::kOAtOnce;
  static_assert(S::kORounds % kAtOnce == 0);
#pragma unroll 1
  for (int first = 0; first < S::kORounds; first += kAtOnce) {
    float d[kAtOnce][4];
    const int group = first * kWarpgroups + warpgroup;
    const uint32_t rows = alike(operand_low(start + S::kOAt + group * (kFlowRows * kTileStep))),
                   tokens = alike(operand_low(start + S::kOTokensAt + group * (8 * kTileStep)));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      barrier_wait(&shared.o_full[(first + i) * S::kOLoads / S::kORounds], 0);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_64xNx32<8>(
            d[i], operand_from(rows + (i * kWarpgroups * (kFlowRows * kTileStep) + k * 32) / 16),
            operand_from(tokens + (i * kWarpgroups * (8 * kTileStep) + k * 32) / 16), k > 0);
    wgmma_finish();
    if (lane % 4 == warp)
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = ((first + i) * kWarpgroups + warpgroup) * 8 + 2 * warp + half;
          if (S::kOPlaces * S::kOStretches % (8 * kWarpgroups) != 0 &&
              place >= S::kOPlaces * S::kOStretches)
            break;
          parts[place / kPlaces * kBlockORows + place % kPlaces * 8 + row] = d[i][3 * half];
        }
  }
  meet();
  if (thread >= kWarp) return;
  const int mine = min(lane, kBlockORows - 1), first_row = role * kBlockORows;
  const float* scales = shared.o_scale[(first_row + mine) / 128 - first_row / 128];
  float total = 0.0f;
#pragma unroll 8
  for (int s = 0; s < S::kOStretches; ++s)
    total = fmaf(parts[s * kBlockORows + mine], shared.o_input_scale[s] * scales[s], total);
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  if constexpr (S::kWhole) {
    if (lane % 2 == 0 && lane < kBlockORows)
      put(&exchange.delta[(first_row + lane) / 2], bits | next << 16, launch);
  } else {
    // Eight columns a word; lane 8 w + r sends word w to rank r.
    const uint32_t pair = under_way(bits | next << 16);
    const int w = lane / 8, rank = lane % 8;
    const uint4 word = {__shfl_sync(~0u, pair, 8 * w), __shfl_sync(~0u, pair, 8 * w + 2),
                        __shfl_sync(~0u, pair, 8 * w + 4), __shfl_sync(~0u, pair, 8 * w + 6)};
    if (w < kBlockORows / 8 && rank < args.peers.ranks)
      tell_words(sums_of(args.peers, rank, launch.of_ranks, args.peers.rank) + first_row / 8 + w,
                 word, launch.keep);
  }
}

// The router's scores of the block's experts: a lane a stretch of an expert, since a stretch is
// summed column by column; four stretches of both experts a warp.
template <class S>
__device__ __forceinline__ void route(const AttendAndRoute& args, Shared<S>& shared,
                                      uint8_t* memory, int role, float bias, bool inert) {
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kEach = 4;
  static_assert(kRouteStretch == 8 * kWarp);
  if (warp >= kRouteStretches / kEach) return;
  barrier_wait(&shared.gate_full, 0);
  if (lane < kEach * kBlockExperts) {
    const int expert = lane / kEach, stretch = warp * kEach + lane % kEach;
    const auto* gate = reinterpret_cast<const float4*>(
        memory + S::kGateAt + (expert * kRouteStretches + stretch) * kGateStretch);
    const auto* x = reinterpret_cast<const float4*>(memory + S::kNormedAt + stretch * kGateStretch);
    shared.route[expert][stretch] = stretch_product(x, gate);
  }
  asm volatile("bar.sync 2, %0;" ::"n"(kRouteStretches / kEach * kWarp) : "memory");
  if (thread >= kBlockExperts) return;
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kRouteStretches; ++s) total += shared.route[thread][s];
  ExpertScore score = score_of(total, bias);
  if (inert) score.key = 0;
  args.scores[role * kBlockExperts + thread] = score;
}

// What was heard in the launch before makes room for the next one's.
__device__ __forceinline__ void clear_sums(const DecodePeers& peers, int role,
                                           const Launch& launch) {
  constexpr int kWords = kBlockORows / 8;  // of a rank
  const int rank = threadIdx.x / kWords, word = threadIdx.x % kWords;
  if (rank < peers.ranks)
    sums_of(peers, peers.rank, launch.of_ranks + 1, rank)[role * kWords + word] = {};
}

// residual += o's output, and its norm, by every block for itself, and the router's scores; each of
// the first 24 writes 128 columns of the row.
template <class S>
__device__ __forceinline__ void norm_row_and_route(const AttendAndRoute& args, Shared<S>& shared,
                                                   uint8_t* memory, int role, float bias,
                                                   bool inert, const Launch& launch) {
  using Pack = Pack8<__nv_bfloat16>;
  const int thread = own_thread();
  const uint4 norm = static_cast<const uint4*>(args.norm)[thread];
  uint32_t pairs[4];
  if constexpr (S::kWhole) {
    if (thread < kAttendBlocks)
      wait_for_word(&exchange.delta[thread * (kBlockORows / 2) + kBlockORows / 2 - 1], launch);
    meet();
    uint4 words[2];
    await(words, launch, [&](int i) -> const uint4* {
      return reinterpret_cast<const uint4*>(exchange.delta) + thread * 2 + i;
    });
    pairs[0] = words[0].x;
    pairs[1] = words[0].z;
    pairs[2] = words[1].x;
    pairs[3] = words[1].z;
  } else {
    // This rank's own words come as its peers' do, and always: so no block ends before all have
    // begun, and know the launch's number.
    const uint4* from = sums_of(args.peers, args.peers.rank, launch.of_ranks, 0) + thread;
    const uint4 sum =
        sum_of_ranks<S::kMostRanks, kHidden / 8, false>(args.peers, from, uint4{}, launch.keep);
    pairs[0] = sum.x;
    pairs[1] = sum.y;
    pairs[2] = sum.z;
    pairs[3] = sum.w;
  }
  const RowNorm row_norm(pairs, norm, args.eps, memory + S::kResidualAt, shared.scratch,
                         memory + S::kNormedAt);
  meet();
  route<S>(args, shared, memory, role, bias, inert);
  // What nobody waits for comes last.
  if (thread / 16 != role) return;
  static_cast<Pack*>(args.residual)[thread] = row_norm.kept;
  store_normed(row_norm.kept, row_norm.by, row_norm.factor,
               static_cast<__nv_bfloat16*>(args.hidden), thread, 0, kHidden, args.quantised);
}

// Bytes: 25.2 MB of q, k and v, 18.9 of o, and the live K and V, or a rank's share of all of them;
// 3.1 MB of the gate. Bound: bandwidth, and the latency of five exchanges. What stands before the
// first weights are asked for is short: memory does nothing then.
template <class S, class Page>
__global__ void __launch_bounds__(kThreads, 1)
    sm90_attend_and_route(const __grid_constant__ AttendAndRoute args,
                          const __grid_constant__ AttendMaps maps) {
  extern __shared__ uint8_t attend_memory[];
  __shared__ Shared<S> shared;
  const uint32_t start = (shared_address(attend_memory) + 1023) & ~1023u;
  uint8_t* memory = attend_memory + (start - shared_address(attend_memory));
  const int thread = own_thread(), role = static_cast<int>(blockIdx.x % kAttendBlocks);
  if (thread == kConsumers) {
    prefetch_map(&maps.qkv);
    prefetch_map(&maps.o);
  }
  shared.begin_barriers();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  __syncthreads();
  if (thread >= kConsumers) {
    load_all<S, Page>(args, maps, shared, start, memory, role);
    return;
  }

  // What no kernel of the step has written.
  constexpr int kKv = S::kKvHeads * kDim;
  const int first_row = role * S::kBlockRows, part = first_row < S::kQ         ? 0
                                                     : first_row < S::kQ + kKv ? 1
                                                                               : 2;
  const int within = first_row - (part == 0 ? 0 : part == 1 ? S::kQ : S::kQ + kKv);
  float weight_scale = 0.0f;
  if (thread % 16 == 0)
    weight_scale =
        __ldg(args.qkv_scale[part] + within / 128 * args.qkv_scale_stride[part] + thread / 16);
  uint4 early_norm = {};
  if constexpr (S::kWhole)
    if (args.before.results) early_norm = static_cast<const uint4*>(args.before.norm)[thread];
  float o_scale = 0.0f;
  if (thread < 2 * S::kOStretches) {
    const int block = min(role * kBlockORows / 128 + thread / S::kOStretches, kHidden / 128 - 1);
    o_scale = __ldg(args.o_scale + block * args.o_scale_stride + thread % S::kOStretches);
  }
  float bias = 0.0f;
  if (thread < kBlockExperts) bias = args.bias[role * kBlockExperts + thread];
  const typename Context<S>::Lengths lengths(args);
  const Early early(args, role % S::kKvHeads);
  const unsigned before = launches_before(&exchange.finished);
  unsigned of_ranks_before = 0;
  if constexpr (!S::kWhole)
    of_ranks_before = launches_before(&words_of(args.peers, args.peers.rank)->launches);
  const Context<S> context(lengths);
  const OwnPage<S> own_page(args, context, role);
  if (thread < 2 * S::kOStretches)
    shared.o_scale[thread / S::kOStretches][thread % S::kOStretches] = o_scale;
  const bool newest = has_newest(context, role);
  if constexpr (S::kApart) {
    // Ranks' kernels in front leave memory to itself.
    own_page.template ask<Page>(args, shared, memory, role, false);
    own_page.template ask<Page>(args, shared, memory, role, true);
  }
  wait_for_previous();
  let_next_start();
  bool sums = false;
  if constexpr (S::kWhole) sums = args.before.results != nullptr;
  if (sums) {
    sum_experts<S>(args, shared, memory, early_norm, weight_scale, role);
  } else {
    reinterpret_cast<uint4*>(memory + S::kResidualAt)[thread] =
        load_written(static_cast<const uint4*>(args.residual) + thread);
    const int s = thread / 16, piece = thread % 16 / 2;
    if (thread % 2 == 0)
      *reinterpret_cast<uint4*>(memory + S::kTokensAt + s / 8 * (8 * kTileStep) +
                                s % 8 * kTileStep + (piece ^ (s % 8)) * 16) =
          load_written(args.x_f8 + thread * 8);
    if (thread % 16 == 0) shared.qkv_factor[s] = args.x_scales[s] * weight_scale;
  }
  fence_for_products();
  meet();
  const Launch launch{before + 1, keep_policy(), of_ranks_before + 1};
  multiply_qkv<S, Page>(args, shared, start, memory, role, own_page, launch);
  meet();  // nobody reads qkv's tokens and parts any more
  if (role < context.chains())
    make_queries<S, Page>(args, shared, memory, role, newest, early, own_page, launch);
  if constexpr (S::kApart) loader_may_go_on<false>();
  attend_chains<S, Page>(args, shared, memory, context, role, own_page, launch);
  // Of ranks by the last blocks, which may have no chains.
  const int piece = S::kApart ? kAttendBlocks - 1 - role : role;
  if (piece < S::kJoinBlocks) join<S, Page>(args, shared, memory, context, piece, launch);
  meet();  // pages have been read
  multiply_o<S, Page>(args, shared, start, memory, role, launch);
  norm_row_and_route<S>(args, shared, memory, role, bias, early.slot < 0, launch);
  if constexpr (!S::kWhole) clear_sums(args.peers, role, launch);
  if (role == 0 && thread == 0) {
    exchange.finished = launch.number;
    if constexpr (!S::kWhole) words_of(args.peers, args.peers.rank)->launches = launch.of_ranks;
  }
}

template <int kKv>
void launch_share(void* stream, const AttendAndRoute& args) {
  using S = Share<kKv>;
  AttendMaps maps;
  maps.qkv = double_map(args.qkv, S::kQkvRows, kHidden, kHidden, S::kBlockRows, S::kQkvStretches);
  maps.o = double_map(args.o, kHidden, S::kQ, S::kQ, kBlockORows, S::kOStretch);
  LaunchShape shape{dim3(kAttendBlocks), dim3(kThreads)};
  shape.shared_bytes = S::kSharedBytes;
  launch(stream,
         args.cache.dtype == DType::bf16 ? sm90_attend_and_route<S, Bf16Page>
                                         : sm90_attend_and_route<S, F8Page>,
         shape, args, maps);
}

}  // namespace

void launch_attend_and_route(void* stream, int kv_heads, const AttendAndRoute& args) {
  if (kv_heads == Whole::kKvHeads) return launch_share<Whole::kKvHeads>(stream, args);
  if (kv_heads == 4) return launch_share<4>(stream, args);
  if (kv_heads == 2) return launch_share<2>(stream, args);
  if (kv_heads == 1) return launch_share<1>(stream, args);
  cuda_failed("attend_and_route", "no rank has so many heads");
}

}  // namespace m2::ops::cuda
