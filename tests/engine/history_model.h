#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "engine/random.h"
#include "model/step_model.h"

namespace m2::engine::test {

// The hash of a history of tokens, grown one token at a time.
inline uint64_t extend(uint64_t history, int32_t token, int64_t position) {
  return mix64(history ^ (static_cast<uint64_t>(token) << 32) ^ static_cast<uint64_t>(position));
}

constexpr uint64_t kEmptyHistory = 0x6d32;

// The "logits" after a history: pseudo-random numbers in [-4, 4), and huge ones in the padding
// columns, so that a sampler that looks there is seen at once.
inline void history_logits(uint64_t history, int64_t id_limit, std::span<float> row) {
  uint64_t bits = history;
  for (size_t i = 0; i < row.size(); ++i) {
    if (i % 4 == 0) bits = mix64(history + i);
    row[i] = static_cast<float>((bits >> (16 * (i % 4))) & 0xffff) * 0x1p-13f - 4;
    if (static_cast<int64_t>(i) >= id_limit) row[i] = 1e30f;
  }
}

// A model whose every logits row is a function of the sequence's whole history as read back from
// paged storage: each slot keeps the token and position written there, and a row hashes what the
// block table leads to for positions 0..p. A wrong table, slot, stale or shared block changes the
// output, or is reported at once as a fault.
class HistoryModel : public model::StepModel {
 public:
  HistoryModel(const Limits& limits, int64_t id_limit)
      : limits_(limits),
        id_limit_(id_limit),
        cells_(static_cast<size_t>(limits.num_blocks * limits.block_size)) {}

  Limits limits() const override { return limits_; }

  // The next step fails.
  void break_next_step() { broken_ = true; }
  // Rows whose history hashes to a multiple of this are NaN; 0: none.
  void set_nan_every(uint64_t n) { nan_every_ = n; }
  // Logits are handed over in slices of at most this many rows.
  void set_slice(int64_t rows) { slice_ = rows; }

  int64_t steps() const { return steps_; }
  // The last step's size.
  int64_t tokens() const { return tokens_; }
  int64_t sequences() const { return sequences_; }
  // What was wrong with an input, if anything ever was.
  const std::string& fault() const { return fault_; }

  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override {
    if (broken_) return fail(Code::internal, "the device fell over");
    ++steps_;
    tokens_ = static_cast<int64_t>(input.token_ids.size());
    sequences_ = static_cast<int64_t>(input.context_lens.size());
    check_shape(input);
    for (int64_t s = 0; s < sequences_; ++s) store(input, s);
    for (int64_t s = 0; s < sequences_; ++s) check_private(input, s);
    hand_over(input, sink);
    return {};
  }

  bool is_nan(uint64_t history) const { return nan_every_ && history % nan_every_ == 0; }

  void logits_of(uint64_t history, std::span<float> row) const {
    history_logits(history, id_limit_, row);
    if (is_nan(history))
      row[history % static_cast<uint64_t>(id_limit_)] = std::numeric_limits<float>::quiet_NaN();
  }

 private:
  struct Cell {
    int32_t token = -1;
    int32_t position = -1;
  };

  void expect(bool good, const char* what) {
    if (!good && fault_.empty()) fault_ = what;
  }

  int32_t slot_at(const model::StepInput& input, int64_t sequence, int64_t position) const {
    const int64_t entry = sequence * input.max_blocks_per_sequence + position / limits_.block_size;
    const int32_t block = input.block_tables[static_cast<size_t>(entry)];
    return static_cast<int32_t>(block * limits_.block_size + position % limits_.block_size);
  }

  void check_shape(const model::StepInput& input) {
    const auto sequences = static_cast<size_t>(sequences_);
    const auto tokens = input.token_ids.size();
    expect(tokens > 0 && tokens_ <= limits_.max_step_tokens, "tokens of the step");
    expect(sequences_ <= limits_.max_sequences, "sequences of the step");
    expect(input.positions.size() == tokens && input.slots.size() == tokens, "token arrays");
    expect(input.query_starts.size() == sequences + 1, "query_starts");
    expect(input.query_starts.front() == 0, "query_starts begin");
    expect(input.query_starts.back() == static_cast<int32_t>(tokens), "query_starts end");
    expect(
        input.block_tables.size() == sequences * static_cast<size_t>(input.max_blocks_per_sequence),
        "block tables");
    for (size_t i = 1; i < input.logit_rows.size(); ++i)
      expect(input.logit_rows[i - 1] < input.logit_rows[i], "logit rows ascend");
  }

  void store(const model::StepInput& input, int64_t s) {
    const auto begin = input.query_starts[static_cast<size_t>(s)];
    const auto end = input.query_starts[static_cast<size_t>(s) + 1];
    const auto context = input.context_lens[static_cast<size_t>(s)];
    expect(begin < end, "a sequence without tokens");
    expect(context <= limits_.max_model_len, "a context longer than the model's");
    for (auto t = static_cast<size_t>(begin); t < static_cast<size_t>(end); ++t) {
      const int32_t position = context - end + static_cast<int32_t>(t);
      expect(input.positions[t] == position, "positions");
      expect(input.slots[t] == slot_at(input, s, position), "slot of a token");
      cells_[static_cast<size_t>(input.slots[t])] = {input.token_ids[t], input.positions[t]};
    }
  }

  // After all have written: what a sequence has just written must still be there (I3).
  void check_private(const model::StepInput& input, int64_t s) {
    const auto end = static_cast<size_t>(input.query_starts[static_cast<size_t>(s) + 1]);
    for (auto t = static_cast<size_t>(input.query_starts[static_cast<size_t>(s)]); t < end; ++t) {
      const Cell& cell = cells_[static_cast<size_t>(input.slots[t])];
      expect(cell.token == input.token_ids[t] && cell.position == input.positions[t],
             "two sequences wrote to one slot");
    }
  }

  uint64_t history(const model::StepInput& input, int64_t s, int32_t last) {
    uint64_t hash = kEmptyHistory;
    for (int32_t position = 0; position <= last; ++position) {
      const Cell& cell = cells_[static_cast<size_t>(slot_at(input, s, position))];
      expect(cell.position == position, "a stale block in a table");
      hash = extend(hash, cell.token, cell.position);
    }
    return hash;
  }

  void hand_over(const model::StepInput& input, model::LogitsSink& sink) {
    const auto rows = static_cast<int64_t>(input.logit_rows.size());
    const auto vocab = static_cast<size_t>(limits_.vocab_size);
    int64_t s = 0;
    for (int64_t first = 0; first < rows; first += slice_) {
      const int64_t count = std::min(slice_, rows - first);
      logits_.resize(static_cast<size_t>(count) * vocab);
      for (int64_t i = 0; i < count; ++i) {
        const int32_t t = input.logit_rows[static_cast<size_t>(first + i)];
        while (input.query_starts[static_cast<size_t>(s) + 1] <= t) ++s;
        logits_of(history(input, s, input.positions[static_cast<size_t>(t)]),
                  std::span(logits_).subspan(static_cast<size_t>(i) * vocab, vocab));
      }
      sink.on_logits(first, Tensor(logits_.data(), DType::f32, {count, limits_.vocab_size}));
    }
  }

  const Limits limits_;
  const int64_t id_limit_;
  std::vector<Cell> cells_;
  std::vector<float> logits_;
  bool broken_ = false;
  uint64_t nan_every_ = 0;
  int64_t slice_ = 1 << 20;
  int64_t steps_ = 0, tokens_ = 0, sequences_ = 0;
  std::string fault_;
};

}  // namespace m2::engine::test
