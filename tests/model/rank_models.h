#pragma once

#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "parallel/shared_comm.h"
#include "tests/model/small_model.h"

// The small model on many ranks, each a thread.

namespace m2::model {

// A way to spread a model: tensor ranks of one engine, engines, and how experts are shared.
struct Spread {
  int64_t tensor = 1;
  int64_t data = 1;
  bool whole_experts = false;
  bool round_robin = false;
  ExchangeKind exchange = ExchangeKind::all_gather;

  parallel::Topology topology(int64_t rank) const {
    parallel::Topology out;
    out.tensor_size = tensor;
    out.data_size = data;
    out.expert_parallel = whole_experts;
    out.round_robin = round_robin;
    return parallel::with_rank(out, rank);
  }
  std::string name() const {
    return fmt::format("TP{}_DP{}{}{}{}", tensor, data, whole_experts ? "_EP" : "",
                       round_robin ? "_round_robin" : "",
                       exchange == ExchangeKind::all_to_all ? "_all_to_all" : "");
  }
};

// For names of tests that take a Spread.
inline std::ostream& operator<<(std::ostream& out, const Spread& spread) {
  return out << spread.name();
}

using MakeWeights = std::function<Weights(const parallel::Topology&)>;

class RankModels {
 public:
  RankModels(const ModelConfig& config, const Spread& spread, const MakeWeights& make_weights)
      : spread_(spread), everyone_(parallel::make_thread_comms(spread.tensor * spread.data)) {
    for (int64_t engine = 0; engine < spread.data; ++engine)
      for (auto& comm : parallel::make_thread_comms(spread.tensor))
        tensor_.push_back(std::move(comm));
    for (int64_t rank = 0; rank < spread.tensor * spread.data; ++rank) {
      const auto at = static_cast<size_t>(rank);
      const RankPlace place{{*tensor_[at], spread.data > 1 ? everyone_[at].get() : nullptr},
                            spread.topology(rank),
                            spread.exchange};
      pools_.push_back(std::make_unique<ThreadPool>(1));
      const Exec exec{Device{}, pools_.back().get(), nullptr};
      Weights weights = make_weights(place.topology);
      MemoryRequest request = small_memory(config);
      request.topology = place.topology;
      request.exchange = spread.exchange;
      Result<MemoryPlan> plan = plan_memory(config, weights, request, exec.device);
      M2_CHECK(plan.ok(), "{}", plan.error().text);
      models_.push_back(
          make_runner(exec, place, config, std::move(weights), *plan, request.max_model_len));
    }
  }

  // The logits of every engine's chunks; an engine may have none.
  std::vector<Rows> run(const std::vector<std::vector<Chunk>>& chunks) {
    std::vector<int64_t> engine_tokens;
    for (const auto& step : chunks)
      engine_tokens.push_back(static_cast<int64_t>(StepArrays(step).input().token_ids.size()));
    std::vector<Rows> out(chunks.size());
    std::vector<std::jthread> threads;
    for (size_t rank = 0; rank < models_.size(); ++rank)
      threads.emplace_back([&, rank] {
        const size_t engine = rank / static_cast<size_t>(spread_.tensor);
        const StepArrays arrays(chunks[engine]);
        StepInput input = arrays.input();
        input.engine_tokens = engine_tokens;
        RowsSink sink;
        const Result<void> done = models_[rank]->step(input, sink);
        M2_CHECK(done.ok(), "{}", done.error().text);
        Rows rows = sink.take();
        if (rank % static_cast<size_t>(spread_.tensor) == 0) {
          out[engine] = std::move(rows);
        } else {
          M2_CHECK(rows.empty(), "only first ranks have logits");
        }
      });
    threads.clear();
    return out;
  }

 private:
  const Spread spread_;
  std::vector<std::unique_ptr<parallel::Comm>> everyone_, tensor_;
  std::vector<std::unique_ptr<ThreadPool>> pools_;
  std::vector<std::unique_ptr<StepModel>> models_;
};

}  // namespace m2::model
