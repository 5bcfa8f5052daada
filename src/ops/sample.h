#pragma once

#include "ops/sample_row.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// Whether the device can sample, so that logits need not travel. On the CPU engine::Sampler does.
bool can_sample(Device device);

// What the rows of a step ask for, in device memory.
struct SampleInput {
  Tensor rows;   // i32 [R, kSampleRowWords]: SampleRow
  Tensor edits;  // i32 [n, kLogitEditWords]: LogitEdit
  Tensor masks;  // i32 [m, ceil(id_limit / 32)]: bit id % 32 of word id / 32 set where allowed
};

struct SampleOutput {
  Tensor rows;          // i32 [R, kSampledRowWords]: SampledRow
  Tensor top_ids;       // i32 [R, most]: the row's `logprobs` most likely ids, -1 after the last
  Tensor top_logprobs;  // f32 [R, most]
};

int64_t sample_scratch_bytes(Device device, int64_t rows, int64_t vocab);

// Chooses a token of every row, as engine::Sampler does and with its noise: edits and mask, then
// the largest logit, or temperature, min_p, top_k, top_p and argmax(p / Exp(1)). Raw logits give
// the logprobs. Ids from id_limit on take part in nothing. `logits` is not changed. A row's result
// does not depend on other rows.
//   logits   f32 [R, V], id_limit <= V
//   scratch  u8 [sample_scratch_bytes(...)]
// Preconditions: can_sample(); ids of edits and `given` are below id_limit, masks and edits that
// the rows name are there, and no row asks for more logprobs than top_ids has columns.
void sample(const Exec& exec, Tensor logits, int64_t id_limit, const SampleInput& input,
            Tensor scratch, const SampleOutput& out);

}  // namespace m2::ops
