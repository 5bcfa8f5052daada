// Ranks on GPUs that talk through NCCL: the communicators' contract, then the model spread over 2
// and 4 of them against one CPU rank, stepwise and enqueued ahead, with graphs and without. Needs
// two GPUs or more and libnccl.so.2; says so and skips without them.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <thread>

#include "model/runner.h"
#include "parallel/nccl.h"
#include "tensor/stream.h"
#include "tests/model/small_model.h"
#include "tests/parallel/comm_contract.h"
#include "tests/parallel/staged_comm.h"

namespace m2::model {
namespace {

int gpus() {
  int count = 0;
  while (check_device({DeviceKind::cuda, count}).ok()) ++count;
  return count;
}

class GpuRanks : public testing::Test {
 protected:
  void SetUp() override {
    if (gpus() < 2) GTEST_SKIP() << "needs a GPU, and another: there are " << gpus();
  }
};

// Ranks of one process, one GPU each.
class Fleet {
 public:
  Fleet(int64_t tensor, int64_t data, bool whole_experts) {
    parallel::Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    shape.expert_parallel = whole_experts;
    ranks = parallel::make_local_ranks(shape, 1, 0, nullptr);
    each([&](size_t r) {
      const Result<void> added = parallel::add_device_groups(ranks[r], device(r));
      M2_CHECK(added.ok(), "{}", added.error().text);
    });
  }

  static Device device(size_t rank) { return {DeviceKind::cuda, static_cast<int>(rank)}; }

  // Runs work(rank) for all, each on a thread of its own.
  void each(const std::function<void(size_t)>& work) const {
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < ranks.size(); ++r)
      threads.emplace_back([&, r] {
        use_device(device(r));
        work(r);
      });
  }

  std::vector<parallel::LocalRank> ranks;
};

void check_groups(const Fleet& fleet, bool engines) {
  std::vector<std::unique_ptr<parallel::StagedComm>> staged;
  parallel::Comms comms;
  for (size_t r = 0; r < fleet.ranks.size(); ++r) {
    const auto& rank = fleet.ranks[r];
    auto& comm = engines ? *rank.device_engines : *rank.device_tensor;
    staged.push_back(std::make_unique<parallel::StagedComm>(comm, Fleet::device(r)));
    comms.push_back(staged.back().get());
  }
  parallel::check_contract(comms, parallel::Bf16Sums::in_bf16);
}

TEST_F(GpuRanks, NcclKeepsTheContract) {
  for (int64_t size = 2; size <= std::min(gpus(), 8); size *= 2) {
    check_groups(Fleet(size, 1, false), false);
    check_groups(Fleet(1, size, true), true);
  }
}

// Ranks that do not come: abort() ends what waits on the device.
TEST_F(GpuRanks, AbortFreesTheDevice) {
  const Fleet fleet(2, 1, false);
  parallel::Comm& comm = *fleet.ranks[0].device_tensor;
  use_device(Fleet::device(0));
  const Stream stream(Fleet::device(0));
  const Exec exec{Fleet::device(0), nullptr, stream.handle()};
  // NCCL connects the ranks in their first collective, on the host; the second is alone.
  fleet.each([&](size_t r) {
    const Stream own(Fleet::device(r));
    const Exec there{Fleet::device(r), nullptr, own.handle()};
    const Buffer first(Fleet::device(r), 4096);
    fleet.ranks[r].device_tensor->all_reduce(there, Tensor(first.data(), DType::f32, {1024}));
    synchronize(there);
  });
  const Buffer x(Fleet::device(0), 4096);
  comm.all_reduce(exec, Tensor(x.data(), DType::f32, {1024}));
  const std::jthread aborts([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    comm.abort({Code::unavailable, "rank 1 did not finish a step", {}});
  });
  synchronize(exec);
  EXPECT_EQ(comm.status().error().text, "rank 1 did not finish a step");
}

ModelConfig config_of() {
  ModelConfig config = small_config();
  config.hidden_size = 512;
  config.intermediate_size = 192 * 4;  // whole and half blocks on 4 ranks
  config.num_layers = 3;
  config.num_heads = 12;
  config.num_kv_heads = 2;  // twice on 4 ranks
  config.head_dim = 128;
  config.rotary_dim = 64;
  config.num_experts = 16;
  config.num_experts_per_token = 4;
  config.vocab_size = 2047;
  config.rope_theta = 5000000;
  return config;
}

struct Spread {
  int64_t tensor, data;
  bool whole;
  std::vector<int64_t> graph_sizes;
};

// The model on every rank of a fleet.
class Ranks {
 public:
  Ranks(const ModelConfig& config, const Spread& spread)
      : config_(config), fleet_(spread.tensor, spread.data, spread.whole), spread_(spread) {
    for (size_t r = 0; r < fleet_.ranks.size(); ++r) streams_.emplace_back(Fleet::device(r));
    models_.resize(fleet_.ranks.size());
    fleet_.each([&](size_t r) {
      const parallel::LocalRank& rank = fleet_.ranks[r];
      const Device device = Fleet::device(r);
      Result<Weights> weights = dummy_weights(config, rank.topology, device, 7);
      M2_CHECK(weights.ok(), "{}", weights.error().text);
      MemoryRequest request = small_memory(config);
      request.max_num_batched_tokens = 512;
      request.topology = rank.topology;
      request.padded_rows = spread.graph_sizes.empty() ? 0 : spread.graph_sizes.back();
      Result<MemoryPlan> plan = plan_memory(config, *weights, request, device);
      M2_CHECK(plan.ok(), "{}", plan.error().text);
      RunnerOptions options;
      options.graph_sizes = spread.graph_sizes;
      models_[r] =
          make_runner({device, nullptr, streams_[r].handle()}, {rank.model_groups(), rank.topology},
                      config, *std::move(weights), *plan, request.max_model_len, options);
    });
  }

  // Every engine runs the same chunks, or, if `only_first`, the first one alone. The first one's
  // logits.
  Rows run(const std::vector<Chunk>& chunks, bool only_first = false) {
    RowsSink first;
    fleet_.each([&](size_t r) {
      const bool works = !only_first || fleet_.ranks[r].topology.data_rank == 0;
      const StepArrays arrays(works ? chunks : std::vector<Chunk>());
      StepInput input = arrays.input();
      input.engine_tokens = tokens(StepArrays(chunks).input(), only_first);
      RowsSink other;
      const Result<void> done =
          models_[r]->step(input, r == 0 ? static_cast<LogitsSink&>(first) : other);
      M2_CHECK(done.ok(), "{}", done.error().text);
    });
    return first.take();
  }

  // Decodes greedily from `token` at `position`, two steps under way at a time.
  std::vector<int32_t> decode(int32_t token, int32_t position, const std::vector<int32_t>& blocks,
                              int steps) {
    std::vector<int32_t> out;
    fleet_.each([&](size_t r) {
      const auto collect = [&] {
        const Result<StepResult> result = models_[r]->collect();
        M2_CHECK(result.ok(), "{}", result.error().text);
        if (r == 0) out.push_back(result->rows[0].token);
      };
      const std::vector<ops::SampleRow> greedy(1);
      for (int i = 0; i < steps; ++i) {
        const StepArrays arrays({{{i == 0 ? token : 0}, position + i, blocks}});
        StepInput input = arrays.input();
        const int32_t pending = -1;
        if (i > 0) input.token_ids = {&pending, 1};
        input.engine_tokens = tokens(input, false);
        models_[r]->enqueue(input, {greedy, {}, {}});
        if (i > 0) collect();
      }
      collect();
    });
    return out;
  }

 private:
  std::span<const int64_t> tokens(const StepInput& input, bool only_first) {
    thread_local std::vector<int64_t> out;
    out.assign(static_cast<size_t>(spread_.data), static_cast<int64_t>(input.token_ids.size()));
    if (only_first) std::fill(out.begin() + 1, out.end(), 0);
    return spread_.data > 1 ? std::span<const int64_t>(out) : std::span<const int64_t>();
  }

  const ModelConfig config_;
  const Fleet fleet_;
  const Spread spread_;
  std::vector<Stream> streams_;
  std::vector<std::unique_ptr<StepModel>> models_;
};

// The tolerance of gpu_runner_test.cc for FP8 weights, whose products take FP8 activations. Of few
// rows one near tie of a router moves the middle.
void expect_close(const Rows& rows, const Rows& expected, const std::string& what) {
  ASSERT_EQ(rows.size(), expected.size()) << what;
  std::vector<double> distances;
  for (size_t i = 0; i < rows.size(); ++i) distances.push_back(distance(rows[i], expected[i]));
  std::ranges::sort(distances);
  if (distances.size() >= 10) {
    EXPECT_LT(distances[distances.size() / 2], 0.06) << what;
  }
  EXPECT_LT(distances[distances.size() * 9 / 10], 0.25) << what;
}

TEST_F(GpuRanks, TheModelOnManyIsTheModelOnOne) {
  const ModelConfig config = config_of();
  SmallModel cpu(config, *dummy_weights(config, {}, Device{}, 7), 0);
  std::mt19937 random(3);
  const auto some = [&](size_t count) {
    std::vector<int32_t> out(count);
    for (int32_t& id : out) id = static_cast<int32_t>(random() % 2000);
    return out;
  };
  const std::vector<Chunk> prompts{{some(40), 0, {1, 2, 3, 4}}, {some(17), 0, {9, 8}}};
  const std::vector<Chunk> next{{some(1), 40, {1, 2, 3, 4}}, {some(1), 17, {9, 8}}};
  const Rows expected = cpu.run(prompts), expected_next = cpu.run(next);

  std::vector<Spread> spreads{{2, 1, false, {}},
                              {2, 1, false, {1, 2, 4}},
                              {2, 1, true, {1, 2}},
                              {1, 2, true, {}},
                              {1, 2, false, {}}};
  if (gpus() >= 4)
    for (const Spread& more :
         {Spread{4, 1, false, {}}, Spread{4, 1, false, {1, 2, 4}}, Spread{4, 1, true, {1, 2}},
          Spread{2, 2, true, {}}, Spread{1, 4, true, {}}})
      spreads.push_back(more);
  std::vector<int32_t> tokens;
  for (const Spread& spread : spreads) {
    const std::string name = fmt::format("TP{} DP{}{} {} graphs", spread.tensor, spread.data,
                                         spread.whole ? " EP" : "", spread.graph_sizes.size());
    Ranks ranks(config, spread);
    expect_close(ranks.run(prompts), expected, name + ", prompts");
    expect_close(ranks.run(next), expected_next, name + ", decoding");
    if (spread.data > 1)
      expect_close(ranks.run(next, true), expected_next, name + ", one engine of several");
    const std::vector<int32_t> decoded = ranks.decode(5, 41, {1, 2, 3, 4}, 12);
    ASSERT_EQ(decoded.size(), 12u);
    // The same arrangement again, with what it wrote before in the cache.
    EXPECT_EQ(ranks.decode(5, 41, {1, 2, 3, 4}, 12), decoded) << name;
  }
}

}  // namespace
}  // namespace m2::model
