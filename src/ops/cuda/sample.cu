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
constexpr int kMostListed = 4096;  // candidates in shared memory
constexpr int kFirstList = 1024;   // how many are looked for when no top_k says
constexpr float kGreedyBelow = 1e-5f;
constexpr float kLowestTemperature = 0.01f;
constexpr float kLargest = 3.402823466e38f;

// What a chunk's block leaves for the row's block.
struct Chunk {
  float raw_max, raw_sum;  // sum of exp(x - raw_max), if logprobs are wanted
  float max, sum;          // after the edits; sum of exp((x - max) * scale), if top_p wants it
  int32_t max_id;
  float race;  // best of (x - max) * scale - log(time), if nothing is cut off
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
  __shared__ Count count_scratch[kScanThreads / kWarp];
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

  // A thread's fours of one round are neighbours of a group's others: 16 lanes hold a group.
  const auto write_maxima = [&](const float(&x)[kEach], float* maxima) {
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      float largest = fmaxf(fmaxf(x[i], x[i + 1]), fmaxf(x[i + 2], x[i + 3]));
#pragma unroll
      for (int offset = 8; offset; offset /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
      const int id = id_of(i);
      if (threadIdx.x % 16 == 0 && id < end) maxima[id / kGroup] = largest;
    }
  };
  const auto best_of = [&](const float(&x)[kEach]) {
    Best best{-INFINITY, args.id_limit};
#pragma unroll
    for (int i = 0; i < kEach; ++i) best = better(best, Best{x[i], id_of(i)});
    return block_reduce(best, best_scratch, better);
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
  out.has_nan = block_count(nan, count_scratch) > 0;
  const Best raw_best = best_of(raw);
  out.raw_max = raw_best.score;
  if (row.logprobs >= 0) out.raw_sum = sum_of(raw, out.raw_max, 1.0f);
  write_maxima(raw, scratch.raw_maxima);

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
    write_maxima(x, scratch.maxima);
    const Best best = best_of(x);
    out.max = best.score;
    out.max_id = best.id;
  } else {
    out.max = raw_best.score;
    out.max_id = raw_best.id;
  }

  const float scale = scale_of(row);
  if (!is_greedy(row) && row.top_p < 1.0f) out.sum = sum_of(x, out.max, scale);
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
  double weights[kFirstList];
  int histogram[256];
  Best best[kChooseWarps];
  Sum sums[kChooseWarps];
  Count counts[kChooseWarps];
  int listed;
  int answer;
  uint32_t prefix;
  int wanted;
};

__device__ __forceinline__ float logit_of(uint64_t key) {
  return from_ordered(static_cast<uint32_t>(key >> 32));
}
__device__ __forceinline__ int id_of(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
}

// One row's block at work. `value(id)` is the logit of the row, raw or processed.
class Chooser {
 public:
  __device__ Chooser(const Sample& args, ChooseShared& shared)
      : args_(args),
        row_(args.row[blockIdx.x]),
        scratch_(scratch_of(args, blockIdx.x)),
        logits_(args.logits + blockIdx.x * args.stride),
        shared_(shared) {}

  __device__ void run();

 private:
  __device__ float raw(int id) const { return logits_[id]; }
  __device__ float value(int id) const { return processed(args_, row_, id, logits_[id]); }

  __device__ void join_chunks();
  __device__ int choose();
  __device__ int choose_listed(int listed);
  __device__ int choose_widely();
  __device__ void report(SampleStatus status, int token);
  template <class Value>
  __device__ int list(const Value& value, const float* maxima, int count);
  template <class Value>
  __device__ uint32_t kth(int64_t size, int count, const Value& value, int& ties);
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

__device__ void Chooser::join_chunks() {
  const int count = static_cast<int>(chunks_of(args_.id_limit));
  int nan = 0;
  Best raw_best{-INFINITY, args_.id_limit}, best = raw_best;
  for (int i = threadIdx.x; i < count; i += kChooseThreads) {
    const Chunk& chunk = scratch_.chunks[i];
    nan |= chunk.has_nan;
    raw_best = better(raw_best, Best{chunk.raw_max, i});
    best = better(best, Best{chunk.max, chunk.max_id});
  }
  has_nan_ = block_count(nan, shared_.counts) > 0;
  raw_max_ = block_reduce(raw_best, shared_.best, better).score;
  best = block_reduce(best, shared_.best, better);
  max_ = best.score;
  max_id_ = best.id;
  const float scale = scale_of(row_);
  double raw_sum = 0, sum = 0;
  Best race{-INFINITY, args_.id_limit};
  for (int i = threadIdx.x; i < count; i += kChooseThreads) {
    const Chunk& chunk = scratch_.chunks[i];
    if (row_.logprobs >= 0 && chunk.raw_max > -INFINITY)
      raw_sum +=
          static_cast<double>(chunk.raw_sum) * exp(static_cast<double>(chunk.raw_max - raw_max_));
    if (chunk.max == -INFINITY) continue;
    const float below = (chunk.max - max_) * scale;
    sum += static_cast<double>(chunk.sum) * exp(static_cast<double>(below));
    race = better(race, Best{chunk.race + below, chunk.race_id});
  }
  raw_sum_ = block_total(raw_sum, shared_.sums);
  sum_ = block_total(sum, shared_.sums);
  race_id_ = block_reduce(race, shared_.best, better).id;
}

// The `count`-th largest of value(0 .. size - 1), as ordered bits; `ties`: how many of the numbers
// equal to it belong to the `count` largest. Four passes, eight bits each. Precondition: count <=
// size.
template <class Value>
__device__ uint32_t Chooser::kth(int64_t size, int count, const Value& value, int& ties) {
  uint32_t prefix = 0;
  int wanted = count;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += kChooseThreads) shared_.histogram[i] = 0;
    __syncthreads();
    const uint32_t mask = shift == 24 ? 0 : ~0u << (shift + 8);
    for (int64_t i = threadIdx.x; i < size; i += kChooseThreads) {
      const uint32_t bits = ordered(value(static_cast<int>(i)));
      if ((bits & mask) == prefix) atomicAdd(&shared_.histogram[bits >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = 255, above = 0;
      while (bin > 0 && above + shared_.histogram[bin] < wanted) above += shared_.histogram[bin--];
      shared_.prefix = prefix | static_cast<uint32_t>(bin) << shift;
      shared_.wanted = wanted - above;
    }
    __syncthreads();
    prefix = shared_.prefix;
    wanted = shared_.wanted;
  }
  ties = wanted;
  return prefix;
}

// Lists the `count` likeliest ids, sorted, as keys; returns how many there are (fewer if fewer are
// above -infinity), or -1 if the groups leave too many to look at. Precondition: count <= 1024.
template <class Value>
__device__ int Chooser::list(const Value& value, const float* maxima, int count) {
  const int groups = static_cast<int>(groups_of(args_.id_limit));
  float floor = -INFINITY;
  if (count < groups) {
    int ties;
    floor = from_ordered(kth(
        groups, count, [&](int i) { return maxima[i]; }, ties));
  }
  __syncthreads();
  if (threadIdx.x == 0) shared_.listed = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int base = warp * kWarp; base < groups; base += kChooseThreads) {
    unsigned hits = __ballot_sync(~0u, base + lane < groups && maxima[base + lane] >= floor &&
                                           maxima[base + lane] > -INFINITY);
    for (; hits; hits &= hits - 1) {
      const int first = (base + __ffs(static_cast<int>(hits)) - 1) * kGroup;
#pragma unroll
      for (int half = 0; half < kGroup; half += kWarp) {
        const int id = first + half + lane;
        const float x = id < args_.id_limit ? value(id) : -INFINITY;
        if (!(x >= floor) || x == -INFINITY) continue;
        const int at = atomicAdd(&shared_.listed, 1);
        if (at < kMostListed)
          shared_.keys[at] = static_cast<uint64_t>(ordered(x)) << 32 | ~static_cast<uint32_t>(id);
      }
      __syncwarp();
    }
  }
  __syncthreads();
  const int listed = shared_.listed;
  if (listed > kMostListed) return -1;
  int size = 32;
  while (size < listed) size *= 2;
  for (int i = listed + threadIdx.x; i < size; i += kChooseThreads) shared_.keys[i] = 0;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {  // bitonic, descending
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
  return min(listed, count);
}

// The id of the `count`-th of the ids, ascending, whose value is `tie`.
template <class Value>
__device__ int Chooser::id_of_tie(const Value& value, float tie, int count) {
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

// The listed candidates hold all that may be chosen, or enough of the nucleus: -1 if they do not.
__device__ int Chooser::choose_listed(int listed) {
  const float scale = scale_of(row_);
  const bool limited = has_top_k(row_, args_.id_limit);
  if (row_.min_p > 0) {
    const float cutoff = max_ + logf(row_.min_p) / scale;
    int kept = 0;
    for (int i = threadIdx.x; i < listed; i += kChooseThreads)
      kept += logit_of(shared_.keys[i]) >= cutoff;
    kept = block_count(kept, shared_.counts);
    // Without top_k there may be more above the cutoff than were listed.
    if (!limited && kept == listed && listed == kFirstList) return -1;
    listed = kept;
  }
  for (int i = threadIdx.x; i < listed; i += kChooseThreads)
    shared_.weights[i] = weight(logit_of(shared_.keys[i]));
  __syncthreads();
  if (row_.top_p < 1.0f) {
    double total = 0;
    if (limited || row_.min_p > 0) {
      for (int i = threadIdx.x; i < listed; i += kChooseThreads) total += shared_.weights[i];
      total = block_total(total, shared_.sums);
    } else {
      total = sum_;
    }
    if (threadIdx.x == 0) {
      const double wanted = static_cast<double>(row_.top_p) * total;
      double sum = 0;
      int kept = 0;
      while (kept < listed && sum < wanted) sum += shared_.weights[kept++];
      const bool whole = limited || row_.min_p > 0 || listed < kFirstList;
      shared_.answer = sum >= wanted || whole ? max(kept, 1) : -1;
    }
    __syncthreads();
    listed = shared_.answer;
    if (listed < 0) return -1;
  }
  // The race, in double as the few deserve.
  double best = -1;
  int winner = args_.id_limit;
  for (int i = threadIdx.x; i < listed; i += kChooseThreads) {
    const int id = id_of(shared_.keys[i]);
    const float uniform =
        noise_uniform(NoiseKey{row_.noise_first, row_.noise_second}, static_cast<uint32_t>(id));
    const double score = shared_.weights[i] / -log1p(-static_cast<double>(uniform));
    if (score > best || (score == best && id < winner)) {
      best = score;
      winner = id;
    }
  }
  // Doubles as pairs would need another reduction: every thread leaves its own, one looks.
  __syncthreads();
  auto* scores = reinterpret_cast<double*>(shared_.keys);
  auto* ids = reinterpret_cast<int*>(scores + kChooseThreads);
  scores[threadIdx.x] = best;
  ids[threadIdx.x] = winner;
  __syncthreads();
  for (int half = kChooseThreads / 2; half; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) {
      const double other = scores[threadIdx.x + half];
      const int id = ids[threadIdx.x + half];
      if (other > scores[threadIdx.x] || (other == scores[threadIdx.x] && id < ids[threadIdx.x])) {
        scores[threadIdx.x] = other;
        ids[threadIdx.x] = id;
      }
    }
    __syncthreads();
  }
  return ids[0];
}

// Passes over the whole row. What may be chosen: above `tie`, or equal to it with an id up to
// `last_tie`.
__device__ int Chooser::choose_widely() {
  const float scale = scale_of(row_);
  const auto here = [&](int id) { return value(id); };
  float tie = -INFINITY;
  int last_tie = args_.id_limit;
  if (has_top_k(row_, args_.id_limit)) {
    int ties;
    tie = from_ordered(kth(args_.id_limit, row_.top_k, here, ties));
    if (tie > -INFINITY) last_tie = id_of_tie(here, tie, ties);
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

__device__ int Chooser::choose() {
  if (row_.given >= 0) return row_.given;
  if (is_greedy(row_)) return max_id_;
  if (is_unlimited(row_, args_.id_limit)) return race_id_;
  const bool limited = has_top_k(row_, args_.id_limit);
  if (limited && row_.top_k > kFirstList) return choose_widely();
  const int listed =
      list([&](int id) { return value(id); }, scratch_.maxima, limited ? row_.top_k : kFirstList);
  const int token = listed > 0 ? choose_listed(listed) : -1;
  return token >= 0 ? token : choose_widely();
}

__device__ void Chooser::report(SampleStatus status, int token) {
  const bool scored = status == SampleStatus::ok && row_.logprobs >= 0;
  SampledRow out = {status, token, 0.0f, 0};
  const int64_t top = static_cast<int64_t>(blockIdx.x) * args_.most;
  const double log_sum = static_cast<double>(raw_max_) + log(raw_sum_);
  int listed = 0;
  if (scored) {
    const float chosen = raw(token);
    int greater = 0;
    for_ids([&](int id) { greater += raw(id) > chosen; });
    out.rank = block_count(greater, shared_.counts) + 1;
    out.logprob = static_cast<float>(static_cast<double>(chosen) - log_sum);
    const int wanted = min(min(row_.logprobs, args_.most), kFirstList);
    if (wanted > 0) {
      listed = list([&](int id) { return raw(id); }, scratch_.raw_maxima, wanted);
      if (listed < 0) listed = 0;  // thousands of equal logits: none of them is a top
    }
  }
  for (int i = threadIdx.x; i < args_.most; i += kChooseThreads) {
    const bool there = i < listed;
    args_.top_ids[top + i] = there ? id_of(shared_.keys[i]) : -1;
    args_.top_logprobs[top + i] =
        there ? static_cast<float>(static_cast<double>(logit_of(shared_.keys[i])) - log_sum) : 0.0f;
  }
  if (threadIdx.x == 0) args_.out[blockIdx.x] = out;
}

__device__ void Chooser::run() {
  join_chunks();
  if (has_nan_ || !(raw_max_ > -INFINITY) || raw_max_ == INFINITY)
    return report(SampleStatus::not_finite, -1);
  if (max_ == -INFINITY && row_.given < 0) return report(SampleStatus::all_masked, -1);
  report(SampleStatus::ok, choose());
}

// One block a row. Bytes: a 64th of the row and a few groups; the row itself where a rank or a wide
// nucleus is asked for. Bound by latency.
__global__ void __launch_bounds__(kChooseThreads) sample_choose(Sample args) {
  extern __shared__ uint4 shared16[];
  wait_for_previous();
  let_next_start();
  Chooser(args, *reinterpret_cast<ChooseShared*>(shared16)).run();
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
  shape.shared_bytes = static_cast<int>(sizeof(ChooseShared));
  launch(stream, sample_choose, shape, args);
}

}  // namespace m2::ops::cuda
