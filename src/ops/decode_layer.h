#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/decode_peers.h"
#include "ops/experts.h"
#include "ops/linear.h"

namespace m2::ops {

// A layer's weights, for decode_layer().
struct DecodeLayer {
  std::span<const Linear> qkv;  // q, k and v
  Tensor q_norm, k_norm;
  Linear o;
  Tensor norm;  // of the residual after attention
  Tensor gate, routing_bias;
  const Experts& experts;
  float eps = 0;
};

// What a layer reads and leaves, as the operations that decode_layer() stands for have it.
struct DecodeTensors {
  Tensor residual;             // [T, H] in and out
  Tensor hidden;               // [T, H] in: the normed input; out: the norm of the residual
  Quantised quantised_hidden;  // of hidden, in and out
  Tensor angles;               // f32 [T, rotary_dim]
  Tensor ids, weights;         // [T, top] of route()
  Tensor delta;                // [T, H] room to work in
  Tensor experts;              // experts()' scratch
};

// The layer before, whose experts' results stand unsummed in DecodeTensors::experts, and the norm
// of the residual after them.
struct DecodeBefore {
  const Experts& experts;
  Tensor norm;
};

// Who else has a part of the layer: its heads, and of each expert as much.
struct DecodeRanks {
  int64_t size = 1;   // tensor ranks
  DecodePeers peers;  // of several
};

// Whether the device has kernels that decode one token through a whole layer of this shape, and, if
// one GPU has all of it, take up where the layer before has left its results: a Hopper GPU with FP8
// weights of the M2 family's shapes, or what one of 2, 4 or 8 ranks has of them.
bool decodes_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                   const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                   const DecodeRanks& ranks = {});

// linear (qkv), qk_norm_rope_store_whole, paged_attention, linear (o), add_rms_norm and
// route_experts with `after`, to the same bytes, as two kernels and that of the sum. Without
// `after` the experts' results stay unsummed for the next layer, which is given this one as
// `before`, and then first does what `after` would have: `hidden` and its quantised form are not
// read then. Precondition: decodes_layer(). On a GPU the operation enqueued right before may write
// residual and hidden, but neither the angles nor the layout: these are read before it has ended.
//
// Of several ranks, all of which call this: linear, Comm::all_reduce_qk_norm, paged_attention,
// linear, Comm::all_reduce_norm, route_experts and Comm::all_reduce_norm for `after`, to the same
// bytes, as three kernels. There is always an `after`, and no `before`.
void decode_layer(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeBefore* before, const AddNorm* after, const DecodeRanks& ranks = {});

// Likewise of two tokens, each a sequence of its own, of one of several ranks: whether the device
// has kernels for the layer's shape.
bool decodes_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                  const BatchLayout& layout, const HeadShape& heads, const DecodeTensors& tensors,
                  const DecodeRanks& ranks);

// linear (qkv), Comm::all_reduce_qk_norm, paged_attention, linear (o), Comm::all_reduce_norm and
// route_experts, whose results stay unsummed for Comm::all_reduce_experts_norm; to the same bytes,
// as two kernels. Precondition: decodes_rows(); tokens whose own positions lie in one block of the
// cache are of one draft. As decode_layer(), all ranks call this, and angles and layout are read
// before the operation enqueued right before has ended.
UnsummedExperts decode_rows(const Exec& exec, const DecodeLayer& layer, const KvCache& cache,
                            const BatchLayout& layout, const HeadShape& heads,
                            const DecodeTensors& tensors, const DecodeRanks& ranks);

}  // namespace m2::ops
