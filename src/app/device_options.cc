#include "app/device_options.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "base/log.h"
#include "tensor/stream.h"

namespace m2::app {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int64_t kLargestGraph = 512;

std::string upper(std::string text) {
  for (char& c : text)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return text;
}

// The mode by name, upper case: of the config, else of the optimisation level.
Result<std::string> graph_mode(const Values& values, const Json& config) {
  if (values.flag("enforce-eager")) return std::string("NONE");
  const auto given = config.find("cudagraph_mode");
  if (given == config.end() || given->is_null()) {
    const int64_t level = values.integer("optimization-level").value_or(2);
    return std::string(level <= 0 ? "NONE" : level == 1 ? "PIECEWISE" : "FULL_AND_PIECEWISE");
  }
  const std::string mode = given->is_string() ? upper(given->get<std::string>()) : "";
  for (const char* known : {"NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE"})
    if (mode == known) return mode;
  return fail(Code::invalid_argument,
              "--compilation-config: cudagraph_mode {} is none of NONE, PIECEWISE, FULL, "
              "FULL_DECODE_ONLY, FULL_AND_PIECEWISE",
              given->dump());
}

Result<int64_t> positive(const Json& value, const char* key) {
  if (!value.is_number_integer() || value.get<int64_t>() < 1)
    return fail(Code::invalid_argument, "--compilation-config: {} takes integers from 1 on, not {}",
                key, value.dump());
  return value.get<int64_t>();
}

// --compilation-config, and over it what has flags of its own.
Json compilation_config(const Values& values) {
  Json out = values.json("compilation-config");
  if (values.given("cudagraph-capture-sizes")) {
    Json& sizes = out["cudagraph_capture_sizes"] = Json::array();
    for (const std::string& word : values.list("cudagraph-capture-sizes")) {
      const std::optional<int64_t> size = parse_human_integer(word);
      sizes.push_back(size ? Json(*size) : Json(word));
    }
  }
  if (const auto most = values.integer("max-cudagraph-capture-size"))
    out["max_cudagraph_capture_size"] = *most;
  return out;
}

// 1, 2, 4, then 8 to 248 by eights, then 256 to 512 by sixteens.
std::vector<int64_t> usual_sizes() {
  std::vector<int64_t> out{1, 2, 4};
  for (int64_t size = 8; size < 256; size += 8) out.push_back(size);
  for (int64_t size = 256; size <= kLargestGraph; size += 16) out.push_back(size);
  return out;
}

// What the log says of a mode that was asked for by name.
std::string note_on(const std::string& mode) {
  if (mode == "PIECEWISE")
    return "cudagraph_mode PIECEWISE: every step is launched kernel by kernel, without graphs; by "
           "default decoding steps are recorded whole, which is faster";
  if (mode == "FULL" || mode == "FULL_AND_PIECEWISE")
    return fmt::format(
        "cudagraph_mode {}: decoding steps are recorded whole; steps with prompts are launched "
        "kernel by kernel",
        mode);
  return "";
}

}  // namespace

Result<Device> choose_device(const Values& values) {
  const std::string name = values.text("device");
  if (name == "cpu") return Device{};
  Device device{DeviceKind::cuda, 0};
  if (name == "auto") {
    const Result<void> usable = check_device(device);
    if (usable.ok()) return device;
    // There is a GPU, and this build cannot use it.
    if (usable.error().code == Code::unsupported) log_warning("{}", usable.error().text);
    return Device{};
  }
  if (name.rfind("cuda:", 0) == 0) {
    const auto [end, error] =
        std::from_chars(name.data() + 5, name.data() + name.size(), device.index);
    if (error == std::errc{} && end == name.data() + name.size() && device.index >= 0) {
      M2_TRY_VOID(check_device(device));
      return device;
    }
  } else if (name == "cuda") {
    M2_TRY_VOID(check_device(device));
    return device;
  }
  return fail(Code::invalid_argument, "--device {} is none of auto, cpu, cuda, cuda:N", name);
}

StepDefaults step_defaults(Device device) {
  if (device.kind == DeviceKind::cpu) return {256, 512};
  const bool large = device_memory(device).total >= 70 * kGiB &&
                     describe_device(device).find("A100") == std::string::npos;
  return large ? StepDefaults{1024, 8192} : StepDefaults{256, 2048};
}

Result<DType> read_kv_dtype(const Values& values) {
  const std::string name = values.text("kv-cache-dtype");
  if (name == "auto" || name == "bfloat16") return DType::bf16;
  if (name == "fp8" || name == "fp8_e4m3") return DType::f8_e4m3;
  return fail(Code::unsupported,
              "--kv-cache-dtype {} is not supported (chose from {{ auto,bfloat16,fp8,fp8_e4m3 }})",
              name);
}

Result<GraphChoice> choose_graphs(const Values& values, int64_t max_num_seqs,
                                  int64_t max_num_batched_tokens) {
  const Json config = compilation_config(values);
  M2_TRY(const std::string mode, graph_mode(values, config));
  int64_t largest = std::min({2 * max_num_seqs, kLargestGraph, max_num_batched_tokens});
  std::vector<int64_t> sizes = usual_sizes();
  if (const auto given = config.find("cudagraph_capture_sizes");
      given != config.end() && !given->is_null()) {
    if (!given->is_array())
      return fail(Code::invalid_argument,
                  "--compilation-config: cudagraph_capture_sizes takes a list, not {}",
                  given->dump());
    sizes.clear();
    for (const Json& value : *given) {
      M2_TRY(const int64_t size, positive(value, "cudagraph_capture_sizes"));
      sizes.push_back(size);
    }
    std::ranges::sort(sizes);
    sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
    largest = max_num_batched_tokens;
  }
  if (const auto given = config.find("max_cudagraph_capture_size");
      given != config.end() && !given->is_null()) {
    M2_TRY(const int64_t most, positive(*given, "max_cudagraph_capture_size"));
    largest = std::min(most, max_num_batched_tokens);
  }
  const bool asked = config.contains("cudagraph_mode") || values.given("optimization-level");
  GraphChoice out;
  if (asked) out.note = note_on(mode);
  if (mode == "NONE" || mode == "PIECEWISE") return out;
  std::erase_if(sizes, [&](int64_t size) { return size > largest; });
  // No step decodes more sequences than run.
  const auto enough = std::ranges::lower_bound(sizes, max_num_seqs);
  if (enough != sizes.end()) sizes.erase(enough + 1, sizes.end());
  out.sizes = std::move(sizes);
  return out;
}

Result<void> check_graphs(const Values& values) {
  M2_TRY_VOID(choose_graphs(values, 1, 1));
  return {};
}

}  // namespace m2::app
