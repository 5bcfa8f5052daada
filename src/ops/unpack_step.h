#pragma once

#include "ops/batch_layout.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// A step's integers travel to the device as one list: token_ids[T], positions[T], slots[T],
// query_starts[S + 1], context_lens[S], block_tables[S * width], logit_rows[R], and SampleRow[R] if
// `sampled`.
struct StepSizes {
  int64_t tokens = 0, sequences = 0, width = 0, rows = 0;  // T, S, blocks of the widest table, R
  bool sampled = false;
};
int64_t packed_step_words(const StepSizes& sizes);

// Writes the list out into arrays of fixed places (sized for the largest step), where the
// operations and recorded graphs read them. A negative token id -1 - r stands for the token that
// row r of the step before chose. With padded > T the step is one of decoding alone (T = S = R),
// and rows T .. padded - 1 become inert sequences of one token: slot -1, an empty context, the
// largest logit.
//   packed   i32 [packed_step_words(sizes)]
//   previous i32 [rows, kSampledRowWords]: SampledRow of the step before; may be empty if no token
//            id is negative
//   to       the arrays; block_tables [S, max_blocks], of which `width` columns are written
//   sample_rows i32 [R, kSampleRowWords]; may be empty if nothing is sampled
void unpack_step(const Exec& exec, const StepSizes& sizes, Tensor packed, Tensor previous,
                 int64_t padded, const BatchLayout& to, Tensor sample_rows);

}  // namespace m2::ops
