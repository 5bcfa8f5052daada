#pragma once

#include "ops/cuda/linear/sm90_flow.cuh"

namespace m2::ops::cuda {

// A tile of kPlaces times eight rows and kStretches of 128 columns, for up to kN tokens. An
// instruction's 64 rows are eight places of eight rows of one stretch each, those of a tile's first
// stretch before those of its second; its columns are the tokens of all stretches that these places
// may be of, and of what comes out of it each place's own stretch is kept. So rows that are few
// fill it nevertheless: an instruction takes as long however few rows and columns it has.
template <int kN, int kPlaces, int kStretches>
struct FewRows {
  static constexpr int kRows = 8 * kPlaces, kPlaceBytes = 8 * kTileStep;
  // Places of an operand, and stretches that they are of.
  static constexpr int kEach = kPlaces == 1 && kN > 8 ? 64 / kN : 8;
  static constexpr int kCover = kPlaces == 1 ? kEach : 4;
  static constexpr int kOperands = (kPlaces * kStretches + kEach - 1) / kEach;
  static_assert(kPlaces <= 3 && kCover * kN <= 64);
  // Stretches of a load.
  static constexpr int kLoad = kPlaces == 1 ? 8 : kPlaces == 2 ? 4 : 3;
  static constexpr int kLoads = kStretches / kLoad, kLoadBytes = kLoad * kRows * kTileStep;
  static_assert(kStretches % kLoad == 0 && kStretches % 2 == 0);
  // Shared memory from a 1024-byte border on: weights [stretches][rows][128], tokens
  // [stretches][kN][128], products [stretches][rows][kN]. Operands may reach past their end.
  static constexpr int kTokensAt = kStretches * kRows * kTileStep;
  static constexpr int kPartsAt = kTokensAt + kStretches * kN * kTileStep;
  static constexpr int kEnd = kPartsAt + kStretches * kRows * kN * 4;
  static constexpr int kSharedBytes = kEnd + 1024;
  static constexpr int kLast = (kOperands - 1) * kEach;  // the last operand's first place
  static_assert((kLast + 8) * kPlaceBytes <= kEnd &&
                kTokensAt + (kLast / kPlaces + kCover) * kN * kTileStep <= kEnd);
};

// Loads of 8 KB under way: all three of a tile's at once, or the six of a larger one's, gain
// nothing.
constexpr int kFewUnderWay = 2;
constexpr int kFewConsumers = 384;  // three warpgroups
constexpr int kFewThreads = kFewConsumers + 2 * kWarp;

// sm90_linear_flow for up to 16 tokens and tiles of few rows, to the same bytes. All of a tile has
// a place in shared memory. Bytes: N K, and kN K from L2 for each block. Bound: latency, from the
// tokens on: where they come, products, their sums.
template <int kN, int kPlaces, int kStretches>
__global__ void __launch_bounds__(kFewThreads, 1)
    sm90_linear_flow_few(const __grid_constant__ LinearArgs args,
                         const __grid_constant__ LinearFlowMaps maps) {
  using Few = FewRows<kN, kPlaces, kStretches>;
  extern __shared__ uint8_t flow_memory[];
  __shared__ uint64_t full[Few::kLoads], scales_full;
  __shared__ float token_scales[kStretches * kN];
  __shared__ float2 weight_scales[kStretches];
  const uint32_t start = (shared_address(flow_memory) + 1023) & ~1023u;
  uint8_t* memory = flow_memory + (start - shared_address(flow_memory));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int tokens = static_cast<int>(args.x.rows);
  __builtin_assume(args.x.columns == kStretches * kTileStep);
  const LinearFlowPlace place = flow_place(args, Few::kRows, static_cast<int>(blockIdx.x));
  const LinearPart& part = args.part[place.part];
  if (threadIdx.x == kFewConsumers) prefetch_map(&maps.weight[place.part]);
  begin_barriers(Few::kLoads + 1, [&](int i, int& arrivals) {
    arrivals = i < Few::kLoads ? 1 : kWarp;
    return i < Few::kLoads ? &full[i] : &scales_full;
  });

  if (warp == kFewConsumers / kWarp) {
    if (lane != 0) return;
      // Weights alone, so nothing in front is waited for.
#pragma unroll 1
    for (int i = 0; i < Few::kLoads; ++i) {
      if (i >= kFewUnderWay) barrier_wait(&full[i - kFewUnderWay], 0);
      barrier_expect(&full[i], Few::kLoadBytes);
      tensor_copy_3d(start + i * Few::kLoadBytes, &maps.weight[place.part], 0, place.row,
                     i * Few::kLoad, &full[i], once_policy());
    }
    return;
  }
  const int within = (part.first_row + place.row) % 128;
  if (warp == kFewConsumers / kWarp + 1) {
    const int most = (part.first_row + part.rows - 1) / 128;
    const int first = (part.first_row + place.row) / 128;
    const float* upper = part.scale + first * part.scale_stride + part.first_column / 128;
    const float* lower =
        part.scale + min(first + 1, most) * part.scale_stride + part.first_column / 128;
    if (lane < kStretches) weight_scales[lane] = {__ldg(upper + lane), __ldg(lower + lane)};
    barrier_arrive(&scales_full);
    return;
  }

  // What follows is small, and takes as long to start as this does to compute.
  if (tokens < 16) let_next_start();
  wait_for_previous();
  let_next_start();
  // Of each thread all pieces at once.
  constexpr int kPieces = (kN * kStretches * 8 + kFewConsumers - 1) / kFewConsumers;
  load_tokens<kN, kFewConsumers, 1, kPieces>(args, 0, kStretches / 2, memory + Few::kTokensAt,
                                             token_scales);
  consumers_meet<kFewConsumers>();
  const int g = lane / 4, t = lane % 4;
  auto* parts = reinterpret_cast<float*>(memory + Few::kPartsAt);
  constexpr int kWarpgroups = kFewConsumers / 128;
#pragma unroll 1
  for (int round = 0; round < (Few::kOperands + kWarpgroups - 1) / kWarpgroups; ++round) {
    // Who has none left takes the last again, so that no warpgroup's products stand in a branch.
    const int j = round * kWarpgroups + warp / 4, operand = min(j, Few::kOperands - 1);
    const int first = operand * Few::kEach, base = first / kPlaces;
    const int last = min(kStretches - 1, (first + Few::kEach - 1) / kPlaces);
    const uint32_t a = alike(operand_low(start + first * Few::kPlaceBytes));
    const uint32_t b = alike(operand_low(start + Few::kTokensAt + base * (kN * kTileStep)));
    barrier_wait(&full[base / Few::kLoad], 0);
    barrier_wait(&full[last / Few::kLoad], 0);
    float d[Few::kCover * kN / 2];
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      wgmma_64xNx32<Few::kCover * kN>(d, operand_from(a + k * 32 / 16),
                                      operand_from(b + k * 32 / 16), k > 0);
    wgmma_finish();
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int of_operand = 2 * (warp % 4) + upper;
      const int stretch = (first + of_operand) / kPlaces;
      if (j != operand || of_operand >= Few::kEach || stretch >= kStretches) continue;
      const int row = (first + of_operand) % kPlaces * 8 + g;
      int own_cover = stretch - base;
      asm volatile("" : "+r"(own_cover));  // else an index into memory
      auto* to = reinterpret_cast<float2*>(parts + (stretch * Few::kRows + row) * kN) + t;
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        float2 own = {d[4 * i + 2 * upper], d[4 * i + 2 * upper + 1]};
#pragma unroll
        for (int q = 1; q < Few::kCover; ++q) {
          const bool is = q == own_cover;
          own.x = is ? d[4 * (q * (kN / 8) + i) + 2 * upper] : own.x;
          own.y = is ? d[4 * (q * (kN / 8) + i) + 2 * upper + 1] : own.y;
        }
        to[4 * i] = own;
      }
    }
  }
  barrier_wait(&scales_full, 0);
  consumers_meet<kFewConsumers>();
#pragma unroll 1
  for (int item = threadIdx.x; item < Few::kRows * kN; item += kFewConsumers) {
    const int token = item % kN, row = item / kN;
    // Eight rows never cross a scale block.
    const bool lower = within + row / 8 * 8 >= 128;
    float total = 0.0f;
#pragma unroll 6
    for (int s = 0; s < kStretches; ++s) {
      const float2 both = weight_scales[s];
      total = fmaf(parts[s * (Few::kRows * kN) + item],
                   token_scales[s * kN + token] * (lower ? both.y : both.x), total);
    }
    if (token < tokens && place.row + row < part.rows)
      store_number(args.out.data, args.out.dtype,
                   token * args.out.stride + part.out_begin + place.row + row, total);
  }
}

}  // namespace m2::ops::cuda
