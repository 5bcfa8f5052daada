#pragma once

#include "load/checkpoint.h"
#include "model/weights.h"

namespace m2::model {

// Reads the scales with which an FP8 KV cache holds K and V, one of each for a layer, where the
// checkpoint has them, into Layer::k_scale and v_scale: self_attn.k_proj.k_scale, self_attn.k_scale
// or self_attn.attn.k_scale, and v's alike; self_attn.kv_scale, or k's alone, is for both. Layers
// without keep 1. Returns how many layers have scales. Refuses, naming the tensor, scales of other
// shapes (one for each head, say), and numbers that are not finite and positive.
Result<int64_t> read_kv_scales(const load::Checkpoint& checkpoint, Weights& weights);

}  // namespace m2::model
