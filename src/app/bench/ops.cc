#include "app/bench/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "app/device_options.h"
#include "base/log.h"
#include "ops/attention.h"
#include "ops/ceilings.h"
#include "ops/embed.h"
#include "ops/experts.h"
#include "ops/instruction_set.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/qk_norm_rope.h"
#include "ops/quantised.h"
#include "ops/route.h"
#include "ops/sample.h"
#include "tensor/buffer.h"
#include "tensor/stream.h"
#include "text/python_json.h"

namespace m2::app::bench {
namespace {

using enum OptionKind;

// clang-format off
constexpr Option kOptions[] = {
  {"device", "", "device", text, "auto", "auto (a GPU if this build can use one, else the CPU), cpu, cuda or cuda:N."},
  {"threads", "", "device", integer, "0", "CPU threads; 0: all."},
  {"cpu-isa", "", "device", text, "auto", "Instructions on the CPU: auto, amx, avx512, avx2, neon or baseline."},
  {"memory-gib", "", "device", number, "", "Memory for weights and caches [3 on the CPU, 16 on a GPU]; rows that need more are left out."},
  {"only", "", "what", list, "", "Rows whose names begin with one of these: linear, experts, attention, norm, quantise, qk, rope, route, embed, sample."},
  {"seconds", "", "what", number, "1", "Time spent on each row."},
  {"save-result", "", "result", text, "", "Write the numbers to this JSON file."},
  {"disable-tqdm", "", "result", flag, "false", "No progress lines on stderr."},
};
// clang-format on

// How rows' names begin: what --only names.
constexpr std::string_view kKinds[] = {"linear", "experts", "attention", "norm",  "quantise",
                                       "qk",     "rope",    "route",     "embed", "sample"};

// The model's shapes (model.md 1).
constexpr int64_t kHidden = 3072, kInner = 1536, kVocab = 200064, kExperts = 256, kTop = 8;
constexpr int64_t kQkv = 8192, kAttention = 6144, kBlock = 16;
constexpr ops::HeadShape kHeads{48, 8, 128, 64};
constexpr float kEpsilon = 1e-6f, kTheta = 5e6f;

double wall() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Timing {
  double least = 0, median = 0;  // seconds a call
};

// What a row measured. Bytes: weights and live K and V that have to move; where an operation has
// neither, its inputs and outputs.
struct Row {
  std::string name;
  Timing time;
  double bytes = 0, flops = 0;
  double of_reads = 0, of_multiplies = 0;  // shares
};

// The device with all that an operation needs, and its ceilings.
class Machine {
 public:
  Machine(Device device, int threads, int64_t bytes, double seconds)
      : device_(device),
        seconds_(seconds),
        pool_(device.kind == DeviceKind::cpu ? threads : 1),
        stream_(device),
        buffer_(device, bytes),
        workspace_(device, workspace_bytes(device)) {
    exec_ = {device, &pool_, stream_.handle(), workspace_.data(), workspace_.bytes()};
  }

  const Exec& exec() const { return exec_; }
  Device device() const { return device_; }
  const Buffer& memory() const { return buffer_; }
  bool on_gpu() const { return device_.kind == DeviceKind::cuda; }
  DType activation() const { return activation_dtype(device_); }

  // Random bits that are finite numbers of the dtype: FP8 without subnormal codes, of which a
  // quantised matrix has one in thousands; 0.5 to 2 in size, but `small` ones a hundredth of that.
  void fill(Tensor tensor, bool small = false) {
    const int64_t bytes = tensor.elements() * size_of(tensor.dtype());
    std::vector<uint64_t> piece(static_cast<size_t>(std::min(bytes, kPiece) + 7) / 8);
    for (uint64_t& word : piece) word = finite_bits(tensor.dtype(), random_(), small);
    auto* to = static_cast<std::byte*>(tensor.data());
    for (int64_t done = 0; done < bytes; done += kPiece)
      copy_to_device(exec_, to + done, piece.data(), std::min(kPiece, bytes - done));
    synchronize(exec_);
  }
  void write(Tensor tensor, const std::vector<int32_t>& values) {
    copy_to_device(exec_, tensor.data(), values.data(), std::ssize(values) * 4);
    synchronize(exec_);
  }

  // The time of call(0), call(1), ... one after the other; on a GPU inside recorded graphs.
  Timing time(const std::function<void(int)>& call) const {
    call(0);
    synchronize(exec_);
    // Batches that last long beside a clock's reading, and on a GPU beside a launch.
    const double enough = on_gpu() ? 5e-3 : 20e-6;
    for (int count = 1;; count *= 2) {
      const std::function<void()> batch = batch_of(count, call);
      batch();
      const double first = timed(batch);
      if (first >= enough || count >= 4096) return repeat(batch, count);
    }
  }

 private:
  static constexpr int64_t kPiece = 64 << 20;

  static int64_t workspace_bytes(Device device) {
    return std::max<int64_t>({ops::linear_workspace_bytes(device, 8192, kAttention),
                              ops::attention_workspace_bytes(device, 64, 131072, kHeads),
                              8192 * kExperts * 4, 256}) +
           1;
  }
  static uint64_t finite_bits(DType dtype, uint64_t bits, bool small) {
    switch (dtype) {
      case DType::f8_e4m3:
        return (bits & 0x9797979797979797u) | 0x2020202020202020u;
      case DType::bf16:
        return (bits & 0x807f807f807f807fu) | (small ? 0x3c003c003c003c00u : 0x3f003f003f003f00u);
      case DType::f32:
        return (bits & 0x807fffff807fffffu) | (small ? 0x3c0000003c000000u : 0x3f0000003f000000u);
      default:
        return bits;
    }
  }

  std::function<void()> batch_of(int count, const std::function<void(int)>& call) const {
    // Goes on where the last batch ended: each batch anew from the first weights would find them in
    // a cache.
    const auto next = std::make_shared<int>(0);
    const auto calls = [count, call, next] {
      for (int i = 0; i < count; ++i) call((*next)++);
    };
    if (!can_record(device_)) return calls;
    const auto graph = std::make_shared<Graph>(Graph::record(exec_, calls));
    return [this, graph] { graph->launch(exec_); };
  }
  double timed(const std::function<void()>& batch) const {
    const double start = wall();
    batch();
    synchronize(exec_);
    return wall() - start;
  }
  Timing repeat(const std::function<void()>& batch, int count) const {
    std::vector<double> times;
    for (const double begin = wall(); times.size() < 5 || wall() - begin < seconds_;)
      times.push_back(timed(batch) / count);
    std::ranges::sort(times);
    return {times.front(), times[times.size() / 2]};
  }

  const Device device_;
  const double seconds_;
  ThreadPool pool_;
  Stream stream_;
  Buffer buffer_, workspace_;
  Exec exec_;
  std::mt19937_64 random_{1};
};

class Bench {
 public:
  Bench(Machine& machine, std::vector<std::string> only, bool progress)
      : machine_(machine),
        exec_(machine.exec()),
        gpu_(machine.on_gpu()),
        only_(std::move(only)),
        progress_(progress) {}

  void run() {
    ceilings();
    linears();
    attentions();
    all_experts();
    for (const int64_t tokens : gpu_ ? Sizes{1, 8, 64, 8192} : Sizes{1, 512}) around(tokens);
    if (ops::can_sample(machine_.device()))
      for (const int64_t rows : {1, 8, 64}) sample(rows);
  }

  bool empty() const { return rows_.empty(); }
  std::string table() const;
  Json numbers() const;

 private:
  using Sizes = std::vector<int64_t>;

  bool wanted(const std::string& name) const {
    return only_.empty() ||
           std::ranges::any_of(only_, [&](const auto& part) { return name.starts_with(part); });
  }
  void say(const std::string& text) const {
    if (progress_) std::fprintf(stderr, "%s\n", text.c_str());
  }
  // Whether rows with weights and caches of so many bytes, and little beside them, have room.
  bool fits(const std::string& rows, int64_t bytes) const {
    constexpr int64_t kBeside = 64 << 20;
    const bool yes = bytes + kBeside <= machine_.memory().bytes();
    if (!yes)
      std::fprintf(stderr, "%s: left out, needs --memory-gib %.1f\n", rows.c_str(),
                   static_cast<double>(bytes + kBeside) / (1 << 30) + 0.05);
    return yes;
  }
  Tensor random(Arena& arena, DType dtype, std::initializer_list<int64_t> shape,
                bool small = false) {
    const Tensor tensor = arena.place(dtype, shape);
    machine_.fill(tensor, small);
    return tensor;
  }
  Tensor integers(Arena& arena, const std::vector<int32_t>& values,
                  std::initializer_list<int64_t> shape) {
    const Tensor tensor = arena.place(DType::i32, shape);
    machine_.write(tensor, values);
    return tensor;
  }

  void ceilings();
  // x quantised, where the operations before products with such weights leave it so.
  ops::Quantised as_made(Arena& arena, Tensor x, DType weights) {
    if (weights != DType::f8_e4m3 || !ops::wants_quantised(machine_.device())) return {};
    const int64_t rows = x.size(0), columns = x.size(1);
    const ops::Quantised out{arena.place(DType::f8_e4m3, {rows, columns}),
                             arena.place(DType::f32, {rows, (columns + 127) / 128})};
    ops::quantise(exec_, x, out);
    return out;
  }

  void linears();
  void linear(const char* name, DType dtype, int64_t rows, int64_t columns, const Sizes& tokens);
  void attentions();
  void attention(int64_t sequences, int64_t queries, int64_t context,
                 DType cache_dtype = DType::bf16);
  void all_experts();
  ops::Experts random_experts(Arena& arena, DType dtype, int64_t inner, int64_t held);
  void moe(const Sizes& tokens);
  void experts(const char* name, DType dtype, int64_t inner, int64_t held, const Sizes& tokens);
  void around(int64_t tokens);
  Tensor model_logits(Arena& arena, int64_t rows);
  void sample(int64_t rows);
  void add(const std::string& name, DType weights, double bytes, double flops,
           const std::function<void(int)>& call);

  Machine& machine_;
  const Exec& exec_;
  const bool gpu_;
  const std::vector<std::string> only_;
  const bool progress_;
  double read_rate_ = 0;
  std::map<ops::Multiplier, double> multiply_rates_;
  std::vector<Row> rows_;
};

const char* name_of(ops::Multiplier unit) {
  switch (unit) {
    case ops::Multiplier::fp32:
      return "FP32";
    case ops::Multiplier::bf16:
      return "BF16";
    case ops::Multiplier::fp8:
      return "FP8";
  }
  return "";
}

void Bench::ceilings() {
  const Device device = machine_.device();
  say("measuring what the device reads and multiplies");
  Arena arena(machine_.memory());
  const int64_t all = machine_.memory().bytes() / 4;
  const Tensor memory = random(arena, DType::f32, {std::min<int64_t>(all, int64_t{1} << 29)});
  read_rate_ = ops::read_rate(exec_, memory);
  for (const DType weights : {DType::f8_e4m3, DType::bf16, DType::f32}) {
    double& rate = multiply_rates_[ops::multiplier_of(device, weights)];
    if (rate == 0) rate = ops::multiply_rate(exec_, ops::multiplier_of(device, weights));
  }
}

// Times one operation whose products have such weights.
void Bench::add(const std::string& name, DType weights, double bytes, double flops,
                const std::function<void(int)>& call) {
  Row row{name, machine_.time(call), bytes, flops};
  row.of_reads = bytes / row.time.least / read_rate_;
  row.of_multiplies =
      flops / row.time.least / multiply_rates_.at(ops::multiplier_of(machine_.device(), weights));
  say(fmt::format("{}: {:.1f} us, {:.0f} % of reads, {:.0f} % of multiply-adds", name,
                  row.time.least * 1e6, 100 * row.of_reads, 100 * row.of_multiplies));
  rows_.push_back(std::move(row));
}

// ---- products

void Bench::linears() {
  if (gpu_) {
    linear("fp8", DType::f8_e4m3, kQkv, kHidden, {1, 8, 64, 512, 2048, 8192});
    linear("fp8", DType::f8_e4m3, kHidden, kAttention, {1, 8, 64, 2048, 8192});
    linear("bf16", DType::bf16, kQkv, kHidden, {1, 8, 64, 8192});
    linear("bf16", DType::bf16, kVocab, kHidden, {1, 8, 64});
    return;
  }
  linear("fp8", DType::f8_e4m3, kQkv, kHidden, {1, 2, 4, 6});
  linear("fp8", DType::f8_e4m3, kHidden, kAttention, {1});
  linear("bf16", DType::bf16, kQkv, kHidden, {1});
  linear("bf16", DType::bf16, kHidden, kAttention, {1});
  linear("bf16", DType::bf16, kVocab, kHidden, {1});
  // Many tokens: a quarter of the rows, so that one call finds a quiet moment.
  linear("fp8", DType::f8_e4m3, kQkv / 4, kHidden, {16, 48, 512});
  linear("bf16", DType::bf16, kQkv / 4, kHidden, {512});
}

void Bench::linear(const char* name, DType dtype, int64_t rows, int64_t columns,
                   const Sizes& tokens) {
  const int64_t bytes = rows * columns * size_of(dtype);
  const int64_t most = std::ranges::max(tokens);
  const int64_t beside = most * (rows + 2 * columns) * size_of(machine_.activation());
  const std::string title = fmt::format("linear {} {}x{}", name, rows, columns);
  if (!wanted(title) || !fits(title, bytes + beside)) return;
  Arena arena(machine_.memory());
  const Tensor x = random(arena, machine_.activation(), {most, columns});
  const ops::Quantised quantised = as_made(arena, x, dtype);
  const Tensor out = arena.place(machine_.activation(), {most, rows});
  const Tensor scale = random(arena, DType::f32, {(rows + 127) / 128, columns / 128}, true);
  // Several matrices in turn, more than any cache holds.
  const int64_t room = (machine_.memory().bytes() - arena.bytes()) / (bytes + 64);
  std::vector<ops::Linear> weights;
  for (int64_t i = 0; i < std::clamp<int64_t>(room, 1, 40); ++i)
    weights.push_back(
        {random(arena, dtype, {rows, columns}), dtype == DType::f8_e4m3 ? scale : Tensor(), 0, 0});
  for (const int64_t count : tokens)
    add(fmt::format("{}, {} tokens", title, count), dtype, static_cast<double>(bytes),
        2.0 * static_cast<double>(rows * columns * count), [&](int i) {
          ops::linear(exec_, x.rows(0, count), weights[static_cast<size_t>(i) % weights.size()],
                      out.rows(0, count), quantised.rows(0, count));
        });
}

void Bench::all_experts() {
  const Sizes many{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192};
  if (!gpu_) {
    experts("fp8", DType::f8_e4m3, kInner, 160, {1, 8, 64, 512});
    experts("bf16", DType::bf16, kInner, 80, {1, 8});
    return;
  }
  experts("fp8", DType::f8_e4m3, kInner, kExperts, many);
  moe({1, 8, 64});
  experts("fp8 TP4", DType::f8_e4m3, kInner / 4, kExperts, {1, 8, 16, 64});
  experts("fp8 TP8", DType::f8_e4m3, kInner / 8, kExperts, {1, 8, 16, 64});
}

// Eight different experts of `held` for each token, in ascending order.
std::vector<int32_t> choose_experts(int64_t tokens, int64_t held, std::mt19937& random) {
  std::vector<int32_t> out;
  for (int64_t t = 0; t < tokens; ++t) {
    std::set<int32_t> chosen;
    while (std::ssize(chosen) < kTop)
      chosen.insert(static_cast<int32_t>(random() % static_cast<uint32_t>(held)));
    out.insert(out.end(), chosen.begin(), chosen.end());
  }
  return out;
}

ops::Experts Bench::random_experts(Arena& arena, DType dtype, int64_t inner, int64_t held) {
  ops::Experts experts;
  experts.w13 = random(arena, dtype, {held, 2 * inner, kHidden});
  experts.w2 = random(arena, dtype, {held, kHidden, inner});
  if (dtype == DType::f8_e4m3) {
    const int64_t blocks = (inner + 127) / 128;
    experts.w1_scale = random(arena, DType::f32, {held, blocks, kHidden / 128}, true);
    experts.w3_scale = random(arena, DType::f32, {held, blocks, kHidden / 128}, true);
    experts.w2_scale = random(arena, DType::f32, {held, kHidden / 128, blocks}, true);
  }
  return experts;
}

// The choice and the experts, as a layer has them: one kernel may do what ends one and begins the
// other.
void Bench::moe(const Sizes& tokens) {
  constexpr int64_t kSets = 24;  // of tokens, which choose other experts
  const int64_t most = std::ranges::max(tokens);
  const std::string title = "route + experts fp8";
  if (!wanted(title) || !fits(title, kExperts * 3 * kInner * kHidden + kSets * most * kHidden * 40))
    return;
  Arena arena(machine_.memory());
  const ops::Experts experts = random_experts(arena, DType::f8_e4m3, kInner, kExperts);
  const Tensor gate = random(arena, DType::f32, {kExperts, kHidden}, true);
  const Tensor bias = random(arena, DType::f32, {kExperts}, true);
  const Tensor x = random(arena, machine_.activation(), {kSets * most, kHidden});
  const ops::Quantised quantised = as_made(arena, x, DType::f8_e4m3);
  const Tensor ids = arena.place(DType::i32, {most, kTop});
  const Tensor weights = arena.place(DType::f32, {most, kTop});
  const Tensor out = arena.place(machine_.activation(), {most, kHidden});
  const Tensor scratch =
      arena.place(DType::u8, {ops::experts_scratch_bytes(machine_.device(), experts, most, kTop)});
  clear(exec_, scratch.data(), scratch.elements());
  for (const int64_t count : tokens) {
    const auto run = [&](int64_t set) {
      ops::route_experts(exec_, x.rows(set * count, count), {gate, bias, {}}, experts,
                         ids.rows(0, count), weights.rows(0, count), scratch, out.rows(0, count),
                         quantised.rows(set * count, count), nullptr);
    };
    double distinct = 0;
    for (int64_t set = 0; set < kSets; ++set) {
      run(set);
      std::vector<int32_t> chosen(static_cast<size_t>(count * kTop));
      copy_to_host(exec_, chosen.data(), ids.data(), std::ssize(chosen) * 4);
      synchronize(exec_);
      distinct += static_cast<double>(std::set(chosen.begin(), chosen.end()).size()) / kSets;
    }
    const auto parameters = static_cast<double>(3 * kInner * kHidden);
    add(fmt::format("{}, {} tokens, {:.0f} of {} experts", title, count, distinct, kExperts),
        DType::f8_e4m3, parameters * distinct + static_cast<double>(kExperts * kHidden * 4),
        2 * parameters * static_cast<double>(count * kTop), [&](int i) { run(i % kSets); });
  }
}

void Bench::experts(const char* name, DType dtype, int64_t inner, int64_t held,
                    const Sizes& tokens) {
  const int64_t most = std::ranges::max(tokens);
  const int64_t bytes =
      held * 3 * inner * kHidden * size_of(dtype) + most * (kTop + 1) * kHidden * 8;
  const std::string title = fmt::format("experts {}", name);
  if (!wanted(title) || !fits(title, bytes)) return;
  Arena arena(machine_.memory());
  const ops::Experts experts = random_experts(arena, dtype, inner, held);
  const Tensor x = random(arena, machine_.activation(), {most, kHidden});
  const ops::Quantised quantised = as_made(arena, x, dtype);
  const Tensor out = arena.place(machine_.activation(), {most, kHidden});
  const Tensor shares = random(arena, DType::f32, {most, kTop}, true);
  int64_t scratch_bytes = 0;  // not the same for aligned and other sizes: the largest of all
  for (const int64_t count : tokens)
    scratch_bytes = std::max(scratch_bytes,
                             ops::experts_scratch_bytes(machine_.device(), experts, count, kTop));
  const Tensor scratch = arena.place(DType::u8, {scratch_bytes});
  if (gpu_) clear(exec_, scratch.data(), scratch_bytes);  // its kernels begin with counters there
  std::mt19937 generator(17);
  for (const int64_t count : tokens) {
    // Other experts at every call, so that none is found in a cache.
    const int sets = count >= 64 ? 4 : 24;
    const Arena kept = arena;
    std::vector<Tensor> ids;
    double distinct = 0;
    for (int i = 0; i < sets; ++i) {
      const std::vector<int32_t> chosen = choose_experts(count, held, generator);
      distinct += static_cast<double>(std::set(chosen.begin(), chosen.end()).size()) / sets;
      ids.push_back(integers(arena, chosen, {count, kTop}));
    }
    const auto parameters = static_cast<double>(3 * inner * kHidden);
    add(fmt::format("{}, {} tokens, {:.0f} of {} experts", title, count, distinct, held), dtype,
        parameters * distinct * static_cast<double>(size_of(dtype)),
        2 * parameters * static_cast<double>(count * kTop), [&](int i) {
          ops::experts(exec_, x.rows(0, count), experts, ids[static_cast<size_t>(i % sets)],
                       shares.rows(0, count), scratch, out.rows(0, count),
                       quantised.rows(0, count));
        });
    arena = kept;
  }
}

// ---- attention

void Bench::attentions() {
  if (!gpu_) {
    attention(1, 1, 8192);
    attention(8, 1, 8192);
    attention(1, 512, 512);
    attention(1, 512, 8192);
    attention(1, 1, 8192, DType::f8_e4m3);
    attention(8, 1, 8192, DType::f8_e4m3);
    attention(1, 512, 8192, DType::f8_e4m3);
    return;
  }
  for (const DType cache : {DType::bf16, DType::f8_e4m3}) {
    attention(1, 1, 2048, cache);
    attention(1, 1, 8192, cache);
    attention(1, 1, 131072, cache);
    attention(8, 1, 2048, cache);
    attention(8, 1, 4096, cache);
    attention(64, 1, 2048, cache);
    attention(64, 1, 4096, cache);
    attention(1, 2048, 2048, cache);
    attention(1, 8192, 8192, cache);
    attention(1, 8192, 32768, cache);
  }
}

void Bench::attention(int64_t sequences, int64_t queries, int64_t context, DType cache_dtype) {
  const int64_t each = context / kBlock, blocks = sequences * each;
  const int64_t live =
      sequences * context * kHeads.kv_heads * kHeads.head_dim * 2 * size_of(cache_dtype);
  // Several caches in turn, more than a processor's holds.
  const int64_t copies = std::clamp<int64_t>((int64_t{512} << 20) / live, 1, 16);
  const std::string name =
      fmt::format("attention {}{} x {} queries, context {}",
                  cache_dtype == DType::bf16 ? "" : "fp8 KV ", sequences, queries, context);
  if (!wanted(name) || !fits(name, copies * live + sequences * queries * kAttention * 8)) return;
  Arena arena(machine_.memory());
  const ops::KvCache cache{random(arena, cache_dtype, {copies * blocks, 8, kBlock, 128}),
                           random(arena, cache_dtype, {copies * blocks, 8, kBlock, 128})};
  const int64_t tokens = sequences * queries;
  const Tensor q = random(arena, machine_.activation(), {tokens, kAttention});
  const Tensor out = arena.place(machine_.activation(), {tokens, kAttention});
  std::vector<int32_t> starts, positions, order;
  for (int64_t s = 0; s <= sequences; ++s) starts.push_back(static_cast<int32_t>(s * queries));
  double pairs = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    positions.push_back(static_cast<int32_t>(context - queries + t % queries));
    pairs += positions.back() + 1.0;
  }
  for (int32_t b = 0; b < copies * blocks; ++b) order.push_back(b);
  std::ranges::shuffle(order, std::mt19937(5));
  ops::BatchLayout layout;
  layout.token_ids = layout.positions = integers(arena, positions, {tokens});
  layout.query_starts = integers(arena, starts, {sequences + 1});
  layout.context_lens = integers(
      arena, std::vector<int32_t>(static_cast<size_t>(sequences), static_cast<int32_t>(context)),
      {sequences});
  const Tensor tables = integers(arena, order, {copies * sequences, each});
  add(name, gpu_ ? DType::bf16 : DType::f32, static_cast<double>(live),
      pairs * static_cast<double>(kAttention) * 4, [&](int i) {
        layout.block_tables = tables.rows(i % copies * sequences, sequences);
        ops::paged_attention(exec_, q, cache, layout, kHeads, out);
      });
}

// ---- everything around the products

void Bench::around(int64_t tokens) {
  if (!fits("the rest", tokens * kQkv * 20 + 20'000 * kHidden * 2)) return;
  Arena arena(machine_.memory());
  const DType type = machine_.activation();
  const auto count = static_cast<double>(tokens);
  const double row = count * kHidden * static_cast<double>(size_of(type));
  const double qkv_row = count * kQkv * static_cast<double>(size_of(type));
  const Tensor x = random(arena, type, {tokens, kHidden});
  const Tensor delta = random(arena, type, {tokens, kHidden}, true);
  const Tensor out = arena.place(type, {tokens, kHidden});
  std::vector<int32_t> numbers;
  for (int32_t t = 0; t < tokens; ++t) numbers.push_back(t);
  const Tensor positions = integers(arena, numbers, {tokens});
  const auto named = [&](const char* name) { return fmt::format("{}, {} tokens", name, tokens); };

  if (wanted("norm add_rms_norm")) {
    const Tensor weight = random(arena, DType::bf16, {kHidden});
    const ops::Quantised quantised = as_made(arena, out, DType::f8_e4m3);
    add(named("norm add_rms_norm"), DType::f32, 4 * row, count * kHidden * 5,
        [&](int) { ops::add_rms_norm(exec_, x, delta, weight, kEpsilon, out, quantised); });
  }
  if (const ops::Quantised quantised = as_made(arena, x, DType::f8_e4m3);
      wanted("quantise") && !quantised.empty())
    add(named("quantise"), DType::f32, row + count * kHidden, count * kHidden * 2,
        [&](int) { ops::quantise(exec_, x, quantised); });
  if (wanted("route")) {
    const Tensor gate = random(arena, DType::f32, {kExperts, kHidden}, true);
    const Tensor bias = random(arena, DType::f32, {kExperts}, true);
    const Tensor ids = arena.place(DType::i32, {tokens, kTop});
    const Tensor weights = arena.place(DType::f32, {tokens, kTop});
    add(named("route"), DType::f32, kExperts * kHidden * 4 + row, count * kExperts * kHidden * 2,
        [&](int) { ops::route(exec_, x, gate, bias, ids, weights); });
  }
  if (wanted("embed")) {
    const Tensor words = random(arena, DType::bf16, {20'000, kHidden});
    add(named("embed"), DType::f32, row + count * kHidden * 2, 0,
        [&](int) { ops::embed(exec_, positions, words, 0, out); });
  }
  const Tensor angles = random(arena, DType::f32, {tokens, kHeads.rotary_dim});
  if (wanted("rope_angles"))
    add(named("rope_angles"), DType::f32, count * 4 * static_cast<double>(kHeads.rotary_dim), 0,
        [&](int) { ops::rope_angles(exec_, positions, kTheta, angles); });
  if (!wanted("qk_sum_squares + qk_norm_rope_store")) return;
  const Tensor qkv = random(arena, type, {tokens, kQkv});
  const Tensor norm = random(arena, DType::bf16, {kAttention});
  const Tensor sums = arena.place(DType::f32, {tokens, 2});
  const int64_t blocks = (tokens + kBlock - 1) / kBlock;
  const ops::KvCache cache{arena.place(DType::bf16, {blocks, 8, kBlock, 128}),
                           arena.place(DType::bf16, {blocks, 8, kBlock, 128})};
  // Read twice but for v, which the sums leave out; q is written back, k and v to the cache.
  add(named("qk_sum_squares + qk_norm_rope_store"), DType::f32,
      qkv_row * (7168 + 8192 + 6144) / 8192 + count * 2048 * 2, count * 7168 * 6, [&](int) {
        ops::qk_sum_squares(exec_, qkv, kHeads, sums);
        ops::qk_norm_rope_store(exec_, qkv, sums, norm, norm.rows(0, 1024), kAttention, 1024,
                                kEpsilon, angles, positions, kHeads, cache);
      });
  // The same where one rank has all heads.
  add(named("qk_norm_rope_store_whole"), DType::f32,
      qkv_row * (8192 + 6144) / 8192 + count * 2048 * 2, count * 7168 * 6, [&](int) {
        ops::qk_norm_rope_store_whole(exec_, qkv, sums, norm, norm.rows(0, 1024), kEpsilon, angles,
                                      positions, kHeads, cache);
      });
}

// As a model's: a few tokens lead, the others share little.
Tensor Bench::model_logits(Arena& arena, int64_t rows) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> row(static_cast<size_t>(kVocab));
  for (float& logit : row) logit = normal(random);
  for (float lead = 24; lead > 16; lead -= 0.25f) row[random() % row.size()] = lead;
  const Tensor logits = arena.place(DType::f32, {rows, kVocab});
  for (int64_t r = 0; r < rows; ++r) {
    std::ranges::rotate(row, row.begin() + 12345);
    copy_to_device(exec_, logits.rows(r, 1).data(), row.data(), kVocab * 4);
    synchronize(exec_);
  }
  return logits;
}

void Bench::sample(int64_t rows) {
  if (!wanted("sample") || !fits("sample", rows * kVocab * 16)) return;
  Arena arena(machine_.memory());
  const Tensor logits = model_logits(arena, rows);
  const Tensor scratch =
      arena.place(DType::u8, {ops::sample_scratch_bytes(machine_.device(), rows, kVocab)});
  const ops::SampleOutput out{arena.place(DType::i32, {rows, ops::kSampledRowWords}),
                              arena.place(DType::i32, {rows, 1}),
                              arena.place(DType::f32, {rows, 1})};
  const auto timed = [&](const char* name, const ops::SampleRow& asked) {
    std::vector<int32_t> words;
    for (int64_t r = 0; r < rows; ++r) {
      const auto* begin = reinterpret_cast<const int32_t*>(&asked);
      words.insert(words.end(), begin, begin + ops::kSampleRowWords);
    }
    const ops::SampleInput input{integers(arena, words, {rows, ops::kSampleRowWords}),
                                 arena.place(DType::i32, {1, ops::kLogitEditWords}),
                                 arena.place(DType::i32, {1, (kVocab + 31) / 32})};
    add(fmt::format("sample {}, {} rows", name, rows), DType::f32,
        static_cast<double>(rows * kVocab * 4), 0,
        [&](int) { ops::sample(exec_, logits, kVocab, input, scratch, out); });
  };
  ops::SampleRow greedy;
  greedy.temperature = 0;
  timed("greedy", greedy);
  ops::SampleRow usual;
  usual.temperature = 1;
  usual.top_p = 0.95f;
  usual.top_k = 40;
  usual.noise_first = 20260711u;
  usual.noise_second = 0x9e3779b9u;
  timed("top-k 40, top-p 0.95", usual);
  usual.top_k = 0;
  timed("top-p 0.95", usual);
  usual.top_p = 1;
  timed("temperature 1", usual);
  usual.logprobs = 0;
  timed("temperature 1, logprob and rank", usual);
  usual.given = 1000;  // of no great rank
  timed("a given token's logprob and rank", usual);
}

// ---- what is told

std::string Bench::table() const {
  const std::time_t now = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  std::string out =
      fmt::format("{}, {}{}.\n\n", describe_device(machine_.device()), date,
                  gpu_ ? "" : fmt::format(", instructions {}", ops::instruction_set()));
  out += fmt::format("Bounds measured in the same run: reads {:.1f} GB/s", read_rate_ / 1e9);
  for (const auto& [unit, rate] : multiply_rates_)
    out += fmt::format(", {} multiply-adds {:.1f} TFLOP/s", name_of(unit), rate / 1e12);
  out += ". Least time of many calls.\n\n";
  out += "| operation | us | median | GB/s | of reads | TFLOP/s | of multiply-adds |\n";
  out += "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  for (const Row& row : rows_)
    out +=
        fmt::format("| {} | {:.1f} | {:.1f} | {:.1f} | {:.0f} % | {:.2f} | {:.0f} % |\n", row.name,
                    row.time.least * 1e6, row.time.median * 1e6, row.bytes / row.time.least / 1e9,
                    100 * row.of_reads, row.flops / row.time.least / 1e12, 100 * row.of_multiplies);
  return out;
}

Json Bench::numbers() const {
  Json out{{"device", describe_device(machine_.device())}, {"read_bytes_per_s", read_rate_}};
  if (!gpu_) out["instructions"] = std::string(ops::instruction_set());
  for (const auto& [unit, rate] : multiply_rates_) out["multiply_rates"][name_of(unit)] = rate;
  out["operations"] = Json::array();
  for (const Row& row : rows_)
    out["operations"].push_back({{"name", row.name},
                                 {"seconds", row.time.least},
                                 {"median_seconds", row.time.median},
                                 {"bytes", row.bytes},
                                 {"flops", row.flops},
                                 {"of_reads", row.of_reads},
                                 {"of_multiplies", row.of_multiplies}});
  return out;
}

// Every word of --only must be able to be a row's beginning.
Result<void> check_only(const std::vector<std::string>& only) {
  for (const std::string& word : only) {
    const bool known = std::ranges::any_of(kKinds, [&](std::string_view kind) {
      return word.starts_with(kind) || (!word.empty() && kind.starts_with(word));
    });
    if (!known)
      return fail(Code::invalid_argument, "--only {}: no operation is called so (there are {})",
                  word, fmt::join(kKinds, ", "));
  }
  return {};
}

}  // namespace

const Command& ops_command() {
  static const Command command{
      "bench ops", "",
      "Every operation at MiniMax-M2's shapes, as a share of what the device reads and multiplies.",
      "Weights and caches rotate over more memory than the processor's caches hold. On a GPU calls "
      "run inside recorded graphs. Nothing else should run meanwhile.",
      kOptions};
  return command;
}

Result<void> run_ops(const Values& values) {
  start_logging("warning", "");
  M2_TRY(const Device device, choose_device(values));
  M2_TRY_VOID(ops::choose_instruction_set(values.text("cpu-isa")));
  const double gib = values.number("memory-gib").value_or(device.kind == DeviceKind::cpu ? 3 : 16);
  if (!(gib >= 0.25 && gib <= 1024))
    return fail(Code::invalid_argument, "--memory-gib must be from 0.25 to 1024, got {}", gib);
  const double seconds = *values.number("seconds");
  if (!(seconds >= 0 && seconds <= 60))
    return fail(Code::invalid_argument, "--seconds must be from 0 to 60, got {}", seconds);
  const int64_t threads = *values.integer("threads");
  if (threads < 0 || threads > 1024)
    return fail(Code::invalid_argument, "--threads must be from 0 to 1024, got {}", threads);
  M2_TRY_VOID(check_only(values.list("only")));
  const auto bytes = static_cast<int64_t>(gib * (1 << 30));
  if (device.kind == DeviceKind::cuda && device_memory(device).free < bytes + (int64_t{1} << 30))
    return fail(Code::resource_exhausted, "{} GiB are not free on the GPU: --memory-gib less", gib);
  use_device(device);
  Machine machine(device, static_cast<int>(threads), bytes, seconds);
  Bench bench(machine, values.list("only"), !values.flag("disable-tqdm"));
  bench.run();
  if (bench.empty())
    return fail(Code::invalid_argument, "no row begins so on this device, or has room: --only {}",
                fmt::join(values.list("only"), " "));
  std::fputs(bench.table().c_str(), stdout);
  if (const std::string file = values.text("save-result"); !file.empty()) {
    std::ofstream to(file, std::ios::trunc);
    to << text::python_json(bench.numbers(), true) << '\n';
    to.flush();
    if (!to) return fail(Code::unavailable, "cannot write {}", file);
  }
  return {};
}

}  // namespace m2::app::bench
