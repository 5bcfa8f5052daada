#include "app/rank_models.h"

#include <algorithm>
#include <utility>

#include "app/config.h"
#include "base/log.h"
#include "model/weight_table.h"
#include "parallel/mpi.h"
#include "parallel/tcp.h"

namespace m2::app {
namespace {

constexpr int64_t kMostRanks = 1024;

Result<int64_t> size_flag(const Values& values, const char* name) {
  const int64_t size = *values.integer(name);
  if (size < 1 || size > kMostRanks)
    return fail(Code::invalid_argument, "--{} must be from 1 to {}, got {}", name, kMostRanks,
                size);
  return size;
}

Result<model::ExchangeKind> exchange_kind(const Values& values, const Spread& spread) {
  const std::string backend = values.text("all2all-backend");
  if (backend == "allgather_reducescatter") return model::ExchangeKind::all_gather;
  if (backend != "all_to_all") {
    log_warning("--all2all-backend {}: allgather_reducescatter is used instead", backend);
    return model::ExchangeKind::all_gather;
  }
  if (spread.shape.data_size > 1 && !spread.shape.expert_parallel)
    return fail(Code::invalid_argument,
                "--all2all-backend all_to_all needs whole experts: add --enable-expert-parallel");
  return model::ExchangeKind::all_to_all;
}

// The lines of contract.md 7, for every local rank.
void log_experts(const parallel::Topology& topology, const model::ModelConfig& config) {
  if (!topology.expert_parallel || topology.expert_size() == 1) return;
  const model::ExpertShare share = model::expert_share(config, topology);
  std::string map;
  constexpr int64_t kShown = 4;
  for (int64_t i = 0; i < std::min(kShown, share.count); ++i)
    map += fmt::format("{}{}->{}", i > 0 ? ", " : "", i, share.first + i * share.step);
  if (share.count > kShown)
    map +=
        fmt::format(", ..., {}->{}", share.count - 1, share.first + (share.count - 1) * share.step);
  log_info(
      "[EP Rank {}/{}] Expert parallelism is enabled. Expert placement strategy: {}. Local/global "
      "number of experts: {}/{}. Experts local to global index map: {}.",
      topology.expert_rank(), topology.expert_size(),
      topology.round_robin ? "round_robin" : "linear", share.count, config.num_experts, map);
}

// Processes, and what is not modelled of them.
Result<void> read_processes(const Values& values, Spread& spread) {
  const int64_t local = values.integer("data-parallel-size-local").value_or(spread.shape.data_size);
  if (values.given("data-parallel-rank") || values.flag("data-parallel-hybrid-lb") ||
      values.flag("data-parallel-external-lb") || local != spread.shape.data_size ||
      values.integer("data-parallel-start-rank").value_or(0) != 0)
    return fail(Code::unsupported,
                "engines in several processes are not supported yet: one process holds all {} "
                "engines of --data-parallel-size",
                spread.shape.data_size);
  M2_TRY(spread.processes, size_flag(values, "nnodes"));
  spread.process = *values.integer("node-rank");
  const std::string backend = values.text("distributed-executor-backend");
  const MpiLaunch launch = mpi_launch();
  if (backend == "mpi" && launch.processes == 1)
    return fail(
        Code::invalid_argument,
        "--distributed-executor-backend mpi: mpirun has not started this process with others");
  if (launch.processes > 1 && spread.processes == 1 && (backend.empty() || backend == "mpi")) {
    spread.processes = launch.processes;
    spread.process = launch.process;
    spread.mpi = true;
  }
  if (spread.process < 0 || spread.process >= spread.processes)
    return fail(Code::invalid_argument, "--node-rank {} is not one of --nnodes {}", spread.process,
                spread.processes);
  if (spread.processes == 1) return {};
  if (spread.shape.data_size > 1)
    return fail(Code::unsupported,
                "engines in several processes are not supported yet: --nnodes shares the ranks of "
                "one engine");
  if (spread.ranks() % spread.processes != 0)
    return fail(Code::invalid_argument, "{} ranks cannot be shared evenly by {} processes{}",
                spread.ranks(), spread.processes, spread.mpi ? " of mpirun" : " (--nnodes)");
  return {};
}

}  // namespace

Result<Spread> read_spread(const Values& values, const model::ModelConfig& config) {
  if (values.integer("pipeline-parallel-size") != 1)
    return fail(Code::unsupported, "--pipeline-parallel-size {}: layers are not split over ranks",
                *values.integer("pipeline-parallel-size"));
  Spread out;
  M2_TRY(out.shape.tensor_size, size_flag(values, "tensor-parallel-size"));
  M2_TRY(out.shape.data_size, size_flag(values, "data-parallel-size"));
  out.shape.expert_parallel = values.flag("enable-expert-parallel");
  const std::string placement = values.text("expert-placement-strategy");
  if (placement != "linear" && placement != "round_robin")
    return fail(Code::invalid_argument,
                "--expert-placement-strategy {} (chose from {{ linear,round_robin }})", placement);
  out.shape.round_robin = placement == "round_robin";
  M2_TRY(out.exchange, exchange_kind(values, out));
  M2_TRY_VOID(model::check_topology(config, out.shape));
  M2_TRY_VOID(read_processes(values, out));
  return out;
}

Result<std::unique_ptr<parallel::Links>> meet_processes(const Spread& spread, const Values& values,
                                                        Json terms) {
  if (spread.processes == 1) return std::unique_ptr<parallel::Links>();
  terms["tensor-parallel-size"] = spread.shape.tensor_size;
  terms["data-parallel-size"] = spread.shape.data_size;
  terms["enable-expert-parallel"] = spread.shape.expert_parallel;
  terms["expert-placement-strategy"] = spread.shape.round_robin ? "round_robin" : "linear";
  terms["nnodes"] = spread.processes;
  if (spread.mpi) {
    M2_TRY(std::unique_ptr<parallel::MpiWorld> world,
           parallel::MpiWorld::open(spread.processes, terms));
    return std::unique_ptr<parallel::Links>(std::move(world));
  }
  parallel::Meeting meeting;
  meeting.processes = spread.processes;
  meeting.process = spread.process;
  meeting.address = values.text("master-addr");
  meeting.port = static_cast<int>(*values.integer("master-port"));
  meeting.channels = parallel::channels_of(spread.shape);
  meeting.terms = std::move(terms);
  meeting.patience = *values.integer("rank-start-seconds") * kSecond;
  M2_TRY(std::unique_ptr<parallel::TcpMesh> mesh, parallel::TcpMesh::connect(meeting));
  return std::unique_ptr<parallel::Links>(std::move(mesh));
}

RankModels::RankModels(const Spread& spread, parallel::Links* links, Device device, int threads)
    : spread_(spread), device_(device) {
  auto locals = parallel::make_local_ranks(spread.shape, spread.processes, spread.process, links);
  // The ranks of a process share its cores.
  const int cores = threads > 0 ? threads : usable_cpus();
  const int each = std::max(1, cores / static_cast<int>(locals.size()));
  for (parallel::LocalRank& local : locals) {
    ranks_.push_back(std::make_unique<Rank>());
    ranks_.back()->local = std::move(local);
    ranks_.back()->pool = std::make_unique<ThreadPool>(each);
    ranks_.back()->stream = std::make_unique<Stream>(device);
  }
}

Result<void> RankModels::build(const model::ModelConfig& config, const MakeWeights& make_weights,
                               model::MemoryRequest request, const model::RunnerOptions& options) {
  std::vector<model::Weights> weights;
  for (const auto& rank : ranks_) {
    log_experts(rank->local.topology, config);
    M2_TRY(model::Weights part, make_weights(rank->local.topology));
    weight_bytes_ += part.buffer.bytes();
    weights.push_back(std::move(part));
  }
  const auto count = static_cast<int64_t>(ranks_.size());
  if (host_addressable(device_))
    request.available_bytes = (model::available_host_memory() + weight_bytes_) / count;
  request.exchange = spread_.exchange;
  const auto plan_of = [&](size_t i) {
    request.topology = ranks_[i]->local.topology;
    return model::plan_memory(config, weights[i], request, device_);
  };
  std::vector<int64_t> blocks;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    M2_TRY(const model::MemoryPlan plan, plan_of(i));
    blocks.push_back(plan.num_blocks);
  }
  M2_TRY(request.num_blocks, agree_on_blocks(blocks));
  for (size_t i = 0; i < ranks_.size(); ++i) {
    Rank& rank = *ranks_[i];
    M2_TRY(const model::MemoryPlan plan, plan_of(i));
    if (i == 0) plan_ = plan;
    const Exec exec{device_, rank.pool.get(), rank.stream->handle()};
    const model::RankPlace place{rank.local.groups(), rank.local.topology, spread_.exchange};
    rank.model = model::make_runner(exec, place, config, std::move(weights[i]), plan,
                                    request.max_model_len, options);
    add_first(rank);
  }
  return {};
}

// The least over all ranks of all processes.
Result<int64_t> RankModels::agree_on_blocks(const std::vector<int64_t>& blocks) {
  int64_t least = *std::min_element(blocks.begin(), blocks.end());
  if (spread_.processes == 1) return least;
  std::vector<std::jthread> threads;
  std::vector<std::vector<int64_t>> told(ranks_.size());
  for (size_t i = 0; i < ranks_.size(); ++i)
    threads.emplace_back([&, i] {
      const parallel::LocalRank& local = ranks_[i]->local;
      parallel::Comm& comm = local.engines ? *local.engines : *local.tensor;
      const auto size = comm.size();
      const std::vector<int64_t> ones(static_cast<size_t>(size), 1);
      int64_t own = least;
      told[i].resize(static_cast<size_t>(size), own);
      comm.all_gather(Exec{}, Tensor(&own, DType::i64, {1}), ones,
                      Tensor(told[i].data(), DType::i64, {size}));
    });
  threads.clear();
  for (const auto& rank : ranks_) {
    M2_TRY_VOID(rank->local.tensor->status());
    if (rank->local.engines) M2_TRY_VOID(rank->local.engines->status());
  }
  for (const auto& numbers : told)
    least = std::min(least, *std::min_element(numbers.begin(), numbers.end()));
  return least;
}

void RankModels::add_first(Rank& rank) {
  if (rank.local.topology.tensor_rank != 0) return;
  if (spread_.ranks() == 1) {
    firsts_.push_back({rank.model.get(), rank.pool.get(), nullptr});
    return;
  }
  rank.first = std::make_unique<engine::FirstRank>(*rank.model, step_ranks(rank),
                                                   [this, self = &rank](uint64_t round) {
                                                     for (const auto& other : ranks_)
                                                       if (other.get() != self && other->first)
                                                         other->first->want(round);
                                                   });
  firsts_.push_back({rank.first.get(), rank.pool.get(), rank.first.get()});
}

void RankModels::start(Nanos deadline) {
  for (const auto& rank : ranks_) {
    rank->local.tensor->set_deadline(deadline);
    if (rank->local.engines) rank->local.engines->set_deadline(deadline);
  }
  for (const auto& rank : ranks_) {
    if (rank->local.topology.tensor_rank == 0) continue;
    rank->follower = std::jthread([this, &rank = *rank] {
      rank.ended = engine::follow(*rank.model, step_ranks(rank));
      if (!rank.ended.ok()) rank.local.tensor->abort(rank.ended.error());
    });
  }
}

Result<void> RankModels::wait() {
  for (const auto& rank : ranks_)
    if (rank->follower.joinable()) rank->follower.join();
  for (const auto& rank : ranks_) M2_TRY_VOID(rank->ended);
  return {};
}

}  // namespace m2::app
