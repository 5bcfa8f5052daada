#include "ops/cuda/device.cuh"
#include "ops/noise.h"

// Sampling in two kernels: one reads every logit once and leaves the largest of each group of 64
// and a few numbers of each chunk; one block a row then chooses, and as a rule reads only the
// groups that can hold what it looks for. The second kernel can also pass over its whole row,
// slowly, for what the groups cannot answer (a nucleus of thousands of ids, say).
namespace m2::ops::cuda {
namespace {

constexpr int kGroup = 64;
constexpr int kScanThreads = 256;
constexpr int kChunk = 4096;
constexpr int kEach = kChunk / kScanThreads;  // logits of a thread, in fours
constexpr int kChooseThreads = 512;
constexpr int kChooseWarps = kChooseThreads / kWarp;
constexpr int kMostListed = 4096;   // candidates in shared memory
constexpr int kMostRanked = 512;    // sorted by counting; more by a bitonic network
constexpr int kHeldGroups = 16384;  // maxima kept in shared memory, if there are no more
constexpr int kFirstList = 128;     // how many are looked for when no top_k says,
constexpr int kMostWanted = 1024;   // and how many if these are not enough
constexpr float kGreedyBelow = 1e-5f;
constexpr float kLowestTemperature = 0.01f;
constexpr float kLargest = 3.402823466e38f;

// What a chunk's block leaves for the row's block.
struct Chunk {
  float raw_max, raw_sum;  // sum of exp(x - raw_max), if logprobs are wanted
  float max, sum;          // after the edits; sum of exp((x - max) * scale), if wants_sum()
  int32_t max_id;          // if greedy
  float race;              // best of (x - max) * scale - log(time), if nothing is cut off
  int32_t race_id;
  int32_t has_nan;
};

struct RowScratch {
  float* maxima;      // of groups, after the edits
  float* raw_maxima;  // before them; the same array if the row has none
  Chunk* chunks;
};

__host__ __device__ inline int64_t groups_of(int64_t ids) {
  return (ids + kGroup - 1) / kGroup;
}
__host__ __device__ inline int64_t chunks_of(int64_t ids) {
  return (ids + kChunk - 1) / kChunk;
}
__host__ __device__ inline int64_t row_bytes(int64_t ids) {
  return (2 * groups_of(ids) * 4 + chunks_of(ids) * static_cast<int64_t>(sizeof(Chunk)) + 255) /
         256 * 256;
}

__device__ __forceinline__ bool is_edited(const SampleRow& row) {
  return row.edits > 0 || row.mask >= 0;
}

__device__ __forceinline__ RowScratch scratch_of(const Sample& args, int index) {
  uint8_t* base = args.scratch + index * row_bytes(args.id_limit);
  RowScratch out;
  out.chunks = reinterpret_cast<Chunk*>(base);
  out.maxima = reinterpret_cast<float*>(base + chunks_of(args.id_limit) *
                                                   static_cast<int64_t>(sizeof(Chunk)));
  out.raw_maxima = is_edited(args.row[index]) ? out.maxima + groups_of(args.id_limit) : out.maxima;
  return out;
}

__device__ __forceinline__ float scale_of(const SampleRow& row) {
  return 1.0f / fmaxf(row.temperature, kLowestTemperature);
}
__device__ __forceinline__ bool is_greedy(const SampleRow& row) {
  return row.temperature < kGreedyBelow;
}
__device__ __forceinline__ bool has_top_k(const SampleRow& row, int id_limit) {
  return row.top_k > 0 && row.top_k < id_limit;
}
// Nothing is cut off: the whole row races.
__device__ __forceinline__ bool is_unlimited(const SampleRow& row, int id_limit) {
  return !is_greedy(row) && !has_top_k(row, id_limit) && row.top_p >= 1.0f && row.min_p <= 0.0f;
}
// The nucleus is a share of the whole row.
__device__ __forceinline__ bool wants_sum(const SampleRow& row, int id_limit) {
  return !is_greedy(row) && !has_top_k(row, id_limit) && row.top_p < 1.0f && row.min_p <= 0.0f;
}

__device__ __forceinline__ float edited(float logit, const SampleRow& row, const LogitEdit& edit) {
  if (edit.flags & LogitEdit::kMasked) return -INFINITY;
  logit += edit.bias;
  if (!(edit.flags & LogitEdit::kPenalised) || logit == -INFINITY) return logit;
  if (edit.flags & LogitEdit::kRepeated)
    logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
  return fminf(fmaxf(logit - edit.penalty, -kLargest), kLargest);
}

__device__ __forceinline__ bool is_allowed(const Sample& args, const SampleRow& row, int id) {
  if (row.mask < 0) return true;
  const int64_t words = (args.id_limit + 31) / 32;
  return args.masks[row.mask * words + id / 32] >> (id % 32) & 1u;
}

// First of the row's edits whose id is at least `id`.
__device__ __forceinline__ int first_edit_from(const Sample& args, const SampleRow& row, int id) {
  int low = row.first_edit, high = row.first_edit + row.edits;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (args.edits[middle].id < id)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The logit that takes part in the choice.
__device__ __forceinline__ float processed(const Sample& args, const SampleRow& row, int id,
                                           float logit) {
  if (!is_allowed(args, row, id)) return -INFINITY;
  if (row.edits == 0) return logit;
  const int at = first_edit_from(args, row, id);
  if (at == row.first_edit + row.edits || args.edits[at].id != id) return logit;
  return edited(logit, row, args.edits[at]);
}

// --- reductions over a block -------------------------------------------------------------------

template <class T, class Join>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Join join) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int offset = 16; offset; offset /= 2) value = join(value, value.shuffled(offset));
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  T out = scratch[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) out = join(out, scratch[w]);
  return out;
}

struct Sum {
  double value;
  __device__ Sum shuffled(int offset) const { return {__shfl_xor_sync(~0u, value, offset)}; }
};
struct Count {
  int value;
  __device__ Count shuffled(int offset) const { return {__shfl_xor_sync(~0u, value, offset)}; }
};
// The best score; the lowest id of equals.
struct Best {
  float score;
  int id;
  __device__ Best shuffled(int offset) const {
    return {__shfl_xor_sync(~0u, score, offset), __shfl_xor_sync(~0u, id, offset)};
  }
};
__device__ __forceinline__ Best better(Best a, Best b) {
  return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
}

__device__ __forceinline__ double block_total(double value, Sum* scratch) {
  return block_reduce(Sum{value}, scratch, [](Sum a, Sum b) { return Sum{a.value + b.value}; })
      .value;
}
__device__ __forceinline__ double warp_total(double value) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}
__device__ __forceinline__ int block_count(int value, Count* scratch) {
  return block_reduce(Count{value}, scratch,
                      [](Count a, Count b) { return Count{a.value + b.value}; })
      .value;
}

// log of the time an id takes to arrive: Exp(1).
__device__ __forceinline__ float log_time(const SampleRow& row, int id) {
  const float uniform =
      noise_uniform(NoiseKey{row.noise_first, row.noise_second}, static_cast<uint32_t>(id));
  return logf(-log1pf(-uniform));
}

// --- the scan ----------------------------------------------------------------------------------

// One block a chunk of a row. Bytes: R V 4 read, a 64th of it written. Bound: memory, or the L2 the
// head has just written to.
__global__ void __launch_bounds__(kScanThreads) sample_scan(Sample args) {
  __shared__ float values[kChunk];
  __shared__ Best best_scratch[kScanThreads / kWarp];
  __shared__ Sum sum_scratch[kScanThreads / kWarp];
  __shared__ float warp_max[kScanThreads / kWarp];
  wait_for_previous();
  let_next_start();
  const SampleRow row = args.row[blockIdx.y];
  const RowScratch scratch = scratch_of(args, blockIdx.y);
  const float* logits = args.logits + blockIdx.y * args.stride;
  const int begin = blockIdx.x * kChunk;
  const int end = min(args.id_limit, begin + kChunk);
  const bool by_fours = args.stride % 4 == 0 && reinterpret_cast<uintptr_t>(logits) % 16 == 0;

  float raw[kEach];
#pragma unroll
  for (int i = 0; i < kEach; i += 4) {
    const int id = begin + (i / 4 * kScanThreads + static_cast<int>(threadIdx.x)) * 4;
    if (by_fours && id + 3 < end) {
      const float4 four = *reinterpret_cast<const float4*>(logits + id);
      raw[i] = four.x, raw[i + 1] = four.y, raw[i + 2] = four.z, raw[i + 3] = four.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) raw[i + j] = id + j < end ? logits[id + j] : -INFINITY;
    }
  }
  const auto id_of = [&](int i) {
    return begin + (i / 4 * kScanThreads + static_cast<int>(threadIdx.x)) * 4 + i % 4;
  };

  // The largest of the chunk; those of its groups are written. A thread's fours of one round are
  // neighbours of a group's others: 16 lanes hold a group.
  const auto max_of = [&](const float(&x)[kEach], float* maxima) {
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      float largest = fmaxf(fmaxf(x[i], x[i + 1]), fmaxf(x[i + 2], x[i + 3]));
#pragma unroll
      for (int offset = 8; offset; offset /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      const int id = id_of(i);
      if (threadIdx.x % 16 == 0 && id < end) maxima[id / kGroup] = largest;
      most = fmaxf(most, largest);
    }
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 16));
    if (threadIdx.x % kWarp == 0) warp_max[threadIdx.x / kWarp] = most;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < kScanThreads / kWarp; ++w) most = fmaxf(most, warp_max[w]);
    return most;
  };
  const auto sum_of = [&](const float(&x)[kEach], float max, float scale) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (x[i] > -INFINITY) sum += expf((x[i] - max) * scale);
    return static_cast<float>(block_total(sum, sum_scratch));
  };

  Chunk out = {};
  int nan = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) nan |= raw[i] != raw[i];
  out.raw_max = max_of(raw, scratch.raw_maxima);
  out.has_nan = __syncthreads_or(nan);
  if (row.logprobs >= 0) out.raw_sum = sum_of(raw, out.raw_max, 1.0f);

  float x[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) x[i] = raw[i];
  if (is_edited(row)) {
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (id_of(i) < end) values[id_of(i) - begin] = raw[i];
    __syncthreads();
    const int last = first_edit_from(args, row, end);
    for (int at = first_edit_from(args, row, begin) + static_cast<int>(threadIdx.x); at < last;
         at += kScanThreads) {
      const LogitEdit edit = args.edits[at];
      values[edit.id - begin] = edited(values[edit.id - begin], row, edit);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (id_of(i) < end)
        x[i] = is_allowed(args, row, id_of(i)) ? values[id_of(i) - begin] : -INFINITY;
    out.max = max_of(x, scratch.maxima);
  } else {
    out.max = out.raw_max;
  }

  const float scale = scale_of(row);
  if (is_greedy(row)) {
    Best best{-INFINITY, args.id_limit};
#pragma unroll
    for (int i = 0; i < kEach; ++i) best = better(best, Best{x[i], id_of(i)});
    out.max_id = block_reduce(best, best_scratch, better).id;
  }
  if (wants_sum(row, args.id_limit)) out.sum = sum_of(x, out.max, scale);
  if (is_unlimited(row, args.id_limit) && row.given < 0) {
    Best best{-INFINITY, args.id_limit};
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (x[i] > -INFINITY)
        best = better(best, Best{(x[i] - out.max) * scale - log_time(row, id_of(i)), id_of(i)});
    best = block_reduce(best, best_scratch, better);
    out.race = best.score;
    out.race_id = best.id;
  }
  if (threadIdx.x == 0) scratch.chunks[blockIdx.x] = out;
}

// --- the choice --------------------------------------------------------------------------------

// A number whose order as an unsigned integer is the float's.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t bits) {
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

struct ChooseShared {
  uint64_t keys[kMostListed];  // ordered(logit) << 32 | ~id: the largest key is the likeliest id
  int hits[kMostListed];       // groups that are looked into
  double weights[kMostWanted];
  int histograms[4][256];
  Best best[kChooseWarps];
  Sum sums[kChooseWarps];
  Count counts[kChooseWarps];
  double scores[kChooseWarps];
  int winners[kChooseWarps];
  int hit, listed;
  int answer;
  float maxima[1];  // up to kHeldGroups follow one another
};

__device__ __forceinline__ float logit_of(uint64_t key) {
  return from_ordered(static_cast<uint32_t>(key >> 32));
}
__device__ __forceinline__ int id_of(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
}

// One row's block at work. `value(id)` is the logit of the row, raw or processed. kPlain: of a
// plain row, as long as the first list will do. Behind the head none of the instructions is at
// hand, and each jump waits for memory: so what such a row needs stands together.
template <bool kPlain>
class Chooser {
 public:
  __device__ Chooser(const Sample& args, ChooseShared& shared)
      : args_(args),
        row_(args.row[blockIdx.x]),
        scratch_(scratch_of(args, blockIdx.x)),
        logits_(args.logits + blockIdx.x * args.stride),
        shared_(shared) {}

  // Whether the row asks for what most do: a token of the likeliest, and nothing else.
  __device__ bool is_plain() const {
    return !is_edited(row_) && row_.given < 0 && row_.logprobs < 0 &&
           (!has_top_k(row_, args_.id_limit) || row_.top_k <= kMostWanted) &&
           groups_of(args_.id_limit) <= kHeldGroups;
  }
  // Whether it has chosen, which it has unless kPlain.
  __device__ bool run();

 private:
  __device__ float raw(int id) const { return logits_[id]; }
  __device__ float value(int id) const {
    return kPlain ? logits_[id] : processed(args_, row_, id, logits_[id]);
  }

  __device__ bool wants_list() const {
    return (kPlain || row_.given < 0) && !is_greedy(row_) && !is_unlimited(row_, args_.id_limit) &&
           !(has_top_k(row_, args_.id_limit) && row_.top_k > kMostWanted);
  }
  __device__ void join_chunks();
  __device__ int choose();
  __device__ int choose_listed(int listed, int asked);
  __device__ double listed_total(int listed) const;
  __device__ int nucleus(int listed, double total, bool whole) const;
  __device__ int race(int listed);
  __device__ int choose_widely();
  __device__ void report(SampleStatus status, int token);
  template <class Value, class Maximum>
  __device__ int list(const Value& value, const Maximum& maximum, int count);
  template <class Wanted>
  __device__ void collect_groups(const Wanted& wanted);
  template <class Value>
  __device__ void look_into_groups(const Value& value, float floor);
  __device__ void sort_listed(int listed);
  __device__ int count_above(float chosen);
  struct Bound {
    uint32_t bits;
    int ties;
    bool exact;
  };
  template <class Value>
  __device__ Bound kth(int64_t size, int count, const Value& value, int enough);
  template <class Value>
  __device__ int id_of_tie(const Value& value, float tie, int count);
  template <class Use>
  __device__ void for_ids(Use use) const {
    for (int id = threadIdx.x; id < args_.id_limit; id += kChooseThreads) use(id);
  }
  __device__ double sum_from(float cutoff, bool inclusive) {
    double sum = 0;
    for_ids([&](int id) {
      const float x = value(id);
      if (x > cutoff || (inclusive && x == cutoff && x > -INFINITY)) sum += weight(x);
    });
    return block_total(sum, shared_.sums);
  }
  __device__ double weight(float logit) const {
    return exp(static_cast<double>(logit - max_) * static_cast<double>(scale_of(row_)));
  }

  const Sample& args_;
  const SampleRow row_;
  const RowScratch scratch_;
  const float* logits_;
  ChooseShared& shared_;
  // Of the whole row, after join_chunks().
  bool has_nan_ = false;
  float raw_max_ = 0, max_ = 0;
  double raw_sum_ = 0, sum_ = 0;
  int max_id_ = 0, race_id_ = 0;
};

// Every warp for itself: there are few chunks.
template <bool kPlain>
__device__ void Chooser<kPlain>::join_chunks() {
  const int count = static_cast<int>(chunks_of(args_.id_limit)), lane = threadIdx.x % kWarp;
  int nan = 0;
  float raw_max = -INFINITY;
  Best best{-INFINITY, args_.id_limit};
  for (int i = lane; i < count; i += kWarp) {
    const Chunk chunk = scratch_.chunks[i];
    nan |= chunk.has_nan;
    raw_max = fmaxf(raw_max, chunk.raw_max);
    best = better(best, Best{chunk.max, chunk.max_id});
  }
  has_nan_ = __any_sync(~0u, nan);
#pragma unroll
  for (int offset = 16; offset; offset /= 2) {
    raw_max = fmaxf(raw_max, __shfl_xor_sync(~0u, raw_max, offset));
    best = better(best, best.shuffled(offset));
  }
  raw_max_ = raw_max;
  max_ = best.score;
  max_id_ = best.id;
  const bool scored = !kPlain && row_.logprobs >= 0, summed = wants_sum(row_, args_.id_limit);
  const bool raced = is_unlimited(row_, args_.id_limit) && (kPlain || row_.given < 0);
  if (!scored && !summed && !raced) return;
  const float scale = scale_of(row_);
  Best race{-INFINITY, args_.id_limit};
  for (int base = 0; base < count; base += kWarp) {
    double raw_part = 0, part = 0;
    if (base + lane < count) {
      const Chunk chunk = scratch_.chunks[base + lane];
      if (scored && chunk.raw_max > -INFINITY)
        raw_part =
            static_cast<double>(chunk.raw_sum) * exp(static_cast<double>(chunk.raw_max - raw_max_));
      if (chunk.max > -INFINITY) {
        const float below = (chunk.max - max_) * scale;
        if (summed) part = static_cast<double>(chunk.sum) * exp(static_cast<double>(below));
        if (raced) race = better(race, Best{chunk.race + below, chunk.race_id});
      }
    }
    raw_sum_ += warp_total(raw_part);
    sum_ += warp_total(part);
  }
#pragma unroll
  for (int offset = 16; offset; offset /= 2) race = better(race, race.shuffled(offset));
  race_id_ = race.id;
}

// Bits of the `count`-th largest of value(0 .. size - 1), ordered, from the first on, eight a pass:
// all of them, or as many as leave no more than `enough` numbers that are not smaller. `ties`: how
// many of those equal in these bits belong to the `count` largest. Precondition: count <= size.
template <bool kPlain>
template <class Value>
__device__ typename Chooser<kPlain>::Bound Chooser<kPlain>::kth(int64_t size, int count,
                                                                const Value& value, int enough) {
  __syncthreads();
  for (int i = threadIdx.x; i < 4 * 256; i += kChooseThreads) shared_.histograms[0][i] = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  uint32_t prefix = 0;
  int wanted = count;
  for (int pass = 0, shift = 24;; ++pass, shift -= 8) {
    int* histogram = shared_.histograms[pass];
    const uint32_t mask = pass == 0 ? 0 : ~0u << (shift + 8);
    for (int64_t i = threadIdx.x; i < size; i += kChooseThreads) {
      const uint32_t bits = ordered(value(static_cast<int>(i)));
      if ((bits & mask) == prefix) atomicAdd(&histogram[bits >> shift & 255], 1);
    }
    __syncthreads();
    // Every warp for itself; a lane has eight bins, the first one the highest.
    int bins[8], mine = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) mine += bins[i] = histogram[255 - lane * 8 - i];
    int before = mine;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int other = __shfl_up_sync(~0u, before, offset);
      if (lane >= offset) before += other;
    }
    before -= mine;
    int bin = 0, in_bin = 0, above = before;
    bool found = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (found) continue;
      bin = 255 - lane * 8 - i;
      in_bin = bins[i];
      found = above < wanted && above + in_bin >= wanted;
      if (!found) above += in_bin;
    }
    const int owner = __ffs(static_cast<int>(__ballot_sync(~0u, found))) - 1;
    bin = __shfl_sync(~0u, bin, owner);
    in_bin = __shfl_sync(~0u, in_bin, owner);
    above = __shfl_sync(~0u, above, owner);
    prefix |= static_cast<uint32_t>(bin) << shift;
    wanted -= above;
    if (shift == 0 || count - wanted + in_bin <= enough) return {prefix, wanted, shift == 0};
  }
}

// Counts the groups that `wanted(g)` wants, the first ones into `hits`. Nothing is listed then.
template <bool kPlain>
template <class Wanted>
__device__ void Chooser<kPlain>::collect_groups(const Wanted& wanted) {
  __syncthreads();
  if (threadIdx.x == 0) shared_.hit = shared_.listed = 0;
  __syncthreads();
  const int groups = static_cast<int>(groups_of(args_.id_limit));
  for (int i = threadIdx.x; i < groups; i += kChooseThreads) {
    if (!wanted(i)) continue;
    const int at = atomicAdd(&shared_.hit, 1);
    if (at < kMostListed) shared_.hits[at] = i;
  }
  __syncthreads();
}

// Ids of the groups in `hits` whose value reaches the floor go into `keys`, as far as there is
// room.
template <bool kPlain>
template <class Value>
__device__ void Chooser<kPlain>::look_into_groups(const Value& value, float floor) {
  constexpr int kAtOnce = 8;
  const int ids = shared_.hit * kGroup;
  for (int base = threadIdx.x; base < ids; base += kAtOnce * kChooseThreads) {
    int id[kAtOnce];
    float x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = base + i * kChooseThreads;
      id[i] = at < ids ? shared_.hits[at / kGroup] * kGroup + at % kGroup : args_.id_limit;
      x[i] = id[i] < args_.id_limit ? value(id[i]) : -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!(x[i] >= floor) || x[i] == -INFINITY) continue;
      const int at = atomicAdd(&shared_.listed, 1);
      if (at < kMostListed)
        shared_.keys[at] =
            static_cast<uint64_t>(ordered(x[i])) << 32 | ~static_cast<uint32_t>(id[i]);
    }
  }
}

// Descending.
template <bool kPlain>
__device__ void Chooser<kPlain>::sort_listed(int listed) {
  if (listed <= kMostRanked) {
    // Eight lanes count the keys above one; no two are equal.
    constexpr int kLanes = 8, kAtOnce = kChooseThreads / kLanes;
    uint64_t mine[kMostRanked / kAtOnce];
    int rank[kMostRanked / kAtOnce];
#pragma unroll
    for (int pass = 0; pass < kMostRanked / kAtOnce; ++pass) {
      if (pass * kAtOnce >= listed) break;
      const int index = pass * kAtOnce + static_cast<int>(threadIdx.x) / kLanes;
      mine[pass] = index < listed ? shared_.keys[index] : 0;
      rank[pass] = 0;
#pragma unroll 4
      for (int i = threadIdx.x % kLanes; i < listed; i += kLanes)
        rank[pass] += shared_.keys[i] > mine[pass];
#pragma unroll
      for (int offset = kLanes / 2; offset; offset /= 2)
        rank[pass] += __shfl_xor_sync(~0u, rank[pass], offset);
    }
    __syncthreads();
#pragma unroll
    for (int pass = 0; pass < kMostRanked / kAtOnce; ++pass) {
      const int index = pass * kAtOnce + static_cast<int>(threadIdx.x) / kLanes;
      if (index < listed && threadIdx.x % kLanes == 0) shared_.keys[rank[pass]] = mine[pass];
    }
    __syncthreads();
    return;
  }
  int size = 32;
  while (size < listed) size *= 2;
  for (int i = listed + threadIdx.x; i < size; i += kChooseThreads) shared_.keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {  // bitonic
    for (int step = run / 2; step; step /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kChooseThreads) {
        const int a = 2 * i - (i & (step - 1)), b = a + step;
        const uint64_t left = shared_.keys[a], right = shared_.keys[b];
        if ((left < right) == ((a & run) == 0)) {
          shared_.keys[a] = right;
          shared_.keys[b] = left;
        }
      }
      __syncthreads();
    }
  }
}

// Lists the `count` likeliest ids, sorted, as keys; returns how many there are (fewer if fewer are
// above -infinity), or -1 if the groups leave too many to look at. `maximum(g)` is that of group g.
// Precondition: count <= 1024.
template <bool kPlain>
template <class Value, class Maximum>
__device__ int Chooser<kPlain>::list(const Value& value, const Maximum& maximum, int count) {
  const int groups = static_cast<int>(groups_of(args_.id_limit));
  // As a rule a bound of few bits will do: it lets a few more be looked at.
  for (int enough = count + kGroup;; enough = 0) {
    Bound bound{0, 0, true};
    if (count < groups) bound = kth(groups, count, maximum, enough);
    const float floor = from_ordered(max(bound.bits, ordered(-INFINITY)));
    collect_groups([&](int i) {
      const float largest = maximum(i);
      return largest >= floor && largest > -INFINITY;
    });
    // Each has one that is listed.
    if (shared_.hit <= kMostListed) look_into_groups(value, floor);
    __syncthreads();
    const bool fits = shared_.hit <= kMostListed && shared_.listed <= kMostListed;
    if (fits) break;
    if (bound.exact) return -1;
  }
  const int listed = shared_.listed;
  sort_listed(listed);
  return min(listed, count);
}

// How many raw logits are larger. Few groups have any as a rule; a token of low rank sees the row.
template <bool kPlain>
__device__ int Chooser<kPlain>::count_above(float chosen) {
  collect_groups([&](int i) { return scratch_.raw_maxima[i] > chosen; });
  int greater = 0;
  if (shared_.hit <= kMostRanked) {
#pragma unroll 4
    for (int i = threadIdx.x; i < shared_.hit * kGroup; i += kChooseThreads) {
      const int id = shared_.hits[i / kGroup] * kGroup + i % kGroup;
      greater += id < args_.id_limit && raw(id) > chosen;
    }
  } else {
#pragma unroll 16
    for (int id = threadIdx.x; id < args_.id_limit; id += kChooseThreads)
      greater += raw(id) > chosen;
  }
  return block_count(greater, shared_.counts);
}

// The id of the `count`-th of the ids, ascending, whose value is `tie`.
template <bool kPlain>
template <class Value>
__device__ int Chooser<kPlain>::id_of_tie(const Value& value, float tie, int count) {
  int before = 0;
  for (int base = 0; base < args_.id_limit; base += kChooseThreads) {
    const int id = base + static_cast<int>(threadIdx.x);
    const int here = __syncthreads_count(id < args_.id_limit && value(id) == tie);
    if (before + here < count) {
      before += here;
      continue;
    }
    if (threadIdx.x == 0) {
      int at = base;
      for (int left = count - before;; ++at)
        if (value(at) == tie && --left == 0) break;
      shared_.answer = at;
    }
    __syncthreads();
    return shared_.answer;
  }
  return args_.id_limit;
}

// The listed candidates, of as many as were asked for, hold all that may be chosen, or enough of
// the nucleus: -1 if they do not.
template <bool kPlain>
__device__ int Chooser<kPlain>::choose_listed(int listed, int asked) {
  const float scale = scale_of(row_);
  const bool limited = has_top_k(row_, args_.id_limit);
  if (row_.min_p > 0) {
    const float cutoff = max_ + logf(row_.min_p) / scale;
    int kept = 0;
    for (int i = threadIdx.x; i < listed; i += kChooseThreads)
      kept += logit_of(shared_.keys[i]) >= cutoff;
    kept = block_count(kept, shared_.counts);
    // Without top_k there may be more above the cutoff than were listed.
    if (!limited && kept == listed && listed == asked) return -1;
    listed = kept;
  }
  for (int i = threadIdx.x; i < listed; i += kChooseThreads)
    shared_.weights[i] = weight(logit_of(shared_.keys[i]));
  __syncthreads();
  if (row_.top_p < 1.0f) {
    const bool whole = limited || row_.min_p > 0;
    listed = nucleus(listed, whole ? listed_total(listed) : sum_, whole || listed < asked);
    if (listed < 0) return -1;
  }
  return race(listed);
}

// The sum of the weights. Every warp for itself, in block_total()'s order.
template <bool kPlain>
__device__ double Chooser<kPlain>::listed_total(int listed) const {
  const int lane = threadIdx.x % kWarp;
  double total = 0;
  for (int base = 0; base < min(listed, kChooseThreads); base += kWarp) {
    double part = 0;
    for (int i = base + lane; i < listed; i += kChooseThreads) part += shared_.weights[i];
    total += warp_total(part);
  }
  return total;
}

// How many of the likeliest weigh top_p of `total`, at least one; -1 if all that are listed do not
// and are not the whole. Every thread for itself, sums in the order of the list.
template <bool kPlain>
__device__ int Chooser<kPlain>::nucleus(int listed, double total, bool whole) const {
  constexpr int kAtOnce = 8;
  const double wanted = static_cast<double>(row_.top_p) * total;
  double sum = 0;
  int kept = 0;
  for (int base = 0; base < listed && sum < wanted; base += kAtOnce) {
    double weights[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      weights[i] = base + i < listed ? shared_.weights[base + i] : 0.0;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {  // sums never fall: past `wanted` they stay there
      kept += base + i < listed && sum < wanted;
      sum += weights[i];
    }
  }
  return sum >= wanted || whole ? max(kept, 1) : -1;
}

// The winner of the first `listed`, in double as the few deserve.
template <bool kPlain>
__device__ int Chooser<kPlain>::race(int listed) {
  double best = -1;
  int winner = args_.id_limit;
  const auto join = [&](double score, int id) {
    if (score > best || (score == best && id < winner)) {
      best = score;
      winner = id;
    }
  };
  for (int i = threadIdx.x; i < listed; i += kChooseThreads) {
    const int id = id_of(shared_.keys[i]);
    const float uniform =
        noise_uniform(NoiseKey{row_.noise_first, row_.noise_second}, static_cast<uint32_t>(id));
    join(shared_.weights[i] / -log1p(-static_cast<double>(uniform)), id);
  }
  const int warp = threadIdx.x / kWarp, racing = min(kChooseWarps, (listed + kWarp - 1) / kWarp);
  if (warp < racing) {
#pragma unroll
    for (int offset = 16; offset; offset /= 2) {
      const double score = __shfl_xor_sync(~0u, best, offset);
      join(score, __shfl_xor_sync(~0u, winner, offset));
    }
    if (threadIdx.x % kWarp == 0) {
      shared_.scores[warp] = best;
      shared_.winners[warp] = winner;
    }
  }
  __syncthreads();
  for (int i = 0; i < racing; ++i) join(shared_.scores[i], shared_.winners[i]);
  return winner;
}

// Passes over the whole row. What may be chosen: above `tie`, or equal to it with an id up to
// `last_tie`.
template <bool kPlain>
__device__ int Chooser<kPlain>::choose_widely() {
  const float scale = scale_of(row_);
  const auto here = [&](int id) { return value(id); };
  float tie = -INFINITY;
  int last_tie = args_.id_limit;
  if (has_top_k(row_, args_.id_limit)) {
    const Bound bound = kth(args_.id_limit, row_.top_k, here, 0);
    tie = from_ordered(bound.bits);
    if (tie > -INFINITY) last_tie = id_of_tie(here, tie, bound.ties);
  }
  if (row_.min_p > 0) {
    const float cutoff = max_ + logf(row_.min_p) / scale;
    if (cutoff > tie) {
      tie = cutoff;
      last_tie = args_.id_limit;
    }
  }
  if (row_.top_p < 1.0f) {
    double total = 0;
    for_ids([&](int id) {
      const float x = value(id);
      if (x > -INFINITY && (x > tie || (x == tie && id <= last_tie))) total += weight(x);
    });
    total = block_total(total, shared_.sums);
    const double wanted = static_cast<double>(row_.top_p) * total;
    // The largest logit from which on the row weighs as much.
    uint32_t low = ordered(tie), high = ordered(max_);
    while (low < high) {
      const uint32_t middle = low + (high - low + 1) / 2;
      if (sum_from(from_ordered(middle), true) >= wanted)
        low = middle;
      else
        high = middle - 1;
    }
    const float edge = from_ordered(low);
    if (edge > tie) {
      tie = edge;
      const double missing = wanted - sum_from(edge, false);
      last_tie = id_of_tie(here, edge, max(1, static_cast<int>(ceil(missing / weight(edge)))));
    }
  }
  Best best{-INFINITY, args_.id_limit};
  for_ids([&](int id) {
    const float x = value(id);
    if (x > -INFINITY && (x > tie || (x == tie && id <= last_tie)))
      best = better(best, Best{(x - max_) * scale - log_time(row_, id), id});
  });
  return block_reduce(best, shared_.best, better).id;
}

template <bool kPlain>
__device__ int Chooser<kPlain>::choose() {
  const int groups = static_cast<int>(groups_of(args_.id_limit));
  const bool limited = has_top_k(row_, args_.id_limit);
  const auto here = [&](int id) { return value(id); };
  if (!kPlain && row_.given >= 0) return row_.given;
  if (is_greedy(row_)) return max_id_;
  if (is_unlimited(row_, args_.id_limit)) return race_id_;
  if constexpr (kPlain) {
    const int asked = limited ? row_.top_k : kFirstList;
    const int listed = list(
        here, [&](int i) { return shared_.maxima[i]; }, asked);
    return listed > 0 ? choose_listed(listed, asked) : -1;
  }
  if (!wants_list()) return choose_widely();
  for (int asked = limited ? row_.top_k : kFirstList;; asked = kMostWanted) {
    const int listed = groups <= kHeldGroups
                           ? list(
                                 here, [&](int i) { return shared_.maxima[i]; }, asked)
                           : list(
                                 here, [&](int i) { return scratch_.maxima[i]; }, asked);
    const int token = listed > 0 ? choose_listed(listed, asked) : -1;
    if (token >= 0) return token;
    if (limited || listed <= 0 || asked == kMostWanted) return choose_widely();
  }
}

template <bool kPlain>
__device__ void Chooser<kPlain>::report(SampleStatus status, int token) {
  const bool scored = !kPlain && status == SampleStatus::ok && row_.logprobs >= 0;
  SampledRow out = {status, token, 0.0f, 0};
  const int64_t top = static_cast<int64_t>(blockIdx.x) * args_.most;
  const double log_sum = scored ? static_cast<double>(raw_max_) + log(raw_sum_) : 0.0;
  int listed = 0;
  if (scored) {
    const float chosen = raw(token);
    out.rank = count_above(chosen) + 1;
    out.logprob = static_cast<float>(static_cast<double>(chosen) - log_sum);
    const int wanted = min(min(row_.logprobs, args_.most), kMostWanted);
    if (wanted > 0) {
      listed = list([&](int id) { return raw(id); }, [&](int i) { return scratch_.raw_maxima[i]; },
                    wanted);
      if (listed < 0) listed = 0;  // thousands of equal logits: none of them is a top
    }
  }
  for (int i = threadIdx.x; i < args_.most; i += kChooseThreads) {
    const bool there = i < listed;
    args_.top_ids[top + i] = there ? id_of(shared_.keys[i]) : -1;
    args_.top_logprobs[top + i] =
        there ? static_cast<float>(static_cast<double>(logit_of(shared_.keys[i])) - log_sum) : 0.0f;
  }
  if (threadIdx.x != 0) return;
  args_.out[blockIdx.x] = out;
  const uint64_t also = static_cast<uint64_t>(row_.also_high) << 32 | row_.also_low;
  if (also) *reinterpret_cast<SampledRow*>(also) = out;
}

template <bool kPlain>
__device__ bool Chooser<kPlain>::run() {
  // The maxima come while the chunks are joined.
  constexpr int kEarly = 8;
  const int groups = static_cast<int>(groups_of(args_.id_limit));
  const bool held = wants_list() && (kPlain || groups <= kHeldGroups);
  float early[kEarly];
  if (held)
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      const int group = static_cast<int>(threadIdx.x) + i * kChooseThreads;
      early[i] = group < groups ? scratch_.maxima[group] : 0.0f;
    }
  join_chunks();
  if (has_nan_ || !(raw_max_ > -INFINITY) || raw_max_ == INFINITY) {
    report(SampleStatus::not_finite, -1);
    return true;
  }
  if (max_ == -INFINITY && row_.given < 0) {
    report(SampleStatus::all_masked, -1);
    return true;
  }
  if (held) {
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      const int group = static_cast<int>(threadIdx.x) + i * kChooseThreads;
      if (group < groups) shared_.maxima[group] = early[i];
    }
    for (int i = threadIdx.x + kEarly * kChooseThreads; i < groups; i += kChooseThreads)
      shared_.maxima[i] = scratch_.maxima[i];
    // list() begins with a barrier.
  }
  const int token = choose();
  if (kPlain && token < 0) return false;
  report(SampleStatus::ok, token);
  return true;
}

// What the usual rows do not need, out of their way.
__device__ __forceinline__ void choose_otherwise(const Sample& args, ChooseShared& shared) {
  Chooser<false> chooser(args, shared);
  chooser.run();
}

// One block a row. Bytes: a 64th of the row and a few groups; the row itself where a rank or a wide
// nucleus is asked for. Bound by latency.
__global__ void __launch_bounds__(kChooseThreads) sample_choose(Sample args) {
  extern __shared__ uint4 shared16[];
  auto& shared = *reinterpret_cast<ChooseShared*>(shared16);
  // The row was there before the scan.
  Chooser<true> chooser(args, shared);
  wait_for_previous();
  let_next_start();
  if (!chooser.is_plain() || !chooser.run()) [[unlikely]]
    choose_otherwise(args, shared);
}

}  // namespace

int64_t sample_scratch(int64_t rows, int64_t vocab) {
  return rows * row_bytes(vocab);
}

void launch_sample(void* stream, const Sample& args) {
  if (args.rows == 0) return;
  const auto rows = static_cast<unsigned>(args.rows);
  launch(stream, sample_scan,
         {dim3(static_cast<unsigned>(chunks_of(args.id_limit)), rows), dim3(kScanThreads)}, args);
  LaunchShape shape{dim3(rows), dim3(kChooseThreads)};
  const int64_t groups = groups_of(args.id_limit);
  shape.shared_bytes = static_cast<int>(sizeof(ChooseShared));
  if (groups <= kHeldGroups) shape.shared_bytes += static_cast<int>(groups * sizeof(float));
  launch(stream, sample_choose, shape, args);
}

}  // namespace m2::ops::cuda
