#include "engine/step_sampling.h"

#include <algorithm>
#include <atomic>

#include "engine/random.h"
#include "engine/sampler.h"

namespace m2::engine {

using ops::LogitEdit;

namespace {

// Whether a word's last token is forbidden only behind its others. That of a word of one token
// always is.
bool has_long_bad_words(const SamplingParams& params) {
  return std::ranges::any_of(params.bad_words, [](const auto& word) { return word.size() > 1; });
}

}  // namespace

bool depends_on_pending(const Sequence& sequence) {
  const SamplingParams& params = sequence.params;
  return has_penalties(params) || has_long_bad_words(params) ||
         sequence.output_size() == params.thinking_budget;
}

bool may_depend_on_pending(const Sequence& sequence) {
  const SamplingParams& params = sequence.params;
  return has_penalties(params) || has_long_bad_words(params) || params.thinking_budget >= 0;
}

StepSampling::StepSampling(const model::StepModel::Limits& limits,
                           std::vector<TokenId> eos_token_ids, int64_t max_rows)
    : limits_(limits), eos_token_ids_(std::move(eos_token_ids)) {
  rows_.reserve(static_cast<size_t>(max_rows));
}

bool StepSampling::build(std::span<const StepBatch::Row> rows, ThreadPool& pool) {
  rows_.clear();
  edits_.clear();
  masks_.clear();
  constrained_.clear();
  for (const StepBatch::Row& row : rows) {
    if (row.samples && row.sequence->constraint && row.sequence->params.logprobs >= 0) return false;
    add_row(row);
    if (std::ssize(edits_) > limits_.most_edits) return false;
  }
  fill_masks(pool);
  return true;
}

void StepSampling::fill_masks(ThreadPool& pool) {
  if (constrained_.empty()) return;
  words_.resize(static_cast<size_t>(pool.size()));
  const auto fill = [&](const Constrained& one, int thread) {
    std::vector<uint32_t>& words = words_[static_cast<size_t>(thread)];
    fill_mask(one, 0, words);
    if (one.rows > 1)
      on_trial(*one.sequence->constraint, one.sequence->draft->drafted(),
               [&](size_t i) { fill_mask(one, i + 1, words); });
  };
  if (constrained_.size() == 1) return fill(constrained_.front(), 0);
  std::atomic<size_t> next{0};
  pool.run([&](int thread) {
    for (size_t i = next++; i < constrained_.size(); i = next++) fill(constrained_[i], thread);
  });
}

// The mask of the `index`-th row, from what its constraint has accepted by now.
void StepSampling::fill_mask(const Constrained& one, size_t index, std::vector<uint32_t>& words) {
  ops::SampleRow& row = rows_[one.row + index];
  TokenConstraint& constraint = *one.sequence->constraint;
  if (!one.limited) {
    if (!constraint.fill(mask_of(row))) row.mask = -1;
    return;
  }
  words.resize(static_cast<size_t>(limits_.mask_words));
  if (!constraint.fill(words)) return;
  const std::span<uint32_t> mask = mask_of(row);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] &= words[i];
}

void StepSampling::add_row(const StepBatch::Row& batch_row) {
  Sequence& sequence = *batch_row.sequence;
  const SamplingParams& params = sequence.params;
  ops::SampleRow& row = rows_.emplace_back();
  if (!batch_row.samples) {
    row.given = sequence.tokens[batch_row.position + 1];
    row.logprobs = params.prompt_logprobs;
    return;
  }
  row.logprobs = params.logprobs;
  const int64_t before = sequence.output_size() + batch_row.ahead;  // tokens of the output
  // Then all of the output is known, and at no other time is it looked at.
  if (before == params.thinking_budget)
    row.given = forced_token({params, sequence.output(), &sequence.counts, sequence.seed});
  if (row.given >= 0) return;
  row.temperature = params.temperature;
  row.top_p = params.top_p;
  row.top_k = params.top_k;
  row.min_p = params.min_p;
  row.repetition_penalty = params.repetition_penalty;
  const NoiseKey key = noise_key(sequence.seed, static_cast<uint64_t>(before));
  row.noise_first = key.first;
  row.noise_second = key.second;
  if (!params.allowed_token_ids.empty()) add_mask(params.allowed_token_ids, row);
  if (sequence.constraint) {
    const bool limited = row.mask >= 0;
    if (!limited) row.mask = add_mask_row();
    if (batch_row.ahead > 0)
      ++constrained_.back().rows;
    else
      constrained_.push_back({rows_.size() - 1, 1, &sequence, limited});
  }
  add_edits(sequence, before, row);
}

int32_t StepSampling::add_mask_row() {
  const auto row = static_cast<int32_t>(std::ssize(masks_) / limits_.mask_words);
  masks_.resize(masks_.size() + static_cast<size_t>(limits_.mask_words));
  return row;
}

std::span<uint32_t> StepSampling::mask_of(const ops::SampleRow& row) {
  const auto words = static_cast<size_t>(limits_.mask_words);
  return {masks_.data() + static_cast<size_t>(row.mask) * words, words};
}

void StepSampling::add_mask(const std::vector<TokenId>& allowed, ops::SampleRow& row) {
  row.mask = add_mask_row();
  const std::span<uint32_t> words = mask_of(row);
  for (const TokenId id : allowed) words[static_cast<size_t>(id / 32)] |= uint32_t{1} << (id % 32);
}

void StepSampling::edit(TokenId id, uint32_t flags, float bias, float penalty) {
  edits_.push_back({id, bias, penalty, flags});
}

// `before`: tokens of the output in front of the row's.
void StepSampling::add_edits(Sequence& sequence, int64_t before, ops::SampleRow& row) {
  const SamplingParams& params = sequence.params;
  const auto begin = std::ssize(edits_);
  for (const std::vector<TokenId>& word : params.bad_words) {
    if (completes(word, sequence.output())) edit(word.back(), LogitEdit::kMasked);
  }
  if (before < params.min_tokens) {
    for (const TokenId id : eos_token_ids_) edit(id, LogitEdit::kMasked);
    for (const TokenId id : params.stop_token_ids) edit(id, LogitEdit::kMasked);
  }
  for (const auto& [id, bias] : params.logit_bias) edit(id, 0, bias);
  if (has_penalties(params)) {
    for (const auto& [id, seen] : sequence.counts.seen()) {
      const float presence = seen.in_output > 0 ? params.presence_penalty : 0;
      edit(id, LogitEdit::kPenalised | LogitEdit::kRepeated, 0,
           params.frequency_penalty * static_cast<float>(seen.in_output) + presence);
    }
  }
  // Ascending, and one edit for each id.
  std::sort(edits_.begin() + begin, edits_.end(),
            [](const LogitEdit& a, const LogitEdit& b) { return a.id < b.id; });
  auto last = edits_.begin() + begin;
  for (auto next = last; next != edits_.end(); ++next) {
    if (next == last) continue;
    if (next->id != last->id) {
      *++last = *next;
      continue;
    }
    last->bias += next->bias;
    last->penalty += next->penalty;
    last->flags |= next->flags;
  }
  if (last != edits_.end()) edits_.erase(last + 1, edits_.end());
  row.first_edit = static_cast<int32_t>(begin);
  row.edits = static_cast<int32_t>(std::ssize(edits_) - begin);
}

}  // namespace m2::engine
