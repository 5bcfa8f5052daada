// Time of a decoding step and of a prompt by ranks (threads of this process), and the share of it
// that rank 0 spends in collectives, waiting included. Each rank works on one thread, so with more
// ranks than cores a step cannot get faster: what is seen then is what the collectives cost.
//
//   ranks_bench [layers] [experts]

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "model/runner.h"
#include "parallel/shared_comm.h"

using namespace m2;
using namespace m2::model;
using Steady = std::chrono::steady_clock;

namespace {

constexpr int64_t kPrompt = 128;

double since(Steady::time_point start) {
  return std::chrono::duration<double>(Steady::now() - start).count();
}

// Adds up the time its rank spends inside.
class TimedComm : public parallel::Comm {
 public:
  explicit TimedComm(parallel::Comm& comm) : comm_(comm) {}
  int64_t rank() const override { return comm_.rank(); }
  int64_t size() const override { return comm_.size(); }
  void all_reduce(const Exec& exec, Tensor x) override {
    timed([&] { comm_.all_reduce(exec, x); });
  }
  void all_gather(const Exec& exec, Tensor part, parallel::Rows rows, Tensor out) override {
    timed([&] { comm_.all_gather(exec, part, rows, out); });
  }
  void reduce_scatter(const Exec& exec, Tensor x, parallel::Rows rows, Tensor part) override {
    timed([&] { comm_.reduce_scatter(exec, x, rows, part); });
  }
  void all_to_all(const Exec& exec, Tensor send, parallel::Rows send_rows, Tensor recv,
                  parallel::Rows recv_rows) override {
    timed([&] { comm_.all_to_all(exec, send, send_rows, recv, recv_rows); });
  }
  void gather_columns(const Exec& exec, Tensor part, parallel::Rows columns, Tensor out,
                      int64_t root) override {
    timed([&] { comm_.gather_columns(exec, part, columns, out, root); });
  }
  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    timed([&] { comm_.broadcast(exec, x, root); });
  }
  void barrier(const Exec& exec) override {
    timed([&] { comm_.barrier(exec); });
  }
  Result<void> status() const override { return comm_.status(); }
  void abort(const Error& why) override { comm_.abort(why); }
  void set_deadline(Nanos deadline) override { comm_.set_deadline(deadline); }

  double take_seconds() { return std::exchange(seconds_, 0.0); }

 private:
  template <class Call>
  void timed(Call&& call) {
    const auto start = Steady::now();
    call();
    seconds_ += since(start);
  }

  parallel::Comm& comm_;
  double seconds_ = 0;
};

class NoSink : public LogitsSink {
  void on_logits(int64_t, Tensor) override {}
};

ModelConfig config_of(int64_t layers, int64_t experts) {
  ModelConfig config;
  config.hidden_size = 1024;
  config.intermediate_size = 512;
  config.num_layers = layers;
  config.num_heads = 16;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  config.rotary_dim = 32;
  config.rope_theta = 5e6;
  config.max_position_embeddings = 512;
  config.rms_norm_eps = 1e-6;
  config.num_experts = experts;
  config.num_experts_per_token = 8;
  config.vocab_size = 32000;
  config.fp8_blocks = true;
  return config;
}

struct Spread {
  int64_t tensor, data;
  bool whole;
  std::string name() const {
    return fmt::format("TP{}{}{}", tensor, data > 1 ? fmt::format(" x DP{}", data) : "",
                       whole ? " + EP" : "");
  }
};

// One step of `count` tokens of one sequence for every engine.
struct Step {
  explicit Step(int64_t count, int64_t begin) {
    for (int64_t i = 0; i < count; ++i) {
      ids.push_back(static_cast<int32_t>(i * 37 % 1000));
      positions.push_back(static_cast<int32_t>(begin + i));
    }
    for (int32_t b = 0; b < 32; ++b) table.push_back(b);
    starts = {0, static_cast<int32_t>(count)};
    lens = {static_cast<int32_t>(begin + count)};
    rows = {static_cast<int32_t>(count - 1)};
  }
  StepInput input(const std::vector<int64_t>& engine_tokens) const {
    StepInput out{ids, positions, positions, starts, lens, table, 32, rows};
    out.engine_tokens = engine_tokens;
    return out;
  }
  std::vector<int32_t> ids, positions, starts, lens, table, rows;
};

struct Measured {
  double seconds, in_collectives;
};

Measured measure(const ModelConfig& config, const Spread& spread, int64_t tokens, int64_t begin,
                 int times) {
  parallel::Topology shape;
  shape.tensor_size = spread.tensor;
  shape.data_size = spread.data;
  shape.expert_parallel = spread.whole;
  const int64_t ranks = shape.expert_size();
  const auto everyone = parallel::make_thread_comms(ranks);
  std::vector<std::unique_ptr<parallel::Comm>> tensor;
  for (int64_t e = 0; e < spread.data; ++e)
    for (auto& comm : parallel::make_thread_comms(spread.tensor)) tensor.push_back(std::move(comm));
  std::vector<double> taken;
  double in_collectives = 0;
  std::vector<std::jthread> threads;
  for (int64_t r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      TimedComm own(*tensor[static_cast<size_t>(r)]), all(*everyone[static_cast<size_t>(r)]);
      const RankPlace place{{own, spread.data > 1 ? &all : nullptr}, with_rank(shape, r)};
      ThreadPool pool(1);
      const Exec exec{Device{}, &pool, nullptr};
      Result<Weights> weights = dummy_weights(config, place.topology, exec.device, 1);
      M2_CHECK(weights.ok(), "{}", weights.error().text);
      MemoryRequest request;
      request.max_model_len = config.max_position_embeddings;
      request.max_num_seqs = 1;
      request.max_num_batched_tokens = kPrompt;
      request.num_blocks = 32;
      request.topology = place.topology;
      const Result<MemoryPlan> plan = plan_memory(config, *weights, request, exec.device);
      M2_CHECK(plan.ok(), "{}", plan.error().text);
      const auto model =
          make_runner(exec, place, config, *std::move(weights), *plan, request.max_model_len);
      const std::vector<int64_t> engine_tokens(static_cast<size_t>(spread.data), tokens);
      const Step step(tokens, begin);
      NoSink sink;
      for (int i = 0; i < times + 2; ++i) {
        everyone[static_cast<size_t>(r)]->barrier(exec);
        own.take_seconds(), all.take_seconds();
        const auto start = Steady::now();
        M2_CHECK(model->step(step.input(engine_tokens), sink).ok());
        if (r != 0 || i < 2) continue;
        taken.push_back(since(start));
        in_collectives += own.take_seconds() + all.take_seconds();
      }
    });
  threads.clear();
  double sum = 0;
  for (const double one : taken) sum += one;
  std::sort(taken.begin(), taken.end());
  return {taken[taken.size() / 2], in_collectives / sum};
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t layers = argc > 1 ? std::stoll(argv[1]) : 4;
  const int64_t experts = argc > 2 ? std::stoll(argv[2]) : 16;
  const ModelConfig config = config_of(layers, experts);
  fmt::print("{} layers of hidden 1024, {} experts of 512, top 8, FP8; one thread a rank; {}\n\n",
             layers, experts, describe_device({}));
  fmt::print(
      "| ranks | decode, ms | in collectives | prompt of {}, ms | in collectives |\n"
      "| --- | ---: | ---: | ---: | ---: |\n",
      kPrompt);
  for (const Spread& spread : {Spread{1, 1, false},
                               {2, 1, false},
                               {4, 1, false},
                               {8, 1, false},
                               {16, 1, false},
                               {2, 1, true},
                               {8, 1, true},
                               {1, 2, true},
                               {2, 2, true},
                               {1, 8, true}}) {
    const Measured decode = measure(config, spread, 1, kPrompt, 40);
    const Measured prompt = measure(config, spread, kPrompt, 0, 5);
    fmt::print("| {} | {:.2f} | {:.0f} % | {:.1f} | {:.0f} % |\n", spread.name(),
               decode.seconds * 1e3, 100 * decode.in_collectives, prompt.seconds * 1e3,
               100 * prompt.in_collectives);
  }
}
