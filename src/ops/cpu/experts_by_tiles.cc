#include <algorithm>
#include <cstring>
#include <span>

#include "ops/cpu/expert_pairs.h"
#include "ops/cpu/gated.h"
#include "ops/cpu/tiles.h"

namespace m2::ops::cpu {
namespace {

// Packed inputs of so many bytes are made at a time, of a few experts.
constexpr int64_t kInputBytes = int64_t{16} << 20;
constexpr int64_t kMostTokens = kMaxProductTiles * kTileTokens;

// Pairs of one expert that are multiplied together: one product's tokens.
struct Job {
  int32_t expert;
  int32_t first_pair;
  int32_t count;  // <= kMostTokens
  int32_t slot;   // where it stands in packed tiles, counted in tokens

  int64_t width() const { return tile_width(count); }
  int64_t tiles() const { return (count + kTileTokens - 1) / kTileTokens; }
  int64_t slots() const { return tile_slots(count); }
};

struct TilePairs : Pairs {
  Job* jobs;  // in the order of their pairs
  int64_t job_count;
  BF16* inputs;  // packed inputs of a group of jobs
  BF16* gated;   // packed silu(W1 x) * (W3 x) of all jobs
  float* sums;   // [tokens, hidden] FP32 output before it is rounded to BF16
};

// A matrix's columns as tiles have them: those of w13, and those of w2.
TileColumns hidden_columns(const Experts& experts) {
  return {experts.w13.dtype(), experts.hidden(), 0};
}
TileColumns inner_columns(const Experts& experts) {
  return {experts.w2.dtype(), experts.inner(), experts.first_inner};
}

int64_t most_slots(const Experts& experts, int64_t pairs) {
  const int64_t wide_jobs = std::min(pairs / kTileTokens, experts.count() + pairs / kMostTokens);
  return pairs + wide_jobs * (kTileTokens - 1);
}

// Slots of one group of jobs: any one job fits.
int64_t group_slots(const Experts& experts) {
  const int64_t slot_bytes = packed_size(hidden_columns(experts), 1) * size_of(DType::bf16);
  return std::max(kMostTokens, kInputBytes / slot_bytes);
}

TilePairs place(const Experts& experts, int64_t tokens, int64_t top, Placer& placer) {
  TilePairs pairs{place_pairs(experts, tokens, top, placer), nullptr, 0, nullptr, nullptr, nullptr};
  const int64_t count = tokens * top;
  const int64_t slots = most_slots(experts, count);
  pairs.jobs = placer.place<Job>(std::min(count, experts.count() + count / kMostTokens));
  pairs.inputs = placer.place<BF16>(std::min(slots, group_slots(experts)) *
                                    packed_size(hidden_columns(experts), 1));
  pairs.gated = placer.place<BF16>(slots * packed_size(inner_columns(experts), 1));
  pairs.sums = placer.place<float>(tokens * experts.hidden());
  return pairs;
}

void list_jobs(TilePairs& pairs) {
  int64_t slot = 0;
  for (int64_t a = 0; a < pairs.active_count; ++a) {
    const int32_t expert = pairs.active[a];
    const int64_t begin = pairs.starts[expert];
    const int64_t total = pairs.starts[expert + 1] - begin;
    const int64_t parts = (total + kMostTokens - 1) / kMostTokens;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * total / parts;
      Job& job = pairs.jobs[pairs.job_count++];
      job = {expert, static_cast<int32_t>(begin + first),
             static_cast<int32_t>((part + 1) * total / parts - first), static_cast<int32_t>(slot)};
      slot += job.slots();
    }
  }
}

void pack_job(const Tensor& x, const TilePairs& pairs, const Job& job, const TileColumns& columns,
              BF16* to) {
  for (int64_t tile = 0; tile < job.tiles(); ++tile) {
    const std::byte* inputs[kTileTokens];
    const int64_t first = tile * kTileTokens;
    const int64_t count = std::min(kTileTokens, job.count - first);
    for (int64_t i = 0; i < count; ++i)
      inputs[i] = row_of(x, pairs.tokens[job.first_pair + first + i]);
    pack_tokens(inputs, x.dtype(), count, job.width(), columns,
                to + tile * packed_size(columns, kTileTokens));
  }
}

const std::byte* gate_weights(const Experts& experts, const Job& job, int64_t row) {
  return row_of(experts.w13, job.expert) + row * experts.hidden() * size_of(experts.w13.dtype());
}
const std::byte* down_weights(const Experts& experts, const Job& job, int64_t row) {
  return row_of(experts.w2, job.expert) + row * experts.inner() * size_of(experts.w2.dtype());
}

// Packs silu(W1 x) * (W3 x) for some inner rows of one job's expert. `then`: the weights read next.
void gate_rows(const Experts& experts, const TilePairs& pairs, const Job& job, const BF16* inputs,
               const RowUnits::Unit& unit, const void* then) {
  alignas(64) float gate[kMostTokens * kMaxProductRows];
  alignas(64) float up[kMostTokens * kMaxProductRows];
  const int64_t block_row = (experts.first_inner + unit.begin) / kScaleBlock - experts.scale_row;
  const std::byte* w3 = gate_weights(experts, job, experts.inner() + unit.begin);
  TileProduct work{.weight = gate_weights(experts, job, unit.begin),
                   .weight_dtype = experts.w13.dtype(),
                   .rows = unit.count,
                   .columns = hidden_columns(experts),
                   .scale = scales_of(experts.w1_scale, job.expert, block_row),
                   .x = inputs,
                   .tiles = job.tiles(),
                   .width = job.width(),
                   .sums = gate,
                   .then = w3};
  tile_product(work);
  work.weight = w3;
  work.then = then;
  work.scale = scales_of(experts.w3_scale, job.expert, block_row);
  work.sums = up;
  tile_product(work);
  const int64_t tile_size = (unit.count + kTileRows - 1) / kTileRows * kTileRows * job.width();
  silu_multiply(gate, up, job.tiles() * tile_size, gate);
  const TileColumns columns = inner_columns(experts);
  BF16* gated = pairs.gated + job.slot * packed_size(columns, 1);
  for (int64_t tile = 0; tile < job.tiles(); ++tile)
    pack_sums(gate + tile * tile_size, unit.count, job.width(), columns, unit.begin,
              gated + tile * packed_size(columns, kTileTokens));
}

// sums[token, rows] += weight * (W2 gated) for some hidden rows of one job's expert. `then`: the
// weights read next.
void add_down_rows(const Experts& experts, const TilePairs& pairs, const Job& job,
                   const RowUnits::Unit& unit, const void* then, const Tensor& sums) {
  alignas(64) float down[kMostTokens * kMaxProductRows];
  alignas(64) float rows[kTileTokens * kMaxProductRows];
  const TileColumns columns = inner_columns(experts);
  const float* scale = scales_of(experts.w2_scale, job.expert, unit.begin / kScaleBlock);
  const int64_t first_block = experts.first_inner / kScaleBlock - experts.scale_row;
  const TileProduct work{.weight = down_weights(experts, job, unit.begin),
                         .weight_dtype = experts.w2.dtype(),
                         .rows = unit.count,
                         .columns = columns,
                         .scale = scale ? scale + first_block : nullptr,
                         .x = pairs.gated + job.slot * packed_size(columns, 1),
                         .tiles = job.tiles(),
                         .width = job.width(),
                         .sums = down,
                         .then = then};
  tile_product(work);
  const int64_t tile_size = (unit.count + kTileRows - 1) / kTileRows * kTileRows * job.width();
  for (int64_t tile = 0; tile < job.tiles(); ++tile) {
    transpose_sums(down + tile * tile_size, unit.count, job.width(), rows, kMaxProductRows);
    const int64_t first = job.first_pair + tile * kTileTokens;
    const int64_t count = std::min(job.width(), job.count - tile * kTileTokens);
    for (int64_t i = 0; i < count; ++i) {
      const float weight = pairs.weights[first + i];
      const float* from = rows + i * kMaxProductRows;
      float* to = reinterpret_cast<float*>(row_of(sums, pairs.tokens[first + i])) + unit.begin;
      for (int64_t r = 0; r < unit.count; ++r) to[r] += weight * from[r];
    }
  }
}

// Some hidden rows of the output, all experts in ascending order.
void down_rows(const Experts& experts, const TilePairs& pairs, const RowUnits::Unit& unit,
               const Tensor& out) {
  const int64_t tokens = out.size(0);
  const bool direct = out.dtype() == DType::f32;
  const Tensor sums = direct ? out : Tensor(pairs.sums, DType::f32, {tokens, experts.hidden()});
  for (int64_t t = 0; t < tokens; ++t)
    std::memset(row_of(sums, t) + unit.begin * 4, 0, static_cast<size_t>(unit.count) * 4);
  for (int64_t j = 0; j < pairs.job_count; ++j) {
    const bool last = j + 1 == pairs.job_count;
    const void* then = last ? down_weights(experts, pairs.jobs[0], unit.begin + unit.count)
                            : down_weights(experts, pairs.jobs[j + 1], unit.begin);
    add_down_rows(experts, pairs, pairs.jobs[j], unit, then, sums);
  }
  if (direct) return;
  for (int64_t t = 0; t < tokens; ++t)
    store_row(reinterpret_cast<const float*>(row_of(sums, t)) + unit.begin, unit.count,
              row_of(out, t) + unit.begin * size_of(out.dtype()), out.dtype());
}

// Units of inner rows, none of which cuts a step of w2's columns.
RowUnits inner_units(const Experts& experts, int64_t jobs, int threads) {
  const TileColumns columns = inner_columns(experts);
  const int64_t least = columns.lead % kTileStep == 0 ? kTileStep : kMaxProductRows;
  return {columns.scaled ? experts.first_inner : 0, experts.inner(),
          choose_unit_rows(experts.inner(), least, jobs, threads)};
}

// Jobs from `first` on whose inputs fit in the scratch; the index behind them.
int64_t group_end(const TilePairs& pairs, int64_t first, int64_t slots) {
  int64_t end = first;
  while (end < pairs.job_count &&
         pairs.jobs[end].slot + pairs.jobs[end].slots() - pairs.jobs[first].slot <= slots)
    ++end;
  return end;
}

}  // namespace

int64_t experts_by_tiles_bytes(const Experts& experts, int64_t tokens, int64_t top) {
  Placer placer(nullptr);
  place(experts, tokens, top, placer);
  return placer.bytes();
}

void experts_by_tiles(const Exec& exec, const Tensor& x, const Experts& experts, const Tensor& ids,
                      const Tensor& weights, const Tensor& scratch, const Tensor& out) {
  constexpr int64_t kLeastRows = 32;
  Placer placer(static_cast<std::byte*>(scratch.data()));
  TilePairs pairs = place(experts, ids.size(0), ids.size(1), placer);
  sort_pairs(experts, ids, weights, pairs);
  list_jobs(pairs);
  const int threads = exec.pool->size();
  const TileColumns columns = hidden_columns(experts);
  const int64_t input_size = packed_size(columns, 1);
  for (int64_t first = 0; first < pairs.job_count;) {
    const int64_t end = group_end(pairs, first, group_slots(experts));
    const std::span<const Job> jobs(pairs.jobs + first, static_cast<size_t>(end - first));
    const auto inputs = [&](const Job& job) {
      return pairs.inputs + (job.slot - jobs.front().slot) * input_size;
    };
    const auto count = static_cast<int64_t>(jobs.size());
    const int64_t job_bytes = (jobs.back().slot + jobs.back().slots() - jobs.front().slot) *
                              input_size * size_of(DType::bf16) / count;
    for_rows(exec, count, job_bytes, [&](int64_t j) {
      const Job& job = jobs[static_cast<size_t>(j)];
      pack_job(x, pairs, job, columns, inputs(job));
    });
    const RowUnits inner = inner_units(experts, count, threads);
    exec.pool->for_each(count * inner.count(), [&](int64_t index) {
      const int64_t units = inner.count();
      const int64_t next = (index + 1) % (count * units);
      const Job& job = jobs[static_cast<size_t>(index / units)];
      gate_rows(experts, pairs, job, inputs(job), inner.at(index % units),
                gate_weights(experts, jobs[static_cast<size_t>(next / units)],
                             inner.at(next % units).begin));
    });
    first = end;
  }
  const RowUnits hidden{0, experts.hidden(),
                        choose_unit_rows(experts.hidden(), kLeastRows, 1, threads)};
  exec.pool->for_each(hidden.count(),
                      [&](int64_t index) { down_rows(experts, pairs, hidden.at(index), out); });
}

}  // namespace m2::ops::cpu
