#include "app/doctor/small_model.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/runner.h"
#include "ops/quantised.h"

namespace m2::app::doctor {
namespace {

// The released model's shapes, narrow: heads of 128, FP8 blocks, grouped heads, a partial rotary.
model::ModelConfig small_model() {
  model::ModelConfig config;
  config.hidden_size = 512;
  config.intermediate_size = 256;
  config.num_layers = 4;
  config.num_heads = 12;
  config.num_kv_heads = 2;
  config.head_dim = 128;
  config.rotary_dim = 64;
  config.rope_theta = 5e6;
  config.max_position_embeddings = 512;
  config.rms_norm_eps = 1e-6;
  config.num_experts = 16;
  config.num_experts_per_token = 4;
  config.vocab_size = 2048;
  config.fp8_blocks = true;
  return config;
}

class Collect : public model::LogitsSink {
 public:
  void on_logits(int64_t, Tensor logits) override {
    for (int64_t r = 0; r < logits.size(0); ++r) {
      const float* row = logits.as<float>() + r * logits.row_stride();
      rows.emplace_back(row, row + logits.size(1));
    }
  }
  Rows rows;
};

// The logits of a prompt's tokens and of some decoded after it, from random weights that are the
// same on every device.
Result<Rows> run_small_model(const Machine& machine) {
  constexpr size_t kPrompt = 48, kDecoded = 16;
  const model::ModelConfig config = small_model();
  M2_TRY(model::Weights weights, model::dummy_weights(config, {}, machine.device, 1));
  std::mt19937 random(1);
  std::vector<int32_t> tokens(kPrompt + kDecoded);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 2048);
  return run_tokens(machine, config, std::move(weights), std::span(tokens).first(kPrompt),
                    std::span(tokens).last(kDecoded));
}

}  // namespace

Result<Rows> run_tokens(const Machine& machine, const model::ModelConfig& config,
                        model::Weights weights, std::span<const int32_t> prompt,
                        std::span<const int32_t> following) {
  std::vector<int32_t> tokens(prompt.begin(), prompt.end());
  tokens.insert(tokens.end(), following.begin(), following.end());
  const auto total = static_cast<int32_t>(tokens.size());
  model::MemoryRequest request;
  request.max_model_len = total;
  request.max_num_seqs = 1;
  request.max_num_batched_tokens = std::ssize(prompt);
  request.num_blocks = (total + model::kBlockSize - 1) / model::kBlockSize;
  M2_TRY(const model::MemoryPlan plan,
         model::plan_memory(config, weights, request, machine.device));
  const auto comm = parallel::make_single_comm();
  const auto runner = model::make_runner(machine.exec, {{*comm}}, config, std::move(weights), plan,
                                         request.max_model_len);
  std::vector<int32_t> blocks(static_cast<size_t>(request.num_blocks));
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  Collect sink;
  for (int32_t begin = 0; begin < total;) {
    const int32_t end = begin == 0 ? static_cast<int32_t>(prompt.size()) : begin + 1;
    std::vector<int32_t> positions, slots, rows;
    for (int32_t p = begin; p < end; ++p) {
      positions.push_back(p);
      slots.push_back(blocks[static_cast<size_t>(p / 16)] * 16 + p % 16);
      rows.push_back(p - begin);
    }
    const std::vector<int32_t> starts{0, end - begin}, lens{end};
    const auto ids = std::span(tokens).subspan(static_cast<size_t>(begin), positions.size());
    M2_TRY_VOID(runner->step(
        {ids, positions, slots, starts, lens, blocks, request.num_blocks, rows}, sink));
    begin = end;
  }
  return sink.rows;
}

Distances distances(const Rows& a, const Rows& b) {
  M2_CHECK(a.size() == b.size() && !a.empty(), "{} rows, {} expected", a.size(), b.size());
  std::vector<double> all;
  for (size_t r = 0; r < a.size(); ++r) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a[r].size(); ++i) {
      difference += std::pow(static_cast<double>(a[r][i]) - static_cast<double>(b[r][i]), 2);
      norm += std::pow(static_cast<double>(b[r][i]), 2);
    }
    all.push_back(std::sqrt(difference / norm));
  }
  std::ranges::sort(all, [](double x, double y) { return std::isnan(y) ? !std::isnan(x) : x < y; });
  return {all[all.size() / 2], all.back()};
}

double tolerance_of(Device device) {
  // BF16 activations round by 0.4 % several times a layer, those that products with FP8 weights
  // take as FP8 by some 3 % each.
  if (device.kind == DeviceKind::cpu) return 0.01;
  return ops::wants_quantised(device) ? 0.06 : 0.03;
}

Result<Distances> compare_with_cpu(const Machine& machine, ThreadPool& pool) {
  M2_TRY(const Rows here, run_small_model(machine));
  M2_TRY(const Rows expected, run_small_model(Machine(Device{}, pool)));
  return distances(here, expected);
}

}  // namespace m2::app::doctor
