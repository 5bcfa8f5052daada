// Measures whole steps of the model on a GPU through the runner, as the engine drives it: two steps
// under way, tokens staying on the device. M2's full width with random weights and as many layers
// as are asked for.
//   bench_steps_cuda [LAYERS [EXPERTS [CONTEXT [ONE BATCH]]]]
//   bench_steps_cuda share RANKS [LAYERS [US US US [BATCH...]]]
//                                what one of RANKS tensor ranks does, of all 62 layers; its
//                                collectives are counted, and cost US each at batch 1, 8, 64, and
//                                the last at each BATCH beyond
//   bench_steps_cuda padded RANKS LAYERS BATCH...
//                                each BATCH of such a share, recorded as the next of the usual
//                                sizes and as what it is, in turns
//   bench_steps_cuda layers RANKS [LAYERS [CONTEXT [TURNS [BATCH...]]]]
//                                a token of such a share, or BATCH, recorded, by kernels for the
//                                attention half of a layer and by one for each operation, in turns
//   bench_steps_cuda prompts RANKS LAYERS KV CHUNK...
//                                chunks of prompts of such a share, over K and V in bf16 or f8,
//                                without its sums; CHUNK: "2x512@8192" are 512 tokens each of two
//                                prompts, behind 8192 that are there
//   bench_steps_cuda profile [RANKS]
//                                a few steps of two layers of the first of RANKS tensor ranks,
//                                without graphs, for a profiler
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/model/full_width.h"
#include "model/runner.h"
#include "ops/ceilings.h"
#include "parallel/cuda/peer_sum.h"
#include "parallel/peers.h"
#include "tensor/stream.h"

namespace {

using namespace m2;
using namespace m2::model;
using SteadyTime = std::chrono::steady_clock;

constexpr int64_t kChunk = 8192;
constexpr int64_t kSequences = 64;  // whose K and V are kept, unless a larger batch is asked for
constexpr int kSteps = 60;

double elapsed(SteadyTime::time_point since) {
  return std::chrono::duration<double>(SteadyTime::now() - since).count();
}

// Bytes a decoding step has to read on one of `ranks` tensor ranks: every matrix but those of
// experts that no token chose (as many as even choices leave), and the live K and V.
double decode_bytes(const ModelConfig& config, int64_t ranks, double batch, double context) {
  const auto experts = static_cast<double>(config.num_experts);
  const double hit =
      experts *
      (1 - std::pow(1 - static_cast<double>(config.num_experts_per_token) / experts, batch));
  const auto hidden = static_cast<double>(config.hidden_size);
  const double attention = 2 * hidden * static_cast<double>(config.q_width() + config.kv_width());
  const double expert = 3 * hidden * static_cast<double>(config.intermediate_size);
  const double kv = batch * context * 4 * static_cast<double>(config.kv_width());
  const double split = static_cast<double>(config.num_layers) * (attention + hit * expert + kv) +
                       2 * static_cast<double>(config.vocab_size) * hidden;
  const double router = 4 * experts * hidden;  // whole on every rank
  return split / static_cast<double>(ranks) + static_cast<double>(config.num_layers) * router;
}

// The first of several ranks, the others of which are not there: sums add nothing, and are counted;
// those of few tokens are kernels that wait for nobody, larger ones cost nothing.
// Sampling reads whole rows of logits, which are made up once.
class AbsentPeers : public parallel::Comm {
 public:
  AbsentPeers(int64_t size, Device device, bool decodes) : size_(size), decodes_(decodes) {
    auto made = parallel::sum_through_peers(parallel::make_single_comm(), *single_, device);
    M2_CHECK(made.ok(), "{}", made.error().text);
    lone_ = *std::move(made);
  }
  int64_t rank() const override { return 0; }
  int64_t size() const override { return size_; }
  void all_reduce(const Exec& exec, Tensor x) override {
    ++sums_;
    if (few(x)) lone_->all_reduce(exec, x);
  }
  void all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm) override {
    if (!few(x)) return Comm::all_reduce_norm(exec, x, norm);
    ++sums_;
    lone_->all_reduce_norm(exec, x, norm);
  }
  bool takes_experts(const Tensor& x, const ops::AddNorm& norm) const override {
    return few(x) && lone_->takes_experts(x, norm);
  }
  void all_reduce_experts_norm(const Exec& exec, Tensor x, const ops::UnsummedExperts& experts,
                               const ops::AddNorm& norm) override {
    ++sums_;
    lone_->all_reduce_experts_norm(exec, x, experts, norm);
  }
  void all_reduce_qk_norm(const Exec& exec, const ops::QkNorm& work) override {
    if (!few(work.sums)) return Comm::all_reduce_qk_norm(exec, work);
    ++sums_;
    lone_->all_reduce_qk_norm(exec, work);
  }
  ops::DecodePeers decode_peers() const override {
    return decodes_ ? lone_->decode_peers() : ops::DecodePeers();
  }
  void gather_columns(const Exec& exec, Tensor, parallel::Rows, Tensor out, int64_t) override {
    if (out.size(0) <= made_up_) return;
    made_up_ = out.size(0);
    std::mt19937 random(1);
    std::normal_distribution<float> logit;
    std::vector<float> row(static_cast<size_t>(out.size(1)));
    for (float& number : row) number = logit(random);
    for (int64_t r = 0; r < out.size(0); ++r)
      copy_to_device(exec, out.at(r).data(), row.data(), out.size(1) * 4);
    synchronize(exec);
  }
  void broadcast(const Exec&, Tensor, int64_t) override {}
  void barrier(const Exec&) override {}
  Result<void> status() const override { return {}; }
  void abort(const Error&) override {}
  void set_deadline(Nanos) override {}
  // Of engines that share experts; there is one engine.
  void all_gather(const Exec&, Tensor, parallel::Rows, Tensor) override { M2_CHECK(false); }
  void reduce_scatter(const Exec&, Tensor, parallel::Rows, Tensor) override { M2_CHECK(false); }
  void all_to_all(const Exec&, Tensor, parallel::Rows, Tensor, parallel::Rows) override {
    M2_CHECK(false);
  }

  int64_t sums() const { return sums_; }

 private:
  // What is sent rather than shared out: the kernels run, and wait for nobody.
  static bool few(const Tensor& x) {
    return x.elements() * size_of(x.dtype()) <= parallel::cuda::kSmallSumBytes;
  }
  const int64_t size_;
  const bool decodes_;  // layers of one token, by kernels that sum for themselves
  const std::unique_ptr<Comm> single_ = parallel::make_single_comm();
  std::unique_ptr<Comm> lone_;  // whose only rank this is
  int64_t sums_ = 0, made_up_ = 0;
};

class Bench {
 public:
  Bench(const ModelConfig& config, int64_t context, bool graphs, int64_t ranks = 1,
        const std::vector<int64_t>& more_sizes = {}, int64_t sequences = kSequences,
        bool decodes = true, DType kv_dtype = DType::bf16)
      : config_(config),
        context_(context),
        ranks_(ranks),
        most_sequences_(sequences),
        stream_(kGpu) {
    if (ranks > 1)
      comm_ = std::make_unique<AbsentPeers>(ranks, kGpu, decodes);
    else
      comm_ = parallel::make_single_comm();
    parallel::Topology topology;
    topology.tensor_size = ranks;
    const auto start = SteadyTime::now();
    Result<Weights> weights = dummy_weights(config, topology, kGpu, 1);
    M2_CHECK(weights.ok(), "{}", weights.error().text);
    fmt::print("{:.2f} GB of weights in {:.1f} s\n",
               static_cast<double>(weights->buffer.bytes()) / 1e9, elapsed(start));
    MemoryRequest request;
    request.max_model_len = config.max_position_embeddings;
    request.max_num_seqs = 256;
    request.max_num_batched_tokens = kChunk;
    request.topology = topology;
    request.kv_dtype = kv_dtype;
    const int64_t per_sequence = (context + kSteps + 64) / kBlockSize + 1;
    step_.emplace(per_sequence);
    request.num_blocks =
        std::max(per_sequence * most_sequences_, config.max_position_embeddings / kBlockSize);
    RunnerOptions options;
    if (graphs) {
      options.graph_sizes = {1, 2, 4};
      for (int64_t size = 8; size <= 256; size += 8) options.graph_sizes.push_back(size);
      options.graph_sizes.insert(options.graph_sizes.end(), more_sizes.begin(), more_sizes.end());
      std::ranges::sort(options.graph_sizes);
      request.padded_rows = options.graph_sizes.back();
    }
    Result<MemoryPlan> plan = plan_memory(config, *weights, request, kGpu);
    M2_CHECK(plan.ok(), "{}", plan.error().text);
    exec_ = {kGpu, nullptr, stream_.handle()};
    const int64_t before = device_memory(kGpu).free;
    const auto made = SteadyTime::now();
    model_ = make_runner(exec_, {{*comm_}, topology}, config, *std::move(weights), *plan,
                         request.max_model_len, options);
    const int64_t planned = plan->kv_bytes + plan->scratch_bytes;
    fmt::print(
        "runner in {:.2f} s; scratch {:.2f} GB, KV {:.2f} GB, {} graphs and the rest {:.0f} MB\n",
        elapsed(made), static_cast<double>(plan->scratch_bytes) / 1e9,
        static_cast<double>(plan->kv_bytes) / 1e9, options.graph_sizes.size(),
        static_cast<double>(before - device_memory(kGpu).free - planned) / 1e6);
  }

  // Prompts in chunks; returns the median seconds of a full chunk.
  double prefill(int64_t length) {
    std::vector<double> times;
    const int64_t sequences = kChunk / length;
    for (int64_t first = 0; first < most_sequences_; first += sequences) {
      std::vector<Piece> pieces;
      for (int64_t s = first; s < std::min(first + sequences, most_sequences_); ++s)
        pieces.push_back({s, 0, length});
      const auto start = SteadyTime::now();
      enqueue(pieces);
      collect();
      times.push_back(elapsed(start));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // K and V of a sequence's first `length` tokens.
  void fill(int64_t sequence, int64_t length) {
    for (int64_t begin = 0; begin < length; begin += kChunk) {
      enqueue({{sequence, begin, std::min(kChunk, length - begin)}});
      collect();
    }
  }

  // Seconds of a chunk of `length` tokens of each of some prompts, behind `before` tokens of them:
  // the least and the median of several.
  std::pair<double, double> chunk(int64_t sequences, int64_t length, int64_t before) {
    std::vector<Piece> pieces;
    for (int64_t s = 0; s < sequences; ++s) pieces.push_back({s, before, length});
    std::vector<double> times;
    for (int i = 0; i < 9; ++i) {
      const auto start = SteadyTime::now();
      enqueue(pieces);
      collect();
      if (i > 0) times.push_back(elapsed(start));
    }
    std::ranges::sort(times);
    return {times.front(), times[times.size() / 2]};
  }

  // One prompt of kChunk tokens, behind `before` tokens of the same.
  double long_chunk(int64_t before) {
    std::vector<double> times;
    for (int i = 0; i < 4; ++i) {
      const auto start = SteadyTime::now();
      enqueue({{0, before, kChunk}});
      collect();
      times.push_back(elapsed(start));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  // Where ranks are absent, `us_a_sum` is added to the step for each of its sums.
  void decode(int64_t batch, bool graphs, double read_rate, double us_a_sum = 0) {
    M2_CHECK(batch <= most_sequences_, "K and V are kept for {} sequences", most_sequences_);
    std::vector<double> host;
    const auto step = [&](int i) {
      std::vector<Piece> pieces;
      for (int64_t s = 0; s < batch; ++s) pieces.push_back({s, context_ + i, 1, i > 0});
      eager_ = !graphs;
      enqueue(pieces);
      host.push_back(host_seconds_);
    };
    step(0);
    const int kWarm = 10;
    SteadyTime::time_point start;
    for (int i = 1; i < kSteps; ++i) {
      step(i);
      collect();
      if (i == kWarm) start = SteadyTime::now();
    }
    const double measured = elapsed(start) / (kSteps - 1 - kWarm);
    const double each = measured + static_cast<double>(sums_a_step()) * us_a_sum * 1e-6;
    collect();
    std::sort(host.begin(), host.end());
    const double bytes =
        decode_bytes(config_, ranks_, static_cast<double>(batch), static_cast<double>(context_));
    fmt::print("| {} | {} | {} |", batch, context_, graphs ? "graph" : "eager");
    if (ranks_ > 1) fmt::print(" {:.0f} | {:.1f} |", measured * 1e6, us_a_sum);
    fmt::print(" {:.0f} | {:.0f} | {:.2f} | {:.2f} | {:.1f} |\n", each * 1e6,
               static_cast<double>(batch) / each, bytes / 1e9, each * read_rate / bytes,
               host[host.size() / 2] * 1e6);
    std::fflush(stdout);
  }

  // The embedding's, and three a layer.
  int64_t sums_a_step() const { return ranks_ > 1 ? 1 + 3 * config_.num_layers : 0; }
  // Counts them, in a step that was not recorded.
  void check_sums() {
    const auto* absent = dynamic_cast<const AbsentPeers*>(comm_.get());
    if (!absent) return;
    const int64_t before = absent->sums();
    enqueue({{0, 0, 2}});
    collect();
    M2_CHECK(absent->sums() - before == sums_a_step(), "{} sums, not {}", absent->sums() - before,
             sums_a_step());
  }

  // One chunk of a prompt, then one step each of 1, 8 and 64 sequences.
  void profile() {
    enqueue({{0, 0, kChunk}});
    collect();
    for (const int64_t batch : {1, 8, 64}) {
      std::vector<Piece> pieces;
      for (int64_t s = 0; s < batch; ++s) pieces.push_back({0, context_ + s, 1});
      enqueue(pieces);
      collect();
    }
  }

  static constexpr Device kGpu{DeviceKind::cuda, 0};
  const Exec& exec() const { return exec_; }

 private:
  void enqueue(const std::vector<Piece>& pieces) {
    const StepInput input = step_->make(pieces, !eager_);
    const auto start = SteadyTime::now();
    model_->enqueue(input, step_->sampling());
    host_seconds_ = elapsed(start);
  }

  void collect() {
    const Result<StepResult> result = model_->collect();
    M2_CHECK(result.ok(), "{}", result.error().text);
    for (const ops::SampledRow& row : result->rows)
      M2_CHECK(row.status == ops::SampleStatus::ok, "status {}", static_cast<int>(row.status));
  }

  const ModelConfig config_;
  const int64_t context_, ranks_, most_sequences_;
  std::optional<MadeStep> step_;
  Stream stream_;
  Exec exec_;
  std::unique_ptr<parallel::Comm> comm_;
  std::unique_ptr<StepModel> model_;
  bool eager_ = false;
  double host_seconds_ = 0;
};

// Bytes a second over memory that was written to.
double read_rate(Exec exec) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  const Buffer memory(exec.device, kBytes), workspace(exec.device, 1 << 20);
  const std::vector<uint32_t> numbers(64 << 20, 0x3c3d3e3fu);
  for (int64_t done = 0; done < kBytes; done += std::ssize(numbers) * 4)
    copy_to_device(exec, memory.data() + done, numbers.data(), std::ssize(numbers) * 4);
  exec.workspace = workspace.data();
  exec.workspace_bytes = workspace.bytes();
  return ops::read_rate(exec, Tensor(memory.data(), DType::u8, {kBytes}));
}

double read_rate() {
  const Stream stream(Bench::kGpu);
  return read_rate({Bench::kGpu, nullptr, stream.handle()});
}

// One rank's share of a model that several hold.
void measure_share(int64_t ranks, int64_t layers, const std::vector<double>& us_a_sum,
                   const std::vector<int64_t>& batches) {
  const double rate = read_rate();
  fmt::print("{}; the first of {} tensor ranks, {} layers, FP8; read {:.0f} GB/s\n",
             describe_device(Bench::kGpu), ranks, layers, rate / 1e9);
  const int64_t largest = batches.empty() ? kSequences : std::ranges::max(batches);
  Bench bench(full_width(layers, 256), 2048, true, ranks, {}, std::max(largest, kSequences));
  bench.check_sums();
  const double chunk = bench.prefill(2048);
  fmt::print(
      "prompts of 2048: {:.1f} ms a chunk of {} without its sums\n\n"
      "| batch | context | launched by | us a step without sums | us a sum, {} of them | us a step "
      "| tokens/s | GB | time over bytes / read | host us |\n"
      "| --: | --: | --- | --: | --: | --: | --: | --: | --: | --: |\n",
      chunk * 1e3, kChunk, bench.sums_a_step());
  bench.decode(1, true, rate, us_a_sum[0]);
  bench.decode(8, true, rate, us_a_sum[1]);
  bench.decode(64, true, rate, us_a_sum[2]);
  for (const int64_t batch : batches) bench.decode(batch, true, rate, us_a_sum[2]);
}

// What a batch loses by being recorded as the next of the usual sizes.
void measure_padding(int64_t ranks, int64_t layers, const std::vector<int64_t>& batches) {
  const double rate = read_rate();
  fmt::print("{}; the first of {} tensor ranks, {} layers, FP8; read {:.0f} GB/s\n",
             describe_device(Bench::kGpu), ranks, layers, rate / 1e9);
  const ModelConfig config = full_width(layers, 256);
  Bench padded(config, 2048, true, ranks), exact(config, 2048, true, ranks, batches);
  padded.prefill(2048);
  exact.prefill(2048);
  for (const int64_t batch : batches)
    for (int turn = 0; turn < 3; ++turn) {
      padded.decode(batch, true, rate);
      exact.decode(batch, true, rate);
    }
}

// A token's layers as a whole and in operations.
void measure_layers(int64_t ranks, int64_t layers, int64_t context, int turns,
                    const std::vector<int64_t>& batches) {
  const double rate = read_rate();
  fmt::print("{}; the first of {} tensor ranks, {} layers, FP8; read {:.0f} GB/s\n",
             describe_device(Bench::kGpu), ranks, layers, rate / 1e9);
  const ModelConfig config = full_width(layers, 256);
  Bench apart(config, context, true, ranks, {}, kSequences, false),
      once(config, context, true, ranks);
  for (Bench* bench : {&apart, &once}) bench->prefill(std::min<int64_t>(context, 2048));
  for (int turn = 0; turn < turns; ++turn)
    for (const int64_t batch : batches) {
      apart.decode(batch, true, rate);
      once.decode(batch, true, rate);
    }
}

struct Chunk {
  int64_t sequences = 0, length = 0, before = 0;

  explicit Chunk(const char* text) {
    M2_CHECK(
        std::sscanf(text, "%" SCNd64 "x%" SCNd64 "@%" SCNd64, &sequences, &length, &before) == 3 &&
            sequences > 0 && length > 0 && sequences * length <= kChunk && before >= 0,
        "a chunk is like 2x512@8192, not {}", text);
  }
};

void measure_prompts(int64_t ranks, int64_t layers, DType kv, const std::vector<Chunk>& chunks) {
  int64_t context = 0, sequences = 0;
  for (const Chunk& c : chunks) {
    context = std::max(context, c.before + c.length);
    sequences = std::max(sequences, c.sequences);
  }
  fmt::print("{}; the first of {} tensor ranks, {} layers, FP8, K and V in {}\n",
             describe_device(Bench::kGpu), ranks, layers, name_of(kv));
  Bench bench(full_width(layers, 256), context, false, ranks, {}, sequences, true, kv);
  fmt::print(
      "| prompts | tokens each | behind | us a layer and step, least | median |\n"
      "| --: | --: | --: | --: | --: |\n");
  for (int64_t s = 0; s < sequences; ++s) bench.fill(s, context);
  for (const Chunk& c : chunks) {
    const auto [least, median] = bench.chunk(c.sequences, c.length, c.before);
    const double us = 1e6 / static_cast<double>(layers);
    fmt::print("| {} | {} | {} | {:.0f} | {:.0f} |\n", c.sequences, c.length, c.before, least * us,
               median * us);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Result<void> usable = check_device(Bench::kGpu);
  if (!usable.ok()) {
    fmt::print("{}\n", usable.error().text);
    return 1;
  }
  const auto number = [&](int i, double otherwise) {
    return i < argc ? std::stod(argv[i]) : otherwise;
  };
  const std::string_view first = argc > 1 ? argv[1] : "";
  if (first == "profile") {
    Bench(full_width(2, 256), 2048, false, static_cast<int64_t>(number(2, 1))).profile();
    return 0;
  }
  if (first == "padded") {
    std::vector<int64_t> batches;
    for (int i = 4; i < argc; ++i) batches.push_back(std::stoll(argv[i]));
    measure_padding(static_cast<int64_t>(number(2, 4)), static_cast<int64_t>(number(3, 8)),
                    batches);
    return 0;
  }
  if (first == "layers") {
    std::vector<int64_t> batches;
    for (int i = 6; i < argc; ++i) batches.push_back(std::stoll(argv[i]));
    if (batches.empty()) batches = {1};
    measure_layers(static_cast<int64_t>(number(2, 4)), static_cast<int64_t>(number(3, 8)),
                   static_cast<int64_t>(number(4, 2048)), static_cast<int>(number(5, 3)), batches);
    return 0;
  }
  if (first == "prompts") {
    std::vector<Chunk> chunks;
    for (int i = 5; i < argc; ++i) chunks.emplace_back(argv[i]);
    const bool f8 = argc > 4 && std::string_view(argv[4]) == "f8";
    measure_prompts(static_cast<int64_t>(number(2, 1)), static_cast<int64_t>(number(3, 4)),
                    f8 ? DType::f8_e4m3 : DType::bf16, chunks);
    return 0;
  }
  if (first == "share") {
    std::vector<int64_t> batches;
    for (int i = 7; i < argc; ++i) batches.push_back(std::stoll(argv[i]));
    measure_share(static_cast<int64_t>(number(2, 4)), static_cast<int64_t>(number(3, 62)),
                  {number(4, 0), number(5, 0), number(6, 0)}, batches);
    return 0;
  }
  const int64_t layers = argc > 1 ? std::stoll(argv[1]) : 15;
  const int64_t experts = argc > 2 ? std::stoll(argv[2]) : 256;
  const int64_t context = argc > 3 ? std::stoll(argv[3]) : 2048;
  // One batch alone, recorded: to compare changes in seconds.
  const int64_t only = argc > 4 ? std::stoll(argv[4]) : 0;
  const ModelConfig config = full_width(layers, experts);
  const double rate = read_rate();
  fmt::print("{}; {} layers, {} experts, top 8, FP8; read {:.0f} GB/s\n",
             describe_device(Bench::kGpu), layers, experts, rate / 1e9);
  Bench bench(config, context, true);
  const double chunk = bench.prefill(context);
  fmt::print("prompts of {}: {:.1f} ms a chunk of {}, {:.0f} tokens/s\n", context, chunk * 1e3,
             kChunk, static_cast<double>(kChunk) / chunk);
  fmt::print(
      "\n| batch | context | launched by | us a step | tokens/s | GB if choices are even | time "
      "over bytes / read | host us |\n"
      "| --: | --: | --- | --: | --: | --: | --: | --: |\n");
  for (const int64_t batch : {1, 8, 64})
    for (const bool graphs : {true, false}) {
      if (batch == 1 && !graphs) continue;  // one row cannot be left out
      if (only != 0 && (batch != only || !graphs)) continue;
      bench.decode(batch, graphs, rate);
    }
  if (only != 0) return 0;
  const double whole = bench.long_chunk(0);
  fmt::print("\none prompt of {}: {:.1f} ms, {:.0f} tokens/s\n", kChunk, whole * 1e3,
             static_cast<double>(kChunk) / whole);
}
