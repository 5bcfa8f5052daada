#include "app/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <random>

#include "app/device_options.h"
#include "base/clock.h"
#include "model/runner.h"
#include "ops/embed.h"
#include "ops/quantised.h"
#include "tensor/stream.h"

namespace m2::app {
namespace {

constexpr double kGiB = 1 << 30;

void line(const char* what, const std::string& text) {
  std::fputs(fmt::format("{:<9} {}\n", what, text).c_str(), stdout);
  std::fflush(stdout);
}

// A device with what its operations need.
struct Machine {
  explicit Machine(Device the_device, ThreadPool& pool)
      : device(the_device), stream(device), exec{device, &pool, stream.handle()} {
    use_device(device);
  }
  Device device;
  Stream stream;
  Exec exec;
};

// Bytes a second read plus written, by copying the rows of a table that no cache holds.
double copy_rate(const Machine& machine) {
  const bool gpu = machine.device.kind == DeviceKind::cuda;
  const int64_t rows = gpu ? 65536 : 8192, columns = 8192;
  const Buffer table_memory(machine.device, rows * columns * 4);
  const Buffer out_memory(machine.device, rows * columns * 4);
  const Buffer ids_memory(machine.device, rows * 4);
  const Tensor table(table_memory.data(), DType::f32, {rows, columns});
  const Tensor out(out_memory.data(), DType::f32, {rows, columns});
  const Tensor ids(ids_memory.data(), DType::i32, {rows});
  std::vector<int32_t> order(static_cast<size_t>(rows));
  std::iota(order.begin(), order.end(), 0);
  copy_to_device(machine.exec, ids.data(), order.data(), rows * 4);
  // Memory of the host is there once it was written to.
  if (host_addressable(machine.device)) {
    for (const Buffer* memory : {&table_memory, &out_memory})
      std::fill_n(memory->data(), memory->bytes(), std::byte{1});
  }
  const SteadyClock clock;
  Nanos best = std::numeric_limits<Nanos>::max();
  for (int i = 0; i < 6; ++i) {
    synchronize(machine.exec);
    const Nanos start = clock.now();
    ops::gather_rows(machine.exec, table, ids, out);
    synchronize(machine.exec);
    if (i > 0) best = std::min(best, clock.now() - start);
  }
  return 2.0 * static_cast<double>(rows * columns * 4) / seconds(best);
}

// The released model's shapes, narrow: heads of 128, FP8 blocks, grouped heads, a partial rotary.
model::ModelConfig small_model() {
  model::ModelConfig config;
  config.hidden_size = 512;
  config.intermediate_size = 256;
  config.num_layers = 4;
  config.num_heads = 12;
  config.num_kv_heads = 2;
  config.head_dim = 128;
  config.rotary_dim = 64;
  config.rope_theta = 5e6;
  config.max_position_embeddings = 512;
  config.rms_norm_eps = 1e-6;
  config.num_experts = 16;
  config.num_experts_per_token = 4;
  config.vocab_size = 2048;
  config.fp8_blocks = true;
  return config;
}

using Rows = std::vector<std::vector<float>>;

class Collect : public model::LogitsSink {
 public:
  void on_logits(int64_t, Tensor logits) override {
    for (int64_t r = 0; r < logits.size(0); ++r) {
      const float* row = logits.as<float>() + r * logits.row_stride();
      rows.emplace_back(row, row + logits.size(1));
    }
  }
  Rows rows;
};

// The logits of a prompt's tokens and of some decoded after it, from random weights that are the
// same on every device.
Result<Rows> run_small_model(const Machine& machine) {
  constexpr int32_t kPrompt = 48, kDecoded = 16;
  const model::ModelConfig config = small_model();
  M2_TRY(model::Weights weights, model::dummy_weights(config, {}, machine.device, 1));
  model::MemoryRequest request;
  request.max_model_len = kPrompt + kDecoded;
  request.max_num_seqs = 1;
  request.max_num_batched_tokens = kPrompt;
  request.num_blocks = (kPrompt + kDecoded) / model::kBlockSize;
  M2_TRY(const model::MemoryPlan plan,
         model::plan_memory(config, weights, request, machine.device));
  const auto comm = parallel::make_single_comm();
  const auto runner = model::make_runner(machine.exec, {{*comm}}, config, std::move(weights), plan,
                                         request.max_model_len);
  std::mt19937 random(1);
  std::vector<int32_t> blocks(static_cast<size_t>(request.num_blocks));
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  Collect sink;
  for (int32_t begin = 0; begin < kPrompt + kDecoded;) {
    const int32_t end = begin == 0 ? kPrompt : begin + 1;
    std::vector<int32_t> ids, positions, slots, rows;
    for (int32_t p = begin; p < end; ++p) {
      ids.push_back(static_cast<int32_t>(random() % 2048));
      positions.push_back(p);
      slots.push_back(blocks[static_cast<size_t>(p / 16)] * 16 + p % 16);
      rows.push_back(p - begin);
    }
    const std::vector<int32_t> starts{0, end - begin}, lens{end};
    M2_TRY_VOID(runner->step(
        {ids, positions, slots, starts, lens, blocks, request.num_blocks, rows}, sink));
    begin = end;
  }
  return std::move(sink.rows);
}

// |a - b| / |b| of the middle row, and of the worst.
std::pair<double, double> distances(const Rows& a, const Rows& b) {
  std::vector<double> all;
  for (size_t r = 0; r < a.size(); ++r) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a[r].size(); ++i) {
      difference += std::pow(static_cast<double>(a[r][i]) - static_cast<double>(b[r][i]), 2);
      norm += std::pow(static_cast<double>(b[r][i]), 2);
    }
    all.push_back(std::sqrt(difference / norm));
  }
  // NaN is the worst of all.
  std::ranges::sort(all, [](double x, double y) { return std::isnan(y) ? !std::isnan(x) : x < y; });
  return {all[all.size() / 2], all.back()};
}

// A small model here against the same model on the CPU: every operation of a step, end to end.
Result<void> check_forward(const Machine& machine, ThreadPool& pool) {
  M2_TRY(const Rows here, run_small_model(machine));
  M2_TRY(const Rows expected, run_small_model(Machine(Device{}, pool)));
  const auto [middle, worst] = distances(here, expected);
  // On the CPU the bytes are the same; BF16 activations round by 0.4 % several times a layer, those
  // that products with FP8 weights take as FP8 by some 3 % each.
  const double tolerance = machine.device.kind == DeviceKind::cpu ? 0
                           : ops::wants_quantised(machine.device) ? 0.06
                                                                  : 0.03;
  const bool good = middle <= tolerance;
  line("forward",
       fmt::format("a small model here and on the CPU: logits {:.2f} % apart in the middle, "
                   "{:.1f} % at most{}",
                   100 * middle, 100 * worst, good ? ", ok" : ": WRONG"));
  if (!good) return fail(Code::internal, "this device computes something else than the CPU");
  return {};
}

}  // namespace

const Command& doctor_command() {
  using enum OptionKind;
  // clang-format off
  static constexpr Option kOptions[] = {
    {"device", "", "device", text, "auto", "auto, cpu, cuda or cuda:N."},
    {"threads", "", "device", integer, "0", "Threads; 0: one per CPU this process may use."},
  };
  // clang-format on
  static constexpr Command kCommand{
      "doctor", "", "Can this machine run the model, and does it compute what it should?",
      "Names the device, measures its memory, and compares a small model with the CPU. Exits 1 if "
      "anything is wrong.",
      kOptions};
  return kCommand;
}

Result<void> doctor(const Values& values) {
  const int64_t threads = *values.integer("threads");
  if (threads < 0 || threads > 1024)
    return fail(Code::invalid_argument, "--threads must be from 0 to 1024, got {}", threads);
  ThreadPool pool(static_cast<int>(threads));
  const Result<void> gpu = check_device({DeviceKind::cuda, 0});
  if (!gpu.ok()) line("gpu", gpu.error().text);
  M2_TRY(const Device device, choose_device(values));
  line("device", describe_device(device));
  if (device.kind == DeviceKind::cuda) {
    const DeviceMemory memory = device_memory(device);
    line("memory", fmt::format("{:.1f} of {:.1f} GiB free", static_cast<double>(memory.free) / kGiB,
                               static_cast<double>(memory.total) / kGiB));
  } else {
    line("memory", fmt::format("{:.1f} GiB available",
                               static_cast<double>(model::available_host_memory()) / kGiB));
  }
  const Machine machine(device, pool);
  line("copy", fmt::format("{:.0f} GB/s read plus written", copy_rate(machine) / 1e9));
  return check_forward(machine, pool);
}

}  // namespace m2::app
