#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "model/config.h"
#include "model/forward.h"
#include "model/step_model.h"

// MiniMax-M2's full width, and steps of it as the engine would plan them.

namespace m2::model {

inline ModelConfig full_width(int64_t layers, int64_t experts) {
  ModelConfig config;
  config.hidden_size = 3072;
  config.intermediate_size = 1536;
  config.num_layers = layers;
  config.num_heads = 48;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.rotary_dim = 64;
  config.rope_theta = 5e6;
  config.max_position_embeddings = 196608;
  config.rms_norm_eps = 1e-6;
  config.num_experts = experts;
  config.num_experts_per_token = 8;
  config.vocab_size = 200064;
  config.fp8_blocks = true;
  return config;
}

// A run of one sequence's tokens.
struct Piece {
  int64_t sequence, begin, count;
  bool follows = false;  // its token is the one that its row of the step before chose
};

// A step of random tokens, sampled at temperature 1, top_k 40, top_p 0.95. Sequences have blocks of
// their own, `per_sequence` each.
class MadeStep {
 public:
  explicit MadeStep(int64_t per_sequence) : per_sequence_(per_sequence) {}

  // `all_rows`: else the last piece's row is left out, so that it is no step that was recorded.
  StepInput make(const std::vector<Piece>& pieces, bool all_rows = true) {
    for (auto* array : {&ids_, &positions_, &slots_, &starts_, &lens_, &tables_, &rows_})
      array->clear();
    starts_.push_back(0);
    int64_t width = 0;
    for (const Piece& piece : pieces)
      width = std::max(width, (piece.begin + piece.count + kBlockSize - 1) / kBlockSize);
    for (size_t p = 0; p < pieces.size(); ++p) add(pieces[p], static_cast<int32_t>(p), width);
    if (!all_rows) rows_.pop_back();
    sampling_.assign(rows_.size(), {});
    for (ops::SampleRow& row : sampling_) {
      row.temperature = 1;
      row.top_k = 40;
      row.top_p = 0.95f;
      row.noise_first = static_cast<uint32_t>(random_());
    }
    return {ids_, positions_, slots_, starts_, lens_, tables_, width, rows_};
  }

  // Of the step made last.
  StepSampling sampling() const { return {sampling_, {}, {}}; }

 private:
  void add(const Piece& piece, int32_t row, int64_t width) {
    for (int64_t i = piece.begin; i < piece.begin + piece.count; ++i) {
      ids_.push_back(piece.follows ? -1 - row : static_cast<int32_t>(random_() % 200000));
      positions_.push_back(static_cast<int32_t>(i));
      slots_.push_back(static_cast<int32_t>(block_of(piece.sequence, i / kBlockSize) * kBlockSize +
                                            i % kBlockSize));
    }
    starts_.push_back(static_cast<int32_t>(ids_.size()));
    lens_.push_back(static_cast<int32_t>(piece.begin + piece.count));
    rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
    for (int64_t b = 0; b < width; ++b)
      tables_.push_back(static_cast<int32_t>(block_of(piece.sequence, b)));
  }
  int64_t block_of(int64_t sequence, int64_t block) const {
    return block < per_sequence_ ? sequence * per_sequence_ + block : block;
  }

  const int64_t per_sequence_;
  std::mt19937 random_{1};
  std::vector<int32_t> ids_, positions_, slots_, starts_, lens_, tables_, rows_;
  std::vector<ops::SampleRow> sampling_;
};

}  // namespace m2::model
