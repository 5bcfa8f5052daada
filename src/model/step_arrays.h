#pragma once

#include "model/forward.h"
#include "ops/batch_layout.h"
#include "ops/sample.h"

namespace m2::model {

// Where a step's integers, its sampling and its samples lie in device memory, at places that never
// change, sized once for the largest step: recorded graphs point here.
struct StepArrays {
  Tensor packed;            // i32: the step as it travels (ops/unpack_step.h)
  ops::BatchLayout layout;  // whole arrays, of which a step uses the first rows
  // Empty where the device does not sample:
  Tensor sample_rows;   // i32 [rows, kSampleRowWords]
  Tensor edits;         // i32 [kMostEdits, kLogitEditWords]
  Tensor masks;         // i32 [sequences, mask words]
  Tensor scratch;       // u8, of ops::sample() for one slice of logits
  Tensor samples;       // i32 [rows, kSampledRowWords]
  Tensor top_ids;       // i32 [rows, most_logprobs]
  Tensor top_logprobs;  // f32 [rows, most_logprobs]
};

// Logits changed one by one in a step (biases, penalties), over all rows.
constexpr int64_t kMostEdits = 1 << 20;

// Places the arrays; with a dry arena only counts their bytes.
StepArrays place_step_arrays(Arena& arena, const StepLimits& limits, int64_t vocab, Device device);

// The arrays of a step of these sizes, padded to `padded` decoding rows if that is more.
ops::BatchLayout layout_of(const StepArrays& arrays, int64_t tokens, int64_t sequences,
                           int64_t rows, int64_t width);

}  // namespace m2::model
