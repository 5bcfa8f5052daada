#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "app/options.h"
#include "app/start_watch.h"
#include "base/thread_pool.h"
#include "engine/ranks.h"
#include "engine/seat.h"
#include "model/memory_plan.h"
#include "model/runner.h"
#include "parallel/counted_comm.h"
#include "parallel/nccl.h"
#include "parallel/world.h"
#include "tensor/stream.h"

namespace m2::app {

// How the flags spread a model over ranks, and ranks over processes.
struct Spread {
  parallel::Topology shape;  // sizes; the ranks in it are 0
  model::ExchangeKind exchange = model::ExchangeKind::all_gather;
  parallel::SumsBy sums = parallel::SumsBy::peers;  // on GPUs
  parallel::Range share{0, 1};  // ranks of this process; none in a front for engines elsewhere
  bool first = true;            // the others come to this process
  bool mpi = false;             // mpirun has started them; else they meet over TCP
  bool fronts = false;  // every process serves its own engines; else the first one serves all
  int64_t nodes = 1;    // processes of --nnodes or mpirun; else their engines count them
  // Where the processes meet over TCP, and the index of this process among those of its host.
  std::string address;
  int port = 0;
  int64_t local_process = 0;
  int64_t ranks_per_gpu = 1;
  Nanos start_patience = 600 * kSecond;  // of every wait for other ranks until all serve

  int64_t ranks() const { return shape.expert_size(); }
  bool alone() const { return first && share.count == ranks(); }
  bool serves() const { return fronts || first; }
  int64_t local_gpus() const { return (share.count + ranks_per_gpu - 1) / ranks_per_gpu; }
  int64_t first_engine() const { return share.begin / shape.tensor_size; }
  // All engines schedule in the first process, those whose ranks are elsewhere too.
  bool seats() const { return !alone() && shape.data_size > 1 && !fronts; }
};

// Reads the group `parallel` of serve's options. Refuses, in words, what cannot be split or is not
// modelled.
Result<Spread> read_spread(const Values& values, const model::ModelConfig& config);

// All processes, met.
struct World {
  std::unique_ptr<parallel::Links> links;  // null for one process
  parallel::Placement where;
};

// Meets the other processes, which must have been started with equal `terms`.
Result<World> meet_processes(const Spread& spread, Json terms);

// The ranks of this process with their models; those that do not schedule follow on threads of
// their own.
class RankModels {
 public:
  using MakeWeights =
      std::function<Result<model::Weights>(const parallel::Topology&, Device device)>;

  // An engine that schedules in this process.
  struct Head {
    int64_t engine;              // its data rank
    model::StepModel* model;     // what it runs
    ThreadPool* pool;            // for sampling
    Device device;               // that its thread uses
    engine::Rounds* rounds;      // null if the engine is one rank alone
    std::function<void()> stop;  // lets its ranks go; on the engine's thread, after its last step
  };

  // `world` outlives this. The first local rank computes on `device`, the others on those that
  // follow.
  RankModels(const Spread& spread, const World& world, Device device, int threads);
  // Waits for the ranks that follow: what one of them may give up, and what their devices write to,
  // belongs to all.
  ~RankModels() { join_followers(); }

  // Ranks on devices find each other; before build(). Both end with an error, or end the process,
  // if a rank does not come (app/start_watch.h).
  Result<void> connect_devices();

  // Loads every local rank's weights, divides the memory among them, makes their models. All ranks
  // of an engine get the least number of KV blocks that one of them has room for. The memory
  // available is request's on a GPU, the host's on the CPU.
  Result<void> build(const model::ModelConfig& config, const MakeWeights& make_weights,
                     model::MemoryRequest request, const model::RunnerOptions& options);

  const std::vector<Head>& heads() const { return heads_; }
  int64_t num_blocks() const { return num_blocks_; }      // of every engine
  int64_t kv_bytes() const { return kv_bytes_; }          // of the first local rank
  int64_t weight_bytes() const { return weight_bytes_; }  // of all local ranks

  // Starts the ranks that follow. `deadline`: of every collective from now on.
  void start(Nanos deadline);
  // Ends every wait for other ranks, and says to all why: the first failure of a group if there is
  // one, else `why`. Any thread, after build().
  void abort_all(Error why);
  // Other processes' calls wake no engine here any more. Call it when the engines' threads have
  // ended, before the engines go.
  void stop_listening() { bell_.reset(); }
  // Waits until the ranks that follow have ended: when their engines' first ranks have stopped, or
  // a collective has failed.
  Result<void> wait();

 private:
  struct Rank {
    parallel::Progress progress;  // of collectives on devices
    parallel::LocalRank local;
    Device device;
    std::unique_ptr<ThreadPool> pool;
    std::unique_ptr<Stream> stream;
    std::unique_ptr<model::StepModel> model;
    std::unique_ptr<engine::Rounds> rounds;  // of first ranks
    engine::StepWatch watch;
    std::unique_ptr<engine::FirstRank> first;
    Result<void> ended;
    std::jthread follower;  // or relay
  };
  // An engine whose ranks are elsewhere.
  struct Seated {
    parallel::RemoteEngine remote;
    std::unique_ptr<engine::Rounds> rounds;
    std::unique_ptr<ThreadPool> pool;
    std::unique_ptr<engine::Seat> seat;
  };

  engine::StepRanks step_ranks(const Rank& rank) const {
    return {rank.local.groups(), rank.local.topology};
  }
  std::unique_ptr<engine::Rounds> make_rounds(int64_t engine);
  void call_all(uint64_t round, int64_t but);
  Result<void> on_every_rank(const std::function<Result<void>(Rank&)>& work);
  Result<int64_t> agree_on_blocks(const std::vector<int64_t>& blocks);
  void add_first(Rank& rank);
  Result<void> build_ranks(const model::ModelConfig& config, const MakeWeights& make_weights,
                           model::MemoryRequest request, const model::RunnerOptions& options);
  Result<void> make_runners(const model::ModelConfig& config, std::vector<model::Weights> weights,
                            const std::vector<model::MemoryPlan>& plans,
                            const model::MemoryRequest& request,
                            const model::RunnerOptions& options);
  std::unique_ptr<StartWatch> watch_start(const char* doing,
                                          std::function<void(const Error&)> give_up) const;
  Result<void> add_seats();
  std::vector<parallel::Comm*> groups() const;
  void start_bell();
  void join_followers();
  Result<void> serve_rank(Rank& rank);
  void watch_devices(const std::stop_token& stop, Nanos deadline);

  const Spread spread_;
  const World& world_;
  const Device device_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::unique_ptr<Seated>> seated_;
  std::vector<Head> heads_;
  int64_t num_blocks_ = 0, kv_bytes_ = 0, weight_bytes_ = 0;
  std::unique_ptr<parallel::Bell> bell_;
  std::jthread watch_;
};

}  // namespace m2::app
