#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/runner.h"
#include "ops/instruction_set.h"
#include "parallel/comm.h"

// A small model with random weights behind the real runner, and the simplest way to run it.

namespace m2::model {

// FP8 blocks that are ragged on both axes, several layers, grouped heads, a partial rotary.
inline ModelConfig small_config() {
  ModelConfig config;
  config.hidden_size = 192;
  config.intermediate_size = 144;
  config.num_layers = 3;
  config.num_heads = 6;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.rotary_dim = 16;
  config.rope_theta = 10000;
  config.max_position_embeddings = 512;
  config.rms_norm_eps = 1e-6;
  config.num_experts = 8;
  config.num_experts_per_token = 3;
  config.vocab_size = 160;
  config.fp8_blocks = true;
  config.eos_token_ids = {1};
  return config;
}

// The largest step and the KV that tests need.
inline MemoryRequest small_memory(const ModelConfig& config) {
  MemoryRequest request;
  request.max_model_len = config.max_position_embeddings;
  request.max_num_seqs = 8;
  request.max_num_batched_tokens = 128;
  request.num_blocks = 64;
  request.available_bytes = int64_t{1} << 30;
  return request;
}

// Random weights of which the routing bias often decides; dummy_weights' hardly does.
inline Weights random_weights(const ModelConfig& config, const parallel::Topology& topology = {},
                              Device device = {}) {
  Result<Weights> weights = dummy_weights(config, topology, device, 7);
  M2_CHECK(weights.ok(), "{}", weights.error().text);
  const Exec exec{device, nullptr, nullptr};
  std::vector<float> bias(static_cast<size_t>(config.num_experts));
  const int64_t bytes = config.num_experts * 4;
  for (const Layer& layer : weights->layers) {
    copy_to_host(exec, bias.data(), layer.routing_bias.data(), bytes);
    synchronize(exec);
    for (float& of_expert : bias) of_expert *= 10;
    copy_to_device(exec, layer.routing_bias.data(), bias.data(), bytes);
    synchronize(exec);
  }
  return *std::move(weights);
}

// Runs body(rounds_inputs) once for each way this machine has to compute: with the inputs of
// products rounded to BF16 (tiles), and in FP32. The name of the instruction set is in the trace.
template <class Body>
void for_each_arithmetic(Body&& body) {
  bool done[2] = {};
  for (const std::string_view set : ops::instruction_sets()) {
    M2_CHECK(ops::choose_instruction_set(set).ok());
    const bool rounds = ops::cpu::use_tiles();
    if (std::exchange(done[rounds], true)) continue;
    SCOPED_TRACE(std::string(set));
    body(rounds);
  }
  M2_CHECK(ops::choose_instruction_set("auto").ok());
}

// One piece of a sequence for a step: tokens from position `begin` on, in the sequence's own
// blocks.
struct Chunk {
  std::vector<int32_t> tokens;
  int32_t begin = 0;
  std::vector<int32_t> blocks;
};

using Rows = std::vector<std::vector<float>>;

// The arrays of a step that wants the logits of every token of the chunks, in order.
class StepArrays {
 public:
  explicit StepArrays(const std::vector<Chunk>& chunks) {
    for (const Chunk& chunk : chunks) widest_ = std::max(widest_, chunk.blocks.size());
    for (const Chunk& chunk : chunks) {
      for (size_t i = 0; i < chunk.tokens.size(); ++i) {
        const int32_t position = chunk.begin + static_cast<int32_t>(i);
        rows_.push_back(static_cast<int32_t>(ids_.size()));
        ids_.push_back(chunk.tokens[i]);
        positions_.push_back(position);
        slots_.push_back(chunk.blocks.at(static_cast<size_t>(position / 16)) * 16 + position % 16);
      }
      starts_.push_back(static_cast<int32_t>(ids_.size()));
      lens_.push_back(chunk.begin + static_cast<int32_t>(chunk.tokens.size()));
      std::vector<int32_t> row = chunk.blocks;
      row.resize(widest_, -1);
      tables_.insert(tables_.end(), row.begin(), row.end());
    }
  }

  StepInput input() const {
    StepInput out;
    out.token_ids = ids_;
    out.positions = positions_;
    out.slots = slots_;
    out.query_starts = starts_;
    out.context_lens = lens_;
    out.block_tables = tables_;
    out.max_blocks_per_sequence = static_cast<int64_t>(widest_);
    out.logit_rows = rows_;
    return out;
  }

 private:
  size_t widest_ = 1;
  std::vector<int32_t> ids_, positions_, slots_, starts_{0}, lens_, tables_, rows_;
};

// Keeps the logits of a step.
class RowsSink : public LogitsSink {
 public:
  Rows take() { return std::exchange(rows_, {}); }

 private:
  void on_logits(int64_t first_row, Tensor logits) override {
    M2_CHECK(first_row == static_cast<int64_t>(rows_.size()));
    for (int64_t r = 0; r < logits.size(0); ++r) {
      const float* row = logits.as<float>() + r * logits.row_stride();
      rows_.emplace_back(row, row + logits.size(1));
    }
  }
  Rows rows_;
};

class SmallModel {
 public:
  explicit SmallModel(const ModelConfig& config, Weights weights, int threads = 2,
                      DType kv_dtype = DType::bf16, const RunnerOptions& options = {})
      : pool_(threads), comm_(parallel::make_single_comm()) {
    const Exec exec{Device{}, &pool_, nullptr};
    MemoryRequest request = small_memory(config);
    request.kv_dtype = kv_dtype;
    Result<MemoryPlan> plan = plan_memory(config, weights, request, exec.device);
    M2_CHECK(plan.ok(), "{}", plan.error().text);
    model_ = make_runner(exec, {{*comm_}}, config, std::move(weights), *plan, request.max_model_len,
                         options);
  }

  // The logits of every token of the chunks, in order.
  Rows run(const std::vector<Chunk>& chunks) {
    RowsSink sink;
    const Result<void> done = model_->step(StepArrays(chunks).input(), sink);
    M2_CHECK(done.ok(), "{}", done.error().text);
    return sink.take();
  }

 private:
  ThreadPool pool_;
  std::unique_ptr<parallel::Comm> comm_;
  std::unique_ptr<StepModel> model_;
};

// |a - b| / |b| of one row of logits.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

}  // namespace m2::model
