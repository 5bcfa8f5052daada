#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "engine/step_batch.h"
#include "model/step_model.h"

namespace m2::engine {

// Whether the next token of this sequence depends on which tokens are still being computed, and not
// only on how many: then its next step cannot be enqueued before the present one is collected.
bool depends_on_pending(const Sequence& sequence);
// Whether that can ever become true.
bool may_depend_on_pending(const Sequence& sequence);

// What the rows of a batch ask for, written out for a model that samples on its device. Equal to
// what engine::Sampler would do.
class StepSampling {
 public:
  // `limits` of the model.
  StepSampling(const model::StepModel::Limits& limits, std::vector<TokenId> eos_token_ids,
               int64_t max_rows);

  // False if the host has to sample: the rows change more logits than one step may, or one wants
  // logprobs of what its constraint leaves. No constraint has been asked then. Constraints fill
  // their masks on the pool's threads; every token of their sequences is known.
  bool build(std::span<const StepBatch::Row> rows, ThreadPool& pool);
  // Good until the next build().
  model::StepSampling view() const { return {rows_, edits_, masks_}; }

 private:
  void add_row(const StepBatch::Row& row);
  int32_t add_mask_row();
  std::span<uint32_t> mask_of(const ops::SampleRow& row);
  void fill_masks(ThreadPool& pool);
  void add_edits(Sequence& sequence, int64_t before, ops::SampleRow& row);
  void add_mask(const std::vector<TokenId>& allowed, ops::SampleRow& row);
  void edit(TokenId id, uint32_t flags, float bias = 0, float penalty = 0);

  const model::StepModel::Limits limits_;
  const std::vector<TokenId> eos_token_ids_;
  std::vector<ops::SampleRow> rows_;
  std::vector<ops::LogitEdit> edits_;
  std::vector<uint32_t> masks_;
  // Rows of a sequence with a constraint: the next token's, and one behind each that is drafted.
  struct Constrained {
    size_t row;
    size_t rows;
    Sequence* sequence;
    bool limited;  // their masks hold the ids that the request allows
  };
  void fill_mask(const Constrained& one, size_t index, std::vector<uint32_t>& words);
  std::vector<Constrained> constrained_;
  std::vector<std::vector<uint32_t>> words_;  // of each thread
};

}  // namespace m2::engine
