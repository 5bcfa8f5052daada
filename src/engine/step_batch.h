#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/scheduler.h"
#include "model/step_model.h"

namespace m2::engine {

// A plan written out as the arrays a model step reads. Sized once; building allocates nothing.
class StepBatch {
 public:
  // A row of logits and what it is for.
  struct Row {
    Sequence* sequence;  // null once it has ended
    int64_t position;    // of the token whose row this is: it tells what stands at position + 1
    bool samples;        // the next token; else only the logprobs of the prompt's next
    int32_t logprobs;    // how many top ones are asked for; -1: none at all
    int32_t ahead = 0;   // tokens of its sequence's draft up to this one's: if they come, it counts
  };

  // `max_sequences`: of the model's step, in which each drafted token is one of its own.
  // `max_sequence_blocks`: of one block table.
  StepBatch(int64_t max_tokens, int64_t max_sequences, int64_t max_sequence_blocks,
            int64_t block_size);

  // Good until the next call. Tokens that the step under way is choosing are written as -1 - row.
  // A drafted token is a sequence of one token, whose context ends with it: its numbers are those
  // of a step of decoding.
  const model::StepInput& build(std::span<const Scheduler::Share> plan);
  std::span<const Row> rows() const { return rows_; }

 private:
  // What stands in a step as one sequence: tokens of a share, or one that is drafted.
  struct Piece {
    Sequence* sequence;
    int64_t first;  // position
    int64_t tokens;
    int32_t ahead;  // as in Row
  };

  void cut(std::span<const Scheduler::Share> plan);
  void add(const Piece& piece, size_t at);
  void add_block_tables();

  // What a row of the block tables holds.
  struct Placed {
    uint64_t admission = UINT64_MAX;  // of its sequence
    size_t blocks = 0;
  };

  const int64_t block_size_;
  const size_t most_blocks_;  // of one block table
  size_t width_ = 0;          // of the rows of block_tables_
  std::vector<Piece> pieces_;
  std::vector<Placed> placed_;
  std::vector<int32_t> token_ids_, positions_, slots_;
  std::vector<int32_t> query_starts_, context_lens_, block_tables_, logit_rows_;
  std::vector<Row> rows_;
  model::StepInput input_;
};

}  // namespace m2::engine
