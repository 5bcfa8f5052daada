// From tensors to what nvcc compiled: each operation checks what its kernels rely on beyond the
// operation's own contract, chooses a form by its plan, and launches.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>

#include "ops/cuda/arguments.h"
#include "ops/cuda/attend_rows.h"
#include "ops/cuda/attention/launch.h"
#include "ops/cuda/experts/launch.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch_states.h"
#include "ops/cuda/linear/launch.h"
#include "ops/cuda/ops_cuda.h"

namespace m2::ops::cuda {

void cuda_failed(const char* what, const char* error) {
  M2_CHECK(false, "CUDA: {}: {}", what, error);
  std::abort();
}

namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) cuda_failed(what, cudaGetErrorString(status));
}

}  // namespace

void prepare_kernel(const void* kernel, const LaunchNeeds& needs) {
  static LaunchStates states;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current GPU");
  states.require(kernel, device, needs, [&](const LaunchNeeds& all) {
    const auto set = [&](cudaFuncAttribute attribute, int value) {
      check(cudaFuncSetAttribute(kernel, attribute, value), "preparing a kernel");
    };
    if (all.shared_bytes > 0) set(cudaFuncAttributeMaxDynamicSharedMemorySize, all.shared_bytes);
    set(cudaFuncAttributePreferredSharedMemoryCarveout,
        all.through_l1 ? cudaSharedmemCarveoutDefault : cudaSharedmemCarveoutMaxShared);
    if (all.wide_cluster) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  });
}

namespace {

int ask_device(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&value, attribute, device);
  if (status != cudaSuccess) cuda_failed("asking for the GPU", cudaGetErrorString(status));
  return value;
}

int compute_major() {
  static const int major = ask_device(cudaDevAttrComputeCapabilityMajor);
  return major;
}

int multiprocessors() {
  static const int count = ask_device(cudaDevAttrMultiProcessorCount);
  return count;
}

bool powers(const Exec& exec) {
  return exec.scales == ScaleFormat::e8m0;
}

QuantisedRows rows_of(const Exec& exec, const Quantised& quantised) {
  if (quantised.empty()) return {};
  return {static_cast<uint8_t*>(quantised.values.data()), quantised.scales.as<float>(),
          powers(exec)};
}

bool aligned16(const void* data, int64_t stride, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * size_of(dtype) % 16 == 0;
}

}  // namespace

void embed(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out) {
  launch_embed(exec.stream, ids.as<int32_t>(), matrix(table), first_id, matrix(out));
}

void embed_and_angles(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out,
                      Tensor positions, float theta, Tensor angles) {
  launch_embed_and_angles(exec.stream, ids.as<int32_t>(), matrix(table), first_id, matrix(out),
                          positions.as<int32_t>(), static_cast<int>(angles.size(1)), theta,
                          angles.as<float>());
}

void gather_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out) {
  launch_gather_rows(exec.stream, matrix(x), rows.as<int32_t>(), matrix(out));
}

void sum_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out) {
  launch_sum_rows(exec.stream, matrix(x), rows.as<int32_t>(), static_cast<int>(rows.size(1)),
                  matrix(out));
}

bool wants_quantised() {
  return compute_major() == 9;
}

void quantise(const Exec& exec, Tensor x, const Quantised& to) {
  launch_quantise(exec.stream, matrix(x), rows_of(exec, to));
}

void requantise(const Exec& exec, const Linear& linear) {
  Requantise args = {};
  args.weight = static_cast<uint8_t*>(linear.weight.data());
  args.stride = linear.weight.row_stride();
  args.rows = static_cast<int>(linear.weight.size(0));
  args.columns = static_cast<int>(linear.weight.size(1));
  args.first_row = static_cast<int>(linear.first_row);
  args.first_column = static_cast<int>(linear.first_column);
  args.scale = linear.scale.as<float>();
  args.scale_stride = linear.scale.row_stride();
  launch_requantise(exec.stream, args);
}

void rms_norm(const Exec& exec, Tensor x, Tensor weight, float eps, Tensor out,
              const Quantised& quantised) {
  launch_rms_norm(exec.stream, matrix(x), {}, weight.data(), weight.dtype(), eps, matrix(out),
                  rows_of(exec, quantised));
}

void add_rms_norm(const Exec& exec, Tensor residual, Tensor delta, Tensor weight, float eps,
                  Tensor out, const Quantised& quantised) {
  launch_rms_norm(exec.stream, matrix(residual), matrix(delta), weight.data(), weight.dtype(), eps,
                  matrix(out), rows_of(exec, quantised));
}

void rope_angles(const Exec& exec, Tensor positions, float theta, Tensor out) {
  launch_rope_angles(exec.stream, positions.as<int32_t>(), out.size(0),
                     static_cast<int>(out.size(1)), theta, out.as<float>());
}

void qk_sum_squares(const Exec& exec, Tensor qkv, const HeadShape& heads, Tensor sums) {
  launch_qk_sum_squares(exec.stream, matrix(qkv), heads_of(heads), sums.as<float>());
}

void qk_norm_rope_store(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm, Tensor k_norm,
                        int64_t full_q, int64_t full_k, float eps, Tensor angles, Tensor slots,
                        const HeadShape& heads, const KvCache& cache) {
  launch_qk_norm_rope(exec.stream, qk_args({qkv, sums, q_norm, k_norm, full_q, full_k, eps, angles,
                                            slots, heads, cache}));
}

void qk_norm_rope_store_whole(const Exec& exec, Tensor qkv, Tensor sums, Tensor q_norm,
                              Tensor k_norm, float eps, Tensor angles, Tensor slots,
                              const HeadShape& heads, const KvCache& cache) {
  const QkNormRope args =
      qk_args({qkv, sums, q_norm, k_norm, heads.q_heads * heads.head_dim,
               heads.kv_heads * heads.head_dim, eps, angles, slots, heads, cache});
  if (qk_whole_fits(args)) return launch_qk_whole(exec.stream, args);
  launch_qk_sum_squares(exec.stream, args.qkv, args.heads, sums.as<float>());
  launch_qk_norm_rope(exec.stream, args);
}

int64_t route_workspace_bytes(int64_t tokens, int64_t hidden, int64_t experts) {
  return std::max(route_scratch(tokens, hidden, experts),
                  route_scratch(std::min(tokens, kRouteProductTokens - 1), hidden, experts));
}

namespace {

Route route_args(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor slots, Tensor ids,
                 Tensor weights) {
  Route args;
  args.x = matrix(x);
  args.gate = gate.as<float>();
  args.bias = bias.as<float>();
  args.experts = static_cast<int>(gate.size(0));
  args.top = static_cast<int>(ids.size(1));
  args.slots = slots.empty() ? nullptr : slots.as<int32_t>();
  const int64_t scores_bytes = route_scratch(x.size(0), x.size(1), gate.size(0));
  args.scores = exec.workspace && exec.workspace_bytes >= scores_bytes
                    ? static_cast<float*>(exec.workspace)
                    : nullptr;
  args.ids = ids.as<int32_t>();
  args.weights = weights.as<float>();
  return args;
}

}  // namespace

void route(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor slots, Tensor ids,
           Tensor weights) {
  launch_route(exec.stream, route_args(exec, x, gate, bias, slots, ids, weights));
}

// --- a step's integers, and sampling -----------------------------------------------------------

void unpack_step(const Exec& exec, const StepSizes& sizes, Tensor packed, Tensor previous,
                 int64_t padded, const BatchLayout& to, Tensor sample_rows) {
  UnpackStep args = {};
  args.tokens = static_cast<int>(sizes.tokens);
  args.sequences = static_cast<int>(sizes.sequences);
  args.width = static_cast<int>(sizes.width);
  args.rows = static_cast<int>(sizes.rows);
  args.padded = static_cast<int>(padded);
  args.packed = packed.as<int32_t>();
  args.previous = previous.empty() ? nullptr : previous.as<int32_t>();
  args.token_ids = to.token_ids.as<int32_t>();
  args.positions = to.positions.as<int32_t>();
  args.slots = to.slots.as<int32_t>();
  args.query_starts = to.query_starts.as<int32_t>();
  args.context_lens = to.context_lens.as<int32_t>();
  args.block_tables = to.block_tables.as<int32_t>();
  args.table_stride = to.block_tables.row_stride();
  args.logit_rows = to.logit_rows.as<int32_t>();
  args.sample_rows = sizes.sampled ? sample_rows.as<int32_t>() : nullptr;
  launch_unpack_step(exec.stream, args);
}

int64_t sample_scratch_bytes(int64_t rows, int64_t vocab) {
  return sample_scratch(rows, vocab);
}

void sample(const Exec& exec, Tensor logits, int64_t id_limit, const SampleInput& input,
            Tensor scratch, const SampleOutput& out) {
  Sample args = {};
  args.logits = logits.as<float>();
  args.stride = logits.row_stride();
  args.rows = static_cast<int>(logits.size(0));
  args.id_limit = static_cast<int>(id_limit);
  args.row = reinterpret_cast<const SampleRow*>(input.rows.as<int32_t>());
  args.edits = reinterpret_cast<const LogitEdit*>(input.edits.as<int32_t>());
  args.masks = reinterpret_cast<const uint32_t*>(input.masks.as<int32_t>());
  args.scratch = scratch.as<uint8_t>();
  args.out = reinterpret_cast<SampledRow*>(out.rows.as<int32_t>());
  args.top_ids = out.top_ids.as<int32_t>();
  args.top_logprobs = out.top_logprobs.as<float>();
  args.most = static_cast<int>(out.top_ids.size(1));
  launch_sample(exec.stream, args);
}

// --- linear ------------------------------------------------------------------------------------

namespace {

// The scale row of a part may be addressed from the matrix's first block on, whatever the slice.
LinearPart part_of(const Linear& weight, int64_t out_begin, int64_t tile_begin) {
  LinearPart part;
  part.weight = weight.weight.data();
  part.weight_stride = weight.weight.row_stride();
  const bool scaled = !weight.scale.empty();
  part.scale = scaled ? weight.scale.as<float>() : nullptr;
  part.scale_stride = scaled ? weight.scale.row_stride() : 0;
  part.first_row = static_cast<int>(weight.first_row);
  part.first_column = static_cast<int>(weight.first_column);
  part.rows = static_cast<int>(weight.weight.size(0));
  part.out_begin = static_cast<int>(out_begin);
  part.tile_begin = static_cast<int>(tile_begin);
  return part;
}

// Every part begins at an even column of the output.
bool even_parts(std::span<const Linear> weights) {
  return std::all_of(weights.begin(), weights.end(),
                     [](const Linear& weight) { return weight.weight.size(0) % 2 == 0; });
}

LinearShape shape_of(const Exec& exec, const Tensor& x, std::span<const Linear> weights,
                     bool quantised) {
  LinearShape shape;
  shape.tokens = x.size(0);
  shape.columns = x.size(1);
  shape.x = x.dtype();
  shape.weight = weights[0].weight.dtype();
  shape.aligned = aligned16(x.data(), x.row_stride(), x.dtype());
  shape.compute_major = compute_major();
  shape.multiprocessors = multiprocessors();
  shape.parts = static_cast<int>(weights.size());
  for (const Linear& weight : weights) {
    M2_CHECK(weight.weight.dtype() == shape.weight, "matrices of two dtypes over one input");
    shape.aligned =
        shape.aligned && aligned16(weight.weight.data(), weight.weight.row_stride(), shape.weight);
    shape.whole_blocks =
        shape.whole_blocks && weight.first_column % 128 == 0 && weight.first_row % 64 == 0;
    shape.rows_follow = shape.rows_follow && weight.weight.dense();
    shape.whole_chunks = shape.whole_chunks && weight.first_column % 64 == 0;
    shape.multiple = std::gcd(shape.rows == 0 ? 0 : shape.multiple, weight.weight.size(0));
    shape.rows += weight.weight.size(0);
  }
  shape.workspace_bytes = exec.workspace ? exec.workspace_bytes : 0;
  shape.quantised = quantised;
  return shape;
}

void linear_parts(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out,
                  const QuantisedRows& quantised, const RowOwners& owners) {
  const LinearShape shape = shape_of(exec, x, weights, quantised.values != nullptr);
  LinearArgs args = {};
  args.x = matrix(x);
  args.out = matrix(out);
  args.weight_dtype = shape.weight;
  int64_t rows = 0, tiles = 0;
  for (const Linear& weight : weights) {
    args.part[args.parts++] = part_of(weight, rows, tiles);
    rows += weight.weight.size(0);
    tiles += (weight.weight.size(0) + 15) / 16;
  }
  args.tiles = static_cast<int>(tiles);
  const LinearPlan plan = plan_linear(shape);
  auto* workspace = static_cast<uint8_t*>(exec.workspace);
  args.quantised = shape.quantised;
  args.powers = powers(exec);
  args.x_f8 = shape.quantised ? quantised.values : workspace;
  args.x_scales =
      shape.quantised ? quantised.scales : reinterpret_cast<float*>(workspace + plan.scales_at);
  args.paired_stores = out.dtype() == DType::bf16 && out.row_stride() % 2 == 0 &&
                       reinterpret_cast<uintptr_t>(out.data()) % 4 == 0 && even_parts(weights);
  launch_linear(exec.stream, plan, args, owners);
}

// Runs work(weights) for as many at a time as a launch takes.
template <class Work>
void each_launch(std::span<const Linear> weights, Work work) {
  for (size_t i = 0; i < weights.size(); i += LinearArgs::kMaxParts)
    work(weights.subspan(i, std::min<size_t>(LinearArgs::kMaxParts, weights.size() - i)));
}

}  // namespace

void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out,
            const Quantised& quantised, const RowOwners& owners) {
  M2_CHECK(owners.ranks == 0 || weights.size() == 1, "one matrix's rows go elsewhere");
  int64_t column = 0;
  each_launch(weights, [&](std::span<const Linear> some) {
    int64_t rows = 0;
    for (const Linear& weight : some) rows += weight.weight.size(0);
    linear_parts(exec, x, some, out.columns(column, rows), rows_of(exec, quantised), owners);
    column += rows;
  });
}

bool linear_reads_quantised(const Exec& exec, const Tensor& x, std::span<const Linear> weights) {
  bool all = true;
  each_launch(weights, [&](std::span<const Linear> some) {
    const LinearForm form = plan_linear(shape_of(exec, x, some, true)).form;
    all = all &&
          (form == LinearForm::tiles || form == LinearForm::narrow || form == LinearForm::flow ||
           form == LinearForm::flow_pair || form == LinearForm::flow_few);
  });
  return all;
}

// --- attention ---------------------------------------------------------------------------------

int64_t attention_workspace_bytes(int64_t sequences, int64_t max_context, const HeadShape& heads) {
  const int64_t decode =
      attention_workspace_bytes(sequences, max_context, static_cast<int>(heads.q_heads),
                                static_cast<int>(heads.kv_heads), static_cast<int>(heads.head_dim));
  return decode + (compute_major() == 9
                       ? prompt_workspace_bytes(max_context, static_cast<int>(heads.kv_heads))
                       : 0);
}

void paged_attention(const Exec& exec, Tensor q, const KvCache& cache, const BatchLayout& layout,
                     const HeadShape& heads, Tensor out, const Quantised& quantised) {
  AttentionArgs args = {};
  args.q = matrix(q);
  args.out = matrix(out);
  args.heads = heads_of(heads);
  args.cache = cache_of(cache);
  args.query_starts = layout.query_starts.as<int32_t>();
  args.context_lens = layout.context_lens.as<int32_t>();
  args.block_tables = layout.block_tables.as<int32_t>();
  args.table_stride = layout.block_tables.row_stride();
  args.sequences = static_cast<int>(layout.sequences());
  args.scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim));
  args.workspace = static_cast<float*>(exec.workspace);

  AttentionShape shape;
  shape.tokens = q.size(0);
  shape.sequences = layout.sequences();
  shape.max_context = layout.block_tables.size(1) * args.cache.block_size;
  shape.q_heads = args.heads.q;
  shape.kv_heads = args.heads.kv;
  shape.head_dim = args.heads.dim;
  shape.block_size = args.cache.block_size;
  shape.q = q.dtype();
  shape.cache = args.cache.dtype;
  shape.aligned = aligned16(q.data(), q.row_stride(), q.dtype()) &&
                  aligned16(args.cache.k, 0, shape.cache) &&
                  aligned16(args.cache.v, 0, shape.cache);
  shape.compute_major = compute_major();
  shape.workspace_bytes = exec.workspace ? exec.workspace_bytes : 0;
  shape.alone = exec.alone;
  const AttentionPlan plan = plan_attention(shape);
  args.splits = plan.splits;
  args.join = plan.join;
  args.quantised = rows_of(exec, quantised);
  launch_attention(exec.stream, plan, args);
}

// --- experts -----------------------------------------------------------------------------------

namespace {

ExpertsShape experts_shape(const Experts& experts, int64_t tokens, int64_t top) {
  ExpertsShape shape;
  shape.tokens = tokens;
  shape.top = top;
  shape.experts = experts.count();
  shape.inner = experts.inner();
  shape.hidden = experts.hidden();
  shape.weight = experts.w13.dtype();
  shape.aligned = aligned16(experts.w13.data(), experts.hidden(), shape.weight) &&
                  aligned16(experts.w2.data(), experts.inner(), shape.weight);
  shape.whole_chunks = experts.first_inner % 64 == 0;
  shape.whole_blocks = experts.first_inner % 128 == 0 && experts.inner() % 128 == 0;
  shape.compute_major = compute_major();
  return shape;
}

}  // namespace

int64_t experts_scratch_bytes(const Experts& experts, int64_t tokens, int64_t top) {
  // The input's dtype and alignment are not known yet: enough for either form.
  ExpertsShape shape = experts_shape(experts, tokens, top);
  const int64_t best = experts_scratch_bytes(shape);
  shape.aligned = false;
  return std::max(best, experts_scratch_bytes(shape));
}

namespace {

ExpertsShape shape_of(const Exec& exec, const Tensor& x, const Experts& experts, int64_t top) {
  ExpertsShape shape = experts_shape(experts, x.size(0), top);
  shape.x = x.dtype();
  shape.alone = exec.alone;
  shape.aligned = shape.aligned && aligned16(x.data(), x.row_stride(), x.dtype());
  return shape;
}

void set_weights(ExpertsArgs& args, const Experts& experts) {
  args.w13 = experts.w13.data();
  args.w2 = experts.w2.data();
  args.weight_dtype = experts.w13.dtype();
  args.experts = static_cast<int>(experts.count());
  args.inner = static_cast<int>(experts.inner());
  args.hidden = static_cast<int>(experts.hidden());
  args.first_expert = static_cast<int>(experts.first_expert);
  args.first_inner = static_cast<int>(experts.first_inner);
  args.scale_row = static_cast<int>(experts.scale_row);
  if (experts.w1_scale.empty()) return;
  args.w1_scale = experts.w1_scale.as<float>();
  args.w3_scale = experts.w3_scale.as<float>();
  args.w2_scale = experts.w2_scale.as<float>();
  args.inner_blocks = static_cast<int>(experts.w1_scale.size(1));
  args.hidden_blocks = static_cast<int>(experts.w1_scale.size(2));
}

// Where the plan has put what in the scratch.
void set_scratch(ExpertsArgs& args, const ExpertsPlan& plan, uint8_t* base) {
  args.offsets = reinterpret_cast<int32_t*>(base + plan.offsets);
  args.active = reinterpret_cast<int32_t*>(base + plan.active);
  args.groups = reinterpret_cast<int32_t*>(base + plan.groups);
  args.order = reinterpret_cast<int32_t*>(base + plan.order);
  args.inner_values = base + plan.inner;
  args.results = reinterpret_cast<float*>(base + plan.results);
  if (plan.form == ExpertsForm::tiles)
    args.position = reinterpret_cast<int32_t*>(base + plan.position);
  if (plan.form == ExpertsForm::flow) {
    args.done = reinterpret_cast<int32_t*>(base + plan.done);
    args.next_tile = reinterpret_cast<int32_t*>(base + plan.next_tile);
    args.posted = reinterpret_cast<uint32_t*>(base + plan.posted);
  }
  args.x_f8 = base + plan.x_f8;
  args.x_scales = reinterpret_cast<float*>(base + plan.x_scales);
  args.inner_f8 = base + plan.inner_f8;
  args.inner_scales = reinterpret_cast<float*>(base + plan.inner_scales);
}

void run_experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
                 Tensor scratch, Tensor out, const Quantised& quantised, const AddNorm* after,
                 const Route* route, const RouteChoice* choice = nullptr,
                 const RowOwners& owners = {}, UnsummedExperts* left = nullptr) {
  const int64_t tokens = x.size(0), top = ids.size(1);
  if (tokens == 0) return;
  const ExpertsPlan plan = plan_experts(shape_of(exec, x, experts, top));
  M2_CHECK(scratch.elements() >= plan.scratch_bytes, "scratch of {} bytes, {} needed",
           scratch.elements(), plan.scratch_bytes);
  M2_CHECK(experts.count() <= 1024, "{} experts on one GPU", experts.count());

  ExpertsArgs args = {};
  if (choice) {
    args.choice = *choice;
    args.leave = !after;
  } else if (route && route_leaves_choice(*route) && experts_choose(plan, tokens)) {
    Route parts = *route;
    parts.ids = nullptr;
    launch_route(exec.stream, parts);
    args.choice = {parts.scores, static_cast<int>((x.size(1) + kRouteStretch - 1) / kRouteStretch),
                   parts.experts, parts.bias, parts.slots};
  } else if (route) {
    Route chosen = *route;
    chosen.next_reads_late = plan.few;
    launch_route(exec.stream, chosen);
  }
  args.top = static_cast<int>(top);
  set_weights(args, experts);
  set_scratch(args, plan, static_cast<uint8_t*>(scratch.data()));
  args.group_pairs = static_cast<int>(plan.group_pairs);
  args.inner_stretch = plan.inner_stretch;
  args.gathers = plan.gathers;
  args.powers = powers(exec);

  const auto norm_of = [&](int64_t first, int64_t count) {
    return NormAfter{matrix(after->residual.rows(first, count)),
                     after->weight.data(),
                     after->weight.dtype(),
                     after->eps,
                     matrix(after->out.rows(first, count)),
                     rows_of(exec, after->quantised.rows(first, count))};
  };
  const bool grouped = plan.form == ExpertsForm::flow || plan.form == ExpertsForm::tiles;
  const bool fused = after && grouped && experts_norm_fits(norm_of(0, tokens), args.hidden);
  const bool leaves = left && !after && plan.form == ExpertsForm::flow && tokens <= plan.batch &&
                      top == UnsummedExperts::kTop && args.hidden % 8 == 0 && ids.dense() &&
                      weights.dense() && aligned16(ids.data(), top, DType::i32) &&
                      aligned16(weights.data(), top, DType::f32);
  args.leave |= leaves;
  for (int64_t first = 0; first < tokens; first += plan.batch) {
    const int64_t count = std::min(plan.batch, tokens - first);
    args.x = matrix(x.rows(first, count));
    args.out = matrix(out.rows(first, count));
    args.wide_stores = out.dtype() == DType::bf16 && experts.hidden() % 8 == 0 &&
                       aligned16(args.out.data, out.row_stride(), DType::bf16);
    args.ids = ids.rows(first, count).as<int32_t>();
    args.weights = weights.rows(first, count).as<float>();
    const QuantisedRows token = rows_of(exec, quantised.rows(first, count));
    args.token_f8 = token.values;
    args.token_scales = token.scales;
    if (fused) args.after = norm_of(first, count);
    launch_experts(exec.stream, plan, args, owners.from(first));
  }
  if (leaves)
    *left = {args.results,
             args.ids,
             args.weights,
             args.first_expert,
             args.experts,
             args.next_tile,
             args.done,
             counted_groups(args.experts, static_cast<int>(tokens * top), args.group_pairs),
             args.posted};
  if (after && !fused)
    cuda::add_rms_norm(exec, after->residual, out, after->weight, after->eps, after->out,
                       after->quantised);
}

}  // namespace

void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out, const Quantised& quantised, const AddNorm* after,
             const RowOwners& owners) {
  run_experts(exec, x, experts, ids, weights, scratch, out, quantised, after, nullptr, nullptr,
              owners);
}

bool experts_read_quantised(const Exec& exec, const Tensor& x, const Experts& experts,
                            int64_t top) {
  const ExpertsForm form = plan_experts(shape_of(exec, x, experts, top)).form;
  return form == ExpertsForm::tiles || form == ExpertsForm::flow;
}

void route_experts(const Exec& exec, Tensor x, const Routing& routing, const Experts& experts,
                   Tensor ids, Tensor weights, Tensor scratch, Tensor out,
                   const Quantised& quantised, const AddNorm* after, UnsummedExperts* left) {
  if (x.size(0) == 0) return;
  const Route route = route_args(exec, x, routing.gate, routing.bias, routing.slots, ids, weights);
  run_experts(exec, x, experts, ids, weights, scratch, out, quantised, after, &route, nullptr, {},
              left);
}

// --- a layer of one token ----------------------------------------------------------------------

namespace {

bool is_dense(const Tensor& tensor, DType dtype, int64_t rows, int64_t columns) {
  return tensor.dtype() == dtype && tensor.elements() == rows * columns && tensor.dense() &&
         reinterpret_cast<uintptr_t>(tensor.data()) % 16 == 0;
}

// Whether attend_and_route.h's kernel knows the shapes of the layer's attention half and gate.
bool layer_fits(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                const DecodeRanks& ranks) {
  using Shape = AttendShape;
  const int64_t tokens = layout.tokens();
  constexpr int64_t kHidden = Shape::kHidden, kExperts = Shape::kExperts;
  const int64_t q_width = heads.q_heads * Shape::kHeadDim,
                kv_width = heads.kv_heads * Shape::kHeadDim;
  if (ranks.size == 1 ? heads.kv_heads != Shape::kKvHeads
                      : ranks.peers.ranks == 0 || heads.kv_heads == Shape::kKvHeads ||
                            ranks.peers.ranks * heads.kv_heads > Shape::kKvHeads)
    return false;
  if (!exec.alone || compute_major() != 9 || multiprocessors() < kAttendBlocks) return false;
  if (layout.sequences() != tokens || layer.qkv.size() != 3) return false;
  if (!attends_at_once(heads.kv_heads) ||
      heads.q_heads * Shape::kKvHeads != heads.kv_heads * Shape::kQHeads ||
      heads.head_dim != Shape::kHeadDim || heads.rotary_dim != Shape::kRotary ||
      cache.k.size(2) != Shape::kBlock)
    return false;
  const auto whole = [](const Linear& linear) {
    return linear.first_row == 0 && linear.first_column == 0 && !linear.scale.empty();
  };
  const Tensor &q = layer.qkv[0].weight, &k = layer.qkv[1].weight, &v = layer.qkv[2].weight;
  const auto follows = [](const Tensor& second, const Tensor& first) {
    return second.data() == static_cast<const uint8_t*>(first.data()) + first.elements();
  };
  return std::ranges::all_of(layer.qkv, whole) && whole(layer.o) &&
         is_dense(q, DType::f8_e4m3, q_width, kHidden) &&
         is_dense(k, DType::f8_e4m3, kv_width, kHidden) &&
         is_dense(v, DType::f8_e4m3, kv_width, kHidden) && follows(k, q) && follows(v, k) &&
         is_dense(layer.o.weight, DType::f8_e4m3, kHidden, q_width) &&
         is_dense(layer.q_norm, DType::bf16, 1, q_width) &&
         is_dense(layer.k_norm, DType::bf16, 1, kv_width) &&
         is_dense(layer.norm, DType::bf16, 1, kHidden) &&
         is_dense(layer.gate, DType::f32, kExperts, kHidden) &&
         is_dense(tensors.residual, DType::bf16, tokens, kHidden) &&
         is_dense(tensors.hidden, DType::bf16, tokens, kHidden) &&
         !tensors.quantised_hidden.empty() &&
         is_dense(tensors.quantised_hidden.values, DType::f8_e4m3, tokens, kHidden) &&
         is_dense(tensors.angles, DType::f32, tokens, Shape::kRotary) &&
         is_dense(tensors.ids, DType::i32, tokens, tensors.ids.size(1)) &&
         is_dense(tensors.weights, DType::f32, tokens, tensors.ids.size(1)) &&
         (cache.k.dtype() == DType::bf16 || cache.k.dtype() == DType::f8_e4m3) && exec.workspace &&
         exec.workspace_bytes >= tokens * kExperts * int64_t{sizeof(ExpertScore)};
}

ExpertsPlan plan_for_one(const Exec& exec, const Experts& experts, int64_t top) {
  ExpertsShape shape = experts_shape(experts, 1, top);
  shape.x = DType::bf16;
  shape.alone = exec.alone;
  return plan_experts(shape);
}

}  // namespace

bool decodes_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                   const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                   const DecodeRanks& ranks) {
  if (layout.tokens() != 1 || !layer_fits(exec, layer, cache, layout, heads, tensors, ranks))
    return false;
  const ExpertsPlan plan = plan_for_one(exec, layer.experts, tensors.ids.size(1));
  if (ranks.size > 1 && tensors.ids.size(1) != 8) return false;  // that RankExperts are of
  return plan.form == ExpertsForm::flow && experts_choose(plan, 1) && plan.fused &&
         layer.experts.count() == layer.gate.size(0) && layer.experts.first_expert == 0;
}

namespace {

// What experts() of one token leave in their scratch, and the norm of it.
ExpertsLeft left_by(const Exec& exec, const Experts& experts, const DecodeTensors& tensors,
                    const Tensor& norm) {
  const ExpertsPlan plan = plan_for_one(exec, experts, tensors.ids.size(1));
  auto* base = static_cast<uint8_t*>(tensors.experts.data());
  return {base + plan.results,
          tensors.ids.as<int32_t>(),
          tensors.weights.as<float>(),
          static_cast<int>(tensors.ids.size(1)),
          norm.data(),
          reinterpret_cast<int32_t*>(base + plan.next_tile),
          reinterpret_cast<int32_t*>(base + plan.done),
          reinterpret_cast<uint32_t*>(base + plan.posted)};
}

}  // namespace

namespace {

// The attention half's arguments but what a layer before has left.
void set_attention(AttendAndRoute& args, const Exec& exec, const DecodeLayer& layer,
                   const KvCache& cache, const BatchLayout& layout, const HeadShape& heads,
                   const DecodeTensors& tensors, const DecodeRanks& ranks) {
  args.x_f8 = static_cast<const uint8_t*>(tensors.quantised_hidden.values.data());
  args.x_scales = tensors.quantised_hidden.scales.as<float>();
  args.qkv = static_cast<const uint8_t*>(layer.qkv[0].weight.data());
  for (size_t i = 0; i < 3; ++i) {
    args.qkv_scale[i] = layer.qkv[i].scale.as<float>();
    args.qkv_scale_stride[i] = layer.qkv[i].scale.row_stride();
  }
  args.o = static_cast<const uint8_t*>(layer.o.weight.data());
  args.o_scale = layer.o.scale.as<float>();
  args.o_scale_stride = layer.o.scale.row_stride();
  args.q_norm = layer.q_norm.data();
  args.k_norm = layer.k_norm.data();
  args.eps = layer.eps;
  args.angles = tensors.angles.as<float>();
  args.slots = layout.slots.as<int32_t>();
  args.cache = cache_of(cache);
  args.query_starts = layout.query_starts.as<int32_t>();
  args.context_lens = layout.context_lens.as<int32_t>();
  args.block_tables = layout.block_tables.as<int32_t>();
  args.scale = 1.0f / std::sqrt(static_cast<float>(heads.head_dim));
  args.residual = tensors.residual.data();
  args.norm = layer.norm.data();
  args.hidden = tensors.hidden.data();
  args.quantised = rows_of(exec, tensors.quantised_hidden);
  args.gate = layer.gate.as<float>();
  args.bias = layer.routing_bias.as<float>();
  args.scores = static_cast<ExpertScore*>(exec.workspace);
  args.peers = ranks.peers;
  args.full_q = static_cast<float>(ranks.size * heads.q_heads * heads.head_dim);
  args.full_k = static_cast<float>(ranks.size * heads.kv_heads * heads.head_dim);
}

}  // namespace

void decode_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeBefore* before, const AddNorm* after, const DecodeRanks& ranks) {
  AttendAndRoute args = {};
  set_attention(args, exec, layer, cache, layout, heads, tensors, ranks);
  if (before) args.before = left_by(exec, before->experts, tensors, before->norm);
  launch_attend_and_route(exec.stream, static_cast<int>(heads.kv_heads), args);
  RouteChoice choice;
  choice.scores = args.scores;
  const AddNorm* fused = ranks.size == 1 ? after : nullptr;
  run_experts(exec, tensors.hidden, layer.experts, tensors.ids, tensors.weights, tensors.experts,
              tensors.delta, tensors.quantised_hidden, fused, nullptr, &choice);
  if (ranks.size == 1) return;
  RankExperts sum;
  sum.left = left_by(exec, layer.experts, tensors, after->weight);
  sum.residual = after->residual.data();
  sum.eps = after->eps;
  sum.hidden = after->out.data();
  sum.quantised = rows_of(exec, after->quantised);
  sum.peers = ranks.peers;
  launch_rank_experts(exec.stream, sum);
}

bool decodes_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeRanks& ranks) {
  if (ranks.size == 1 || !attends_rows(layout.tokens(), heads.kv_heads) ||
      !layer_fits(exec, layer, cache, layout, heads, tensors, ranks))
    return false;
  const int64_t top = tensors.ids.size(1);
  const ExpertsPlan plan = plan_experts(shape_of(exec, tensors.hidden, layer.experts, top));
  return plan.form == ExpertsForm::flow && layout.tokens() <= plan.batch &&
         top == UnsummedExperts::kTop && layer.experts.count() == layer.gate.size(0) &&
         layer.experts.first_expert == 0;
}

UnsummedExperts decode_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                            const BatchLayout& layout, const HeadShape& heads,
                            const DecodeTensors& tensors, const DecodeRanks& ranks) {
  AttendRows args = {};
  set_attention(args, exec, layer, cache, layout, heads, tensors, ranks);
  args.table_stride = layout.block_tables.row_stride();
  args.top = static_cast<int>(tensors.ids.size(1));
  args.ids = tensors.ids.as<int32_t>();
  args.weights = tensors.weights.as<float>();
  launch_attend_rows(exec.stream, static_cast<int>(heads.kv_heads), args);
  UnsummedExperts left;
  run_experts(exec, tensors.hidden, layer.experts, tensors.ids, tensors.weights, tensors.experts,
              tensors.delta, tensors.quantised_hidden, nullptr, nullptr, nullptr, {}, &left);
  M2_CHECK(left.results, "the experts of two rows are summed");
  return left;
}

// --- what the device can do --------------------------------------------------------------------

namespace {

// The fastest of a few runs, each long beside a launch.
double best_seconds(const Exec& exec, const std::function<void()>& work) {
  using Time = std::chrono::steady_clock;
  double best = 1e9;
  for (int i = 0; i < 8; ++i) {
    synchronize(exec);
    const auto start = Time::now();
    work();
    synchronize(exec);
    best = std::min(best, std::chrono::duration<double>(Time::now() - start).count());
  }
  return best;
}

}  // namespace

double read_rate(const Exec& exec, Tensor memory) {
  const int64_t bytes = memory.elements() * size_of(memory.dtype());
  double best = 0;
  for (const int blocks : {1, 2, 4}) {
    const double time = best_seconds(exec, [&] {
      launch_read(exec.stream, memory.data(), bytes, blocks, static_cast<float*>(exec.workspace));
    });
    best = std::max(best, static_cast<double>(bytes) / time);
  }
  return best;
}

double multiply_rate(const Exec& exec, Multiplier unit) {
  constexpr int kSteps = 40'000;
  M2_CHECK(unit != Multiplier::fp32 && exec.workspace);
  int64_t operations = 0;
  const double time = best_seconds(exec, [&] {
    operations = launch_multiply(exec.stream, unit == Multiplier::fp8 && compute_major() == 9,
                                 kSteps, static_cast<float*>(exec.workspace));
  });
  return static_cast<double>(operations) / time;
}

}  // namespace m2::ops::cuda
