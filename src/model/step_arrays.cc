#include "model/step_arrays.h"

#include "ops/unpack_step.h"

namespace m2::model {

StepArrays place_step_arrays(Arena& arena, const StepLimits& limits, int64_t vocab, Device device) {
  const bool samples = ops::can_sample(device);
  const int64_t tokens = std::max(limits.tokens, limits.padded_rows);
  const int64_t sequences = std::max(limits.sequences, limits.padded_rows);
  const ops::StepSizes largest{limits.tokens, limits.sequences, limits.blocks_per_sequence,
                               limits.tokens, samples};
  StepArrays out;
  out.packed = arena.place(DType::i32, {ops::packed_step_words(largest)});
  out.layout.token_ids = arena.place(DType::i32, {tokens});
  out.layout.positions = arena.place(DType::i32, {tokens});
  out.layout.slots = arena.place(DType::i32, {tokens});
  out.layout.query_starts = arena.place(DType::i32, {sequences + 1});
  out.layout.context_lens = arena.place(DType::i32, {sequences});
  out.layout.block_tables = arena.place(DType::i32, {sequences, limits.blocks_per_sequence});
  out.layout.logit_rows = arena.place(DType::i32, {tokens});
  if (!samples) return out;
  out.sample_rows = arena.place(DType::i32, {tokens, ops::kSampleRowWords});
  out.edits = arena.place(DType::i32, {kMostEdits, ops::kLogitEditWords});
  out.masks = arena.place(DType::i32, {limits.sequences, (vocab + 31) / 32});
  out.scratch =
      arena.place(DType::u8, {ops::sample_scratch_bytes(device, limits.logit_rows, vocab)});
  out.samples = arena.place(DType::i32, {tokens, ops::kSampledRowWords});
  out.top_ids = arena.place(DType::i32, {tokens, limits.most_logprobs});
  out.top_logprobs = arena.place(DType::f32, {tokens, limits.most_logprobs});
  return out;
}

ops::BatchLayout layout_of(const StepArrays& arrays, int64_t tokens, int64_t sequences,
                           int64_t rows, int64_t width) {
  const ops::BatchLayout& whole = arrays.layout;
  ops::BatchLayout out;
  out.token_ids = whole.token_ids.rows(0, tokens);
  out.positions = whole.positions.rows(0, tokens);
  out.slots = whole.slots.rows(0, tokens);
  out.query_starts = whole.query_starts.rows(0, sequences + 1);
  out.context_lens = whole.context_lens.rows(0, sequences);
  out.block_tables = whole.block_tables.rows(0, sequences).columns(0, width);
  out.logit_rows = whole.logit_rows.rows(0, rows);
  return out;
}

}  // namespace m2::model
