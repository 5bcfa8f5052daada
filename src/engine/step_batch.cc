#include "engine/step_batch.h"

#include <algorithm>

#include "base/check.h"

namespace m2::engine {
namespace {

// Sequences ahead of the one at work whose memory is asked for.
constexpr size_t kAhead = 8;

}  // namespace

StepBatch::StepBatch(int64_t max_tokens, int64_t max_sequences, int64_t max_sequence_blocks,
                     int64_t block_size)
    : block_size_(block_size),
      most_blocks_(static_cast<size_t>(max_sequence_blocks)),
      block_tables_(static_cast<size_t>(max_sequences * max_sequence_blocks)) {
  for (auto* per_token : {&token_ids_, &positions_, &slots_, &logit_rows_})
    per_token->reserve(static_cast<size_t>(max_tokens));
  rows_.reserve(static_cast<size_t>(max_tokens));
  query_starts_.reserve(static_cast<size_t>(max_sequences) + 1);
  context_lens_.reserve(static_cast<size_t>(max_sequences));
  pieces_.reserve(static_cast<size_t>(max_sequences));
  placed_.reserve(static_cast<size_t>(max_sequences));
}

void StepBatch::cut(std::span<const Scheduler::Share> plan) {
  pieces_.clear();
  for (const Scheduler::Share& share : plan) {
    const int64_t first = share.sequence->computed;
    pieces_.push_back({share.sequence, first, share.tokens, 0});
    for (int32_t ahead = 1; ahead <= share.drafted; ++ahead)
      pieces_.push_back({share.sequence, first + share.tokens - 1 + ahead, 1, ahead});
  }
}

const model::StepInput& StepBatch::build(std::span<const Scheduler::Share> plan) {
  cut(plan);
  size_t tokens = 0;
  for (const Piece& piece : pieces_) tokens += static_cast<size_t>(piece.tokens);
  for (auto* per_token : {&token_ids_, &positions_, &slots_}) per_token->resize(tokens);
  query_starts_.resize(pieces_.size() + 1);
  context_lens_.resize(pieces_.size());
  logit_rows_.clear();
  rows_.clear();
  query_starts_[0] = 0;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (i + kAhead < pieces_.size()) prefetch(pieces_[i + kAhead].sequence);
    query_starts_[i + 1] = query_starts_[i] + static_cast<int32_t>(pieces_[i].tokens);
    context_lens_[i] = static_cast<int32_t>(pieces_[i].first + pieces_[i].tokens);
    add(pieces_[i], static_cast<size_t>(query_starts_[i]));
  }
  input_.token_ids = token_ids_;
  input_.positions = positions_;
  input_.slots = slots_;
  input_.query_starts = query_starts_;
  input_.context_lens = context_lens_;
  input_.logit_rows = logit_rows_;
  add_block_tables();
  return input_;
}

void StepBatch::add(const Piece& piece, size_t at) {
  Sequence& sequence = *piece.sequence;
  const int64_t end = piece.first + piece.tokens;
  for (int64_t position = piece.first; position < end; ++position, ++at) {
    const bool samples = position + 1 == sequence.size() + piece.ahead;
    const bool scores = sequence.params.prompt_logprobs >= 0 && position >= sequence.scored &&
                        position + 1 < sequence.prompt_size;
    if (samples || scores) {
      logit_rows_.push_back(static_cast<int32_t>(at));
      const SamplingParams& params = sequence.params;
      rows_.push_back({&sequence, position, samples,
                       samples ? params.logprobs : params.prompt_logprobs, piece.ahead});
    }
    const int64_t index = position / block_size_;
    // As a rule the last one, which stands where nothing else need be fetched for it.
    const int64_t block = index + 1 == std::ssize(sequence.table.blocks)
                              ? sequence.table.last
                              : sequence.table.blocks[static_cast<size_t>(index)];
    if (piece.ahead > 0)
      token_ids_[at] = sequence.draft->tokens[static_cast<size_t>(piece.ahead) - 1];
    else
      token_ids_[at] =
          position < sequence.known() ? sequence.tokens[position] : -1 - sequence.pending_row;
    positions_[at] = static_cast<int32_t>(position);
    slots_[at] = static_cast<int32_t>((block - index) * block_size_ + position);
  }
}

// Rows as wide as the longest table of the step, so that what travels to a device stays small. A
// row whose sequence was there in the step before has all but the newest blocks already: copying
// them all would be most of a large step's work. Widths grow in strides, since another width moves
// every row.
void StepBatch::add_block_tables() {
  constexpr size_t kStride = 8;
  size_t longest = 0;
  for (const Piece& piece : pieces_)
    longest = std::max(longest, piece.sequence->table.blocks.size());
  const size_t width =
      std::min((longest + kStride - 1) / kStride * kStride, std::max(longest, most_blocks_));
  M2_CHECK(pieces_.size() * width <= block_tables_.size());
  if (width != width_) placed_.clear();
  width_ = width;
  placed_.resize(pieces_.size());
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Sequence& sequence = *pieces_[i].sequence;
    const auto& blocks = sequence.table.blocks;
    Placed& placed = placed_[i];
    const auto row = block_tables_.begin() + static_cast<std::ptrdiff_t>(i * width);
    if (placed.admission != sequence.admission || placed.blocks > blocks.size()) {
      std::fill(row, row + static_cast<std::ptrdiff_t>(width), 0);
      placed = {sequence.admission, 0};
    }
    const auto known = static_cast<std::ptrdiff_t>(placed.blocks);
    std::copy(blocks.begin() + known, blocks.end(), row + known);
    placed.blocks = blocks.size();
  }
  input_.max_blocks_per_sequence = static_cast<int64_t>(width);
  input_.block_tables = std::span(block_tables_).first(pieces_.size() * width);
}

}  // namespace m2::engine
