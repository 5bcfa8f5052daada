#include "engine/step_batch.h"

#include <algorithm>

#include "base/check.h"

namespace m2::engine {

StepBatch::StepBatch(int64_t max_tokens, int64_t max_sequences, int64_t max_sequence_blocks,
                     int64_t block_size)
    : block_size_(block_size),
      block_tables_(static_cast<size_t>(max_sequences * max_sequence_blocks)) {
  for (auto* per_token : {&token_ids_, &positions_, &slots_, &logit_rows_})
    per_token->reserve(static_cast<size_t>(max_tokens));
  rows_.reserve(static_cast<size_t>(max_tokens));
  query_starts_.reserve(static_cast<size_t>(max_sequences) + 1);
  context_lens_.reserve(static_cast<size_t>(max_sequences));
}

const model::StepInput& StepBatch::build(std::span<const Scheduler::Share> plan) {
  for (auto* array :
       {&token_ids_, &positions_, &slots_, &query_starts_, &context_lens_, &logit_rows_})
    array->clear();
  rows_.clear();
  for (const Scheduler::Share& share : plan) add(share);
  query_starts_.push_back(static_cast<int32_t>(token_ids_.size()));
  input_.token_ids = token_ids_;
  input_.positions = positions_;
  input_.slots = slots_;
  input_.query_starts = query_starts_;
  input_.context_lens = context_lens_;
  input_.logit_rows = logit_rows_;
  add_block_tables(plan);
  return input_;
}

void StepBatch::add(const Scheduler::Share& share) {
  Sequence& sequence = *share.sequence;
  const int64_t end = sequence.computed + share.tokens;
  query_starts_.push_back(static_cast<int32_t>(token_ids_.size()));
  context_lens_.push_back(static_cast<int32_t>(end));
  for (int64_t position = sequence.computed; position < end; ++position) {
    const bool samples = position + 1 == sequence.size();
    const bool scores = sequence.params.prompt_logprobs >= 0 && position >= sequence.scored &&
                        position + 1 < sequence.prompt_size;
    if (samples || scores) {
      logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()));
      rows_.push_back({&sequence, position, samples});
    }
    const int64_t block = sequence.table.blocks[static_cast<size_t>(position / block_size_)];
    token_ids_.push_back(position < sequence.known ? sequence.tokens[static_cast<size_t>(position)]
                                                   : -1 - sequence.pending_row);
    positions_.push_back(static_cast<int32_t>(position));
    slots_.push_back(static_cast<int32_t>(block * block_size_ + position % block_size_));
  }
}

// Rows as wide as the longest table of the step, so that what travels to a device stays small.
void StepBatch::add_block_tables(std::span<const Scheduler::Share> plan) {
  size_t width = 0;
  for (const Scheduler::Share& share : plan)
    width = std::max(width, share.sequence->table.blocks.size());
  M2_CHECK(plan.size() * width <= block_tables_.size());
  auto row = block_tables_.begin();
  for (const Scheduler::Share& share : plan) {
    const auto& blocks = share.sequence->table.blocks;
    const auto end = std::ranges::copy(blocks, row).out;
    row += static_cast<std::ptrdiff_t>(width);
    std::fill(end, row, 0);
  }
  input_.max_blocks_per_sequence = static_cast<int64_t>(width);
  input_.block_tables = std::span(block_tables_).first(plan.size() * width);
}

}  // namespace m2::engine
