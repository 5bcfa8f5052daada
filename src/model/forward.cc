#include "model/forward.h"

#include <algorithm>
#include <array>
#include <optional>

#include "ops/attention.h"
#include "ops/decode_layer.h"
#include "ops/embed.h"
#include "ops/norm.h"
#include "ops/route.h"

namespace m2::model {
namespace {

using parallel::NormedRows;

// The scratch's first `tokens` rows, where a step of that many tokens works.
Scratch first_rows(const Scratch& whole, int64_t tokens) {
  Scratch step = whole;
  for (Tensor* tensor : {&step.residual, &step.hidden, &step.delta, &step.qkv, &step.attended,
                         &step.qk_sums, &step.angles, &step.expert_ids, &step.expert_weights})
    *tensor = tensor->rows(0, tokens);
  for (ops::Quantised* quantised : {&step.quantised_hidden, &step.quantised_attended})
    *quantised = quantised->rows(0, tokens);
  return step;
}

// delta, or its owners' = this rank's part of attention(hidden), of which the norm of q and k spans
// all heads of all ranks. Where ranks hold copies of a kv head, its squares are summed as often and
// divided by as many more channels.
void attention(const ForwardContext& context, const Layer& layer, const ops::KvCache& kv,
               const ops::BatchLayout& layout, const Scratch& step, const ops::RowOwners& owners) {
  const auto& [exec, comm, config, weights, caches, scratch, heads, exchange] = context;
  const auto eps = static_cast<float>(config.rms_norm_eps);

  ops::linear(exec, step.hidden, layer.qkv, step.qkv, step.quantised_hidden);
  if (comm.size() == 1) {
    ops::qk_norm_rope_store_whole(exec, step.qkv, step.qk_sums, layer.q_norm, layer.k_norm, eps,
                                  step.angles, layout.slots, heads, kv);
  } else {
    comm.all_reduce_qk_norm(exec, {step.qkv, step.qk_sums, layer.q_norm, layer.k_norm,
                                   comm.size() * heads.q_heads * heads.head_dim,
                                   comm.size() * heads.kv_heads * heads.head_dim, eps, step.angles,
                                   layout.slots, heads, kv});
  }
  const Tensor q = step.qkv.columns(0, heads.q_heads * heads.head_dim);
  ops::paged_attention(exec, q, kv, layout, heads, step.attended, step.quantised_attended);
  ops::linear(exec, step.attended, layer.o, step.delta, step.quantised_attended, owners);
}

// What a rank with rows of its own has to find of hidden for a layer's q, k and v, beside all rows
// in FP8.
NormedRows read_by_attention(const ForwardContext& context, const Layer& layer, const Scratch& step,
                             const ops::RowOwners& owners) {
  return owners.ranks > 0 && ops::linear_reads_quantised(context.exec, step.hidden, layer.qkv,
                                                         step.quantised_hidden)
             ? NormedRows::own
             : NormedRows::all;
}

// Likewise for its experts, whom each rank chooses for its own rows.
NormedRows read_by_experts(const ForwardContext& context, const Layer& layer, const Scratch& step,
                           const ops::RowOwners& owners) {
  return owners.ranks > 0 &&
                 ops::experts_read_quantised(context.exec, step.hidden, layer.experts,
                                             step.expert_ids.size(1), step.quantised_hidden)
             ? NormedRows::own
             : NormedRows::all;
}

// The weighted sum of the chosen experts of hidden, added to the residual, and `norm` of that.
void moe(const ForwardContext& context, const Layer& layer, const ops::BatchLayout& layout,
         const Scratch& step, const ops::RowOwners& owners, const ops::AddNorm& norm,
         NormedRows wanted) {
  const auto& [exec, comm, config, weights, caches, scratch, heads, exchange] = context;
  const bool alone = comm.size() == 1;
  ops::UnsummedExperts left;
  if (owners.ranks > 0) {
    const int64_t first = owners.first[owners.rank], count = owners.count[owners.rank];
    ops::route(exec, step.hidden.rows(first, count), layer.gate, layer.routing_bias,
               step.expert_ids.rows(first, count), step.expert_weights.rows(first, count),
               layout.slots.rows(first, count));
    comm.gather_own_rows(exec, step.delta, std::array{step.expert_ids, step.expert_weights});
    ops::experts(exec, step.hidden, layer.experts, step.expert_ids, step.expert_weights,
                 step.experts, step.delta, step.quantised_hidden, owners);
  } else {
    ops::route_experts(exec, step.hidden, {layer.gate, layer.routing_bias, layout.slots},
                       layer.experts, step.expert_ids, step.expert_weights, step.experts,
                       step.delta, step.quantised_hidden, alone ? &norm : nullptr,
                       !alone && comm.takes_experts(step.delta, norm) ? &left : nullptr);
  }
  if (alone) return;
  if (left.results) return comm.all_reduce_experts_norm(exec, step.delta, left, norm);
  comm.norm_own_rows(exec, step.delta, norm, wanted);
}

// The same where engines share experts: tokens go to the ranks that hold their experts and back,
// each rank with its share of them.
void shared_moe(const ForwardContext& context, const Layer& layer, const ops::BatchLayout& layout,
                const Scratch& step, const ops::AddNorm& norm) {
  const Exec& exec = context.exec;
  Exchange& exchange = *context.exchange;
  const auto [first, count] = exchange.own_rows();
  const RoutedTokens own{step.hidden.rows(first, count), step.expert_ids.rows(first, count),
                         step.expert_weights.rows(first, count), step.delta.rows(first, count)};
  ops::route(exec, own.hidden, layer.gate, layer.routing_bias, own.ids, own.weights,
             layout.slots.rows(first, count));
  const RoutedTokens here = exchange.dispatch(exec, own);
  ops::experts(exec, here.hidden, layer.experts, here.ids, here.weights, step.experts, here.delta);
  exchange.combine(exec, here, own.delta);
  context.comm.all_gather(exec, own.delta, exchange.engine_rows(), step.delta);
  ops::add_rms_norm(exec, norm.residual, step.delta, norm.weight, norm.eps, norm.out,
                    norm.quantised);
}

// What decode_layer() has of a layer.
ops::DecodeLayer decoded(const ForwardContext& context, const Layer& layer) {
  return {layer.qkv,
          layer.q_norm,
          layer.k_norm,
          layer.o,
          layer.post_attention_norm,
          layer.gate,
          layer.routing_bias,
          layer.experts,
          static_cast<float>(context.config.rms_norm_eps)};
}

// Whether it is one of two tokens whose attention half is a kernel, and the sum over ranks takes
// the experts' results as they are.
bool decodes_rows(const ForwardContext& context, const Layer& layer, const ops::KvCache& kv,
                  const ops::BatchLayout& layout, const ops::DecodeTensors& tensors,
                  const ops::DecodeRanks& ranks, const ops::AddNorm& norm) {
  return !context.exchange &&
         ops::decodes_rows(context.exec, decoded(context, layer), kv, layout, context.heads,
                           tensors, ranks) &&
         context.comm.takes_experts(tensors.delta, norm);
}

// Whether a layer can be decoded as a whole.
bool decodes(const ForwardContext& context, size_t l, const ops::BatchLayout& layout,
             const ops::DecodeTensors& tensors, const ops::DecodeRanks& ranks) {
  return !context.exchange &&
         ops::decodes_layer(context.exec, decoded(context, context.weights.layers[l]),
                            context.kv[l], layout, context.heads, tensors, ranks);
}

}  // namespace

void forward(const ForwardContext& context, const ops::BatchLayout& layout) {
  const auto& [exec, comm, config, weights, kv, scratch, heads, exchange] = context;
  const auto eps = static_cast<float>(config.rms_norm_eps);
  const Scratch step = first_rows(scratch, layout.tokens());

  ops::embed_and_angles(exec, layout.token_ids, weights.embedding, weights.first_id, step.residual,
                        layout.positions, static_cast<float>(config.rope_theta), step.angles);
  comm.all_reduce(exec, step.residual);
  ops::rms_norm(exec, step.residual, weights.layers[0].input_norm, eps, step.hidden,
                step.quantised_hidden);

  // Of a long step each rank looks after a share of the rows: their residual, their norms and the
  // choice of their experts. Products bring it what they have for them.
  const ops::RowOwners owners = exchange ? ops::RowOwners() : comm.row_owners(step.delta);
  const ops::DecodeTensors tensors{step.residual, step.hidden,     step.quantised_hidden,
                                   step.angles,   step.expert_ids, step.expert_weights,
                                   step.delta,    step.experts};
  const ops::DecodeRanks ranks{comm.size(), comm.decode_peers()};
  const bool alone = ranks.size == 1;
  bool whole = decodes(context, 0, layout, tensors, ranks);
  std::optional<ops::DecodeBefore> before;
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const Layer& layer = weights.layers[l];
    // The next layer's input norm, or the model's last, which logits() takes of the rows it needs.
    const bool last = l + 1 == weights.layers.size();
    const ops::AddNorm norm{step.residual, last ? weights.norm : weights.layers[l + 1].input_norm,
                            eps, step.hidden, last ? ops::Quantised() : step.quantised_hidden};
    const bool next_whole = !last && decodes(context, l + 1, layout, tensors, ranks);
    if (whole) {
      // Without ranks to sum over, the next layer's kernel takes up the experts' results.
      const bool leaves = next_whole && alone;
      ops::decode_layer(exec, decoded(context, layer), kv[l], layout, heads, tensors,
                        before ? &*before : nullptr, leaves ? nullptr : &norm, ranks);
      before.reset();
      if (leaves) before.emplace(layer.experts, norm.weight);
    } else if (decodes_rows(context, layer, kv[l], layout, tensors, ranks, norm)) {
      const ops::UnsummedExperts left =
          ops::decode_rows(exec, decoded(context, layer), kv[l], layout, heads, tensors, ranks);
      comm.all_reduce_experts_norm(exec, step.delta, left, norm);
    } else {
      attention(context, layer, kv[l], layout, step, owners);
      const ops::AddNorm between{step.residual, layer.post_attention_norm, eps, step.hidden,
                                 step.quantised_hidden};
      if (exchange) {
        comm.all_reduce_norm(exec, step.delta, between);
        shared_moe(context, layer, layout, step, norm);
      } else {
        comm.norm_own_rows(exec, step.delta, between,
                           read_by_experts(context, layer, step, owners));
        moe(context, layer, layout, step, owners, norm,
            last ? NormedRows::all
                 : read_by_attention(context, weights.layers[l + 1], step, owners));
      }
    }
    whole = next_whole;
  }
}

Tensor logits(const ForwardContext& context, const ops::BatchLayout& layout, int64_t first,
              int64_t count) {
  const Scratch& scratch = context.scratch;
  const Tensor rows = layout.logit_rows.rows(first, count);
  const Tensor out = scratch.logits.rows(0, count);
  // Of one token there is nothing to gather.
  const bool only = layout.tokens() == 1 && count == 1;
  const Tensor last = (only ? scratch.hidden : scratch.last).rows(0, count);
  if (!only) ops::gather_rows(context.exec, scratch.hidden, rows, last);
  ops::linear(context.exec, last, context.weights.head, out);
  if (context.comm.size() == 1) return out;
  const Tensor all = scratch.all_logits.empty() ? Tensor() : scratch.all_logits.rows(0, count);
  context.comm.gather_columns(context.exec, out, context.weights.vocabulary_rows, all, 0);
  return all;
}

Scratch place_scratch(Arena& arena, const ModelConfig& config, const Weights& weights,
                      const StepLimits& limits, Device device) {
  const DType activation = activation_dtype(device);
  const int64_t hidden = config.hidden_size;
  const int64_t top = config.num_experts_per_token;
  const Layer& layer = weights.layers[0];
  const int64_t q = layer.qkv[0].weight.size(0);
  const int64_t kv = layer.qkv[1].weight.size(0);
  const int64_t tokens = std::max(limits.tokens, limits.padded_rows);
  const int64_t expert_bytes =
      ops::experts_scratch_bytes(device, layer.experts, tokens * limits.engines, top);
  const ops::HeadShape heads{q / config.head_dim, kv / config.head_dim, config.head_dim,
                             config.rotary_dim};
  const int64_t workspace_bytes = std::max(
      {ops::attention_workspace_bytes(device, std::max(limits.sequences, limits.padded_rows),
                                      limits.blocks_per_sequence * kBlockSize, heads),
       ops::linear_workspace_bytes(device, tokens, std::max(hidden, q)),
       ops::route_workspace_bytes(device, tokens, hidden, config.num_experts)});

  Scratch out;
  out.residual = arena.place(activation, {tokens, hidden});
  out.hidden = arena.place(activation, {tokens, hidden});
  out.delta = arena.place(activation, {tokens + ops::RowOwners::kMost, hidden});
  out.qkv = arena.place(activation, {tokens, q + 2 * kv});
  out.attended = arena.place(activation, {tokens, q});
  if (ops::wants_quantised(device) && layer.o.weight.dtype() == DType::f8_e4m3) {
    const auto place = [&](int64_t columns) {
      return ops::Quantised{arena.place(DType::f8_e4m3, {tokens, columns}),
                            arena.place(DType::f32, {tokens, (columns + 127) / 128})};
    };
    out.quantised_hidden = place(hidden);
    out.quantised_attended = place(q);
  }
  out.qk_sums = arena.place(DType::f32, {tokens, 2});
  out.angles = arena.place(DType::f32, {tokens, config.rotary_dim});
  out.expert_ids = arena.place(DType::i32, {tokens, top});
  out.expert_weights = arena.place(DType::f32, {tokens, top});
  out.experts = arena.place(DType::u8, {expert_bytes});
  out.last = arena.place(activation, {limits.logit_rows, hidden});
  out.logits = arena.place(DType::f32, {limits.logit_rows, weights.head.weight.size(0)});
  if (weights.vocabulary_rows.size() > 1 && weights.first_id == 0)
    out.all_logits = arena.place(DType::f32, {limits.logit_rows, config.vocab_size});
  out.workspace = arena.place(DType::u8, {workspace_bytes});
  return out;
}

}  // namespace m2::model
