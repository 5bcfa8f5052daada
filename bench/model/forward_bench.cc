// Measures whole steps of the model on the CPU: decoding one token at batch 1 and a prompt of 512,
// at M2's widths with few layers and experts so that the weights fit in memory and not in the
// cache. Decode is a share of the read bandwidth measured in the same run; the prompt is a ratio to
// decode.
//   forward_bench [LAYERS [EXPERTS [THREADS]]]
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/model/full_width.h"
#include "model/memory_plan.h"
#include "model/runner.h"
#include "ops/ceilings.h"
#include "ops/instruction_set.h"

namespace {

using namespace m2;
using namespace m2::model;

constexpr int64_t kPrompt = 512;

ModelConfig config_of(int64_t layers, int64_t experts) {
  ModelConfig config = full_width(layers, experts);
  config.max_position_embeddings = 2048;
  config.vocab_size = 2048;
  return config;
}

// Weight bytes one decoded token reads: everything but the embedding and the experts not chosen.
int64_t decode_bytes(const ModelConfig& config) {
  const int64_t attention = 2 * config.hidden_size * (config.q_width() + config.kv_width());
  const int64_t experts =
      config.num_experts_per_token * 3 * config.hidden_size * config.intermediate_size;
  const int64_t router = 4 * config.num_experts * config.hidden_size;
  return config.num_layers * (attention + experts + router) +
         2 * config.vocab_size * config.hidden_size;
}

class Ignore : public LogitsSink {
  void on_logits(int64_t, Tensor) override {}
};

// One sequence in consecutive blocks.
class Sequence {
 public:
  Sequence(StepModel& model, const ModelConfig& config) : model_(model), config_(config) {
    blocks_.resize(static_cast<size_t>(config.max_position_embeddings / kBlockSize));
    std::iota(blocks_.begin(), blocks_.end(), 0);
  }

  // Runs `count` random tokens from position `begin` on, and the logits of the last.
  void run(int64_t begin, int64_t count) {
    std::vector<int32_t> ids, positions, slots;
    for (int64_t p = begin; p < begin + count; ++p) {
      ids.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(config_.vocab_size)));
      positions.push_back(static_cast<int32_t>(p));
      slots.push_back(static_cast<int32_t>(p));
    }
    const std::vector<int32_t> starts{0, static_cast<int32_t>(count)};
    const std::vector<int32_t> lens{static_cast<int32_t>(begin + count)};
    const std::vector<int32_t> rows{static_cast<int32_t>(count - 1)};
    Ignore sink;
    const Result<void> done = model_.step(
        {ids, positions, slots, starts, lens, blocks_, static_cast<int64_t>(blocks_.size()), rows},
        sink);
    M2_CHECK(done.ok());
  }

 private:
  StepModel& model_;
  const ModelConfig& config_;
  std::vector<int32_t> blocks_;
  std::mt19937_64 random_{1};
};

// Of memory that was written to, so that it is there.
double measured_bandwidth(const Exec& exec) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const Buffer memory(exec.device, kBytes);
  std::fill_n(memory.data(), kBytes, std::byte{1});
  return ops::read_rate(exec, Tensor(memory.data(), DType::u8, {kBytes}));
}

// Of one thread, the time it ran: what others take of a busy machine does not count.
double seconds_now(int threads) {
  timespec now;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median_seconds(int threads, int times, const std::function<void(int)>& call) {
  std::vector<double> taken;
  for (int i = 0; i < times; ++i) {
    const double start = seconds_now(threads);
    call(i);
    taken.push_back(seconds_now(threads) - start);
  }
  std::sort(taken.begin(), taken.end());
  return taken[taken.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t layers = argc > 1 ? std::stoll(argv[1]) : 2;
  const int64_t experts = argc > 2 ? std::stoll(argv[2]) : 32;
  const ModelConfig config = config_of(layers, experts);
  ThreadPool pool(argc > 3 ? std::stoi(argv[3]) : 0);
  const Exec exec{Device{}, &pool, nullptr};
  const auto comm = parallel::make_single_comm();
  Result<Weights> weights = dummy_weights(config, {}, exec.device, 1);
  M2_CHECK(weights.ok(), "{}", weights.error().text);
  MemoryRequest request;
  request.max_model_len = config.max_position_embeddings;
  request.max_num_seqs = 1;
  request.max_num_batched_tokens = kPrompt;
  request.num_blocks = config.max_position_embeddings / kBlockSize;
  const Result<MemoryPlan> plan = plan_memory(config, *weights, request, exec.device);
  M2_CHECK(plan.ok(), "{}", plan.error().text);
  const auto model =
      make_runner(exec, {{*comm}}, config, *std::move(weights), *plan, request.max_model_len);

  fmt::print("{} layers, {} experts, top 8, FP8; {:.2f} GB of weights; {}\n\n", layers, experts,
             static_cast<double>(plan->weight_bytes) / 1e9, describe_device(exec.device));
  const double bandwidth = measured_bandwidth(exec);
  const double operations = ops::multiply_rate(exec, ops::Multiplier::fp32);
  fmt::print(
      "Read {:.1f} GB/s, FP32 multiply-adds {:.0f} GFLOP/s in this run, {} threads. Medians.\n\n",
      bandwidth / 1e9, operations / 1e9, pool.size());
  fmt::print(
      "| instructions | decode at 512, tokens/s | of read | prompt of 512, tokens/s | times decode "
      "|\n");
  fmt::print("| --- | ---: | ---: | ---: | ---: |\n");
  Sequence sequence(*model, config);
  for (const std::string_view set : ops::instruction_sets()) {
    if (set == "baseline" || set == "avx2") continue;
    M2_CHECK(ops::choose_instruction_set(set).ok());
    sequence.run(0, kPrompt);
    const double prompt = median_seconds(pool.size(), 3, [&](int) { sequence.run(0, kPrompt); });
    const double decode =
        median_seconds(pool.size(), 20, [&](int i) { sequence.run(kPrompt + i, 1); });
    const double read = static_cast<double>(decode_bytes(config)) / decode;
    fmt::print("| {} | {:.1f} | {:.0f} % | {:.1f} | {:.1f} |\n", set, 1 / decode,
               100 * read / bandwidth, kPrompt / prompt, kPrompt / prompt * decode);
  }
  // A decoded token reads each weight byte once, a prompt's token multiplies with it twice over: at
  // both bounds the ratio is operations / (2 * bytes).
  fmt::print("\nBoth at their bounds FP32 would make {:.1f} times.\n",
             operations / (2 * bandwidth));
}
