#include "app/doctor/doctor.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <optional>

#include "app/device_options.h"
#include "app/doctor/disk.h"
#include "app/doctor/golden.h"
#include "app/doctor/operations.h"
#include "app/doctor/small_model.h"
#include "app/micro_model.h"
#include "app/model_files.h"
#include "app/terminal.h"
#include "base/clock.h"
#include "load/checkpoint.h"
#include "model/memory_plan.h"
#include "ops/ceilings.h"
#include "ops/instruction_set.h"

namespace m2::app {
namespace {

using namespace doctor;

constexpr double kGiB = 1 << 30;

// A line of the report, over the note of what is being done.
void line(const char* what, const std::string& text) {
  if (is_terminal(STDERR_FILENO)) std::fputs("\r\033[K", stderr);
  std::fputs(fmt::format("{:<9} {}\n", what, text).c_str(), stdout);
  std::fflush(stdout);
}

void doing(const std::string& text) {
  if (is_terminal(STDERR_FILENO)) std::fputs(("\r\033[K" + text + " ...").c_str(), stderr);
}

std::string percent(double share) {
  return fmt::format("{:.{}f} %", 100 * share, share >= 0.001 ? 2 : 5);
}

// ---- what the machine has

void tell_driver() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string kernel;
  std::getline(file, kernel);
  const std::string cuda = driver_version();
  if (kernel.empty() && cuda.empty()) return;
  line("driver", fmt::format("{}{}{}", kernel, cuda.empty() ? "" : ", for CUDA ", cuda));
}

void tell_device(Device device) {
  line("device", describe_device(device));
  if (device.kind == DeviceKind::cpu) {
    line("", fmt::format("instructions {}", ops::instruction_set()));
    line("memory", fmt::format("{:.1f} GiB available",
                               static_cast<double>(model::available_host_memory()) / kGiB));
    return;
  }
  const DeviceMemory memory = device_memory(device);
  line("memory", fmt::format("{:.1f} of {:.1f} GiB free", static_cast<double>(memory.free) / kGiB,
                             static_cast<double>(memory.total) / kGiB));
}

const char* name_of(ops::Multiplier unit) {
  return unit == ops::Multiplier::fp8 ? "FP8" : unit == ops::Multiplier::bf16 ? "BF16" : "FP32";
}

// Numbers that are none in particular, but not zeros.
void fill(const Exec& exec, const Buffer& memory) {
  std::mt19937 random(1);
  std::vector<uint32_t> piece(4 << 20);
  for (uint32_t& word : piece) word = static_cast<uint32_t>(random()) & 0x3fffffffu;
  const int64_t each = std::ssize(piece) * 4;
  for (int64_t done = 0; done < memory.bytes(); done += each)
    copy_to_device(exec, memory.data() + done, piece.data(), std::min(each, memory.bytes() - done));
  synchronize(exec);
}

// Bytes a second read, of memory that no cache holds, and what the units multiply.
void measure(const Machine& machine) {
  const bool gpu = machine.device.kind == DeviceKind::cuda;
  const int64_t free = gpu ? device_memory(machine.device).free : model::available_host_memory();
  const int64_t wanted = gpu ? int64_t{4} << 30 : int64_t{1} << 30;
  const int64_t bytes = std::min(wanted, free / 4) / 4096 * 4096;
  if (bytes < int64_t{256} << 20) {
    line("reads", "not measured: too little memory is free");
  } else {
    doing("reading memory");
    const Buffer memory(machine.device, bytes);
    fill(machine.exec, memory);
    const double rate =
        ops::read_rate(machine.exec, Tensor(memory.data(), DType::f32, {bytes / 4}));
    line("reads", fmt::format("{:.1f} GB/s", rate / 1e9));
  }
  std::vector<ops::Multiplier> told;
  for (const DType weights : {DType::f8_e4m3, DType::bf16, DType::f32}) {
    const ops::Multiplier unit = ops::multiplier_of(machine.device, weights);
    if (std::ranges::find(told, unit) != told.end()) continue;
    told.push_back(unit);
    doing("multiplying");
    const double rate = ops::multiply_rate(machine.exec, unit);
    const bool small = rate < 1e12;  // a few CPUs
    line("products", fmt::format("{} {:.1f} {} on operands that are there", name_of(unit),
                                 rate / (small ? 1e9 : 1e12), small ? "GFLOP/s" : "TFLOP/s"));
  }
}

// How this GPU reaches the others, and how fast copies to them are.
void tell_links(const Machine& machine, int gpus) {
  constexpr int64_t kBytes = 256 << 20;
  for (int i = 0; i < gpus; ++i) {
    const Device peer{DeviceKind::cuda, i};
    if (peer == machine.device) continue;
    const DeviceLink link = device_link(machine.device, peer);
    if (link.direct) (void)reach_device(machine.device, peer);
    const Buffer from(machine.device, kBytes), to(peer, kBytes);
    use_device(machine.device);
    const SteadyClock clock;
    Nanos best = std::numeric_limits<Nanos>::max();
    for (int round = 0; round < 6; ++round) {
      synchronize(machine.exec);
      const Nanos start = clock.now();
      copy_between(machine.exec, peer, to.data(), machine.device, from.data(), kBytes);
      synchronize(machine.exec);
      best = std::min(best, clock.now() - start);
    }
    line("link", fmt::format("to cuda:{} {}, {:.0f} GB/s", i,
                             link.atomics  ? "directly, with atomics (NVLink)"
                             : link.direct ? "directly, without atomics (PCIe)"
                                           : "through the host's memory",
                             kBytes / seconds(best) / 1e9));
  }
}

// ---- what it computes

bool tell_operations(const Machine& machine, bool all) {
  doing("running every operation against double precision");
  const std::vector<Finding> findings = check_operations(machine.exec);
  int64_t numbers = 0;
  const Finding* worst = findings.data();
  bool good = true;
  for (const Finding& finding : findings) {
    numbers += finding.numbers;
    if (!(finding.of_allowed <= worst->of_allowed)) worst = &finding;
    good = good && finding.good();
    if (all || !finding.good())
      line("operation", fmt::format("{}: {} numbers, {} off, {:.0f} % of what is allowed: {}",
                                    finding.name, finding.numbers, percent(finding.off),
                                    100 * finding.of_allowed, finding.good() ? "ok" : "WRONG"));
  }
  line("kernels", fmt::format("{} operations against double precision, {} numbers; nearest to its "
                              "limit: {}, {:.0f} % of it: {}",
                              findings.size(), numbers, worst->name, 100 * worst->of_allowed,
                              good ? "ok" : "WRONG"));
  return good;
}

Result<bool> tell_forward(const Machine& machine, ThreadPool& pool) {
  doing("running a small model");
  M2_TRY(const Distances off, compare_with_cpu(machine, pool));
  // On the CPU the bytes are the same.
  const double tolerance =
      machine.device.kind == DeviceKind::cpu ? 0 : tolerance_of(machine.device);
  const bool good = off.middle <= tolerance;
  line("forward",
       fmt::format("a small model here and on the CPU: logits {:.2f} % apart in the middle, "
                   "{:.1f} % at most{}",
                   100 * off.middle, 100 * off.worst, good ? ", ok" : ": WRONG"));
  return good;
}

Result<bool> tell_golden(const Machine& machine, const std::filesystem::path& folder) {
  doing("running " + folder.string());
  M2_TRY(const Json golden, read_golden(folder));
  M2_TRY(const GoldenResult result, run_golden(machine, folder, golden));
  line(
      "golden",
      fmt::format("{}: logits {} from transformers' in the middle, {} at most, {} of {} greedy "
                  "tokens the same: {}",
                  folder.filename().string(), percent(result.off.middle), percent(result.off.worst),
                  result.same_tokens, result.tokens, result.good() ? "ok" : "WRONG"));
  return result.good();
}

// The checkpoint to run: the MODEL's if it has goldens, else m2-micro's if it is to be found.
std::optional<std::filesystem::path> golden_folder(const std::filesystem::path& model) {
  std::error_code ignored;
  if (!model.empty() && std::filesystem::exists(model / "golden.json", ignored)) return model;
  const Result<std::filesystem::path> micro = micro_model();
  if (micro.ok() && std::filesystem::exists(*micro / "golden.json", ignored)) return *micro;
  return std::nullopt;
}

Result<bool> check(Device device, ThreadPool& pool, const Values& values,
                   const std::filesystem::path& model, int gpus) {
  tell_device(device);
  const Machine machine(device, pool);
  measure(machine);
  tell_links(machine, gpus);
  bool good = tell_operations(machine, values.flag("verbose"));
  M2_TRY(const bool forward, tell_forward(machine, pool));
  good = good && forward;
  if (const auto folder = golden_folder(model)) {
    M2_TRY(const bool golden, tell_golden(machine, *folder));
    good = good && golden;
  } else {
    line("golden", "no checkpoint with a golden.json, m2-micro's neither: left out");
  }
  return good;
}

// ---- where the weights lie

Result<void> tell_disk(const std::filesystem::path& folder, double most_seconds) {
  M2_TRY(const load::Checkpoint checkpoint, load::Checkpoint::open(folder));
  std::vector<std::string> paths;
  int64_t bytes = 0;
  for (const load::File& file : checkpoint.files()) {
    paths.push_back(file.path());
    bytes += static_cast<int64_t>(file.size());
  }
  line("weights",
       fmt::format("{} tensors in {} files, {:.1f} GB: headers are sound",
                   checkpoint.tensors().size(), paths.size(), static_cast<double>(bytes) / 1e9));
  ProgressBar bar("Reading weights");
  M2_TRY(const DiskRate disk, read_files(paths, most_seconds, [&](int64_t done, int64_t all) {
           bar.update(done, all);
         }));
  line("disk",
       fmt::format("{:.2f} GB/s with {} threads ({:.1f} GB in {:.1f} s{}): all of it takes "
                   "{:.0f} s to read",
                   disk.rate() / 1e9, disk.threads, static_cast<double>(disk.bytes) / 1e9,
                   disk.seconds, disk.direct ? "" : ", through a page cache that may have held it",
                   static_cast<double>(bytes) / disk.rate()));
  return {};
}

// All GPUs, if they were not told apart; else the one device.
Result<std::vector<Device>> devices_of(const Values& values) {
  M2_TRY(const Device device, choose_device(values));
  std::vector<Device> out{device};
  if (device.kind == DeviceKind::cpu || values.text("device").starts_with("cuda:")) return out;
  for (int i = 1; i < gpu_count(); ++i) out.push_back({DeviceKind::cuda, i});
  return out;
}

}  // namespace

const Command& doctor_command() {
  using enum OptionKind;
  // clang-format off
  static constexpr Option kOptions[] = {
    {"device", "", "device", text, "auto", "auto or cuda (all GPUs), cpu or cuda:N."},
    {"threads", "", "device", integer, "0", "Threads; 0: one per CPU this process may use."},
    {"cpu-isa", "", "device", text, "auto", "Instructions on the CPU: auto, amx, avx512, avx2, neon or baseline."},
    {"disk-seconds", "", "model", number, "5", "Longest time spent reading MODEL's files; 0: none."},
    {"revision", "", "model", text, "main", "Branch, tag or commit of a hub name."},
    {"download-dir", "", "model", text, "", "Hub cache to look in, instead of HF_HUB_CACHE or HF_HOME."},
    {"verbose", "", "report", flag, "false", "A line for each operation."},
  };
  // clang-format on
  static constexpr Command kCommand{
      "doctor", "[MODEL]", "Can this machine run the model, and does it compute what it should?",
      "Names driver, devices and memory; measures what they read and multiply, and how GPUs reach "
      "each other; runs\nevery operation against double precision, a small model against the CPU, "
      "and a checkpoint with goldens (m2-micro,\nor MODEL if it has a golden.json) against "
      "transformers' logits. With MODEL it also reads the weights' files from\ntheir disk. Exits 1 "
      "if anything is wrong.",
      kOptions};
  return kCommand;
}

Result<void> run_doctor(const Values& values) {
  const int64_t threads = *values.integer("threads");
  if (threads < 0 || threads > 1024)
    return fail(Code::invalid_argument, "--threads must be from 0 to 1024, got {}", threads);
  const double disk_seconds = *values.number("disk-seconds");
  if (!(disk_seconds >= 0 && disk_seconds <= 3600))
    return fail(Code::invalid_argument, "--disk-seconds must be from 0 to 3600, got {}",
                disk_seconds);
  if (values.positionals().size() > 1)
    return fail(Code::invalid_argument, "one MODEL, not {}", values.positionals().size());
  M2_TRY_VOID(ops::choose_instruction_set(values.text("cpu-isa")));
  std::filesystem::path model;
  if (!values.positionals().empty()) {
    M2_TRY(model, model_folder(values.positionals().front(), values));
  }
  ThreadPool pool(static_cast<int>(threads));
  tell_driver();
  const Result<void> gpu = check_device({DeviceKind::cuda, 0});
  if (!gpu.ok()) line("gpu", gpu.error().text);
  M2_TRY(const std::vector<Device> devices, devices_of(values));
  bool good = true;
  for (const Device device : devices) {
    M2_TRY_VOID(check_device(device));
    const int gpus = device.kind == DeviceKind::cuda ? gpu_count() : 0;
    M2_TRY(const bool one, check(device, pool, values, model, gpus));
    good = good && one;
  }
  if (!model.empty() && disk_seconds > 0) M2_TRY_VOID(tell_disk(model, disk_seconds));
  if (!good) return fail(Code::internal, "this machine computes something else than it should");
  return {};
}

}  // namespace m2::app
