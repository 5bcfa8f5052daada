#include <algorithm>
#include <utility>

#include "ops/cuda/attention/launch.h"
#include "ops/cuda/attention/sm80_decode_lasting.cuh"
#include "ops/cuda/attention/sm80_prefill.cuh"
#include "ops/cuda/attention/sm90_decode.cuh"

namespace m2::ops::cuda {
namespace {

// What blocks that last want as shared memory, and four blocks of a part, for 164 and 100 KB.
constexpr int kLastingShared = 72, kPartShared = 44;

constexpr int kAnyWarps = 4;
constexpr int kAnyMaxDim = 256;

// Any head size, block size and dtype: one block a (token, q head); warps take every fourth
// position, lanes the dims. Bytes: T ctx kv 2 dim, read again by every q head. Bound: instructions.
__global__ void __launch_bounds__(kAnyWarps* kWarp) attention_any(AttentionArgs args) {
  __shared__ float values[kAnyWarps][kAnyMaxDim];
  __shared__ float stats[kAnyWarps][2];
  wait_for_previous();
  let_next_start();
  constexpr int kEach = kAnyMaxDim / kWarp;
  const int token = blockIdx.x, head = blockIdx.y, dim = args.heads.dim;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sequence = 0;
  while (args.query_starts[sequence + 1] <= token) ++sequence;
  const int seen = args.context_lens[sequence] - (args.query_starts[sequence + 1] - token) + 1;
  const int kv_head = head / (args.heads.q / args.heads.kv);
  const int32_t* table = args.block_tables + sequence * args.table_stride;
  const int64_t query = token * args.q.stride + static_cast<int64_t>(head) * dim;

  float largest = -INFINITY, sum = 0.0f, value[kEach] = {};
  for (int position = warp; position < seen; position += kAnyWarps) {
    const int64_t block = table[position / args.cache.block_size];
    const int64_t row = ((block * args.heads.kv + kv_head) * args.cache.block_size +
                         position % args.cache.block_size) *
                        dim;
    float logit = 0.0f;
    for (int c = lane; c < dim; c += kWarp)
      logit = fmaf(load_number(args.q.data, args.q.dtype, query + c),
                   load_number(args.cache.k, args.cache.dtype, row + c), logit);
    logit = warp_sum(logit) * args.scale * args.cache.k_scale * kLog2E;
    const float top = fmaxf(largest, logit);
    const float factor = exp2f(largest - top), weight = exp2f(logit - top);
    largest = top;
    sum = sum * factor + weight;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (lane + i * kWarp < dim)
        value[i] =
            fmaf(value[i], factor,
                 weight * load_number(args.cache.v, args.cache.dtype, row + lane + i * kWarp));
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (lane + i * kWarp < dim) values[warp][lane + i * kWarp] = value[i];
  if (lane == 0) {
    stats[warp][0] = largest;
    stats[warp][1] = sum;
  }
  __syncthreads();
  float top = stats[0][0];
  for (int w = 1; w < kAnyWarps; ++w) top = fmaxf(top, stats[w][0]);
  float total = 0.0f;
  for (int w = 0; w < kAnyWarps; ++w) total += stats[w][1] * exp2f(stats[w][0] - top);
  for (int c = threadIdx.x; c < dim; c += blockDim.x) {
    float joined = 0.0f;
    for (int w = 0; w < kAnyWarps; ++w) joined += values[w][c] * exp2f(stats[w][0] - top);
    store_number(args.out.data, args.out.dtype,
                 token * args.out.stride + static_cast<int64_t>(head) * dim + c,
                 joined / total * args.cache.v_scale);
  }
}

}  // namespace

void launch_attention(void* stream, const AttentionPlan& plan, const AttentionArgs& args) {
  const auto tokens = static_cast<unsigned>(args.q.rows);
  const auto sequences = static_cast<unsigned>(args.sequences);
  const auto q_heads = static_cast<unsigned>(args.heads.q);
  if (tokens == 0) return;
  if (!plan.matrix_units) {
    if (args.heads.dim > kAnyMaxDim) cuda_failed("attention", "heads wider than 256");
    launch(stream, attention_any, {dim3(tokens, q_heads), dim3(kAnyWarps * kWarp)}, args);
    if (args.quantised.values) launch_quantise(stream, args.out, args.quantised);
    return;
  }
  if (plan.tiles) {
    launch_prefill_tiles(stream, plan, args);
  } else if (plan.prefill) {
    LaunchShape shape{dim3(tokens / kQueries + sequences, q_heads), dim3(kPrefillWarps * kWarp)};
    shape.shared_bytes = kPrefillShared;
    launch(stream, sm80_attention_prefill, shape, args);
  }
  if (plan.decode) {
    const auto kv_heads = static_cast<unsigned>(args.heads.kv);
    LaunchShape shape{dim3(kv_heads, static_cast<unsigned>(plan.splits), sequences),
                      dim3(kDecodeWarps * kWarp)};
    const bool bf16 = args.cache.dtype == DType::bf16;
    // The grid has room for more parts than short contexts have, a block each, most of all of few
    // KV heads. Where the first ones of all contexts come first, no part waits for blocks without
    // one. (Those behind them are a loss where parts alone come near to filling the GPU.)
    AttentionArgs ordered = args;
    ordered.by_parts = plan.ring || plan.by_part;
    if (ordered.by_parts) std::swap(shape.grid.y, shape.grid.z);
    if (plan.ring) {
      shape.shared_bytes = kDecodeRings;
      launch(stream, bf16 ? sm90_attention_decode<Bf16Page> : sm90_attention_decode<F8Page>, shape,
             ordered);
    } else if (plan.lasting) {
      shape.through_l1 = true;
      shape.shared_percent = kLastingShared;
      shape.grid = dim3(static_cast<unsigned>(multiprocessors() * kLastingBlocks));
      launch(stream,
             plan.join ? sm80_attention_decode_lasting<F8PageFromOne, true>
                       : sm80_attention_decode_lasting<F8Page, false>,
             shape, args);
    } else {
      shape.through_l1 = true;
      shape.shared_percent = kPartShared;
      (ordered.by_parts ? shape.grid.z : shape.grid.y) = static_cast<unsigned>(plan.blocks);
      launch(stream,
             !plan.onward    ? sm80_attention_decode<Bf16Page>
             : !plan.by_part ? sm80_attention_decode_onward<Bf16Page, false>
             : bf16          ? sm80_attention_decode_onward<Bf16Page, true>
                             : sm80_attention_decode_onward<F8PageFromOne, true>,
             shape, ordered);
    }
    if (plan.splits > 1 && !plan.join) {
      LaunchShape join{dim3(q_heads * sequences), dim3(kJoinWarps * kWarp)};
      if (!plan.joins_at_once) {
        // One block a multiprocessor has room beside the blocks in front. Where those would go
        // through more than two rounds, all come as they leave.
        const auto most = static_cast<unsigned>(multiprocessors());
        const unsigned blocks = blocks_for(int64_t{1} * q_heads * sequences, kJoinHeads);
        join.grid = dim3(blocks <= 2 * most ? std::min(blocks, most) : blocks);
        join.block = dim3(kJoinHeads * kWarp);
      }
      join.through_l1 = shape.through_l1;
      join.shared_percent = shape.shared_percent;
      launch(stream, plan.joins_at_once ? sm80_attention_join_at_once : sm80_attention_join, join,
             args);
    }
  }
}

}  // namespace m2::ops::cuda
