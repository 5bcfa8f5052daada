#pragma once

#include "ops/quantised.h"
#include "ops/row_owners.h"
#include "ops/unsummed_experts.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// This rank's experts: `count()` of them, first_expert + i * expert_step (a step of 1 on GPUs),
// each cut to inner columns [first_inner, first_inner + I) of the full intermediate size. Scales as
// in linear.h, one FP32 number per 128x128 block of the full matrix; absent (empty) for bf16, f16
// and f32 weights. Rows of w13: first w1 (gate), then w3 (up).
struct Experts {
  Tensor w13;       // f8_e4m3 | bf16 | f16 | f32 [E, 2 I, H]
  Tensor w1_scale;  // f32 [E, ceil, ceil(H / 128)]; row index (first_inner + i) / 128 - scale_row
  Tensor w3_scale;  // as w1_scale
  Tensor w2;        // [E, H, I]
  Tensor
      w2_scale;  // f32 [E, ceil(H / 128), ceil]; column index (first_inner + i) / 128 - scale_row
  int64_t first_expert = 0;
  int64_t first_inner = 0;
  int64_t scale_row = 0;  // first 128-block of the inner axis that the scale tensors hold
  int64_t expert_step = 1;

  int64_t count() const { return w13.size(0); }
  int64_t inner() const { return w2.size(2); }
  int64_t hidden() const { return w2.size(1); }
};

// Bytes of scratch experts() needs for up to `tokens` tokens with `top` experts each.
int64_t experts_scratch_bytes(Device device, const Experts& experts, int64_t tokens, int64_t top);

// out[t] = sum over the token's experts e that this rank holds, in ascending order of id, of
// weights[t, e] * W2_e (silu(W1_e x_t) * (W3_e x_t)), FP32 accumulation. Each expert's weights are
// read once for all tokens routed to it. A token's result is the same bytes in any batch.
//   x        f32 | bf16 [T, H]
//   ids      i32 [T, top] global expert ids, ascending in each row; weights f32 [T, top]
//   scratch  u8 [experts_scratch_bytes(...)]; zeros before its first use, and then written by
//            experts() alone (GPU: kernels leave counters in it)
//   quantised  x again, or empty
//   out      f32 | bf16 [T, H]; all of it is written, zeros for a token with no expert here
//   owners   who gets the rows of out, which itself is not written then (GPUs alone)
void experts(const Exec& exec, Tensor x, const Experts& experts, Tensor ids, Tensor weights,
             Tensor scratch, Tensor out, const Quantised& quantised = {},
             const RowOwners& owners = {});

// Whether experts() of the same, given `quantised`, reads nothing else of x.
bool experts_read_quantised(const Exec& exec, const Tensor& x, const Experts& experts, int64_t top,
                            const Quantised& quantised);

// What may follow experts(): residual += delta, then out = rms_norm(residual) as in norm.h.
struct AddNorm {
  Tensor residual;
  Tensor weight;
  float eps = 0;
  Tensor out;  // may be the experts' input
  Quantised quantised;
};

// What route() chooses by, as route.h has it.
struct Routing {
  Tensor gate;   // f32 [all experts, H]
  Tensor bias;   // f32 [all experts]
  Tensor slots;  // i32 [T] or empty
};

// route() of x, experts() of what it chose, and add_rms_norm() of that where `after` is given: to
// the same bytes, with up to two kernels less on GPUs whose shapes allow it.
//   ids, weights  written, as by route()
//   delta         f32 | bf16 [T, H], the residual's dtype: experts()' output; where `after` is
//                 given, room for it, which may or may not be there afterwards
//   left          given instead of `after` by who can sum the results on their way: where kernels
//                 can leave them, what they left, and delta is not written; else nothing
void route_experts(const Exec& exec, Tensor x, const Routing& routing, const Experts& experts,
                   Tensor ids, Tensor weights, Tensor scratch, Tensor delta,
                   const Quantised& quantised, const AddNorm* after,
                   UnsummedExperts* left = nullptr);

}  // namespace m2::ops
