#pragma once

#include <cstdint>
#include <span>

#include "base/result.h"
#include "ops/sample_row.h"
#include "tensor/tensor.h"

namespace m2::model {

// One step's work in host memory, as the engine plans it. See ops::BatchLayout for the meaning.
struct StepInput {
  std::span<const int32_t> token_ids;     // [T]; enqueue() takes -1 - r for the token that row r
                                          // of the step enqueued before will choose
  std::span<const int32_t> positions;     // [T]
  std::span<const int32_t> slots;         // [T]
  std::span<const int32_t> query_starts;  // [S + 1]
  std::span<const int32_t> context_lens;  // [S]
  std::span<const int32_t> block_tables;  // [S * max_blocks_per_sequence], row-major
  int64_t max_blocks_per_sequence = 0;
  std::span<const int32_t> logit_rows;  // [R], ascending
  // Tokens of this step of each engine, where engines share experts and step together; T of one
  // without work is 0. Filled in by engine/ranks.
  std::span<const int64_t> engine_tokens{};
};

// Receives a step's logits, slice after slice in ascending order.
class LogitsSink {
 public:
  virtual ~LogitsSink() = default;
  // logits f32 [n, vocab] in host memory: rows first_row.. of StepInput::logit_rows. May be changed
  // in place; valid only during the call.
  virtual void on_logits(int64_t first_row, Tensor logits) = 0;
};

// How the rows of a step are sampled on the device (ops/sample.h).
struct StepSampling {
  std::span<const ops::SampleRow> rows;  // one for each of StepInput::logit_rows
  std::span<const ops::LogitEdit> edits;
  std::span<const uint32_t> masks;  // rows of Limits::mask_words
};

// What a step sampled, in host memory; good until the next collect().
struct StepResult {
  std::span<const ops::SampledRow> rows;
  std::span<const int32_t> top_ids;  // [rows, most_logprobs], -1 after a row's last
  std::span<const float> top_logprobs;
  int64_t most_logprobs = 0;
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
    // Of models that sample:
    int64_t most_edits = 0;     // StepSampling::edits of one step
    int64_t mask_words = 0;     // of one row of StepSampling::masks; max_sequences rows at most
    int64_t most_logprobs = 0;  // SampleRow::logprobs
  };

  virtual ~StepModel() = default;
  virtual Limits limits() const = 0;

  // Runs one step and hands the wanted logits to `sink` before it returns. An error is fatal to
  // every running request (a device fault); bad input is a bug.
  virtual Result<void> step(const StepInput& input, LogitsSink& sink) = 0;

  // Called while there is nothing to run, about once a second and when the engine is woken: time to
  // see to other ranks and engines. True: call again at once. An error is as fatal as a step's.
  virtual Result<bool> idle() { return false; }

  // Models that sample on their device run ahead of the host: enqueue() returns while the step
  // runs, and collect() waits for the oldest step enqueued and not yet collected. At most
  // kMostInFlight steps may be between the two; step() only when there is none.
  static constexpr int kMostInFlight = 2;
  virtual bool samples() const { return false; }
  virtual void enqueue(const StepInput&, const StepSampling&) {
    M2_CHECK(false, "this model does not sample");
  }
  virtual Result<StepResult> collect() {
    return fail(Code::internal, "this model does not sample");
  }
};

}  // namespace m2::model
