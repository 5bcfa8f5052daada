#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "app/options.h"
#include "base/thread_pool.h"
#include "engine/ranks.h"
#include "model/memory_plan.h"
#include "model/runner.h"
#include "parallel/world.h"
#include "tensor/stream.h"

namespace m2::app {

// How the flags spread a model over ranks, and ranks over processes.
struct Spread {
  parallel::Topology shape;  // sizes; the ranks in it are 0
  model::ExchangeKind exchange = model::ExchangeKind::all_gather;
  int64_t processes = 1;
  int64_t process = 0;
  bool mpi = false;  // mpirun has started them; else they meet over TCP

  int64_t ranks() const { return shape.expert_size(); }
};

// Reads the group `parallel` of serve's options. Refuses, in words, what cannot be split or is not
// modelled.
Result<Spread> read_spread(const Values& values, const model::ModelConfig& config);

// Meets the other processes, which must have been started with equal `terms`. Null for one process.
Result<std::unique_ptr<parallel::Links>> meet_processes(const Spread& spread, const Values& values,
                                                        Json terms);

// The ranks of this process with their models; those that do not schedule follow on threads of
// their own.
class RankModels {
 public:
  using MakeWeights = std::function<Result<model::Weights>(const parallel::Topology&)>;

  // One engine whose first rank is here.
  struct First {
    model::StepModel* model;   // what its engine runs
    ThreadPool* pool;          // of its rank
    engine::FirstRank* ranks;  // null if the engine is one rank alone
  };

  // `links` is null for one process.
  RankModels(const Spread& spread, parallel::Links* links, Device device, int threads);

  // Loads every local rank's weights, divides the memory among them, makes their models. All ranks
  // of an engine get the least number of KV blocks that one of them has room for. The memory
  // available is request's on a GPU, the host's on the CPU.
  Result<void> build(const model::ModelConfig& config, const MakeWeights& make_weights,
                     model::MemoryRequest request, const model::RunnerOptions& options);

  const std::vector<First>& firsts() const { return firsts_; }
  const model::MemoryPlan& plan() const { return plan_; }  // of the first local rank
  int64_t weight_bytes() const { return weight_bytes_; }   // of all local ranks

  // Starts the ranks that follow. `deadline`: of every collective from now on.
  void start(Nanos deadline);
  // Waits until the ranks that follow have ended: when their engines' first ranks have stopped, or
  // a collective has failed.
  Result<void> wait();

 private:
  struct Rank {
    parallel::LocalRank local;
    std::unique_ptr<ThreadPool> pool;
    std::unique_ptr<Stream> stream;
    std::unique_ptr<model::StepModel> model;
    std::unique_ptr<engine::FirstRank> first;
    Result<void> ended;
    std::jthread follower;
  };

  engine::StepRanks step_ranks(const Rank& rank) const {
    return {rank.local.groups(), rank.local.topology};
  }
  Result<int64_t> agree_on_blocks(const std::vector<int64_t>& blocks);
  void add_first(Rank& rank);

  const Spread spread_;
  const Device device_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<First> firsts_;
  model::MemoryPlan plan_;
  int64_t weight_bytes_ = 0;
};

}  // namespace m2::app
