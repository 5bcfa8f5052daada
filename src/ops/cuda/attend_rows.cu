#include "ops/cuda/attend_rows.h"
#include "ops/cuda/attend_steps.cuh"
#include "ops/cuda/rank_words.cuh"
#include "ops/cuda/route_choice.cuh"

// The attention half of a layer for two decoded tokens of a tensor rank in one kernel, as
// attend_and_route.cu has it for one: the same blocks with the same weights, which are read once;
// words that blocks and ranks tell each other are there for each row. Rows stand side by side in
// the products' columns, so that these take as many instructions as of one row. All else that is
// done for a row goes to other blocks or warps than the same for another row, since what one warp
// does takes its time whatever the others do: a block has the chains of one row, and norms one.
namespace m2::ops::cuda {
namespace {

// What one of 2, 4 or 8 ranks has of a layer, and where a block has it in memory.
template <int kKv>
struct Share {
  static constexpr int kRows = kAttendRows;
  static constexpr int kMostRanks = AttendShape::kKvHeads / kKv;
  static constexpr int kKvHeads = kKv, kQHeads = kKv * kGroup;
  static constexpr int kQ = kQHeads * kDim, kQkvRows = (kQHeads + 2 * kKv) * kDim;
  static constexpr int kOStretches = kQ / kTileStep;
  static constexpr int kColumns = 8 * kRows;  // of the products' second operand

  // Rows of q, k and v, and of o: as operands places of eight rows of a stretch, eight of which
  // make an instruction's 64 rows; the second operand has eight stretches of each row.
  static constexpr int kBlockRows = kQkvRows / kAttendBlocks;
  static constexpr int kQkvPlaces = kBlockRows / 8;  // of a stretch
  static constexpr int kQkvStretches = 8;            // of a load
  static constexpr int kQkvLoad = kBlockRows * kTileStep * kQkvStretches;
  static constexpr int kQkvLoads = kStretches / kQkvStretches;  // a warpgroup each
  static constexpr int kQkvGroups = kQkvPlaces;                 // instructions' rows of a load
  static_assert(kQkvLoads == kWarpgroups && 8 % kQkvPlaces == 0);
  static constexpr int kOPlaces = kBlockORows / 8;
  static constexpr int kOLoad = kBlockORows * kTileStep * kOStretches;
  static constexpr int kOGroups = (kOPlaces * kOStretches + 7) / 8;  // the last may be part of one
  static constexpr int kORounds = (kOGroups + kWarpgroups - 1) / kWarpgroups;

  // A block's part in what stands behind the products: the chains of one row, as many blocks a row
  // as its context wants; and the norm of one row, and the scores of it of some experts.
  static constexpr int kUnits = kAttendBlocks / kKv;  // blocks of a KV head
  static constexpr int kExperts = kRows * kBlockExperts;
  static constexpr int kRowGate = kExperts * kRouteStretches;  // stretches of it
  // Sums of squares of eights, of a row and rank.
  static constexpr int kSquares = (kQHeads + kKv) * kDim / 8;
  static constexpr int kRowSquares = kMostRanks * kSquares;
  // Chains of a q head are joined by blocks of so many dims each, of so many parts at once.
  static constexpr int kJoinPieces = 4 * kQHeads * kRows <= kAttendBlocks ? 4 : 2;
  static constexpr int kJoinDims = kDim / kJoinPieces, kJoined = 12 * kJoinPieces;
  static constexpr int kJoinBlocks = kJoinPieces * kQHeads;  // of a row
  static_assert(kJoinBlocks * kRows <= kAttendBlocks);
  static constexpr int kMostChains = 4 * most_splits(kKv);  // of a q head

  // Shared memory from a 1024-byte border on. What is loaded:
  static constexpr int kQkvBytes = kQkvLoads * kQkvLoad;
  static constexpr bool kApart = kKv <= 2;  // pages have their own place
  static constexpr int kPagesAt = kApart ? kQkvBytes : 0;
  static constexpr int kOAt = kPagesAt + kPageSlots * kPageSlot;
  static constexpr int kOEnd = kOAt + kOLoad;
  static_assert(kApart || kQkvBytes == kOAt);
  // Over those and pages, once chains are done:
  static constexpr int kGateAt = 0;
  static constexpr int kGateEnd = (kRowGate * kGateStretch + 1023) / 1024 * 1024;
  // What blocks work in then: behind it, or behind everything.
  static constexpr int kOTokenBytes = kOGroups * kColumns * kTileStep;
  static constexpr int kOPartBytes = kRows * kOStretches * kBlockORows * 4;
  static constexpr int kNormedBytes = kRouteStretches * kGateStretch;
  static constexpr int kJoinBytes = kJoined * kJoinDims * 4;
  static constexpr int kLateBytes = kOTokenBytes + kOPartBytes + kNormedBytes + kJoinBytes;
  static constexpr bool kLateOverPages = kGateEnd + kLateBytes <= kOAt;
  static_assert(kGateEnd <= kOAt);
  static constexpr int kLateAt = kLateOverPages ? kGateEnd : (kOEnd + 1023) / 1024 * 1024;
  static constexpr int kOTokensAt = kLateAt;  // o's input: [kOGroups][kColumns][128] bytes
  static constexpr int kOPartsAt = kOTokensAt + kOTokenBytes;
  static constexpr int kNormedAt = kOPartsAt + kOPartBytes;
  static constexpr int kJoinAt = kNormedAt + kNormedBytes;  // f32 [kJoined, kJoinDims]
  static_assert(kNormedAt % 16 == 0 && kJoinAt % 16 == 0);
  // Behind everything:
  static constexpr int kWorkAt =
      ((kLateOverPages ? kOEnd : kLateAt + kLateBytes) + 1023) / 1024 * 1024;
  static constexpr int kTokensAt = kWorkAt;  // qkv's input: [3][kColumns][128] bytes
  static constexpr int kPartsAt =
      kTokensAt + 3 * kColumns * kTileStep;  // f32 [rows][24][kBlockRows]
  static constexpr int kPartsEnd = kPartsAt + kRows * kStretches * kBlockRows * 4;
  // Over those: what warps of a group tell each other of a page, for two rounds of pages.
  static constexpr int kWeighedAt = kTokensAt, kWeighed = kWarp * 16 + 128;
  static constexpr int kWeighedEnd = kWeighedAt + 2 * kPageSlots * kWeighed;
  static constexpr int kResidualAt = kWeighedEnd > kPartsEnd ? kWeighedEnd : kPartsEnd;  // bf16
  static constexpr int kBehindAt = kResidualAt + kHidden * 2;
  // Over the weights of q, k and v, once they have been multiplied, if pages are not there:
  static constexpr int kSquaresAt = kApart ? 0 : kBehindAt;              // f32 [rows, kRowSquares]
  static constexpr int kQueryAt = kSquaresAt + kRows * kRowSquares * 4;  // bf16 [6, 128]
  static constexpr int kQueryEnd = kQueryAt + kGroup * kDim * 2;
  static_assert(!kApart || kQueryEnd <= kQkvBytes);
  static constexpr int kWorkEnd = kApart ? kBehindAt : kQueryEnd;
  // Products of all rounds read something.
  static_assert(kOAt + kORounds * kWarpgroups * kFlowRows * kTileStep <= kWorkEnd);
  static constexpr int kSharedBytes = kWorkEnd + 1024;
  static_assert(kSharedBytes <= 221 * 1024);
};

// What the blocks of a launch tell one another.
struct Exchange {
  static constexpr int kRows = kAttendRows;
  static constexpr int kMostKv = 4, kMostQ = kMostKv * kGroup;      // heads
  unsigned finished;                                                // launches
  alignas(16) uint2 raw[kRows][(kMostQ + 2 * kMostKv) * kDim / 2];  // q, k and v, pairs of bf16
  alignas(16) uint4 chains[kRows][kMostQ * 4 * most_splits(kMostKv) * kChainWords];
  alignas(16) uint2 attended[kRows * kMostQ * kDim / 2];  // pairs of bf16, row after row
  alignas(16) uint4 scores[kRows][kRouted];               // ExpertScore

  // With fewer heads there are more chains of each.
  template <class S>
  __device__ __forceinline__ uint4* chains_of(int row, int q_head) {
    static_assert(S::kQHeads * S::kMostChains == kMostQ * 4 * most_splits(kMostKv));
    return chains[row] + q_head * (S::kMostChains * kChainWords);
  }
};
__device__ Exchange exchange;

__device__ __forceinline__ RankRowsWords* rows_words_of(const DecodePeers& peers, int rank) {
  return reinterpret_cast<RankRowsWords*>(static_cast<uint8_t*>(peers.memory[rank]) +
                                          RankRowsWords::kAt);
}
// Where a rank finds what `by` tells it of a row in a launch: columns by eights. As of one row
// (attend_and_route.cu), the places of every other launch are cleared between.
__device__ __forceinline__ uint4* sums_of(const DecodePeers& peers, int rank, uint32_t launch,
                                          int by, int row) {
  return reinterpret_cast<uint4*>(rows_words_of(peers, rank)->sums[launch % 2][by][row]);
}

// Chains of pages: of a part of a context every fourth page, as a warp of the decode kernel takes
// them.
struct Chain {
  int part, fourth, first, pages;
  __device__ __forceinline__ int page(int k) const { return first + 4 * k; }
};
// How a row's context is cut.
template <class S>
struct Context {
  int tokens, pages, each, parts;
  Context() = default;
  __device__ __forceinline__ explicit Context(int of_tokens) : tokens(of_tokens) {
    pages = static_cast<int>((static_cast<unsigned>(tokens) + kPage - 1) / kPage);
    each = pages_per_split(pages, S::kKvHeads);
    parts = static_cast<int>(static_cast<unsigned>(pages + each - 1) / static_cast<unsigned>(each));
  }
  __device__ __forceinline__ int chains() const { return parts * 4; }  // of a KV head
  __device__ __forceinline__ Chain chain(int i) const {
    const int part = i / 4, fourth = i % 4, begin = part * each, first = begin + fourth;
    const int end = min(pages, begin + each);
    const bool any = i < chains() && first < end;
    return {part, fourth, first,
            any ? static_cast<int>(static_cast<unsigned>(end - first + 3) / 4) : 0};
  }
  // The one whose last page is the newest.
  __device__ __forceinline__ int newest() const {
    return (parts - 1) * 4 + (pages - (parts - 1) * each - 1) % 4;
  }
};
// The row whose chains a block has, of one KV head, and which of them: `first`, and every `apart`th
// from there on, for the groups of warps in turn. A row has blocks by how many chains it has.
template <class S>
struct RowOfBlock {
  int row, head, first, apart;
  Context<S> context;
  // What it is made of: asked for at once, and waited for where it is used.
  struct Lengths {
    int tokens[S::kRows];
    __device__ __forceinline__ explicit Lengths(const AttendRows& args) {
#pragma unroll
      for (int r = 0; r < S::kRows; ++r) tokens[r] = args.context_lens[r];
    }
  };
  __device__ __forceinline__ RowOfBlock(const Lengths& lengths, int role)
      : row(0), head(role % S::kKvHeads), first(role / S::kKvHeads), apart(S::kUnits) {
    int before[S::kRows + 1];
    before[0] = 0;
#pragma unroll
    for (int r = 0; r < S::kRows; ++r)
      before[r + 1] = before[r] + Context<S>(lengths.tokens[r]).chains();
    const unsigned all = max(1, before[S::kRows]);
    int begin = 0, tokens = lengths.tokens[0];
    const int unit = first;
#pragma unroll
    for (int r = 1; r <= S::kRows; ++r) {
      // Each has one at least.
      const int end = r == S::kRows
                          ? S::kUnits
                          : static_cast<int>(static_cast<unsigned>(before[r]) *
                                             static_cast<unsigned>(S::kUnits - S::kRows) / all) +
                                r;
      if (unit >= begin && unit < end) {
        row = r - 1;
        first = unit - begin;
        apart = end - begin;
        tokens = lengths.tokens[r - 1];
      }
      begin = end;
    }
    context = Context<S>(tokens);
  }
  __device__ __forceinline__ bool any() const {
    return first < context.chains();
  }
  __device__ __forceinline__ bool has_newest() const {
    return any() && static_cast<unsigned>(context.newest()) % static_cast<unsigned>(apart) ==
                        static_cast<unsigned>(first);
  }
};

template <class S>
struct Shared {
  uint64_t qkv_full[S::kQkvLoads];
  uint64_t keys_full[kPageSlots], keys_empty[kPageSlots];
  uint64_t values_full[kPageSlots], values_empty[kPageSlots];
  uint64_t o_full, gate_full, pages_read;
  float qkv_factor[S::kRows][kStretches];
  float o_scale[2][S::kOStretches], o_input_scale[S::kRows][S::kOStretches];
  float squares[S::kRows][kWarp];  // of 256 columns each
  float totals[S::kJoined][2];     // of parts that are joined
  float factors[S::kJoinDims / kWarp][S::kJoined], befores[S::kJoinDims / kWarp][S::kJoined / 8];
  float scratch[kConsumers / kWarp];
  float route[S::kExperts][kRouteStretches];
  int slots[S::kRows];
  alignas(
      16) uint8_t newest[S::kRows][2][kDim * 2];  // tokens' keys and values as the cache has them

  // By every warp of consumers, some of the barriers: the threads of a warp begin theirs one after
  // another.
  __device__ __forceinline__ void begin_barriers() {
    static_assert(S::kQkvLoads + 3 <= kConsumers / kWarp && kPageSlots == kConsumers / kWarp);
    const int i = threadIdx.x / kWarp;
    if (threadIdx.x % kWarp != 0 || i >= kConsumers / kWarp) return;
    if (i < S::kQkvLoads) barrier_init(&qkv_full[i], 1);
    barrier_init(&keys_full[i], 1);
    barrier_init(&keys_empty[i], 1);
    barrier_init(&values_full[i], 1);
    barrier_init(&values_empty[i], kChainWarps);
    if (i == S::kQkvLoads) barrier_init(&o_full, 1);
    if (i == S::kQkvLoads + 1) barrier_init(&gate_full, 1);
    if (i == S::kQkvLoads + 2) barrier_init(&pages_read, kConsumers / kWarp);
  }
};

// Whether two rows' own positions lie in one block of the cache, as those of a draft do.
__device__ __forceinline__ bool share_block(int slot, int other) {
  return slot >= 0 && other >= 0 && slot / kPage == other / kPage;
}

// Asks for the keys, or the values, of a KV head's page. By one lane.
template <class S, class Page>
__device__ __forceinline__ void ask_for_page(const AttendRows& args, uint8_t* memory, int slot,
                                             int64_t id, int head, bool values, uint64_t* full) {
  const void* cache = values ? args.cache.v : args.cache.k;
  bulk_copy(memory + S::kPagesAt + slot * kPageSlot + (values ? Page::kBytes : 0),
            static_cast<const uint8_t*>(cache) + (id * S::kKvHeads + head) * Page::kBytes,
            Page::kBytes, full, once_policy());
}

// The pages of a group's chains, one after another.
template <class S>
struct Pages {
  const AttendRows& args;
  const RowOfBlock<S>& of;
  int i;      // chain
  int k = 0;  // pages of the chain before
  Chain chain;
  __device__ __forceinline__ Pages(const AttendRows& arguments, const RowOfBlock<S>& row, int group)
      : args(arguments), of(row), i(row.first + group * row.apart), chain(row.context.chain(i)) {
    skip_empty();
  }
  __device__ __forceinline__ bool any() const { return i < of.context.chains(); }
  __device__ __forceinline__ void next() {
    ++k;
    skip_empty();
  }
  __device__ __forceinline__ int id() const {
    return args.block_tables[of.row * args.table_stride + chain.page(k)];
  }

 private:
  __device__ __forceinline__ void skip_empty() {
    while (any() && k >= chain.pages) {
      i += kChainGroups * of.apart;
      k = 0;
      chain = of.context.chain(i);
    }
  }
};

// A warp's group, its number in it, and the page of the group's first ones that it asks for: each
// warp its own, as one lane takes longer to ask for all than memory to bring them.
template <class S>
struct OwnPage {
  int id;  // < 0: there is none
  __device__ __forceinline__ OwnPage(const AttendRows& args, const RowOfBlock<S>& of) : id(-1) {
    const int warp = threadIdx.x / kWarp, mine = warp % kChainWarps;
    Pages<S> pages(args, of, warp / kChainWarps);
#pragma unroll 1
    for (int n = 0; n < mine && pages.any(); ++n) pages.next();
    if (pages.any()) id = pages.id();
  }
  template <class Page>
  __device__ __forceinline__ void ask(const AttendRows& args, Shared<S>& shared, uint8_t* memory,
                                      int head, bool values) const {
    if (threadIdx.x % kWarp != 0 || id < 0) return;
    const int slot = threadIdx.x / kWarp;
    uint64_t* full = values ? &shared.values_full[slot] : &shared.keys_full[slot];
    barrier_expect(full, Page::kBytes);
    ask_for_page<S, Page>(args, memory, slot, id, head, values, full);
  }
};

// The loader waits until queries have been made.
template <bool kWaits>
__device__ __forceinline__ void loader_may_go_on() {
  if constexpr (kWaits)
    asm volatile("bar.sync 9, %0;" ::"n"(kThreads) : "memory");
  else
    asm volatile("bar.arrive 9, %0;" ::"n"(kThreads) : "memory");
}
__device__ __forceinline__ bool barrier_over(uint64_t* barrier, uint32_t parity) {
  uint32_t over = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(over)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
#endif
  return over != 0;
}

// One warp, which asks for all that the block will read but the groups' first pages.
template <class S, class Page>
__device__ __forceinline__ void load_all(const AttendRows& args, const AttendMaps& maps,
                                         Shared<S>& shared, uint32_t start, uint8_t* memory,
                                         int role) {
  const int lane = threadIdx.x % kWarp;
  const typename RowOfBlock<S>::Lengths lengths(args);
  if (lane == 0)
#pragma unroll 1
    for (int i = 0; i < S::kQkvLoads; ++i) {
      barrier_expect(&shared.qkv_full[i], S::kQkvLoad);
      tensor_copy_3d(start + i * S::kQkvLoad, &maps.qkv, 0, role * S::kBlockRows,
                     i * S::kQkvStretches, &shared.qkv_full[i], once_policy());
    }
  __syncwarp();
  const RowOfBlock<S> of(lengths, role);
  // A lane looks after each group's keys behind its first pages', another after the values.
  const int group = lane / 2;
  const bool values = lane % 2 == 1;
  Pages<S> pages(args, of, group < kChainGroups ? group : 1 << 12);
  int n = 0;
#pragma unroll 1
  for (; n < kGroupSlots && pages.any(); ++n) pages.next();
  bool more = pages.any();
  int64_t id = more ? pages.id() : 0;
  __syncwarp();
  // Behind the words that make queries, and beside the work on pages.
  loader_may_go_on<true>();
  if (lane == 0) {
    barrier_expect(&shared.o_full, S::kOLoad);
    tensor_copy_3d(start + S::kOAt, &maps.o, 0, role * kBlockORows, 0, &shared.o_full,
                   once_policy());
  }
  __syncwarp();
#pragma unroll 1
  while (__any_sync(~0u, more)) {
    const int slot = group * kGroupSlots + n % kGroupSlots;
    uint64_t* empty = values ? &shared.values_empty[slot] : &shared.keys_empty[slot];
    if (more && barrier_over(empty, (n / kGroupSlots - 1) & 1)) {
      uint64_t* full = values ? &shared.values_full[slot] : &shared.keys_full[slot];
      barrier_expect(full, Page::kBytes);
      ask_for_page<S, Page>(args, memory, slot, id, of.head, values, full);
      ++n;
      pages.next();
      more = pages.any();
      if (more) id = pages.id();
    }
    __syncwarp();
  }
  // Where pages have been.
  barrier_wait(&shared.o_full, 0);
  barrier_wait(&shared.pages_read, 0);
  if (lane == 0) barrier_expect(&shared.gate_full, S::kExperts * kHidden * 4);
  __syncwarp();
  const float* gate = args.gate + role / S::kRows * S::kExperts * kHidden;
#pragma unroll 1
  for (int i = lane; i < S::kRowGate; i += kWarp)
    bulk_copy(memory + S::kGateAt + i * kGateStretch, gate + i * kRouteStretch, kRouteStretch * 4,
              &shared.gate_full, once_policy());
}

// The block's rows of q, k and v. Stretch s of a token stands in row s % 8 of its eight in operand
// s / 8, so its sums are column s % 8 of the token's.
template <class S, class Page>
__device__ __forceinline__ void multiply_qkv(const AttendRows& args, Shared<S>& shared,
                                             uint32_t start, uint8_t* memory, int role,
                                             const OwnPage<S>& own_page, int head,
                                             const Launch& launch) {
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp % 4;
  const int warpgroup = thread / 128;
  auto* parts = reinterpret_cast<float*>(memory + S::kPartsAt);
  constexpr int kGroups = S::kQkvGroups, kGroupStretches = S::kQkvStretches / kGroups;
  {
    const uint32_t rows = alike(operand_low(start + warpgroup * S::kQkvLoad)),
                   tokens = alike(
                       operand_low(start + S::kTokensAt + warpgroup * (S::kColumns * kTileStep)));
    barrier_wait(&shared.qkv_full[warpgroup], 0);
    float d[kGroups][4 * S::kRows];
    wgmma_begin();
#pragma unroll
    for (int half = 0; half < kGroups; ++half)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_64xNx32<S::kColumns>(
            d[half], operand_from(rows + (half * (kFlowRows * kTileStep) + k * 32) / 16),
            operand_from(tokens + k * 32 / 16), k > 0);
    wgmma_finish();
#pragma unroll
    for (int half = 0; half < kGroups; ++half)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        // The place that the warp's first or second eight rows are.
        const unsigned place = 2 * warp + upper;
        const int stretch =
            S::kQkvStretches * warpgroup + half * kGroupStretches + place / S::kQkvPlaces;
        const int column = stretch % 8, row = place % S::kQkvPlaces * 8 + lane / 4;
        if (lane % 4 != column / 2) continue;
        // Which of a thread's two columns.
        const int odd = S::kQkvPlaces == 1 ? upper : column % 2;
#pragma unroll
        for (int r = 0; r < S::kRows; ++r) {
          const float* own = d[half] + 4 * r + 2 * upper;
          parts[(r * kStretches + stretch) * S::kBlockRows + row] = odd ? own[1] : own[0];
        }
      }
  }
  meet();
  // Where weights have been.
  if constexpr (!S::kApart) own_page.template ask<Page>(args, shared, memory, head, false);
  // The last warps add up, one a token.
  const int token = thread / kWarp - (kConsumers / kWarp - S::kRows);
  if (token < 0) return;
  const int mine = min(lane, S::kBlockRows - 1);
  const float* own = parts + token * (kStretches * S::kBlockRows) + mine;
  float total = 0.0f;
#pragma unroll 8
  for (int s = 0; s < kStretches; ++s)
    total = fmaf(own[s * S::kBlockRows], shared.qkv_factor[token][s], total);
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  const int row = role * S::kBlockRows + mine;
  const bool has_row = lane < S::kBlockRows;
  if (has_row && lane % 2 == 0) put(&exchange.raw[token][row / 2], bits | next << 16, launch);
  // Squares of eight neighbours, added up as the norm's threads do.
  const float value = __uint_as_float(bits << 16);
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i += 2) {
    const float first = __shfl_sync(~0u, value, lane / 8 * 8 + i);
    const float second = __shfl_sync(~0u, value, lane / 8 * 8 + i + 1);
    squares = fmaf(first, first, fmaf(second, second, squares));
  }
  const int rank = lane % 8;
  if (has_row && row < S::kSquares * 8 && rank < args.peers.ranks)
    tell_squares(
        &rows_words_of(args.peers, rank)->squares[token][args.peers.rank * S::kSquares + row / 8],
        squares, launch.of_ranks, launch.keep);
}

// What of queries, keys and values a thread needs that no kernel right in front writes: of two
// neighbouring dims. Keys and values are items of 64 pairs: of a row its key, then its value.
template <class S>
struct Early {
  static constexpr int kPairs = kDim / 2;
  static constexpr int kItems = (S::kRows * 2 * kPairs + kConsumers - 1) / kConsumers;
  uint32_t q_weights, k_weights;
  float2 cosine, sine, new_cosine[kItems], new_sine[kItems];
  static __device__ __forceinline__ int row_of(int j) {
    return min((own_thread() + j * kConsumers) / (2 * kPairs), S::kRows - 1);
  }
  static __device__ __forceinline__ bool any(int j) {
    return own_thread() + j * kConsumers < S::kRows * 2 * kPairs;
  }
  static __device__ __forceinline__ bool is_key(int j) {
    return (own_thread() + j * kConsumers) / kPairs % 2 == 0;
  }
  __device__ __forceinline__ Early(const AttendRows& args, int row, int head) {
    const int thread = own_thread(), pair = thread % kPairs, turn = pair % (kRotary / 4);
    q_weights = static_cast<const uint32_t*>(args.q_norm)[head * kGroup * kPairs + thread];
    k_weights = static_cast<const uint32_t*>(args.k_norm)[head * kPairs + pair];
    const auto* angles = reinterpret_cast<const float2*>(args.angles) + turn;
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      new_cosine[j] = angles[row_of(j) * (kRotary / 2)];
      new_sine[j] = angles[row_of(j) * (kRotary / 2) + kRotary / 4];
    }
    cosine = angles[row * (kRotary / 2)];
    sine = angles[row * (kRotary / 2) + kRotary / 4];
  }
};

// Two neighbouring dims of a head, normed and turned. Dims below 64 stand in one warp, a pair a
// lane.
__device__ __forceinline__ float2 norm_and_turn(float2 value, float factor, uint32_t weights,
                                                float2 cosine, float2 sine, int dim) {
  const float2 by = floats_of(weights);
  value.x = value.x * factor * by.x;
  value.y = value.y * factor * by.y;
  const float2 other = {__shfl_xor_sync(~0u, value.x, kRotary / 4),
                        __shfl_xor_sync(~0u, value.y, kRotary / 4)};
  if (dim >= kRotary) return value;
  // Of the second half the other product is rounded where ranks sum squares (qk_row.cuh).
  if (dim >= kRotary / 2)
    return {__fmaf_rn(other.x, sine.x, __fmul_rn(value.x, cosine.x)),
            __fmaf_rn(other.y, sine.y, __fmul_rn(value.y, cosine.y))};
  return {__fmaf_rn(value.x, cosine.x, __fmul_rn(other.x, -sine.x)),
          __fmaf_rn(value.y, cosine.y, __fmul_rn(other.y, -sine.y))};
}

// The queries of the block's row and KV head into shared memory; and of the rows in `wanted` the
// token's key and value, of the block's own to the cache too.
template <class S, class Page>
__device__ __forceinline__ void make_queries(const AttendRows& args, Shared<S>& shared,
                                             uint8_t* memory, const RowOfBlock<S>& of,
                                             uint32_t wanted, const Early<S>& early,
                                             const OwnPage<S>& own_page, const Launch& launch) {
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp;
  const int row = of.row, head = of.head;
  constexpr int kPairs = kDim / 2, kItems = Early<S>::kItems;
  constexpr int kQSums = S::kQ / 256, kSums = (S::kSquares + kWarp - 1) / kWarp;
  auto* squares = reinterpret_cast<float*>(memory + S::kSquaresAt);
  const uint2* word_at = &exchange.raw[row][head * kGroup * kPairs + thread];
  const uint2* fresh_at[kItems];
  bool makes[kItems];
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    const int other = Early<S>::row_of(j);
    makes[j] = Early<S>::any(j) && (wanted >> other & 1) != 0;
    const int from = S::kQHeads + (Early<S>::is_key(j) ? 0 : S::kKvHeads) + head;
    fresh_at[j] = &exchange.raw[other][from * kPairs + thread % kPairs];
  }
  uint2 word, fresh[kItems];
  // Squares of all ranks, together with the words of this one: one after another looks take a
  // memory's latency each. Of other rows than the block's own only where a draft's keys are made.
  constexpr int kEach = (S::kRowSquares + kConsumers - 1) / kConsumers;
  const int count = args.peers.ranks * S::kSquares;
  const auto* said_at = rows_words_of(args.peers, args.peers.rank)->squares[0] + thread;
  bool asks = true;  // for values, behind the first looks
#pragma unroll 1
  for (uint32_t left = wanted | 1u << row; left != 0; left &= left - 1) {
    const int heard = __ffs(static_cast<int>(left)) - 1;
    RankSquares said[kEach];
    int looks = 0;
    bool all, here;
#pragma unroll 1
    do {
      word = look(word_at, launch);
#pragma unroll
      for (int j = 0; j < kItems; ++j) {
        fresh[j] = word;
        if (makes[j]) fresh[j] = look(fresh_at[j], launch);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        said[i].launch = launch.of_ranks;
        if (thread + i * kConsumers < count)
          said[i] =
              look_at_squares(said_at + heard * RankWords::kSquares + i * kConsumers, launch.keep);
      }
      if (asks) own_page.template ask<Page>(args, shared, memory, head, true);
      asks = false;
      here = has(word, launch);
#pragma unroll
      for (int j = 0; j < kItems; ++j) here &= has(fresh[j], launch);
      all = here;
#pragma unroll
      for (int i = 0; i < kEach; ++i) all &= said[i].launch == launch.of_ranks;
      if (++looks % kLooksAtPeers == 0 && given_up(args.peers)) all = here;
    } while (!all);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (const int at = thread + i * kConsumers; at < count)
        squares[heard * S::kRowSquares + at] = said[i].sum;
  }
  meet();
  // Of each rank as qk_sum_squares_kernel adds them up, and then rank after rank.
#pragma unroll 1
  for (uint32_t left = wanted | 1u << row; left != 0; left &= left - 1) {
    const int heard = __ffs(static_cast<int>(left)) - 1;
#pragma unroll 1
    for (int i = warp; i < args.peers.ranks * kSums; i += kConsumers / kWarp) {
      const int at = i % kSums * kWarp + lane;
      const float sum = warp_sum(
          at < S::kSquares ? squares[heard * S::kRowSquares + i / kSums * S::kSquares + at] : 0.0f);
      if (lane == 0) shared.squares[heard][i] = sum;
    }
  }
  meet();
  // What q and k of a row are multiplied with.
  const auto factors_of = [&](int of_row) {
    constexpr int kLanes = kWarp / S::kMostRanks;  // of a rank
    static_assert(kQSums <= kLanes && kSums - kQSums <= kLanes && S::kMostRanks * kSums <= kWarp);
    const int rank = lane / kLanes, i = lane % kLanes;
    const float* of_rank = shared.squares[of_row] + rank * kSums;
    const bool there = rank < args.peers.ranks;
    float q_part = there && i < kQSums ? of_rank[i] : 0.0f;
    float k_part = there && i < kSums - kQSums ? of_rank[kQSums + i] : 0.0f;
#pragma unroll
    for (int offset = kLanes / 2; offset; offset /= 2) {
      q_part += __shfl_xor_sync(~0u, q_part, offset);
      k_part += __shfl_xor_sync(~0u, k_part, offset);
    }
    float q_sum = __shfl_sync(~0u, q_part, 0), k_sum = __shfl_sync(~0u, k_part, 0);
#pragma unroll 1
    for (int other = 1; other < args.peers.ranks; ++other) {
      q_sum += __shfl_sync(~0u, q_part, other * kLanes);
      k_sum += __shfl_sync(~0u, k_part, other * kLanes);
    }
    // Widths over all ranks.
    const float q_mean = q_sum / args.full_q, k_mean = k_sum / args.full_k;
    return float2{1.0f / sqrtf(q_mean + args.eps), 1.0f / sqrtf(k_mean + args.eps)};
  };
  const int dim = thread % kPairs * 2;
  const float2 factors = factors_of(row);
  const float2 q =
      norm_and_turn(floats_of(word.x), factors.x, early.q_weights, early.cosine, early.sine, dim);
  reinterpret_cast<uint32_t*>(memory + S::kQueryAt)[thread] = pack_bf16(q.x, q.y);
#pragma unroll
  for (int j = 0; j < kItems; ++j) {
    if (!makes[j]) continue;  // by whole warps
    const int other = Early<S>::row_of(j);
    const bool is_key = Early<S>::is_key(j);
    float factor = factors.y;
    if (other != row) factor = factors_of(other).y;
    const float2 raw = floats_of(fresh[j].x);
    const float2 turned =
        norm_and_turn(raw, factor, early.k_weights, early.new_cosine[j], early.new_sine[j], dim);
    const float2 value = is_key ? turned : raw;
    const int slot = other == row ? shared.slots[row] : -1;
    const int64_t cell =
        ((slot / kPage * int64_t{1} * S::kKvHeads + head) * kPage + slot % kPage) * kPairs +
        dim / 2;
    void* cache = is_key ? args.cache.k : args.cache.v;
    uint8_t* newest = shared.newest[other][is_key ? 0 : 1];
    if (Page::kBytes == kPage * kDim * 2) {
      const uint32_t pair = is_key ? pack_bf16(value.x, value.y) : fresh[j].x;
      reinterpret_cast<uint32_t*>(newest)[dim / 2] = pair;
      if (slot >= 0) static_cast<uint32_t*>(cache)[cell] = pair;
    } else {
      const float scale = is_key ? args.cache.k_scale : args.cache.v_scale;
      const uint16_t pair =
          __nv_cvt_float2_to_fp8x2({value.x / scale, value.y / scale}, __NV_SATFINITE, __NV_E4M3);
      reinterpret_cast<uint16_t*>(newest)[dim / 2] = pair;
      if (slot >= 0) static_cast<uint16_t*>(cache)[cell] = pair;
    }
  }
  meet();
}

// The keys or values of a step's tokens, which memory has not or not yet, to the newest page of one
// of them: its own, and those of rows in the same block.
template <class S, class Page>
__device__ __forceinline__ void put_newest(Shared<S>& shared, uint8_t* page,
                                           const RowOfBlock<S>& of, int half) {
  constexpr int kRowBytes = Page::kBytes / kPage;
  const int slot = shared.slots[of.row];
#pragma unroll 1
  for (int r = 0; r < S::kRows; ++r) {
    const int other = shared.slots[r];
    if (r != of.row && !share_block(slot, other)) continue;
    uint8_t* to = page + (r == of.row ? of.context.tokens - 1 : other) % kPage * kRowBytes;
#pragma unroll
    for (int byte = threadIdx.x % kWarp * 4; byte < kRowBytes; byte += kWarp * 4)
      *reinterpret_cast<uint32_t*>(to + byte) =
          *reinterpret_cast<const uint32_t*>(shared.newest[r][half] + byte);
  }
}

// The chains of a group of warps. Each takes a page's keys, and tells the others its weights; then
// all take the values of the group's pages, two tiles of 16 dims each. Keys' places are free for
// the next page's meanwhile.
template <class S, class Page>
__device__ __forceinline__ void attend_chains(const AttendRows& args, Shared<S>& shared,
                                              uint8_t* memory, const RowOfBlock<S>& of,
                                              const Launch& launch) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  static_assert(kChainWarps == kGroupSlots);
  const int c = threadIdx.x / kWarp / kChainWarps, mine = threadIdx.x / kWarp % kChainWarps;
  const Context<S>& context = of.context;
  const int all = context.chains(), last_page = context.pages - 1;
  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
  const auto read = [](const uint8_t* from) { return *reinterpret_cast<const uint4*>(from); };
  uint8_t* slots = memory + S::kPagesAt + c * (kGroupSlots * kPageSlot);
  // Of two rounds: who is through with one may be in the next, and then waits for all.
  uint8_t* weighed = memory + S::kWeighedAt + c * (2 * kGroupSlots * S::kWeighed);
  constexpr int kTopsAt = kWarp * 16;  // behind a page's weights
  int turn = 0;
  uint4 q[4] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (g < kGroup) q[j] = Page::load_query(memory + S::kQueryAt + g * (kDim * 2), j);
  int before = 0;  // pages of the group's chains before
#pragma unroll 1
  for (int i = of.first + c * of.apart; i < all; i += kChainGroups * of.apart) {
    const Chain chain = context.chain(i);
    float2 largest = {-INFINITY, -INFINITY};
    float sum[2] = {}, values[2][4] = {};
#pragma unroll 1
    for (int first = 0; first < chain.pages; first += kChainWarps, turn ^= 1) {
      const int there = min(kChainWarps, chain.pages - first);
      const auto slot_of = [&](int k) { return (before + k) % kGroupSlots; };  // of the group's
      const int n = before + first + mine;  // the warp's own page, among the group's
      const auto weighed_at = [&](int k) {
        return weighed + (turn * kGroupSlots + k) * S::kWeighed;
      };
      float weight[4];
      if (mine < there) {
        const int slot = slot_of(mine) + c * kGroupSlots;
        uint8_t* at = slots + slot_of(mine) * kPageSlot;
        barrier_wait(&shared.keys_full[slot], n / kGroupSlots & 1);
        if (chain.page(first + mine) == last_page) {
          put_newest<S, Page>(shared, at, of, 0);
          __syncwarp();
        }
        Page page;
        page.load_keys(at, read);
        float logits[4] = {};
        multiply_keys(
            page, [&](int j) { return q[j]; }, logits);
        __syncwarp();
        if (lane == 0) barrier_arrive(&shared.keys_empty[slot]);
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
        if (g == 0) *reinterpret_cast<float2*>(weighed_at(mine) + kTopsAt + t * 8) = top;
      }
      group_meets(c);
      const auto top_of = [&](int k) {
        return *reinterpret_cast<const float2*>(weighed_at(k) + kTopsAt + t * 8);
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
        reinterpret_cast<uint4*>(weighed_at(mine))[lane] = {
            b0, b1, __float_as_uint(weight[0] + weight[2]), __float_as_uint(weight[1] + weight[3])};
        barrier_wait(&shared.values_full[c * kGroupSlots + slot_of(mine)], n / kGroupSlots & 1);
        if (chain.page(first + mine) == last_page)
          put_newest<S, Page>(shared, slots + slot_of(mine) * kPageSlot + Page::kBytes, of, 1);
      }
      group_meets(c);
#pragma unroll 1
      for (int k = 0; k < there; ++k) {
        const uint8_t* at = slots + slot_of(k) * kPageSlot;
        const uint4 weights = reinterpret_cast<const uint4*>(weighed_at(k))[lane];
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
        if (lane == 0) barrier_arrive(&shared.values_empty[slot_of(k) + c * kGroupSlots]);
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
        uint4* to = exchange.chains_of<S>(of.row, of.head * kGroup + 2 * t + h) +
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

// Joins the chains of every part and the parts of a piece of a q head of a row, two dims of a part
// a lane; then a thread a dim. `piece` of head `piece / kJoinPieces` of row after row.
template <class S, class Page>
__device__ __forceinline__ void join(const AttendRows& args, Shared<S>& shared, uint8_t* memory,
                                     const typename RowOfBlock<S>::Lengths& lengths, int piece,
                                     const Launch& launch) {
  constexpr int kDims = S::kJoinDims, kJoined = S::kJoined, kAhead = 8;
  constexpr int kWords = kDims / 2, kTogether = kWarp / kWords;  // parts of a warp
  constexpr int kStep = kConsumers / kWarp * kTogether;          // of all warps
  // Of 2k there are 16: in one trip.
  constexpr int kAtOnce = kStep < 16 ? 2 : 1;
  constexpr int kTotalsAt = kDim / 2;
  auto* joined = reinterpret_cast<float*>(memory + S::kJoinAt);
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp;
  const int row = static_cast<int>(static_cast<unsigned>(piece) / S::kJoinBlocks),
            of_row = piece - row * S::kJoinBlocks;
  const int head = of_row / S::kJoinPieces, first_word = of_row % S::kJoinPieces * kWords;
  int tokens = lengths.tokens[0];
#pragma unroll
  for (int r = 1; r < S::kRows; ++r)
    if (r == row) tokens = lengths.tokens[r];
  const Context<S> context(tokens);
  const int parts = context.parts;
  const bool alone = parts == 1;
  // Of threads that join parts, neighbours have neighbouring dims (FP8: pairs of them).
  constexpr int kEights = kWords / 8;
  const int mine = (thread / 2 % kEights * 8 + thread / 2 / kEights) * 2 + thread % 2;
  float largest = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll 1
  for (int first = 0; first < parts; first += kJoined) {
    if (first > 0) meet();
    const int count = min(kJoined, parts - first);
#pragma unroll 1
    for (int begin = warp * kTogether; begin < count; begin += kStep * kAtOnce) {
      const auto* chains = exchange.chains_of<S>(row, head) + first * 4 * kChainWords;
      // The chains are as long as one another, and end together: one look first.
      if (lane == 0 && first == 0 && begin == warp * kTogether)
        wait_for_word(chains + begin * 4 * kChainWords + kTotalsAt, launch);
      __syncwarp();
      const int part = begin + lane / kWords;
      if (kTogether > 1 && part >= count) continue;
      const uint4* from[kAtOnce];  // what there is not is read as the first once more
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a)
        from[a] = chains + (part + a * kStep < count ? part + a * kStep : part) * 4 * kChainWords;
      uint4 words[kAtOnce * 8];
      await_late(words, launch, [&](int i) -> const uint4* {
        const int w = i % 8;
        return from[i / 8] + w % 4 * kChainWords + (w < 4 ? first_word + lane % kWords : kTotalsAt);
      });
#pragma unroll
      for (int a = 0; a < kAtOnce; ++a) {
        if (part + a * kStep >= count) break;
        const uint4* own = words + 8 * a;
        float top = __uint_as_float(own[4].x);
#pragma unroll
        for (int w = 1; w < 4; ++w) top = fmaxf(top, __uint_as_float(own[4 + w].x));
        float part_sum = 0.0f;
        float2 both = {};
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float factor = exp2f(__uint_as_float(own[4 + w].x) - top);
          part_sum = fmaf(__uint_as_float(own[4 + w].z), factor, part_sum);
          both.x = fmaf(__uint_as_float(own[w].x), factor, both.x);
          both.y = fmaf(__uint_as_float(own[w].z), factor, both.y);
        }
        reinterpret_cast<float2*>(joined + (part + a * kStep) * kDims)[lane % kWords] = both;
        if (lane % kWords == 0) {
          shared.totals[part + a * kStep][0] = top;
          shared.totals[part + a * kStep][1] = part_sum;
        }
      }
    }
    meet();
    if (thread >= kDims) continue;
    if (alone) {
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
  value = parts > 0 ? value * (args.cache.v_scale / sum) : 0.0f;
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  if (lane % 2 == 0)
    put(&exchange.attended[(row * S::kQHeads + head) * (kDim / 2) +
                           pair_of_word<Page>(first_word + mine / 2)],
        bits | next << 16, launch);
}

// The block's 24 rows of o. An instruction's 64 rows are eight rows of eight different places: 1 KB
// of shared memory each, three for a stretch of 128 columns; the eight columns that a token has in
// its other operand are the stretches of these places, and what counts of the sums are those of a
// place with its own stretch. Of the last places there may be fewer than eight: what stands behind
// them is multiplied too, and its sums are dropped.
template <class S>
__device__ __forceinline__ void multiply_o(const AttendRows& args, Shared<S>& shared,
                                           uint32_t start, uint8_t* memory, int role,
                                           const Launch& launch) {
  constexpr int kPlaces = S::kOPlaces, kRows = S::kRows, kStretchesOfO = S::kOStretches;
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp % 4;
  const int warpgroup = thread / 128;
  // A warp has some stretches (heads) of a row, a lane four dims of each.
  constexpr int kWarps = kConsumers / kWarp, kEach = kRows * kStretchesOfO / kWarps;
  static_assert(kEach * kWarps == kRows * kStretchesOfO);
  {
    const int first = thread / kWarp * kEach;
    const auto word_at = [&](int i) -> const uint4* {
      return reinterpret_cast<const uint4*>(exchange.attended) + (first + i) * kWarp + lane;
    };
    uint4 words[kEach];
    if (lane == 0) wait_for_word(word_at(0), launch);
    __syncwarp();
    await_late(words, launch, word_at);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = (first + i) / kStretchesOfO, stretch = (first + i) % kStretchesOfO;
      const float2 low = floats_of(words[i].x), high = floats_of(words[i].z);
      // NaN counts for nothing; the bits of numbers that are not negative have the numbers' order.
      const float most = fmaxf(largest_of(low.x, low.y, high.x, high.y), 0.0f);
      const float scale =
          f8_scale(__uint_as_float(warp_max(__float_as_uint(most))), args.quantised.powers);
      if (lane == 0) shared.o_input_scale[row][stretch] = scale;
      const uint32_t fours = to_f8(low.x, low.y, high.x, high.y, 1.0f / scale);
#pragma unroll
      for (int p = 0; p < kPlaces; ++p) {
        const int place = stretch * kPlaces + p, column = place % 8;
        *reinterpret_cast<uint32_t*>(
            memory + S::kOTokensAt + place / 8 * (S::kColumns * kTileStep) +
            (row * 8 + column) * kTileStep + ((lane / 4) ^ column) * 16 + lane % 4 * 4) = fours;
      }
    }
  }
  fence_for_products();
  meet();
  auto* parts = reinterpret_cast<float*>(memory + S::kOPartsAt);
  constexpr int kRounds = S::kORounds;
  {
    float d[kRounds][4 * kRows];
    const uint32_t rows = alike(operand_low(start + S::kOAt + warpgroup * (kFlowRows * kTileStep))),
                   tokens = alike(
                       operand_low(start + S::kOTokensAt + warpgroup * (S::kColumns * kTileStep)));
    barrier_wait(&shared.o_full, 0);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        wgmma_64xNx32<S::kColumns>(
            d[i], operand_from(rows + (i * kWarpgroups * (kFlowRows * kTileStep) + k * 32) / 16),
            operand_from(tokens + (i * kWarpgroups * (S::kColumns * kTileStep) + k * 32) / 16),
            k > 0);
    wgmma_finish();
    if (lane % 4 == warp)
#pragma unroll
      for (int i = 0; i < kRounds; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int place = (i * kWarpgroups + warpgroup) * 8 + 2 * warp + half;
          if (place >= kPlaces * kStretchesOfO) break;
#pragma unroll
          for (int r = 0; r < kRows; ++r)
            parts[(r * kStretchesOfO + place / kPlaces) * kBlockORows + place % kPlaces * 8 +
                  lane / 4] = d[i][4 * r + 3 * half];
        }
  }
  meet();
  const int token = thread / kWarp;  // a warp a token adds up
  if (token >= kRows) return;
  const int mine = min(lane, kBlockORows - 1), first_row = role * kBlockORows;
  const float* scales = shared.o_scale[(first_row + mine) / 128 - first_row / 128];
  const float* own = parts + token * (kStretchesOfO * kBlockORows) + mine;
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kStretchesOfO; ++s)
    total = fmaf(own[s * kBlockORows], shared.o_input_scale[token][s] * scales[s], total);
  const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16_rn(total));
  const uint32_t next = __shfl_down_sync(~0u, bits, 1);
  // Eight columns a word; lane 8 w + r sends word w to rank r.
  const uint32_t pair = under_way(bits | next << 16);
  const int w = lane / 8, rank = lane % 8;
  const uint4 word = {__shfl_sync(~0u, pair, 8 * w), __shfl_sync(~0u, pair, 8 * w + 2),
                      __shfl_sync(~0u, pair, 8 * w + 4), __shfl_sync(~0u, pair, 8 * w + 6)};
  if (w < kBlockORows / 8 && rank < args.peers.ranks)
    tell_words(
        sums_of(args.peers, rank, launch.of_ranks, args.peers.rank, token) + first_row / 8 + w,
        word, launch.keep);
}

// The router's scores of the block's row, of some experts: a lane a stretch of an expert, since a
// stretch is summed column by column; four stretches of all experts a warp.
template <class S>
__device__ __forceinline__ void route(const AttendRows& args, Shared<S>& shared, uint8_t* memory,
                                      int role, float bias, const Launch& launch) {
  const int thread = own_thread(), lane = thread % kWarp, warp = thread / kWarp;
  constexpr int kEach = 4;
  static_assert(kRouteStretch == 8 * kWarp && kEach * S::kExperts <= kWarp);
  if (warp >= kRouteStretches / kEach) return;
  barrier_wait(&shared.gate_full, 0);
  if (lane < kEach * S::kExperts) {
    const int expert = lane / kEach, stretch = warp * kEach + lane % kEach;
    const auto* gate = reinterpret_cast<const float4*>(
        memory + S::kGateAt + (expert * kRouteStretches + stretch) * kGateStretch);
    const auto* x = reinterpret_cast<const float4*>(memory + S::kNormedAt + stretch * kGateStretch);
    shared.route[expert][stretch] = stretch_product(x, gate);
  }
  asm volatile("bar.sync 2, %0;" ::"n"(kRouteStretches / kEach * kWarp) : "memory");
  if (thread >= S::kExperts) return;
  float total = 0.0f;
#pragma unroll
  for (int s = 0; s < kRouteStretches; ++s) total += shared.route[thread][s];
  const int row = role % S::kRows, expert = role / S::kRows * S::kExperts + thread;
  ExpertScore score = score_of(total, bias);
  if (shared.slots[row] < 0) score.key = 0;
  put(&exchange.scores[row][expert], __uint_as_float(score.key), score.score, launch);
}

// A row's experts, chosen by a warp of a block that is done: the next kernel's blocks get ready
// meanwhile.
template <class S>
__device__ __forceinline__ void choose_for(const AttendRows& args, uint8_t* memory, int row,
                                           const Launch& launch) {
  auto& table = *reinterpret_cast<ChoiceTable*>(memory + S::kJoinAt);
  static_assert(sizeof(ChoiceTable) <= S::kJoinBytes && S::kJoinAt % alignof(ChoiceTable) == 0);
  constexpr int kEach = ChoiceTable::kEach;
  const int lane = threadIdx.x % kWarp;
  uint4 words[kEach];
  await_late(words, launch,
             [&](int i) -> const uint4* { return &exchange.scores[row][lane * kEach + i]; });
  uint32_t key[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    key[i] = words[i].x;
    table.scores[lane * kEach + i] = __uint_as_float(words[i].z);
  }
  choose_one(table, key, args.top);
  __syncwarp();
  store_few(table, nullptr, args.top, args.ids + row * args.top, args.weights + row * args.top);
}

// What was heard in the launch before makes room for the next one's.
__device__ __forceinline__ void clear_sums(const DecodePeers& peers, int role,
                                           const Launch& launch) {
  constexpr int kWords = kBlockORows / 8;  // of a rank and row
  constexpr int kOfRank = kWords * kAttendRows;
  const int rank = threadIdx.x / kOfRank, row = threadIdx.x % kOfRank / kWords,
            word = threadIdx.x % kWords;
  if (rank < peers.ranks)
    sums_of(peers, peers.rank, launch.of_ranks + 1, rank, row)[role * kWords + word] = {};
}

// residual += o's output, and its norm, of one row, by every block that has it for itself, and the
// router's scores; a block writes 128 columns of its row.
template <class S>
__device__ __forceinline__ void norm_row_and_route(const AttendRows& args, Shared<S>& shared,
                                                   uint8_t* memory, int role, float bias,
                                                   const Launch& launch) {
  using Pack = Pack8<__nv_bfloat16>;
  const int thread = own_thread(), row = role % S::kRows;
  const uint4 norm = static_cast<const uint4*>(args.norm)[thread];
  // This rank's own words come as its peers' do, and always: so no block ends before all have
  // begun, and know the launch's number.
  constexpr int kRankWords = kAttendRows * (kHidden / 8);
  const uint4* from = sums_of(args.peers, args.peers.rank, launch.of_ranks, 0, row) + thread;
  const uint4 sum =
      sum_of_ranks<S::kMostRanks, kRankWords, false>(args.peers, from, uint4{}, launch.keep);
  const uint32_t pairs[4] = {sum.x, sum.y, sum.z, sum.w};
  const RowNorm row_norm(pairs, norm, args.eps, memory + S::kResidualAt, shared.scratch,
                         memory + S::kNormedAt);
  meet();
  route<S>(args, shared, memory, role, bias, launch);
  // By the last blocks, which have no columns to write.
  if (role >= kAttendBlocks - S::kRows && thread / kWarp == kConsumers / kWarp - 1)
    choose_for<S>(args, memory, kAttendBlocks - 1 - role, launch);
  // What nobody waits for comes last.
  static_assert(kHidden / 128 * S::kRows <= kAttendBlocks - S::kRows);
  if (thread / 16 != role / S::kRows) return;
  static_cast<Pack*>(args.residual)[row * kNormThreads + thread] = row_norm.kept;
  store_normed(row_norm.kept, row_norm.by, row_norm.factor,
               static_cast<__nv_bfloat16*>(args.hidden) + row * kHidden, thread, row, kHidden,
               args.quantised);
}

// Bytes: a rank's share of 25.2 MB of q, k and v, of 18.9 of o, and of every row's live K and V;
// 3.1 MB of the gate. Bound: the latency of five exchanges.
template <class S, class Page>
__global__ void __launch_bounds__(kThreads, 1)
    sm90_attend_rows(const __grid_constant__ AttendRows args,
                     const __grid_constant__ AttendMaps maps) {
  extern __shared__ uint8_t attend_memory[];
  __shared__ Shared<S> shared;
  constexpr int kRows = S::kRows;
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
  const int x_row = thread / kStretches, x_stretch = thread % kStretches;
  float weight_scale = 0.0f;
  if (x_row < kRows)
    weight_scale =
        __ldg(args.qkv_scale[part] + within / 128 * args.qkv_scale_stride[part] + x_stretch);
  float o_scale = 0.0f;
  if (thread < 2 * S::kOStretches) {
    const int block = min(role * kBlockORows / 128 + thread / S::kOStretches, kHidden / 128 - 1);
    o_scale = __ldg(args.o_scale + block * args.o_scale_stride + thread % S::kOStretches);
  }
  float bias = 0.0f;
  if (thread < S::kExperts) bias = args.bias[role / kRows * S::kExperts + thread];
  const typename RowOfBlock<S>::Lengths lengths(args);
  int slots[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) slots[r] = args.slots[r];
  const unsigned before = launches_before(&exchange.finished);
  const unsigned of_ranks_before =
      launches_before(&rows_words_of(args.peers, args.peers.rank)->launches);
  const RowOfBlock<S> of(lengths, role);
  const Early<S> early(args, of.row, of.head);
  const OwnPage<S> own_page(args, of);
  if constexpr (S::kApart) {
    // Kernels in front leave memory to itself; but what they leave for this one has to come before
    // the values do.
    own_page.template ask<Page>(args, shared, memory, of.head, false);
  }
  if (thread < 2 * S::kOStretches)
    shared.o_scale[thread / S::kOStretches][thread % S::kOStretches] = o_scale;
  // Whose keys and values the block makes: of its row's draft.
  uint32_t wanted = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (thread == r) shared.slots[r] = slots[r];
    bool shares = r == of.row;
#pragma unroll
    for (int other = 0; other < kRows; ++other)
      shares |= other == of.row && share_block(slots[r], slots[other]);
    if (shares && of.has_newest()) wanted |= 1u << r;
  }
  wait_for_previous();
  let_next_start();
  {
    constexpr int kPieces = kHidden / 16, kEach = kRows * kPieces / kConsumers;
    static_assert(kEach * kConsumers == kRows * kPieces);
    uint4 x[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[i] = load_written(args.x_f8 + (thread + i * kConsumers) * 16);
    float x_scale = 0.0f;
    if (x_row < kRows) x_scale = args.x_scales[thread];
    const uint4 residual = load_written(static_cast<const uint4*>(args.residual) +
                                        role % kRows * kNormThreads + thread);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int item = thread + i * kConsumers, r = item / kPieces, s = item % kPieces / 8,
                piece = item % 8;
      *reinterpret_cast<uint4*>(memory + S::kTokensAt + s / 8 * (S::kColumns * kTileStep) +
                                (r * 8 + s % 8) * kTileStep + (piece ^ (s % 8)) * 16) = x[i];
    }
    if (x_row < kRows) shared.qkv_factor[x_row][x_stretch] = x_scale * weight_scale;
    reinterpret_cast<uint4*>(memory + S::kResidualAt)[thread] = residual;
  }
  fence_for_products();
  meet();
  const Launch launch{before + 1, keep_policy(), of_ranks_before + 1};
  multiply_qkv<S, Page>(args, shared, start, memory, role, own_page, of.head, launch);
  meet();  // nobody reads qkv's weights any more
  if (of.any()) make_queries<S, Page>(args, shared, memory, of, wanted, early, own_page, launch);
  loader_may_go_on<false>();
  attend_chains<S, Page>(args, shared, memory, of, launch);
  meet();  // pages have been read
  const int piece = kAttendBlocks - 1 - role;
  if (piece < kRows * S::kJoinBlocks) join<S, Page>(args, shared, memory, lengths, piece, launch);
  multiply_o<S>(args, shared, start, memory, role, launch);
  norm_row_and_route<S>(args, shared, memory, role, bias, launch);
  clear_sums(args.peers, role, launch);
  if (role == 0 && thread == 0) {
    exchange.finished = launch.number;
    rows_words_of(args.peers, args.peers.rank)->launches = launch.of_ranks;
  }
}

template <int kKv>
void launch_share(void* stream, const AttendRows& args) {
  using S = Share<kKv>;
  AttendMaps maps;
  maps.qkv = double_map(args.qkv, S::kQkvRows, kHidden, kHidden, S::kBlockRows, S::kQkvStretches);
  maps.o = double_map(args.o, kHidden, S::kQ, S::kQ, kBlockORows, S::kOStretches);
  LaunchShape shape{dim3(kAttendBlocks), dim3(kThreads)};
  shape.shared_bytes = S::kSharedBytes;
  launch(
      stream,
      args.cache.dtype == DType::bf16 ? sm90_attend_rows<S, Bf16Page> : sm90_attend_rows<S, F8Page>,
      shape, args, maps);
}

}  // namespace

void launch_attend_rows(void* stream, int kv_heads, const AttendRows& args) {
  if (kv_heads == 4) return launch_share<4>(stream, args);
  if (kv_heads == 2) return launch_share<2>(stream, args);
  if (kv_heads == 1) return launch_share<1>(stream, args);
  cuda_failed("attend_rows", "no rank has so many heads");
}

}  // namespace m2::ops::cuda
