#include "ops/cuda/norm_row.cuh"
#include "parallel/cuda/peer_meet.cuh"

// Rows that ranks share out: each makes some for all.
namespace m2::parallel::cuda {
namespace {

constexpr int kWarps = kNormThreads / kWarp;
constexpr int kStretches = kNormThreads / 16;  // of 128 columns, in a row
static_assert(kSumNormColumns == 8 * kNormThreads);

// block_sum() of kNormThreads to the same bytes, with one barrier: every warp adds up what the
// warps have. `scratch`, kWarps floats, is free again behind the barrier of the next sum, which has
// another.
__device__ __forceinline__ float row_sum(float value, float* scratch) {
  const int lane = threadIdx.x % kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_sum(lane < kWarps ? scratch[lane] : 0.0f);
}

// Where the ranks' tensors lie. No kOut: a rank wants no others' rows of it.
enum { kOut, kValues, kScales, kTensors };

// What a thread has of a row.
template <int kMost>
struct RowPart {
  Group<__nv_bfloat16> numbers[kMost];  // of every rank
  Pack8<__nv_bfloat16> residual;
};

// A rank's rows on their way from what everyone has brought to everyone's quantised, 8 columns a
// thread.
template <int kMost>
struct RowTraffic {
  using T = __nv_bfloat16;
  using Numbers = Group<T>;
  const PeerRowNorm& work;
  void* const (&places)[kTensors][kMostPeers];

  __device__ int packs() const { return static_cast<int>(work.norm.columns) / 8; }
  __device__ bool mine() const { return threadIdx.x < packs(); }
  __device__ int at(int row) const { return row * packs() + static_cast<int>(threadIdx.x); }
  __device__ Pack8<T>& residual(int row) const {
    return static_cast<Pack8<T>*>(work.norm.residual)[at(row)];
  }
  __device__ void load(int row, RowPart<kMost>& to) const {
    if (!mine() || row >= work.first + work.count) return;
    const auto* brought = static_cast<const Numbers*>(work.norm.sum.x);
    const int of_rank = work.count * packs();
    int part = (row - work.first) * packs() + static_cast<int>(threadIdx.x);
#pragma unroll
    for (int r = 0; r < kMost; ++r, part += of_rank)
      if (r < work.norm.sum.ranks) to.numbers[r] = fetch(brought + part);
    to.residual = residual(row);
  }
  __device__ void send(int row, const Pack8<T>& normed, uint2 values) const {
    const PeerSum& sum = work.norm.sum;
    static_cast<Pack8<T>*>(work.norm.out)[at(row)] = normed;
    for (int i = 0; i < sum.ranks; ++i) {  // not all to the same rank at once
      const int r = sum.rank + i < sum.ranks ? sum.rank + i : sum.rank + i - sum.ranks;
      if (work.norm.quantised) static_cast<uint2*>(places[kValues][r])[at(row)] = values;
      if (i > 0 && places[kOut][r]) static_cast<Pack8<T>*>(places[kOut][r])[at(row)] = normed;
    }
  }
  // A row's scales, by a warp for each rank, as one piece.
  __device__ void send_scales(int row, const float* from) const {
    const int peer = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int stretches = static_cast<int>(work.norm.columns) / 128;
    if (peer < work.norm.sum.ranks && lane < stretches)
      static_cast<float*>(places[kScales][peer])[row * stretches + lane] = from[lane];
  }
};

// A rank's share of the rows, a block one after another, as rms_norm_kernel has them
// (ops/cuda/norm.cu), to the same bytes. A block's next row is asked for before this one is added
// up. Two meetings: all have brought what they have, and all rows have been written.
// Bytes, of T H numbers in all and R ranks: T H (2 + 6 / R) here, and T H * 33 / 32 (R - 1) / R
// leave over the links, as many as come; T H * 2 (R - 1) / R more if all want out whole. Bound:
// bandwidth, of memory for two ranks, of the links for four.
template <int kMost, int kBlocks>
__global__ void __launch_bounds__(kNormThreads, kBlocks)
    row_norm_kernel(const __grid_constant__ PeerRowNorm work) {
  using T = __nv_bfloat16;
  __shared__ void* places[kTensors][kMostPeers];
  __shared__ float squares[2][kWarps];
  __shared__ float scales[2][kStretches];
  __shared__ float4 weights[2][kNormThreads];  // each a thread's own, for want of registers
  const PeerSumNorm& norm = work.norm;
  const RowTraffic<kMost> rows{work, places};
  const bool mine = rows.mine();
  if (mine) {
    float by[8];
    load_weights(norm.weight, work.weight_dtype, threadIdx.x * 8, by);
    weights[0][threadIdx.x] = {by[0], by[1], by[2], by[3]};
    weights[1][threadIdx.x] = {by[4], by[5], by[6], by[7]};
  }
  wait_for_previous();
  let_next_start();
  const Place place(norm.sum);
  void* const own[] = {work.whole_out ? norm.out : nullptr, norm.quantised, norm.quantised_scales};
  if (!meet_at(norm.sum, place.round, own, places)) return;

  const int step = gridDim.x, first = work.first + blockIdx.x;
  const int end = work.first + work.count;
  RowPart<kMost> next = {};
  rows.load(first, next);
  int row = first, buffer = 0;
  for (; row < end; row += step, buffer ^= 1) {
    RowPart<kMost> now = next;
    rows.load(row + step, next);
    float share = 0.0f;
    if (mine) {
      const auto total = total_of<T>(now.numbers, norm.sum.ranks);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        T& kept = now.residual.values[i];
        kept = from_float<T>(to_float(kept) + to_float(total.number[i]));
        share = fmaf(to_float(kept), to_float(kept), share);
      }
      rows.residual(row) = now.residual;
    }
    const float mean = row_sum(share, squares[buffer]) / static_cast<float>(norm.columns);
    // Those of the row before, of which all threads have now written theirs.
    if (norm.quantised && row - step >= work.first)
      rows.send_scales(row - step, scales[buffer ^ 1]);
    if (!mine) continue;
    const float4 low = weights[0][threadIdx.x], high = weights[1][threadIdx.x];
    const float by[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const Pack8<T> out = normed(now.residual, by, 1.0f / sqrtf(mean + norm.eps));
    PackF8 small = {};
    if (norm.quantised) small = in_f8(out, norm.powers);
    if (threadIdx.x % 16 == 0) scales[buffer][threadIdx.x / 16] = small.scale;
    rows.send(row, out, small.values);
  }
  __syncthreads();
  if (norm.quantised && row != first) rows.send_scales(row - step, scales[buffer ^ 1]);
  meet(norm.sum, place.round + 1);
  if (threadIdx.x == 0) *place.rounds = place.round + 1;
}

// Each rank puts its rows into its slot, and fetches the others' from theirs. Few bytes: one flight
// there and one back.
constexpr int kGatherThreads = 512;
constexpr int64_t kGatherStride = int64_t{kSumBlocks} * kGatherThreads;
__global__ void __launch_bounds__(kGatherThreads)
    gather_rows_kernel(const __grid_constant__ PeerRows rows) {
  using Numbers = Group<float>;
  const PeerSum& sum = rows.sum;
  wait_for_previous();
  let_next_start();
  const Place place(sum);
  const int64_t share = sum.slot_bytes / 16 / kMostGathered;
  const auto groups = [&](int tensor, int rank) {
    return rows.count[rank] * rows.row_bytes[tensor] / 16;
  };
  const auto in_tensor = [&](int tensor, int rank) {
    return reinterpret_cast<Numbers*>(static_cast<uint8_t*>(rows.data[tensor]) +
                                      rows.first[rank] * rows.row_bytes[tensor]);
  };
  for (int t = 0; t < rows.tensors; ++t)
    for (int64_t g = place.thread; g < groups(t, sum.rank); g += kGatherStride)
      place.slot_of<float>(sum, sum.rank)[t * share + g] = in_tensor(t, sum.rank)[g];
  meet(sum, place.round);
  if (threadIdx.x == 0) *place.rounds = place.round;
  int64_t most = 0;
  for (int t = 0; t < rows.tensors; ++t)
    for (int r = 0; r < sum.ranks; ++r) most = max(most, groups(t, r));
  for (int64_t g = place.thread; g < most; g += kGatherStride) {
    Numbers parts[kMostGathered][kMostPeers];
    const auto each = [&](auto work) {
#pragma unroll
      for (int t = 0; t < kMostGathered; ++t)
#pragma unroll
        for (int r = 0; r < kMostPeers; ++r)
          if (t < rows.tensors && r < sum.ranks && r != sum.rank && g < groups(t, r)) work(t, r);
    };
    each([&](int t, int r) { parts[t][r] = fetch(place.slot_of<float>(sum, r) + t * share + g); });
    each([&](int t, int r) { in_tensor(t, r)[g] = parts[t][r]; });
  }
}

}  // namespace

// Two ranks that share a GPU, as tests have them, find room for all blocks of both.
void launch_peer_row_norm(void* stream, const PeerRowNorm& work) {
  const bool few = work.norm.sum.ranks <= 4;
  const dim3 grid(few ? kRowBlocks : kRowBlocks / 2);
  launch(stream, few ? row_norm_kernel<4, 2> : row_norm_kernel<kMostPeers, 1>,
         LaunchShape{grid, dim3(kNormThreads)}, work);
}

void launch_peer_rows(void* stream, const PeerRows& rows) {
  launch(stream, gather_rows_kernel, LaunchShape{dim3(kSumBlocks), dim3(kGatherThreads)}, rows);
}

}  // namespace m2::parallel::cuda
