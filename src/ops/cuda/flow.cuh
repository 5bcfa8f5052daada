#pragma once

#include "ops/cuda/tiles.cuh"

// Few tokens on Hopper's FP8 tensor cores: the product of tiles.cuh with its sides exchanged, so
// that 64 weight rows and 8 tokens make one instruction. One block a multiprocessor runs through
// its share of row tiles; a producer warp keeps shared memory full of weights by tensor copies, one
// warpgroup multiplies, and another warp fetches the weights' scales one tile ahead. Results are
// the same bytes as those of tiles.cuh: the tensor cores sum a stretch of K alike whichever side
// the operands stand on and however many tokens there are (gpu_test holds them to it), and
// stretches are added in the same order with the same factors.
namespace m2::ops::cuda {

constexpr int kFlowConsumers = 128;
constexpr int kFlowThreads = kFlowConsumers + 2 * kWarp;  // and two warps that fetch
constexpr int kFlowColumns = 256;                         // of K a stage: two boxes of 128
constexpr int kFlowMaxStages = 32;
constexpr int kFlowMaxStretches = 64;
constexpr int kFlowMaxScaleBuffers = 4;
// Tiles whose scales the experts have or ask for at once: what is asked for behind a ring of
// weights comes as late as they do, a tile's time or more.
__host__ __device__ constexpr int flow_scale_buffers(int tokens) {
  return tokens <= 16 ? kFlowMaxScaleBuffers : 2;
}

// Shared memory in the order in which it lies, in bytes from a 1024-byte border.
struct FlowShared {
  int rows, tokens;  // of a stage: weight rows (a multiple of 8) and tokens (or none: they are
                     // resident), 128 bytes each
  int stages;
  int token_scales_at;     // f32 [stretches, kN] (experts: twice, tile by tile in turn)
  int weight_scales_at;    // f32 [2][stretches, 2], tile by tile in turn
  int resident_at;         // tokens that stay, boxes of [kN, 128] (experts: the second half's)
  int resident_scales_at;  // and their scales
  int sets;                // experts: how many groups' inner values have room there
  int more_at;             // what else a kernel wants to have
  int half_tile_at;        // experts: HalfTile, where two teams share a tile
  int bytes;               // of all, and the border

  __host__ __device__ int stage_bytes() const { return (rows + tokens) * kFlowColumns; }
};

// Whether so many tokens stay in shared memory.
__host__ __device__ constexpr bool flow_resident(int tokens) {
  return tokens <= 16;
}

// The product's operands always span 64 rows; what a smaller tile leaves of them is whatever stands
// behind it, and its sums are dropped.
constexpr int kFlowRows = 64;

// By warp `index` of `warps`: its share of the barriers, of which others know when they have met.
template <class Nth>
__device__ __forceinline__ void begin_some_barriers(int index, int warps, int count, Nth nth) {
  if (threadIdx.x % kWarp == 0)
#pragma unroll 1
    for (int i = index; i < count; i += warps) {
      int arrivals;
      uint64_t* barrier = nth(i, arrivals);
      barrier_init(barrier, arrivals);
    }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// By the whole block: nth(i, arrivals) is the i-th of `count` barriers. A few for each warp, since
// the threads of a warp begin theirs one after another (40 of them take a microsecond), in a loop,
// since instructions that run once come from far.
template <class Nth>
__device__ __forceinline__ void begin_barriers(int count, Nth nth) {
  begin_some_barriers(threadIdx.x / kWarp, blockDim.x / kWarp, count, nth);
  __syncthreads();
}

// Barriers of the ring, and of the scales' two buffers.
struct FlowBarriers {
  uint64_t full[kFlowMaxStages], empty[kFlowMaxStages];
  uint64_t scales_full[kFlowMaxScaleBuffers], scales_empty[kFlowMaxScaleBuffers];

  // Of all, the i-th, and how many arrive at it.
  __host__ __device__ static constexpr int count(int stages) {
    return 2 * (stages + kFlowMaxScaleBuffers);
  }
  __device__ __forceinline__ uint64_t* nth(int i, int stages, int& arrivals,
                                           int takers = kFlowConsumers) {
    arrivals = 1;
    if (i < stages) return &full[i];
    i -= stages;
    arrivals = takers;
    if (i < stages) return &empty[i];
    i -= stages;
    if (i >= kFlowMaxScaleBuffers) return &scales_empty[i - kFlowMaxScaleBuffers];
    arrivals = kWarp;
    return &scales_full[i];
  }
  __device__ __forceinline__ void init(int stages) {
    begin_barriers(count(stages), [&](int i, int& arrivals) { return nth(i, stages, arrivals); });
  }
};
// Asks for both boxes of a stage: `joined` says that the map is a double_map. Tokens;
__device__ __forceinline__ void copy_boxes(uint32_t to, int box_bytes, const CUtensorMap* map,
                                           bool joined, int step, int row, uint64_t* barrier) {
  if (joined) {
    tensor_copy_3d(to, map, 0, row, step * 2, barrier);
    return;
  }
  tensor_copy(to, map, step * kFlowColumns, row, barrier);
  tensor_copy(to + box_bytes, map, step * kFlowColumns + kTileStep, row, barrier);
}

// or weights.
__device__ __forceinline__ void copy_weights(uint32_t to, int box_bytes, const CUtensorMap* map,
                                             bool joined, int step, int row, uint64_t* barrier) {
  const uint64_t once = once_policy();
  if (joined) {
    tensor_copy_3d(to, map, 0, row, step * 2, barrier, once);
    return;
  }
  tensor_copy(to, map, step * kFlowColumns, row, barrier, once);
  tensor_copy(to + box_bytes, map, step * kFlowColumns + kTileStep, row, barrier, once);
}

// A place in the ring that moves on.
struct FlowSlot {
  int slot = 0, round = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++slot == stages) {
      slot = 0;
      ++round;
    }
  }
  __device__ __forceinline__ void skip(int count, int stages) {
    for (slot += count; slot >= stages; slot -= stages) ++round;
  }
};

// The consumers alone.
template <int kThreads = kFlowConsumers>
__device__ __forceinline__ void consumers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// The products of one stage, kStretches stretches of its 256 columns each by itself.
template <int kN, int kStretches>
__device__ __forceinline__ void stage_products(uint32_t weights, int weight_box, uint32_t tokens,
                                               float (&d)[kStretches][kN / 2]) {
  constexpr int kSteps = kFlowColumns / 32 / kStretches;
  const uint32_t a = alike(operand_low(weights)), b = alike(operand_low(tokens));
  wgmma_begin();
#pragma unroll
  for (int s = 0; s < kStretches; ++s)
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      const int step = s * kSteps + k, box = step / 4, offset = step % 4 * 32;
      wgmma_64xNx32<kN>(d[s], operand_from(a + (box * weight_box + offset) / 16),
                        operand_from(b + (box * (kN * kTileStep) + offset) / 16), k > 0);
    }
  wgmma_finish();
}

// total += the products of a stretch. token_scales [stretch][kN]; weight_scales [stretch][2], of
// which the thread's row g takes `upper`, row g + 8 takes `lower`.
template <int kN>
__device__ __forceinline__ void take_products(const float (&d)[kN / 2], int stretch,
                                              const float* token_scales, const float* weight_scales,
                                              int upper, int lower, float (&total)[kN / 2]) {
  const float* of_tokens = token_scales + stretch * kN + 2 * (threadIdx.x % 4);
  const float f0 = weight_scales[2 * stretch + upper];
  const float f1 = weight_scales[2 * stretch + lower];
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
    const float2 token = *reinterpret_cast<const float2*>(of_tokens + 8 * j);
    total[4 * j] = fmaf(d[4 * j], token.x * f0, total[4 * j]);
    total[4 * j + 1] = fmaf(d[4 * j + 1], token.y * f0, total[4 * j + 1]);
    total[4 * j + 2] = fmaf(d[4 * j + 2], token.x * f1, total[4 * j + 2]);
    total[4 * j + 3] = fmaf(d[4 * j + 3], token.y * f1, total[4 * j + 3]);
  }
}

// total += one stage, from stretch `first` on; those past the end are left out.
template <int kN, int kStretches>
__device__ __forceinline__ void multiply_stage(uint32_t weights, int weight_box, uint32_t tokens,
                                               int first, int stretches, const float* token_scales,
                                               const float* weight_scales, int upper, int lower,
                                               float (&total)[kN / 2]) {
  float d[kStretches][kN / 2];
  stage_products<kN, kStretches>(weights, weight_box, tokens, d);
#pragma unroll
  for (int s = 0; s < kStretches; ++s)
    if (first + s < stretches)
      take_products<kN>(d[s], first + s, token_scales, weight_scales, upper, lower, total);
}

// The block's share of `tiles`, consecutive ones.
__device__ __forceinline__ int flow_begin(int tiles, int block) {
  return static_cast<int>(static_cast<int64_t>(tiles) * block / gridDim.x);
}

// --- host side -----------------------------------------------------------------------------------

// The map of a matrix for copy_boxes(), joined where its columns are whole blocks.
inline CUtensorMap flow_map(const void* data, int64_t rows, int64_t columns, int box_rows) {
  return columns % kTileStep == 0 ? double_map(data, rows, columns, columns, box_rows)
                                  : tensor_map(data, rows, columns, columns, box_rows);
}

struct FlowNeeds {
  int rows, tokens;     // of a tile
  bool staged = true;   // each stage has the tokens' columns beside the weights'
  int stretches = 0;    // of K, at most
  int token_sets = 1;   // of tokens' scales
  int weight_sets = 2;  // of weights' scales
  int resident = 0;     // columns of tokens that stay
  int most_stages = kFlowMaxStages;
  int more = 0;    // bytes, a multiple of 16
  int beside = 0;  // bytes that the kernel has beside the usual barriers
};

// Lays out what a block may have.
inline FlowShared flow_shared(const FlowNeeds& needs) {
  const auto [rows, tokens, staged, stretches, token_sets, weight_sets, resident, most_stages, more,
              beside] = needs;
  // Of 227 KB a few are left to the small kernels in front and behind, so that they overlap.
  constexpr int kMost = 221 * 1024;
  FlowShared shared = {};
  shared.rows = rows;
  shared.tokens = staged ? tokens : 0;
  const int boxes = (resident + kFlowColumns - 1) / kFlowColumns * 2;
  const int resident_bytes = boxes * tokens * kTileStep;
  const int fixed = token_sets * stretches * tokens * 4 + weight_sets * stretches * 2 * 4 +
                    resident_bytes + boxes * 2 * tokens * 4 + more + (kFlowRows - rows) * kTileStep;
  shared.stages = (kMost - beside - fixed) / shared.stage_bytes();
  if (shared.stages > most_stages) shared.stages = most_stages;
  shared.resident_at = shared.stages * shared.stage_bytes();
  // Past the last stage there must be memory for a whole operand.
  int at = shared.resident_at + resident_bytes + (kFlowRows - rows) * kTileStep;
  shared.token_scales_at = at;
  at += token_sets * stretches * tokens * 4;
  shared.weight_scales_at = at;
  at += weight_sets * stretches * 2 * 4;
  shared.resident_scales_at = at;
  at += boxes * 2 * tokens * 4;
  shared.more_at = at;
  at += more;
  shared.bytes = at + 1024;
  return shared;
}

}  // namespace m2::ops::cuda
