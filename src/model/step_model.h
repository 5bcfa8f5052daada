#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "tensor/tensor.h"

namespace m2::model {

// One step's work in host memory, as the engine plans it. See ops::BatchLayout for the meaning.
struct StepInput {
  std::span<const int32_t> token_ids;     // [T]
  std::span<const int32_t> positions;     // [T]
  std::span<const int32_t> slots;         // [T]
  std::span<const int32_t> query_starts;  // [S + 1]
  std::span<const int32_t> context_lens;  // [S]
  std::span<const int32_t> block_tables;  // [S * max_blocks_per_sequence], row-major
  int64_t max_blocks_per_sequence = 0;
  std::span<const int32_t> logit_rows;  // [R], ascending
};

// Receives a step's logits, slice after slice in ascending order.
class LogitsSink {
 public:
  virtual ~LogitsSink() = default;
  // logits f32 [n, vocab] in host memory: rows first_row.. of StepInput::logit_rows. May be changed
  // in place; valid only during the call.
  virtual void on_logits(int64_t first_row, Tensor logits) = 0;
};

// The model as the engine sees it: paged KV storage and a step. Virtual so that tests can script
// it. One thread.
class StepModel {
 public:
  struct Limits {
    int64_t vocab_size;       // columns of the logits
    int64_t num_blocks;       // KV blocks, ids 0..num_blocks-1
    int64_t block_size;       // tokens per block
    int64_t max_model_len;    // tokens of one sequence, prompt and output
    int64_t max_step_tokens;  // T of one step
    int64_t max_sequences;    // S of one step
  };

  virtual ~StepModel() = default;
  virtual Limits limits() const = 0;

  // Runs one step and hands the wanted logits to `sink` before it returns. An error is fatal to
  // every running request (a device fault); bad input is a bug.
  virtual Result<void> step(const StepInput& input, LogitsSink& sink) = 0;
};

}  // namespace m2::model
