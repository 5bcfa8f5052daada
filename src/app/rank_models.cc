#include "app/rank_models.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string_view>
#include <utility>

#include "app/environment.h"
#include "base/log.h"
#include "model/weight_table.h"
#include "parallel/mpi.h"
#include "parallel/tcp.h"

namespace m2::app {
namespace {

constexpr int64_t kMostRanks = 1024;
// Connecting GPUs, and the first steps of models that are there, take seconds.
constexpr Nanos kStepsPatience = 120 * kSecond;

Result<int64_t> size_flag(const Values& values, const char* name) {
  const int64_t size = *values.integer(name);
  if (size < 1 || size > kMostRanks)
    return fail(Code::invalid_argument, "--{} must be from 1 to {}, got {}", name, kMostRanks,
                size);
  return size;
}

// vLLM's names for the ways of the exchange: those that send every token to every rank, and those
// that send it to the ranks of its experts alone.
constexpr std::string_view kAllGather[] = {"allgather_reducescatter", "naive"};
constexpr std::string_view kAllToAll[] = {"all_to_all",
                                          "pplx",
                                          "deepep_high_throughput",
                                          "deepep_low_latency",
                                          "deepep_v2",
                                          "mori",
                                          "nixl_ep",
                                          "flashinfer_all2allv",
                                          "flashinfer_nvlink_one_sided",
                                          "flashinfer_nvlink_two_sided"};

Result<model::ExchangeKind> exchange_kind(const Values& values, const parallel::Topology& shape) {
  const std::string backend = values.text("all2all-backend");
  const bool gathers = std::ranges::find(kAllGather, backend) != std::end(kAllGather);
  if (!gathers && std::ranges::find(kAllToAll, backend) == std::end(kAllToAll))
    return fail(Code::invalid_argument, "--all2all-backend {} (chose from {{ {},{} }})", backend,
                fmt::join(kAllGather, ","), fmt::join(kAllToAll, ","));
  // One engine exchanges nothing.
  if (gathers || shape.data_size == 1) return model::ExchangeKind::all_gather;
  if (!shape.expert_parallel)
    return fail(Code::invalid_argument,
                "--all2all-backend {} needs whole experts: add --enable-expert-parallel", backend);
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

// The processes of --nnodes, or of mpirun: all behind the first one's port.
Result<void> read_nodes(const Values& values, Spread& spread) {
  M2_TRY(spread.nodes, size_flag(values, "nnodes"));
  int64_t node = *values.integer("node-rank");
  spread.address = values.text("master-addr");
  spread.port = static_cast<int>(*values.integer("master-port"));
  const std::string backend = values.text("distributed-executor-backend");
  const MpiLaunch launch = mpi_launch();
  if (backend == "mpi" && launch.processes == 1)
    return fail(
        Code::invalid_argument,
        "--distributed-executor-backend mpi: mpirun has not started this process with others");
  if (launch.processes > 1 && spread.nodes == 1 && (backend.empty() || backend == "mpi")) {
    spread.nodes = launch.processes;
    node = launch.process;
    spread.local_process = launch.local_process;
    spread.mpi = true;
  }
  if (node < 0 || node >= spread.nodes)
    return fail(Code::invalid_argument, "--node-rank {} is not one of --nnodes {}", node,
                spread.nodes);
  if (spread.ranks() % spread.nodes != 0)
    return fail(Code::invalid_argument, "{} ranks cannot be shared evenly by {} processes{}",
                spread.ranks(), spread.nodes, spread.mpi ? " of mpirun" : " (--nnodes)");
  spread.first = node == 0;
  spread.share = parallel::place_evenly(spread.ranks(), spread.nodes, node).local();
  return {};
}

// Who serves, of processes with engines of their own: each its engines, or one all.
Result<void> read_balancing(const Values& values, Spread& spread) {
  const bool external =
      values.given("data-parallel-rank") || values.flag("data-parallel-external-lb");
  spread.fronts = external || values.flag("data-parallel-hybrid-lb");
  if (external && values.flag("data-parallel-hybrid-lb"))
    return fail(Code::invalid_argument,
                "--data-parallel-hybrid-lb and --data-parallel-external-lb exclude each other");
  if (spread.fronts && !external && !values.given("data-parallel-size-local"))
    return fail(Code::invalid_argument,
                "--data-parallel-hybrid-lb needs --data-parallel-size-local: the engines of this "
                "process");
  if (external && !values.given("data-parallel-rank"))
    return fail(Code::invalid_argument,
                "--data-parallel-external-lb needs --data-parallel-rank: the engine of this "
                "process");
  if (external && values.integer("data-parallel-size-local").value_or(1) != 1)
    return fail(Code::invalid_argument,
                "--data-parallel-size-local {}: with --data-parallel-rank a process holds one "
                "engine",
                *values.integer("data-parallel-size-local"));
  return {};
}

// The processes of --data-parallel-size-local and --data-parallel-rank. How many there are nobody
// says: all engines have to come.
Result<void> read_engine_processes(const Values& values, Spread& spread) {
  M2_TRY_VOID(read_balancing(values, spread));
  const bool external = values.given("data-parallel-rank");
  const int64_t engines = spread.shape.data_size;
  const int64_t local = values.integer("data-parallel-size-local").value_or(external ? 1 : engines);
  const int64_t start =
      values.integer(external ? "data-parallel-rank" : "data-parallel-start-rank").value_or(0);
  if (local < 0 || local > engines)
    return fail(Code::invalid_argument,
                "--data-parallel-size-local {} is not from 0 to the {} of --data-parallel-size",
                local, engines);
  if (local == 0 && (engines == 1 || spread.fronts || values.flag("headless")))
    return fail(Code::invalid_argument,
                "--data-parallel-size-local 0: a process without engines serves those of others, "
                "two or more: not with {}",
                engines == 1 ? "--data-parallel-size 1"
                             : (spread.fronts ? "--data-parallel-hybrid-lb" : "--headless"));
  if (start < 0 || start >= engines)
    return fail(Code::invalid_argument, "data_parallel_rank {} is out of range [0, {}).", start,
                engines);
  if (start + local > engines)
    return fail(Code::invalid_argument,
                "--data-parallel-start-rank {} and --data-parallel-size-local {} go beyond the {} "
                "engines of --data-parallel-size",
                start, local, engines);
  spread.share = {local == 0 ? 0 : start * spread.shape.tensor_size,
                  local * spread.shape.tensor_size};
  spread.first = start == 0 && !values.flag("headless");
  spread.fronts = spread.fronts && !spread.alone();
  spread.address = values.text("data-parallel-address");
  spread.port = static_cast<int>(*values.integer("data-parallel-rpc-port"));
  return {};
}

Result<void> read_processes(const Values& values, Spread& spread) {
  bool by_engines = false;
  for (const char* flag :
       {"data-parallel-rank", "data-parallel-start-rank", "data-parallel-size-local",
        "data-parallel-external-lb", "data-parallel-hybrid-lb"})
    by_engines = by_engines || values.given(flag);
  const bool by_nodes = *values.integer("nnodes") > 1 || mpi_launch().processes > 1;
  by_engines = by_engines || (values.flag("headless") && !by_nodes);
  if (by_engines && by_nodes)
    return fail(Code::invalid_argument,
                "the processes are counted either by {} or by --data-parallel-size-local and "
                "--data-parallel-rank",
                *values.integer("nnodes") > 1 ? "--nnodes" : "mpirun");
  M2_TRY_VOID(by_engines ? read_engine_processes(values, spread) : read_nodes(values, spread));

  if (values.flag("headless")) {
    if (spread.serves() || (by_engines && spread.shape.data_size == 1))
      return fail(Code::invalid_argument,
                  "--headless: this process holds engine {}, and serves HTTP for {}",
                  spread.first_engine(), spread.fronts ? "it" : "all");
    if (values.given("api-server-count") && *values.integer("api-server-count") > 0)
      return fail(Code::invalid_argument,
                  "api_server_count={} cannot be used with --headless (no API servers are started "
                  "in headless mode).",
                  *values.integer("api-server-count"));
  } else if (by_engines && !spread.serves()) {
    return fail(Code::invalid_argument,
                "the process of engine 0 serves HTTP for all: add --headless here, or "
                "--data-parallel-hybrid-lb everywhere");
  }
  return {};
}

// What a start says when ranks of other processes did not come to where this one waited for them.
Result<void> others_came(Result<void> waited) {
  if (waited.ok()) return waited;
  return fail(waited.error().code,
              "waiting for ranks of other processes to load their weights: {} "
              "(--rank-start-seconds; what that process is doing stands in its own log)",
              waited.error().text);
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
  if (values.flag("disable-custom-all-reduce")) out.sums = parallel::SumsBy::nccl;
  M2_TRY(out.ranks_per_gpu, size_flag(values, "ranks-per-gpu"));
  if (out.ranks_per_gpu > 1) out.sums = parallel::SumsBy::host;
  M2_TRY(out.exchange, exchange_kind(values, out.shape));
  out.start_patience = *values.integer("rank-start-seconds") * kSecond;
  M2_TRY_VOID(model::check_topology(config, out.shape));
  M2_TRY_VOID(read_processes(values, out));
  return out;
}

Result<World> meet_processes(const Spread& spread, Json terms) {
  World out;
  out.where = parallel::place_evenly(spread.ranks(), 1, 0);
  if (spread.alone()) return out;
  terms["tensor-parallel-size"] = spread.shape.tensor_size;
  terms["data-parallel-size"] = spread.shape.data_size;
  terms["enable-expert-parallel"] = spread.shape.expert_parallel;
  terms["expert-placement-strategy"] = spread.shape.round_robin ? "round_robin" : "linear";
  terms["nnodes"] = spread.nodes;
  terms["ranks-per-gpu"] = spread.ranks_per_gpu;
  terms["data-parallel load balancing"] = spread.fronts ? "each its own" : "internal";
  terms["all2all-backend"] =
      spread.exchange == model::ExchangeKind::all_to_all ? "all_to_all" : "allgather_reducescatter";
  if (spread.mpi) {
    M2_TRY(out.links, parallel::MpiWorld::open(spread.nodes, terms));
    out.where = parallel::place_evenly(spread.ranks(), spread.nodes,
                                       spread.share.begin / spread.share.count);
    return out;
  }
  parallel::Meeting meeting;
  meeting.first = spread.first;
  meeting.share = spread.share;
  meeting.ranks = spread.ranks();
  meeting.address = spread.address;
  meeting.port = spread.port;
  meeting.channels = parallel::channels_of(spread.shape);
  meeting.terms = std::move(terms);
  meeting.patience = spread.start_patience;
  M2_TRY(std::unique_ptr<parallel::TcpMesh> mesh, parallel::TcpMesh::connect(meeting));
  out.where = mesh->placement();
  out.links = std::move(mesh);
  return out;
}

RankModels::RankModels(const Spread& spread, const World& world, Device device, int threads)
    : spread_(spread), world_(world), device_(device) {
  auto locals =
      parallel::make_local_ranks(spread.shape, world.where, world.links.get(), spread.seats());
  // The ranks of a process share its cores.
  const int cores = threads > 0 ? threads : usable_cpus();
  const int each = std::max(1, cores / std::max(1, static_cast<int>(locals.size())));
  for (parallel::LocalRank& local : locals) {
    Rank& rank = *ranks_.emplace_back(std::make_unique<Rank>());
    rank.local = std::move(local);
    for (parallel::Comm* comm :
         {rank.local.tensor.get(), rank.local.engines.get(), rank.local.seat.get()})
      if (comm) comm->set_deadline(spread.start_patience);
    rank.device = device;
    if (device.kind == DeviceKind::cuda)
      rank.device.index += static_cast<int>((std::ssize(ranks_) - 1) / spread.ranks_per_gpu);
    rank.pool = std::make_unique<ThreadPool>(each);
    rank.stream = std::make_unique<Stream>(rank.device);
  }
}

// Runs work for every local rank, each on a thread of its own. The first failure.
Result<void> RankModels::on_every_rank(const std::function<Result<void>(Rank&)>& work) {
  std::vector<Result<void>> done(ranks_.size());
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < ranks_.size(); ++i)
      threads.emplace_back([&, i] {
        use_device(ranks_[i]->device);
        done[i] = work(*ranks_[i]);
      });
  }
  for (Result<void>& one : done) M2_TRY_VOID(std::move(one));
  return {};
}

// Null where nothing waits on a device.
std::unique_ptr<StartWatch> RankModels::watch_start(
    const char* doing, std::function<void(const Error&)> give_up) const {
  if (spread_.ranks() == 1 || host_addressable(device_)) return nullptr;
  std::vector<StartingRank> ranks;
  for (const auto& rank : ranks_)
    ranks.push_back({rank->local.topology.expert_rank(), rank->device, &rank->progress});
  return std::make_unique<StartWatch>(
      doing, std::move(ranks),
      StartWatch::Limits{.patience = std::min(spread_.start_patience, kStepsPatience)},
      std::move(give_up));
}

Result<void> RankModels::connect_devices() {
  if (spread_.ranks() == 1 || host_addressable(device_)) return {};
  // The groups of devices are being made: those of the host are what can be given up.
  const auto watch = watch_start("find each other", [this](const Error& why) {
    for (const auto& rank : ranks_)
      for (parallel::Comm* comm : {rank->local.tensor.get(), rank->local.engines.get()})
        if (comm) comm->abort(why);
  });
  return on_every_rank([sums = spread_.sums](Rank& rank) -> Result<void> {
    M2_TRY_VOID(parallel::add_device_groups(rank.local, rank.device, sums));
    for (auto* group : {&rank.local.device_tensor, &rank.local.device_engines})
      if (*group) *group = parallel::count_collectives(std::move(*group), rank.progress);
    return {};
  });
}

Result<void> RankModels::build(const model::ModelConfig& config, const MakeWeights& make_weights,
                               model::MemoryRequest request, const model::RunnerOptions& options) {
  if (!ranks_.empty()) M2_TRY_VOID(build_ranks(config, make_weights, request, options));
  if (spread_.seats() && spread_.first) return add_seats();
  return {};
}

Result<void> RankModels::build_ranks(const model::ModelConfig& config,
                                     const MakeWeights& make_weights, model::MemoryRequest request,
                                     const model::RunnerOptions& options) {
  std::vector<model::Weights> weights;
  for (const auto& rank : ranks_) {
    log_experts(rank->local.topology, config);
    M2_TRY(model::Weights part, make_weights(rank->local.topology, rank->device));
    weight_bytes_ += part.buffer.bytes();
    weights.push_back(std::move(part));
  }
  const auto count = static_cast<int64_t>(ranks_.size());
  if (host_addressable(device_))
    request.available_bytes = (model::available_host_memory() + weight_bytes_) / count;
  request.exchange = spread_.exchange;
  std::vector<model::MemoryPlan> plans;
  const auto make_plans = [&]() -> Result<void> {
    plans.clear();
    for (size_t i = 0; i < ranks_.size(); ++i) {
      request.topology = ranks_[i]->local.topology;
      M2_TRY(plans.emplace_back(),
             model::plan_memory(config, weights[i], request, ranks_[i]->device));
    }
    return {};
  };
  M2_TRY_VOID(make_plans());
  std::vector<int64_t> blocks;
  for (const model::MemoryPlan& plan : plans) blocks.push_back(plan.num_blocks);
  M2_TRY(request.num_blocks, agree_on_blocks(blocks));
  M2_TRY_VOID(make_plans());
  num_blocks_ = request.num_blocks;
  kv_bytes_ = plans.front().kv_bytes;
  M2_TRY_VOID(make_runners(config, std::move(weights), plans, request, options));
  for (const auto& rank : ranks_) {
    add_first(*rank);
    if (rank->local.seat) M2_TRY_VOID(engine::tell_of_model(*rank->local.seat, *rank->model));
  }
  return {};
}

// At the same time: ranks on devices record their steps together.
Result<void> RankModels::make_runners(const model::ModelConfig& config,
                                      std::vector<model::Weights> weights,
                                      const std::vector<model::MemoryPlan>& plans,
                                      const model::MemoryRequest& request,
                                      const model::RunnerOptions& options) {
  const auto watch =
      watch_start("finish their first steps", [this](const Error& why) { abort_all(why); });
  return on_every_rank([&](Rank& rank) -> Result<void> {
    const auto i = static_cast<size_t>(
        std::ranges::find_if(ranks_, [&](const auto& one) { return one.get() == &rank; }) -
        ranks_.begin());
    Exec exec{rank.device, rank.pool.get(), rank.stream->handle()};
    exec.alone = spread_.ranks_per_gpu == 1;
    const model::RankPlace place{rank.local.model_groups(), rank.local.topology, spread_.exchange};
    rank.model = model::make_runner(exec, place, config, std::move(weights[i]), plans[i],
                                    request.max_model_len, options);
    return place.groups.tensor.status();
  });
}

// The least over all ranks of all processes.
Result<int64_t> RankModels::agree_on_blocks(const std::vector<int64_t>& blocks) {
  const int64_t least = *std::min_element(blocks.begin(), blocks.end());
  if (spread_.alone()) return least;
  std::atomic<int64_t> least_of_all = least;
  const Result<void> told_all = on_every_rank([&](Rank& rank) -> Result<void> {
    parallel::Comm& comm = rank.local.engines ? *rank.local.engines : *rank.local.tensor;
    const auto size = comm.size();
    const std::vector<int64_t> ones(static_cast<size_t>(size), 1);
    int64_t own = least;
    std::vector<int64_t> told(static_cast<size_t>(size), own);
    comm.all_gather(Exec{}, Tensor(&own, DType::i64, {1}), ones,
                    Tensor(told.data(), DType::i64, {size}));
    M2_TRY_VOID(others_came(comm.status()));
    least_of_all = *std::min_element(told.begin(), told.end());
    return {};
  });
  M2_TRY_VOID(told_all);
  return least_of_all.load();
}

// Rounds of an engine that schedules here.
std::unique_ptr<engine::Rounds> RankModels::make_rounds(int64_t engine) {
  return std::make_unique<engine::Rounds>([this, engine](uint64_t round) {
    call_all(round, engine);
    if (bell_) bell_->ring(round);
  });
}

void RankModels::call_all(uint64_t round, int64_t but) {
  for (const Head& head : heads_)
    if (head.engine != but && head.rounds) head.rounds->want(round);
}

void RankModels::add_first(Rank& rank) {
  const parallel::Topology& topology = rank.local.topology;
  if (topology.tensor_rank != 0) return;
  if (spread_.ranks() == 1) {
    heads_.push_back({0, rank.model.get(), rank.pool.get(), rank.device, nullptr, [] {}});
    return;
  }
  // For a relay the seat keeps account of the rounds.
  rank.rounds =
      rank.local.seat ? std::make_unique<engine::Rounds>(nullptr) : make_rounds(topology.data_rank);
  rank.first =
      std::make_unique<engine::FirstRank>(*rank.model, step_ranks(rank), *rank.rounds, rank.watch);
  if (rank.local.seat) return;
  heads_.push_back({topology.data_rank, rank.first.get(), rank.pool.get(), rank.device,
                    rank.rounds.get(), [first = rank.first.get()] { first->stop(); }});
}

// Seats wait for the engines' models to be made.
Result<void> RankModels::add_seats() {
  for (parallel::RemoteEngine& remote :
       parallel::make_remote_engines(spread_.shape, world_.where, world_.links.get())) {
    Seated& seated = *seated_.emplace_back(std::make_unique<Seated>());
    seated.remote = std::move(remote);
    seated.remote.seat->set_deadline(spread_.start_patience);
    seated.rounds = make_rounds(seated.remote.data_rank);
    seated.pool = std::make_unique<ThreadPool>(1);
    const Result<engine::SeatedModel> heard = engine::hear_of_model(*seated.remote.seat);
    if (!heard.ok()) return others_came(heard.error());
    const engine::SeatedModel& model = *heard;
    num_blocks_ = model.limits.num_blocks;
    seated.seat = std::make_unique<engine::Seat>(*seated.remote.seat, model, *seated.rounds);
    heads_.push_back({seated.remote.data_rank, seated.seat.get(), seated.pool.get(), Device{},
                      seated.rounds.get(), [seat = seated.seat.get()] { seat->stop(); }});
  }
  return {};
}

// All groups of this process.
std::vector<parallel::Comm*> RankModels::groups() const {
  std::vector<parallel::Comm*> out;
  for (const auto& rank : ranks_) {
    const parallel::LocalRank& local = rank->local;
    for (parallel::Comm* comm : {local.tensor.get(), local.engines.get(), local.seat.get(),
                                 local.device_tensor.get(), local.device_engines.get()})
      if (comm) out.push_back(comm);
  }
  for (const auto& seated : seated_) out.push_back(seated->remote.seat.get());
  return out;
}

void RankModels::abort_all(Error why) {
  const auto all = groups();
  for (const parallel::Comm* comm : all)
    if (const Result<void> status = comm->status(); !status.ok()) {
      why = status.error();
      break;
    }
  for (parallel::Comm* comm : all) comm->abort(why);
}

// Over TCP, processes that serve engines of their own call each other to rounds. On devices the
// bell also says who is gone: what waits there has no deadline.
void RankModels::start_bell() {
  if (!world_.links || ranks_.empty()) return;
  const bool on_devices = !host_addressable(device_);
  if (!spread_.fronts && !on_devices) return;
  bell_ = world_.links->bell(parallel::channels_of(spread_.shape) - 1,
                             {[this](uint64_t round) { call_all(round, -1); },
                              [this, on_devices](const Error& who) {
                                if (on_devices) abort_all(who);
                              }});
}

// What a rank does that does not schedule here: follows its engine's first rank, or relays for it.
Result<void> RankModels::serve_rank(Rank& rank) {
  use_device(rank.device);
  if (!rank.local.seat) return engine::follow(*rank.model, step_ranks(rank), rank.watch);
  return engine::relay(*rank.first, *rank.local.seat);
}

// A seat waits for whole steps, which may take long: it has no deadline any more. Where its
// engine's ranks do not answer, other engines notice, who step together with it; without one here,
// nobody would.
void RankModels::start(Nanos deadline) {
  for (const auto& rank : ranks_)
    for (parallel::Comm* comm :
         {rank->local.tensor.get(), rank->local.engines.get(), rank->local.seat.get()})
      if (comm) comm->set_deadline(deadline);
  for (const auto& seated : seated_)
    seated->remote.seat->set_deadline(ranks_.empty() ? deadline : 0);
  start_bell();
  for (const auto& rank : ranks_) {
    if (rank->first && !rank->local.seat) continue;
    if (spread_.ranks() == 1) continue;
    rank->follower = std::jthread([this, &rank = *rank] {
      rank.ended = serve_rank(rank);
      // Other ranks here may wait for this one, some of them without a deadline.
      if (!rank.ended.ok()) abort_all(rank.ended.error());
    });
  }
  if (!ranks_.empty() && ranks_[0]->local.device_tensor)
    watch_ =
        std::jthread([this, deadline](std::stop_token stop) { watch_devices(stop, deadline); });
}

// Gives everything up when a rank's device does not come to the end of a step.
void RankModels::watch_devices(const std::stop_token& stop, Nanos deadline) {
  const SteadyClock clock;
  while (!stop.stop_requested()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    for (const auto& rank : ranks_) {
      if (rank->watch.waited(clock.now()) < deadline) continue;
      abort_all({Code::unavailable,
                 fmt::format("rank {} did not finish a step within {:g} s",
                             rank->local.topology.expert_rank(), seconds(deadline)),
                 {}});
      return;
    }
  }
}

void RankModels::join_followers() {
  for (const auto& rank : ranks_)
    if (rank->follower.joinable()) rank->follower.join();
}

Result<void> RankModels::wait() {
  join_followers();
  for (const auto& rank : ranks_) M2_TRY_VOID(rank->ended);
  return {};
}

}  // namespace m2::app
