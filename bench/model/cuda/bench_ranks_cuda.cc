// Time of steps by ranks on GPUs, and of what stands between their products. M2's full width with
// random weights.
//   bench_ranks_cuda [LAYERS [EXPERTS [RANKS [WAY]]]]     of the ways whose names begin so
//   bench_ranks_cuda sums [RANKS]                         sums alone, of bf16
//   bench_ranks_cuda norms [RANKS]                        sums on their way into norms (ranks may
//                                                         share a GPU)
//   bench_ranks_cuda rows [RANKS]                         those of many rows, each rank norming all
//                                                         or a share for all
//   bench_ranks_cuda prompts [LAYERS [EXPERTS [RANKS]]]   steps of prompts, in turns by both ways
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "bench/model/full_width.h"
#include "model/runner.h"
#include "parallel/hosted_comm.h"
#include "parallel/nccl.h"
#include "parallel/peers.h"
#include "parallel/shared_comm.h"
#include "tensor/stream.h"
#include "tests/parallel/whole_rows_comm.h"

namespace {

using namespace m2;
using namespace m2::model;
using parallel::SumsBy;
using SteadyTime = std::chrono::steady_clock;

constexpr int64_t kContext = 2048;
constexpr int64_t kChunk = 8192;
constexpr int64_t kMostSequences = 128;
constexpr int kWarm = 10, kSteps = 60, kPrompts = 6;
constexpr int64_t kPerSequence = (kContext + kSteps + kWarm) / kBlockSize + 2;

Device gpu(size_t rank) {
  return {DeviceKind::cuda, static_cast<int>(rank)};
}

struct Spread {
  int64_t tensor, data;
  bool whole = false;
  ExchangeKind exchange = ExchangeKind::all_gather;
  SumsBy sums = SumsBy::peers;
  bool whole_rows = false;  // every rank norms all rows and chooses experts of them

  std::string name() const {
    std::string out = fmt::format("TP{}", tensor);
    if (data > 1) out += fmt::format(" x DP{}", data);
    if (whole) out += " + EP";
    if (data > 1) out += exchange == ExchangeKind::all_to_all ? ", all-to-all" : ", all-gather";
    if (tensor > 1) out += sums == SumsBy::nccl ? ", sums by NCCL" : ", sums by peers";
    return out;
  }
};

// Seconds of a step.
struct Times {
  std::vector<double> decode;  // of each batch
  double prompt = 0;
};
constexpr int64_t kBatches[] = {1, 8, 10, 16, 64, 96, kMostSequences};

// The model on all ranks of a spread.
class Bench {
 public:
  Bench(const ModelConfig& config, const Spread& spread) : spread_(spread) {
    parallel::Topology shape;
    shape.tensor_size = spread.tensor;
    shape.data_size = spread.data;
    shape.expert_parallel = spread.whole;
    for (parallel::LocalRank& local : parallel::make_local_ranks(shape))
      ranks_.push_back({std::move(local), nullptr, nullptr, nullptr});
    on_every_rank([&](size_t r) { make(config, r); });
  }

  // Seconds of a step of so many tokens of prompts, two under way.
  double prompts_of(int64_t tokens) {
    return time(kPrompts, [tokens](int i) {
      const int64_t length = std::min(tokens, kContext), at_once = tokens / length;
      std::vector<Piece> pieces;
      for (int64_t s = 0; s < at_once; ++s)
        pieces.push_back({(i * at_once + s) % kMostSequences, 0, length});
      return pieces;
    });
  }

  Times measure() {
    Times out;
    out.prompt = prompts_of(kChunk);
    for (const int64_t batch : kBatches) out.decode.push_back(decode(batch));
    return out;
  }

 private:
  struct Rank {
    parallel::LocalRank local;
    std::unique_ptr<parallel::WholeRowsComm> instead;  // of the group
    std::unique_ptr<Stream> stream;
    std::unique_ptr<StepModel> model;
  };

  void on_every_rank(const std::function<void(size_t)>& work) {
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < ranks_.size(); ++r)
      threads.emplace_back([&work, r] {
        use_device(gpu(r));
        work(r);
      });
  }

  void make(const ModelConfig& config, size_t r) {
    Rank& rank = ranks_[r];
    const Result<void> added = parallel::add_device_groups(rank.local, gpu(r), spread_.sums);
    M2_CHECK(added.ok(), "{}", added.error().text);
    rank.stream = std::make_unique<Stream>(gpu(r));
    Result<Weights> weights = dummy_weights(config, rank.local.topology, gpu(r), 1);
    M2_CHECK(weights.ok(), "{}", weights.error().text);
    MemoryRequest request;
    request.max_model_len = kChunk;
    request.max_num_seqs = kMostSequences;
    request.max_num_batched_tokens = kChunk;
    request.num_blocks = kPerSequence * kMostSequences;
    request.padded_rows = kMostSequences;
    request.topology = rank.local.topology;
    request.exchange = spread_.exchange;
    const Result<MemoryPlan> plan = plan_memory(config, *weights, request, gpu(r));
    M2_CHECK(plan.ok(), "{}", plan.error().text);
    RunnerOptions options;
    options.graph_sizes = {std::begin(kBatches), std::end(kBatches)};
    const parallel::Groups groups = rank.local.model_groups();
    if (spread_.whole_rows) rank.instead = std::make_unique<parallel::WholeRowsComm>(groups.tensor);
    const RankPlace place{rank.instead ? parallel::Groups{*rank.instead} : groups,
                          rank.local.topology, spread_.exchange};
    rank.model = make_runner({gpu(r), nullptr, rank.stream->handle()}, place, config,
                             *std::move(weights), *plan, request.max_model_len, options);
  }

  void enqueue(size_t r, MadeStep& made, const std::vector<Piece>& pieces) {
    StepInput input = made.make(pieces);
    const std::vector<int64_t> tokens(static_cast<size_t>(spread_.data),
                                      static_cast<int64_t>(input.token_ids.size()));
    if (spread_.data > 1) input.engine_tokens = tokens;
    ranks_[r].model->enqueue(input, made.sampling());
  }

  void collect(size_t r) {
    const Result<StepResult> result = ranks_[r].model->collect();
    M2_CHECK(result.ok(), "{}", result.error().text);
  }

  // Runs `step` times + kWarm, two under way; the first rank's seconds a step after the warm ones.
  double time(int times, const std::function<std::vector<Piece>(int)>& step) {
    double out = 0;
    on_every_rank([&](size_t r) {
      MadeStep made(kPerSequence);
      SteadyTime::time_point start;
      for (int i = 0; i < kWarm + times; ++i) {
        enqueue(r, made, step(i));
        if (i > 0) collect(r);
        if (i == kWarm) start = SteadyTime::now();
      }
      if (r == 0)
        out = std::chrono::duration<double>(SteadyTime::now() - start).count() / (times - 1);
      collect(r);
    });
    return out;
  }

  double decode(int64_t batch) {
    return time(kSteps, [batch](int i) {
      std::vector<Piece> pieces;
      for (int64_t s = 0; s < batch; ++s) pieces.push_back({s, kContext + i, 1, i > 0});
      return pieces;
    });
  }

  const Spread spread_;
  std::vector<Rank> ranks_;
};

void print(const std::string& name, const Times& times) {
  fmt::print("| {} |", name);
  for (const double seconds : times.decode) fmt::print(" {:.0f} |", seconds * 1e6);
  fmt::print(" {:.0f} |\n", times.prompt * 1e6);
  std::fflush(stdout);
}

// Of `times` launches one after another, behind a first one.
double seconds_a_launch(const Exec& exec, const Graph& graph, int times) {
  SteadyTime::time_point start;
  for (int i = 0; i <= times; ++i) {
    graph.launch(exec);
    if (i > 0) continue;
    synchronize(exec);
    start = SteadyTime::now();
  }
  synchronize(exec);
  return std::chrono::duration<double>(SteadyTime::now() - start).count() / times;
}

// Seconds of a sum among many, recorded, of `count` numbers of each rank.
double sum_seconds(const std::vector<parallel::LocalRank>& ranks, int64_t count) {
  constexpr int kSums = 20, kTimes = 6;
  double out = 0;
  std::vector<std::jthread> threads;
  for (size_t r = 0; r < ranks.size(); ++r)
    threads.emplace_back([&, r] {
      use_device(gpu(r));
      const Stream stream(gpu(r));
      const Exec exec{gpu(r), nullptr, stream.handle()};
      const Buffer memory(gpu(r), count * 2);
      parallel::Comm& comm = *ranks[r].device_tensor;
      const Tensor x(memory.data(), DType::bf16, {count});
      std::vector<uint16_t> numbers(static_cast<size_t>(count));
      for (size_t i = 0; i < numbers.size(); ++i)
        numbers[i] = static_cast<uint16_t>(0x3e00 + (i * 7919 + r) % 251);
      copy_to_device(exec, x.data(), numbers.data(), count * 2);
      comm.all_reduce(exec, x);
      synchronize(exec);
      const Graph graph = Graph::record(exec, [&] {
        for (int i = 0; i < kSums; ++i) comm.all_reduce(exec, x);
      });
      ranks[r].tensor->barrier(Exec{});
      const double took = seconds_a_launch(exec, graph, kTimes);
      if (r == 0) out = took / kSums;
    });
  threads.clear();
  return out;
}

void print_sums(int64_t ranks) {
  parallel::Topology shape;
  shape.tensor_size = ranks;
  fmt::print("{}; {} ranks, a sum of bf16\n\n| rows of 3072 | bytes |", describe_device(gpu(0)),
             ranks);
  std::vector<std::vector<parallel::LocalRank>> ways;
  for (const SumsBy sums : {SumsBy::peers, SumsBy::nccl}) {
    std::vector<parallel::LocalRank>& group = ways.emplace_back(parallel::make_local_ranks(shape));
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < group.size(); ++r)
      threads.emplace_back([&, r] {
        use_device(gpu(r));
        const Result<void> added = parallel::add_device_groups(group[r], gpu(r), sums);
        M2_CHECK(added.ok(), "{}", added.error().text);
      });
    fmt::print(" by {}, us | GB/s in |", sums == SumsBy::peers ? "peers" : "NCCL");
  }
  fmt::print("\n| ---: | ---: | ---: | ---: | ---: | ---: |\n");
  for (const int64_t rows : {1, 8, 32, 64, 96, 128, 129, 256, 512, 1024, 2048, 8192}) {
    const int64_t bytes = rows * 3072 * 2;
    fmt::print("| {} | {} |", rows, bytes);
    for (const auto& way : ways) {
      const double seconds = sum_seconds(way, rows * 3072);
      // What has to come to a rank if each sums a share for all.
      const auto in = static_cast<double>(2 * (ranks - 1) * bytes / ranks);
      fmt::print(" {:.1f} | {:.0f} |", seconds * 1e6, in / seconds / 1e9);
    }
    fmt::print("\n");
    std::fflush(stdout);
  }
}

// --- sums on their way into norms ----------------------------------------------------------------

// A rank's tensors of one layer's norms, for `tokens` of them.
class Norms {
 public:
  Norms(Device device, int64_t ranks, int64_t tokens) : ranks_(ranks), memory_(device, 64 << 20) {
    Arena arena(memory_);
    const ops::HeadShape& heads = heads_;
    heads_ = {48 / ranks, 8 / ranks, 128, 64};
    x_ = arena.place(DType::bf16, {tokens, kHidden});
    residual_ = arena.place(DType::bf16, {tokens, kHidden});
    out_ = arena.place(DType::bf16, {tokens, kHidden});
    quantised_ = {arena.place(DType::f8_e4m3, {tokens, kHidden}),
                  arena.place(DType::f32, {tokens, kHidden / 128})};
    weight_ = arena.place(DType::bf16, {6144});
    qkv_ = arena.place(DType::bf16, {tokens, (heads.q_heads + 2 * heads.kv_heads) * 128});
    sums_ = arena.place(DType::f32, {tokens, 2});
    angles_ = arena.place(DType::f32, {tokens, 64});
    slots_ = arena.place(DType::i32, {tokens});
    cache_.k = arena.place(DType::bf16, {tokens, heads.kv_heads, 16, 128});
    cache_.v = arena.place(DType::bf16, {tokens, heads.kv_heads, 16, 128});
  }

  void clear_all(const Exec& exec) const { clear(exec, memory_.data(), memory_.bytes()); }
  void sum_norm(parallel::Comm& comm, const Exec& exec) const {
    comm.all_reduce_norm(
        exec, x_,
        {residual_, Tensor(weight_.data(), DType::bf16, {kHidden}), 1e-6f, out_, quantised_});
  }
  void qk_norm(parallel::Comm& comm, const Exec& exec, bool stepwise) const {
    const ops::QkNorm work{qkv_,
                           sums_,
                           Tensor(weight_.data(), DType::bf16, {heads_.q_heads * 128}),
                           Tensor(weight_.data(), DType::bf16, {heads_.kv_heads * 128}),
                           ranks_ * heads_.q_heads * 128,
                           ranks_ * heads_.kv_heads * 128,
                           1e-6f,
                           angles_,
                           slots_,
                           heads_,
                           cache_};
    stepwise ? comm.Comm::all_reduce_qk_norm(exec, work) : comm.all_reduce_qk_norm(exec, work);
  }

 private:
  static constexpr int64_t kHidden = 3072;
  const int64_t ranks_;
  const Buffer memory_;
  ops::HeadShape heads_;
  Tensor x_, residual_, out_, weight_, qkv_, sums_, angles_, slots_;
  ops::Quantised quantised_;
  ops::KvCache cache_;
};

void print_norms(int64_t ranks) {
  const int64_t devices = gpu_count();
  // Of more ranks on a GPU only the kernels with a block a row are there at once.
  const bool crowded = ranks > 2 * devices;
  fmt::print(
      "{} x {}; {} ranks\n\n| rows | sum into a norm, us | q and k: three operations | one |\n"
      "| ---: | ---: | ---: | ---: |\n",
      devices, describe_device(gpu(0)), ranks);
  constexpr int kEach = 20, kTimes = 8;
  const auto hosts = parallel::make_thread_comms(ranks);
  std::vector<std::jthread> threads;
  for (int64_t r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] {
      parallel::Comm& host = *hosts[static_cast<size_t>(r)];
      const Device device = gpu(static_cast<size_t>(r % devices));
      use_device(device);
      const Stream stream(device);
      const Exec exec{device, nullptr, stream.handle()};
      auto peers =
          parallel::sum_through_peers(parallel::make_hosted_comm(host, device), host, device);
      M2_CHECK(peers.ok(), "{}", peers.error().text);
      parallel::Comm& comm = **peers;
      for (const int64_t rows : {1, 8, 10, 16, 32, 64, 96, 128}) {
        if (ranks > devices && rows > 16) break;
        if (crowded && rows * ranks > 64 * devices) break;
        const Norms norms(device, ranks, rows);
        norms.clear_all(exec);
        synchronize(exec);
        if (r == 0) fmt::print("| {} |", rows);
        for (const int way : {0, 1, 2}) {
          if (crowded && way == 1) {
            if (r == 0) fmt::print(" - |");
            continue;
          }
          const auto work = [&] {
            for (int i = 0; i < kEach; ++i)
              way == 0 ? norms.sum_norm(comm, exec) : norms.qk_norm(comm, exec, way == 1);
          };
          host.barrier(Exec{});
          work();
          synchronize(exec);
          host.barrier(Exec{});
          const Graph graph = Graph::record(exec, work);
          host.barrier(Exec{});
          const double took = seconds_a_launch(exec, graph, kTimes);
          if (r == 0) fmt::print(" {:.2f} |", took / kEach * 1e6);
        }
        if (r == 0) fmt::print("\n");
        host.barrier(Exec{});
      }
    });
}

// --- rows that are looked after by shares --------------------------------------------------------

// What stands between two products of many rows: sums into norms, every rank norming all rows or a
// share for all, and the choices of experts on their way to everyone.
void print_rows(int64_t ranks) {
  constexpr int kEach = 10, kTimes = 6;
  constexpr int64_t kHidden = 3072, kTop = 8;
  parallel::Topology shape;
  shape.tensor_size = ranks;
  std::vector<parallel::LocalRank> group = parallel::make_local_ranks(shape);
  fmt::print(
      "{}; {} ranks\n\n| rows | sum and norm, us | norm of rows brought | with BF16 for all | "
      "choices |\n"
      "| ---: | ---: | ---: | ---: | ---: |\n",
      describe_device(gpu(0)), ranks);
  std::vector<std::jthread> threads;
  for (int64_t r = 0; r < ranks; ++r)
    threads.emplace_back([&group, r] {
      parallel::LocalRank& rank = group[static_cast<size_t>(r)];
      const Device device = gpu(static_cast<size_t>(r));
      use_device(device);
      const Result<void> added = parallel::add_device_groups(rank, device, SumsBy::peers);
      M2_CHECK(added.ok(), "{}", added.error().text);
      const Stream stream(device);
      const Exec exec{device, nullptr, stream.handle()};
      parallel::Comm& comm = *rank.device_tensor;
      const Buffer memory(device, 256 << 20);
      for (const int64_t rows : {600, 1024, 2048, 4096, 8192}) {
        Arena arena(memory);
        const auto place = [&] { return arena.place(DType::bf16, {rows, kHidden}); };
        const Tensor x = arena.place(DType::bf16, {rows + 8, kHidden}).rows(0, rows);
        comm.introduce(x);
        const ops::AddNorm norm{place(),
                                arena.place(DType::bf16, {kHidden}),
                                1e-6f,
                                place(),
                                {arena.place(DType::f8_e4m3, {rows, kHidden}),
                                 arena.place(DType::f32, {rows, kHidden / 128})}};
        const std::array choices{arena.place(DType::i32, {rows, kTop}),
                                 arena.place(DType::f32, {rows, kTop})};
        clear(exec, memory.data(), memory.bytes());
        synchronize(exec);
        const std::function<void()> ways[] = {
            [&] { comm.all_reduce_norm(exec, x, norm); },
            [&] { comm.norm_own_rows(exec, x, norm, parallel::NormedRows::own); },
            [&] { comm.norm_own_rows(exec, x, norm, parallel::NormedRows::all); },
            [&] { comm.gather_own_rows(exec, x, choices); }};
        if (r == 0) fmt::print("| {} |", rows);
        for (const auto& way : ways) {
          const auto work = [&] {
            for (int i = 0; i < kEach; ++i) way();
          };
          rank.tensor->barrier(Exec{});
          work();
          synchronize(exec);
          const Graph graph = Graph::record(exec, work);
          rank.tensor->barrier(Exec{});
          const double took = seconds_a_launch(exec, graph, kTimes);
          if (r == 0) fmt::print(" {:.1f} |", took / kEach * 1e6);
        }
        if (r == 0) fmt::print("\n"), std::fflush(stdout);
        rank.tensor->barrier(Exec{});
      }
    });
}

// Steps of prompts by both ways, in turns.
void print_prompts(const ModelConfig& config, int64_t ranks) {
  constexpr size_t kRepeats = 5;
  Spread spread{ranks, 1};
  Bench shares(config, spread);
  spread.whole_rows = true;
  Bench whole(config, spread);
  fmt::print(
      "{}; {} layers, TP{}; medians of {}\n\n| tokens of prompts | all rows by every rank, us | by "
      "shares | |\n| ---: | ---: | ---: | ---: |\n",
      describe_device(gpu(0)), config.num_layers, ranks, kRepeats);
  for (const int64_t tokens : {int64_t{256}, int64_t{600}, int64_t{1024}, kContext, kChunk}) {
    std::array<std::vector<double>, 2> took;
    for (size_t i = 0; i < kRepeats; ++i) {
      took[0].push_back(whole.prompts_of(tokens));
      took[1].push_back(shares.prompts_of(tokens));
    }
    for (auto& times : took) std::ranges::sort(times);
    const double before = took[0][kRepeats / 2], after = took[1][kRepeats / 2];
    fmt::print("| {} | {:.0f} | {:.0f} | {:.3f} |\n", tokens, before * 1e6, after * 1e6,
               after / before);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool only_sums = argc > 1 && std::string_view(argv[1]) == "sums";
  if (only_sums) {
    load_kernels_early();
    const int64_t ranks = argc > 2 ? std::stoll(argv[2]) : std::max(2, gpu_count());
    const Result<void> usable = check_device(gpu(static_cast<size_t>(ranks) - 1));
    usable.ok() ? print_sums(ranks) : fmt::print("{}\n", usable.error().text);
    return usable.ok() ? 0 : 1;
  }
  if (argc > 1 && std::string_view(argv[1]) == "norms") {
    load_kernels_early();
    const Result<void> usable = check_device(gpu(0));
    usable.ok() ? print_norms(argc > 2 ? std::stoll(argv[2]) : 2)
                : fmt::print("{}\n", usable.error().text);
    return usable.ok() ? 0 : 1;
  }
  if (argc > 1 && std::string_view(argv[1]) == "rows") {
    load_kernels_early();
    print_rows(argc > 2 ? std::stoll(argv[2]) : gpu_count());
    return 0;
  }
  const bool only_prompts = argc > 1 && std::string_view(argv[1]) == "prompts";
  if (only_prompts) {
    load_kernels_early();
    --argc, ++argv;
  }
  const int64_t layers = argc > 1 ? std::stoll(argv[1]) : 4;
  const int64_t experts = argc > 2 ? std::stoll(argv[2]) : 256;
  const int64_t ranks = argc > 3 ? std::stoll(argv[3]) : 2;
  const std::string_view only = argc > 4 ? argv[4] : "";
  if (const Result<void> usable = check_device(gpu(static_cast<size_t>(ranks) - 1)); !usable.ok()) {
    fmt::print("{}\n", usable.error().text);
    return 1;
  }
  const ModelConfig config = full_width(layers, experts);
  if (only_prompts) {
    print_prompts(config, ranks);
    return 0;
  }
  fmt::print(
      "{}; {} layers, {} experts, top 8, FP8; decoding at {}, prompts of {} in steps of {}\n\n",
      describe_device(gpu(0)), layers, experts, kContext, kContext, kChunk);
  fmt::print("| ranks |");
  for (const int64_t batch : kBatches) fmt::print(" batch {}, us |", batch);
  fmt::print(" prompts, us |\n| --- |");
  for (size_t i = 0; i <= std::size(kBatches); ++i) fmt::print(" ---: |");
  fmt::print("\n");
  const auto measure = [&](const Spread& spread) {
    if (spread.name().starts_with(only)) print(spread.name(), Bench(config, spread).measure());
  };
  measure({1, 1});
  for (const bool whole : {false, true}) {
    Spread spread{ranks, 1, whole};
    measure(spread);
    spread.sums = SumsBy::nccl;
    measure(spread);
  }
  for (const ExchangeKind exchange : {ExchangeKind::all_gather, ExchangeKind::all_to_all})
    measure({1, ranks, true, exchange});
}
