#include <algorithm>

#include "ops/cuda/linear/launch.h"
#include "ops/cuda/linear/sm80_stream.cuh"
#include "ops/cuda/linear/sm90_flow16.cuh"
#include "ops/cuda/linear/sm90_flow_few.cuh"
#include "ops/cuda/linear/sm90_flow_pair.cuh"
#include "ops/cuda/linear/sm90_narrow.cuh"
#include "ops/cuda/linear/sm90_ring.cuh"
#include "ops/cuda/linear/sm90_tiles.cuh"
#include "ops/cuda/linear/sm90_tiles16.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kAnyWarps = 4;
constexpr int kAnyTokens = 8;

// Any dtype, any alignment, any slice: one warp a row and kAnyTokens tokens, lanes along K.
// Bytes: N K weights a group of tokens. FLOPs: 2 T N K on the FP32 units. Bound: instructions.
__global__ void __launch_bounds__(kAnyWarps* kWarp)
    linear_any(LinearArgs args, int index, const __grid_constant__ RowOwners owners) {
  wait_for_previous();
  let_next_start();
  const LinearPart& part = args.part[index];
  const int lane = threadIdx.x % kWarp;
  const int row = blockIdx.x * kAnyWarps + threadIdx.x / kWarp;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kAnyTokens;
  if (row >= part.rows) return;
  const float* scale =
      part.scale ? part.scale + (part.first_row + row) / 128 * part.scale_stride : nullptr;
  float sum[kAnyTokens] = {};
  for (int k = lane; k < args.x.columns; k += kWarp) {
    float weight = load_number(part.weight, args.weight_dtype, row * part.weight_stride + k);
    if (scale) weight *= scale[(part.first_column + k) / 128];
#pragma unroll
    for (int t = 0; t < kAnyTokens; ++t)
      if (first + t < args.x.rows)
        sum[t] = fmaf(load_number(args.x.data, args.x.dtype, (first + t) * args.x.stride + k),
                      weight, sum[t]);
  }
#pragma unroll
  for (int t = 0; t < kAnyTokens; ++t) {
    const float total = warp_sum(sum[t]);
    if (lane == 0 && first + t < args.x.rows)
      store_number(output_row(args.out, owners, first + t), args.out.dtype, part.out_begin + row,
                   total);
  }
}

template <bool kF8>
void launch_stream(void* stream, const LinearPlan& plan, const LinearArgs& args,
                   const RowOwners& owners) {
  const auto kernel = plan.token_tiles == 1   ? sm80_linear_stream<kF8, 1>
                      : plan.token_tiles == 2 ? sm80_linear_stream<kF8, 2>
                                              : sm80_linear_stream<kF8, 4>;
  LaunchShape shape{
      dim3(blocks_for(args.x.rows, 8 * plan.token_tiles), static_cast<unsigned>(args.tiles)),
      dim3(kStreamThreads)};
  shape.through_l1 = true;
  launch(stream, kernel, shape, args, owners);
}

template <int kRows>
void launch_ring(void* stream, const LinearArgs& args) {
  const int chunks = static_cast<int>(args.x.columns) / kStreamChunk;
  const int tiles = args.tiles * (16 / kRows);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(tiles < multiprocessors() ? tiles : multiprocessors()));
  shape.block = dim3(kRingThreads);
  shape.shared_bytes = kRingSharedBytes;
  launch(stream,
         chunks <= 6 * kStreamWarps ? sm90_linear_ring<kRows, 6> : sm90_linear_ring<kRows, 12>,
         shape, args, tiles, ring_slots(kRows * static_cast<int>(args.x.columns)));
}

// The maps of the weights, tile_rows of them a box. How many tiles that makes.
int map_weights(const LinearPlan& plan, const LinearArgs& args, LinearFlowMaps& maps) {
  int tiles = 0;
  for (int i = 0; i < args.parts; ++i) {
    const int rows = args.part[i].rows;
    maps.weight[i] =
        flow_map(args.part[i].weight, rows > 0 ? rows : 1, args.x.columns, plan.tile_rows);
    tiles += (rows + plan.tile_rows - 1) / plan.tile_rows;
  }
  return tiles;
}

template <int kN>
void launch_flow(void* stream, const LinearPlan& plan, const LinearArgs& args) {
  if (!args.quantised) launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
  LinearFlowMaps maps;
  maps.x = flow_map(args.x_f8, args.x.rows, args.x.columns, kN);
  const int tiles = map_weights(plan, args, maps);
  const int stretches = static_cast<int>((args.x.columns + kTileStep - 1) / kTileStep);
  constexpr bool kResident = flow_resident(kN);
  const FlowShared shared =
      flow_shared({.rows = plan.tile_rows,
                   .tokens = kN,
                   .staged = !kResident,
                   .stretches = stretches,
                   .resident = kResident ? static_cast<int>(args.x.columns) : 0});
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(tiles < multiprocessors() ? tiles : multiprocessors()));
  shape.block = dim3(kFlowThreads);
  shape.shared_bytes = shared.bytes;
  launch(stream, sm90_linear_flow<kN>, shape, args, maps, shared, tiles);
}

template <int kN>
void launch_flow_pair(void* stream, const LinearPlan& plan, const LinearArgs& args) {
  if (!args.quantised) launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
  LinearFlowMaps maps = {};
  const int tiles = map_weights(plan, args, maps);
  const int columns = static_cast<int>(args.x.columns);
  const FlowShared shared = flow_shared({.rows = plan.tile_rows,
                                         .tokens = kN,
                                         .staged = false,
                                         .stretches = columns / kTileStep,
                                         .weight_sets = 1,
                                         .resident = columns / 2,
                                         .most_stages = columns / 2 / kFlowColumns});
  LaunchShape shape;
  shape.cluster = 2;
  shape.grid = dim3(static_cast<unsigned>(2 * tiles));
  shape.block = dim3(kFlowThreads);
  // Beyond what a kernel has without asking, its barriers and sums included.
  shape.shared_bytes = shared.bytes > 48 * 1024 ? shared.bytes : 48 * 1024 + 1024;
  auto kernel =
      columns == 12 * kFlowColumns ? sm90_linear_flow_pair<kN, 6> : sm90_linear_flow_pair<kN, 3>;
  if constexpr (kN == 8)
    if (columns == 24 * kFlowColumns) kernel = sm90_linear_flow_pair<kN, 12>;
  launch(stream, kernel, shape, args, maps, shared);
}

template <int kN, int kPlaces, int kStretches>
void launch_flow_few(void* stream, const LinearArgs& args) {
  using Few = FewRows<kN, kPlaces, kStretches>;
  if (!args.quantised) launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
  LinearFlowMaps maps = {};
  int tiles = 0;
  for (int i = 0; i < args.parts; ++i) {
    const int rows = args.part[i].rows;
    maps.weight[i] = double_map(args.part[i].weight, rows > 0 ? rows : 1, args.x.columns,
                                args.x.columns, Few::kRows, Few::kLoad);
    tiles += (rows + Few::kRows - 1) / Few::kRows;
  }
  LaunchShape shape{dim3(static_cast<unsigned>(tiles)), dim3(kFewThreads)};
  // Beyond what a kernel has without asking.
  shape.shared_bytes = std::max(Few::kSharedBytes, 48 * 1024 + 1024);
  launch(stream, sm90_linear_flow_few<kN, kPlaces, kStretches>, shape, args, maps);
}

template <int kN>
void launch_flow_few(void* stream, const LinearPlan& plan, const LinearArgs& args) {
  if (plan.tile_rows == 8) return launch_flow_few<kN, 1, 24>(stream, args);
  if (plan.tile_rows == 16) return launch_flow_few<kN, 2, 24>(stream, args);
  launch_flow_few<kN, 3, 6>(stream, args);
}

template <int kN>
void launch_flow16(void* stream, const LinearPlan& plan, const LinearArgs& args) {
  const int rows = plan.tile_rows;
  LinearFlowMaps maps;
  const auto map = [&](const void* data, int64_t count, int64_t stride, int box_rows) {
    return double_map(data, count > 0 ? count : 1, args.x.columns * 2, stride * 2, box_rows);
  };
  maps.x = map(args.x.data, args.x.rows, args.x.stride, kN);
  int tiles = 0;
  for (int i = 0; i < args.parts; ++i) {
    const LinearPart& part = args.part[i];
    maps.weight[i] = map(part.weight, part.rows, part.weight_stride, rows);
    tiles += (part.rows + rows - 1) / rows;
  }
  const Flow16Shared shared = flow16_shared(rows, kN);
  const int warpgroups = (rows + kFlowRows - 1) / kFlowRows;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(tiles < multiprocessors() ? tiles : multiprocessors()));
  shape.block = dim3(static_cast<unsigned>(warpgroups * 128 + kWarp));
  shape.shared_bytes = shared.bytes;
  launch(stream,
         warpgroups == 3   ? sm90_linear_flow16<kN, 3>
         : warpgroups == 2 ? sm90_linear_flow16<kN, 2>
                           : sm90_linear_flow16<kN, 1>,
         shape, args, maps, shared, tiles);
}

template <int kHalves, TileShare kShare>
void launch_tiles(void* stream, const LinearArgs& args, const RowOwners& owners) {
  if (!args.quantised) launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
  LinearMaps maps;
  maps.x = tensor_map(args.x_f8, args.x.rows, args.x.columns, args.x.columns, kTileBox);
  maps.all_x = tensor_map(args.x_f8, args.x.rows, args.x.columns, args.x.columns, kTileTokens);
  for (int i = 0; i < args.parts; ++i) {
    const auto map = [&](int box_rows) {
      const int rows = args.part[i].rows;
      return tensor_map(args.part[i].weight, rows > 0 ? rows : 1, args.x.columns, args.x.columns,
                        box_rows);
    };
    maps.weight[i] = map(kTileBox);
    maps.half[i] = map(kTileHalf);
  }
  LaunchShape shape;
  shape.cluster = kShare == TileShare::nothing ? 1 : 2;
  shape.grid = dim3(static_cast<unsigned>(multiprocessors() / shape.cluster * shape.cluster));
  shape.block = dim3(kTileThreads);
  shape.shared_bytes = kTileSharedBytes;
  launch(stream, sm90_linear_tiles<kHalves, kShare>, shape, args, maps, owners);
}

template <int kN, int kHalves>
void launch_narrow(void* stream, const LinearArgs& args, const RowOwners& owners) {
  constexpr int kRows = kN * kHalves, kStage = kNarrowStageBytes<kN, kHalves>;
  if (!args.quantised) launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
  LinearMaps maps = {};
  maps.x = double_map(args.x_f8, args.x.rows, args.x.columns, args.x.columns, kNarrowTokens,
                      kNarrowBatch);
  int tiles = 0;
  for (int i = 0; i < args.parts; ++i) {
    const int rows = args.part[i].rows;
    maps.weight[i] = double_map(args.part[i].weight, rows > 0 ? rows : 1, args.x.columns,
                                args.x.columns, kRows, kNarrowBatch);
    tiles += (rows + kRows - 1) / kRows;
  }
  const int stretches = static_cast<int>(args.x.columns) / kTileStep;
  const int scales = 4 * narrow_scales(stretches, kHalves) + 1024;  // and up to a border
  const int stages =
      std::min({(kNarrowShared - scales) / kStage, stretches / kNarrowBatch, kNarrowMaxStages});
  LaunchShape shape{dim3(static_cast<unsigned>(tiles), blocks_for(args.x.rows, kNarrowTokens)),
                    dim3(kNarrowThreads)};
  // Beyond what a kernel has without asking.
  shape.shared_bytes = std::max(stages * kStage + scales, 48 * 1024 + 1024);
  launch(stream, sm90_linear_narrow<kN, kHalves>, shape, args, maps, owners, stages);
}

template <int kHalves, bool kShares>
void launch_tiles16(void* stream, const LinearArgs& args, const RowOwners& owners) {
  const auto map = [&](const void* data, int64_t rows, int64_t stride) {
    return tensor_map(data, rows > 0 ? rows : 1, args.x.columns * 2, stride * 2, kTileBox);
  };
  LinearMaps maps;
  maps.x = map(args.x.data, args.x.rows, args.x.stride);
  for (int i = 0; i < args.parts; ++i)
    maps.weight[i] = map(args.part[i].weight, args.part[i].rows, args.part[i].weight_stride);
  LaunchShape shape;
  shape.cluster = kShares ? 2 : 1;
  shape.grid = dim3(static_cast<unsigned>(multiprocessors() / shape.cluster * shape.cluster));
  shape.block = dim3(kTileThreads);
  shape.shared_bytes = kTileSharedBytes;
  launch(stream, sm90_linear_tiles16<kHalves, kShares>, shape, args, maps, owners);
}

}  // namespace

void launch_quantise(void* stream, Matrix x, QuantisedRows to) {
  if (x.dtype != DType::bf16 || x.columns % 4 != 0) cuda_failed("quantise", "not bf16 rows");
  const int64_t warps = x.rows * quantise_warps(static_cast<int>(x.columns));
  launch(stream, quantise_rows, {dim3(blocks_for(warps, 8)), dim3(256)}, x, to);
}

void launch_linear(void* stream, const LinearPlan& plan, const LinearArgs& args,
                   const RowOwners& owners) {
  if (args.x.rows == 0) return;
  if (plan.form == LinearForm::tiles)
    return plan.tile_rows == 256 ? launch_tiles<2, TileShare::weights>(stream, args, owners)
           : plan.shares         ? launch_tiles<1, TileShare::weights>(stream, args, owners)
                                 : launch_tiles<1, TileShare::nothing>(stream, args, owners);
  if (plan.form == LinearForm::narrow)
    return plan.tile_rows == 16   ? launch_narrow<16, 1>(stream, args, owners)
           : plan.tile_rows == 32 ? launch_narrow<32, 1>(stream, args, owners)
           : plan.tile_rows == 64 ? launch_narrow<64, 1>(stream, args, owners)
                                  : launch_narrow<64, 2>(stream, args, owners);
  if (plan.form == LinearForm::tiles16)
    return plan.tile_rows == 256 ? launch_tiles16<2, true>(stream, args, owners)
           : plan.shares         ? launch_tiles16<1, true>(stream, args, owners)
                                 : launch_tiles16<1, false>(stream, args, owners);
  const bool few = plan.form == LinearForm::flow16 || plan.form == LinearForm::flow_pair ||
                   plan.form == LinearForm::flow_few || plan.form == LinearForm::flow ||
                   plan.form == LinearForm::ring;
  if (few && owners.ranks > 0) cuda_failed("linear", "few rows go nowhere else");
  if (plan.form == LinearForm::flow16) {
    const int tokens = flow_tokens(args.x.rows);
    return tokens == 8    ? launch_flow16<8>(stream, plan, args)
           : tokens == 16 ? launch_flow16<16>(stream, plan, args)
           : tokens == 32 ? launch_flow16<32>(stream, plan, args)
                          : launch_flow16<64>(stream, plan, args);
  }
  if (plan.form == LinearForm::flow_few)
    return args.x.rows <= 8 ? launch_flow_few<8>(stream, plan, args)
                            : launch_flow_few<16>(stream, plan, args);
  if (plan.form == LinearForm::flow_pair)
    return args.x.rows <= 8 ? launch_flow_pair<8>(stream, plan, args)
                            : launch_flow_pair<16>(stream, plan, args);
  if (plan.form == LinearForm::flow) {
    const int tokens = flow_tokens(args.x.rows);
    return tokens == 8    ? launch_flow<8>(stream, plan, args)
           : tokens == 16 ? launch_flow<16>(stream, plan, args)
           : tokens == 32 ? launch_flow<32>(stream, plan, args)
                          : launch_flow<64>(stream, plan, args);
  }
  if (plan.form == LinearForm::ring) {
    if (plan.tile_rows == 16)
      launch_ring<16>(stream, args);
    else
      launch_ring<8>(stream, args);
    return;
  }
  if (plan.form == LinearForm::stream) {
    if (args.weight_dtype == DType::f8_e4m3)
      launch_stream<true>(stream, plan, args, owners);
    else
      launch_stream<false>(stream, plan, args, owners);
    return;
  }
  for (int i = 0; i < args.parts; ++i) {
    if (args.part[i].rows == 0) continue;
    launch(stream, linear_any,
           {dim3(blocks_for(args.part[i].rows, kAnyWarps), blocks_for(args.x.rows, kAnyTokens)),
            dim3(kAnyWarps * kWarp)},
           args, i, owners);
  }
}

}  // namespace m2::ops::cuda
