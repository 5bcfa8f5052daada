#include <type_traits>

#include "ops/cuda/experts/launch.h"
#include "ops/cuda/experts/lists.cuh"
#include "ops/cuda/experts/sm80_stream.cuh"
#include "ops/cuda/experts/sm90_flow.cuh"
#include "ops/cuda/experts/sm90_ring.cuh"
#include "ops/cuda/experts/sm90_tiles.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kAnyWarps = 4;

// The scale of one weight, 1 for formats without scales.
__device__ float scale_of(const float* scales, int64_t row, int stride, int column) {
  return scales ? scales[row * stride + column] : 1.0f;
}

// Any dtype and alignment: one warp a value of one pair. Bytes: 2 I H weights a pair. Bound:
// instructions.
__global__ void __launch_bounds__(kAnyWarps* kWarp) experts_up_any(ExpertsArgs args) {
  wait_for_previous();
  let_next_start();
  const int lane = threadIdx.x % kWarp;
  const int row = blockIdx.x * kAnyWarps + threadIdx.x / kWarp;
  const int64_t pair = blockIdx.y, token = pair / args.top;
  const int expert = args.ids[pair] - args.first_expert;
  if (row >= args.inner || expert < 0 || expert >= args.experts) return;
  const int64_t w1 = (static_cast<int64_t>(expert) * 2 * args.inner + row) * args.hidden;
  const int64_t w3 = w1 + static_cast<int64_t>(args.inner) * args.hidden;
  const int64_t scale_row = static_cast<int64_t>(expert) * args.inner_blocks +
                            (args.first_inner + row) / 128 - args.scale_row;
  float gate = 0.0f, up = 0.0f;
  for (int k = lane; k < args.hidden; k += kWarp) {
    const float x = load_number(args.x.data, args.x.dtype, token * args.x.stride + k);
    gate = fmaf(x * scale_of(args.w1_scale, scale_row, args.hidden_blocks, k / 128),
                load_number(args.w13, args.weight_dtype, w1 + k), gate);
    up = fmaf(x * scale_of(args.w3_scale, scale_row, args.hidden_blocks, k / 128),
              load_number(args.w13, args.weight_dtype, w3 + k), up);
  }
  gate = warp_sum(gate);
  up = warp_sum(up);
  if (lane == 0) static_cast<float*>(args.inner_values)[pair * args.inner + row] = silu(gate) * up;
}

__global__ void __launch_bounds__(kAnyWarps* kWarp) experts_down_any(ExpertsArgs args) {
  wait_for_previous();
  let_next_start();
  const int lane = threadIdx.x % kWarp;
  const int row = blockIdx.x * kAnyWarps + threadIdx.x / kWarp;
  const int64_t pair = blockIdx.y;
  const int expert = args.ids[pair] - args.first_expert;
  if (row >= args.hidden || expert < 0 || expert >= args.experts) return;
  const int64_t w2 = (static_cast<int64_t>(expert) * args.hidden + row) * args.inner;
  const int64_t scale_row = static_cast<int64_t>(expert) * args.hidden_blocks + row / 128;
  const float* values = static_cast<const float*>(args.inner_values) + pair * args.inner;
  float sum = 0.0f;
  for (int k = lane; k < args.inner; k += kWarp) {
    const int block = (args.first_inner + k) / 128 - args.scale_row;
    sum = fmaf(values[k] * scale_of(args.w2_scale, scale_row, args.inner_blocks, block),
               load_number(args.w2, args.weight_dtype, w2 + k), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) args.results[pair * args.hidden + row] = sum;
}

void launch_any(void* stream, const ExpertsArgs& args) {
  const auto pairs = static_cast<unsigned>(args.x.rows * args.top);
  launch(stream, experts_up_any,
         {dim3(blocks_for(args.inner, kAnyWarps), pairs), dim3(kAnyWarps * kWarp)}, args);
  launch(stream, experts_down_any,
         {dim3(blocks_for(args.hidden, kAnyWarps), pairs), dim3(kAnyWarps * kWarp)}, args);
}

void launch_lists(void* stream, const ExpertsArgs& args) {
  constexpr int kMany = 8;  // blocks
  LaunchShape shape{dim3(1), dim3(kListThreads)};
  if (device_major() < 9 || args.x.rows * args.top < kMany * kListThreads)
    return launch(stream, list_pairs<1>, shape, args);
  shape.grid = dim3(kMany);
  shape.cluster = kMany;
  launch(stream, list_pairs<kMany>, shape, args);
}

template <bool kF8, int kTiles>
void launch_stream(void* stream, const ExpertsArgs& args) {
  const bool one = args.x.rows == 1;
  const int64_t pairs = args.x.rows * args.top;
  const auto units = static_cast<unsigned>(pairs < args.experts || one ? pairs : args.experts);
  const dim3 block(kStreamThreads);
  if (!one) launch_lists(stream, args);
  LaunchShape up{dim3(blocks_for(args.inner, kUpRows), units), block};
  LaunchShape down{dim3(blocks_for(args.hidden, kStreamRows), units), block};
  up.through_l1 = down.through_l1 = true;
  launch(stream, sm80_experts_up<kF8, kTiles>, up, args);
  launch(stream, sm80_experts_down<kF8, kTiles>, down, args);
}

void launch_ring(void* stream, const ExpertsArgs& args) {
  if (args.x.rows > 1) launch_lists(stream, args);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(multiprocessors()));
  shape.block = dim3(kRingThreads);
  shape.shared_bytes = kRingSharedBytes;
  launch(stream, sm90_experts_ring<true, 6>, shape, args, ring_slots(16 * args.hidden));
  launch(stream, sm90_experts_ring<false, 3>, shape, args, ring_slots(32 * args.inner));
}

// The pairs in the order of their experts, and their tokens quantised in that order.
void launch_order(void* stream, const ExpertsArgs& args) {
  if (args.token_f8)
    return launch(stream, sm90_experts_gather,
                  {dim3(static_cast<unsigned>(args.x.rows)), dim3(kGatherThreads)}, args);
  const int64_t pairs = args.x.rows * args.top;
  launch_lists(stream, args);
  launch(stream, sm90_experts_quantise,
         {dim3(blocks_for(pairs * quantise_warps(args.hidden), 8)), dim3(256)}, args);
}

// Stages of weights that are under way: of one token fewer, unless a rank's slice of w2 leaves much
// of a stage empty.
int stages_under_way(const ExpertsArgs& args) {
  return args.x.rows == 1 && args.inner >= 1024 ? 3 : 4;
}
// And of w2, more where a slice leaves much of each stage empty.
int down_stages_under_way(const ExpertsArgs& args) {
  return args.inner >= 1024 ? stages_under_way(args) : 6;
}

// Whether tiles of half the rows are no more than blocks, so that two teams share each.
bool shares_tiles(const ExpertsArgs& args) {
  constexpr int kRows = kUpTile<true>.rows;
  return args.next_tile && args.hidden == 2 * HalfTile::kStretches * kTileStep &&
         args.x.rows * args.top * ((args.inner + kRows - 1) / kRows) <= multiprocessors();
}

// Blocks wait for one another, so all of them have to run at once: one a multiprocessor, and the
// kernel after them cannot start before.
template <int kN, bool kFew, bool kBothTeams = false>
void launch_flow(void* stream, ExpertsArgs args, bool fused) {
  if constexpr (kFew && kN == 8 && !kBothTeams)
    if (fused && shares_tiles(args)) return launch_flow<kN, kFew, true>(stream, args, fused);
  constexpr UpTile kUp = kUpTile<kBothTeams>;
  const int64_t pairs = args.x.rows * args.top;
  ExpertsFlowMaps maps;
  if constexpr (kFew) {
    if (!args.token_f8) {
      launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
      args.token_f8 = args.x_f8;
      args.token_scales = args.x_scales;
    }
    maps.x = double_map(args.token_f8, args.x.rows, args.hidden, args.hidden, kN, kUp.stretches);
  } else {
    launch_order(stream, args);
    maps.x = flow_map(args.x_f8, pairs, args.hidden, kN);
  }
  maps.w13 =
      paired_rows_map(args.w13, args.experts, args.inner, args.hidden, kUp.rows, kUp.stretches);
  maps.w2 = flow_map(args.w2, int64_t{1} * args.experts * args.hidden, args.inner, kFlowRows);
  const int stretches = args.hidden / 128 > args.inner / 64 ? args.hidden / 128 : args.inner / 64;
  // Inner values of two groups in turns, unless they are wide.
  const int inner = blocks_for(args.inner, kFlowColumns) * kFlowColumns;
  const int sets = inner <= 2048 ? 2 : 1;
  const int group_scales = args.hidden_blocks * (args.inner / args.inner_stretch);
  const int scales_bytes = (2 * group_scales * 4 + 15) / 16 * 16;
  FlowShared shared =
      flow_shared({.rows = kFlowRows,
                   .tokens = kN,
                   .staged = !kFew,
                   .stretches = stretches,
                   .token_sets = kFew ? 1 : flow_scale_buffers(kN),
                   .weight_sets = flow_scale_buffers(kN),
                   .resident = kFew ? max(args.hidden, sets * inner) : sets * inner,
                   .most_stages = kExpertsStages<kN, kFew>,
                   .more = scales_bytes + (kBothTeams ? static_cast<int>(sizeof(HalfTile)) : 0),
                   .beside = experts_beside<kN, kFew>()});
  shared.sets = sets;
  if (kBothTeams) shared.half_tile_at = shared.more_at + scales_bytes;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(multiprocessors()));
  shape.block = dim3(kExpertsFlowThreads);
  shape.shared_bytes = shared.bytes;
  const int up = min(stages_under_way(args), shared.stages);
  const int down = min(down_stages_under_way(args), shared.stages);
  const auto kernel = sm90_experts_flow<kN, kFew, kBothTeams>;
  if (fused) {
    launch(stream, kernel, shape, args, maps, shared, 3, up, down);
  } else {
    launch(stream, kernel, shape, args, maps, shared, 1, up, down);
    args.choice = {};  // it is done
    launch(stream, kernel, shape, args, maps, shared, 2, up, down);
  }
}

void launch_flow(void* stream, const ExpertsArgs& args, const ExpertsPlan& plan) {
  if (!plan.few)
    return plan.group_pairs == 8 ? launch_flow<8, false>(stream, args, plan.fused)
                                 : launch_flow<16, false>(stream, args, plan.fused);
  return plan.group_pairs == 8 ? launch_flow<8, true>(stream, args, plan.fused)
                               : launch_flow<16, true>(stream, args, plan.fused);
}

void launch_tiles(void* stream, ExpertsArgs args) {
  const int64_t pairs = args.x.rows * args.top;
  launch_lists(stream, args);
  if (!args.gathers) {
    LaunchShape spread{dim3(blocks_for(args.x.rows * quantise_warps(args.hidden), 8)), dim3(256)};
    spread.through_l1 = true;
    launch(stream, args.token_f8 ? sm90_experts_spread<true> : sm90_experts_spread<false>, spread,
           args);
  } else if (!args.token_f8) {
    launch_quantise(stream, args.x, {args.x_f8, args.x_scales, args.powers});
    args.token_f8 = args.x_f8;
    args.token_scales = args.x_scales;
  }
  const auto map = [](const void* data, int64_t rows, int64_t columns, int box_rows) {
    return tensor_map(data, rows, columns, columns, box_rows);
  };
  const int64_t experts = args.experts;
  const int64_t tokens = args.gathers ? args.x.rows : pairs;
  ExpertsMaps maps;
  maps.x = map(args.x_f8, tokens, args.hidden, kTileBox);
  maps.all_x = map(args.x_f8, tokens, args.hidden, kTileTokens);
  maps.w13 = map(args.w13, 2 * experts * args.inner, args.hidden, kTileBox);
  maps.w13_half = halves_map(args.w13, experts, args.inner, args.hidden);
  maps.inner = map(args.inner_f8, pairs, args.inner, kTileBox);
  maps.all_inner = map(args.inner_f8, pairs, args.inner, kTileTokens);
  maps.w2 = map(args.w2, experts * args.hidden, args.inner, kTileBox);
  maps.w2_half = map(args.w2, experts * args.hidden, args.inner, kTileHalf);
  LaunchShape shape;
  shape.cluster = 2;
  shape.grid = dim3(static_cast<unsigned>(multiprocessors() / 2 * 2));
  shape.block = dim3(kTileThreads);
  shape.shared_bytes = kTileSharedBytes;
  launch(stream, args.gathers ? sm90_experts_tiles<true, 1, true> : sm90_experts_tiles<true, 1>,
         shape, args, maps);
  launch(stream,
         args.inner_stretch == 128 ? sm90_experts_tiles<false, 1> : sm90_experts_tiles<false, 2>,
         shape, args, maps);
}

template <class Result, int kColumns>
void launch_combine(void* stream, const ExpertsArgs& args, const RowOwners& owners) {
  const bool many = std::is_same_v<Result, __nv_bfloat16> && many_rows(args.x.rows) &&
                    args.hidden == kPartedColumns && args.top <= kCombineAhead;
  if (args.after.residual.data) {
    if (many && args.after.weight_dtype == DType::bf16 &&
        reinterpret_cast<uintptr_t>(args.after.weight) % 16 == 0)
      return launch(stream, combine_and_norm_rows, rows_shape(args.x.rows, PartOfRow<2>::kThreads),
                    args);
    launch(stream, combine_and_norm, {dim3(static_cast<unsigned>(args.x.rows)), dim3(kNormThreads)},
           args);
    return;
  }
  const int64_t tokens = owners.ranks > 0
                             ? int64_t{owners.ranks} * blocks_for(args.x.rows, owners.ranks)
                             : args.x.rows;
  if (many && args.wide_stores)
    return launch(stream, combine_rows, rows_shape(tokens, PartOfRow<2>::kThreads), args, owners);
  LaunchShape shape{
      dim3(blocks_for(args.hidden, kColumns * kCombineThreads), static_cast<unsigned>(tokens)),
      dim3(kCombineThreads)};
  shape.through_l1 = kColumns == 8;  // many tokens
  launch(stream,
         args.hidden % kColumns == 0 ? combine_pairs<Result, kColumns, true>
                                     : combine_pairs<Result, kColumns, false>,
         shape, args, owners);
}

void launch_products(void* stream, const ExpertsPlan& plan, const ExpertsArgs& args) {
  if (plan.form == ExpertsForm::any) return launch_any(stream, args);
  if (plan.form == ExpertsForm::tiles) return launch_tiles(stream, args);
  if (plan.form == ExpertsForm::flow) return launch_flow(stream, args, plan);
  if (plan.form == ExpertsForm::ring) return launch_ring(stream, args);
  const bool f8 = args.weight_dtype == DType::f8_e4m3;
  if (plan.token_tiles == 1)
    f8 ? launch_stream<true, 1>(stream, args) : launch_stream<false, 1>(stream, args);
  else if (plan.token_tiles == 2)
    f8 ? launch_stream<true, 2>(stream, args) : launch_stream<false, 2>(stream, args);
  else
    f8 ? launch_stream<true, 4>(stream, args) : launch_stream<false, 4>(stream, args);
}

}  // namespace

bool experts_norm_fits(const NormAfter& after, int hidden) {
  const auto fits = [](const Matrix& m) {
    return m.dtype == DType::bf16 && m.stride % 8 == 0 &&
           reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  };
  return fits(after.residual) && fits(after.out) && hidden % 128 == 0 && hidden <= 8 * kNormThreads;
}

bool experts_choose(const ExpertsPlan& plan, int64_t tokens) {
  return plan.few && tokens == 1;
}

void launch_experts(void* stream, const ExpertsPlan& plan, const ExpertsArgs& args,
                    const RowOwners& owners) {
  if (args.x.rows == 0) return;
  launch_products(stream, plan, args);
  if (plan.form == ExpertsForm::tiles)
    return launch_combine<__nv_bfloat16, 8>(stream, args, owners);
  if (plan.form != ExpertsForm::flow) return launch_combine<float, 4>(stream, args, owners);
  if (!args.leave) launch_combine<__nv_bfloat16, 4>(stream, args, owners);
}

}  // namespace m2::ops::cuda
