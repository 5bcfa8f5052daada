#include "app/plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/device_options.h"
#include "app/model_files.h"
#include "app/serve_options.h"
#include "app/terminal.h"
#include "model/memory_plan.h"
#include "model/weight_table.h"
#include "model/weights.h"

namespace m2::app {
namespace {

// clang-format off
constexpr Option kPlanOptions[] = {
  {"gpus", "", "plan", OptionKind::list, "4x96G", "What there is: 4x96GiB, 8x144G (decimal), 8xh200; several are compared."},
  {"batch", "", "plan", OptionKind::integer, "1", "Sequences of the decoding step whose floor is shown, over all engines."},
  {"context", "", "plan", OptionKind::integer, "2048", "Tokens before each of them."},
  {"json", "", "plan", OptionKind::flag, "false", "Print JSON instead of a table."},
};

struct Known {
  const char* name;
  double bytes, bandwidth;
};
// Datasheets, as in performance.md's roofline.
constexpr Known kKnown[] = {
  {"h100", 80e9, 3.35e12}, {"h20", 96e9, 4.0e12}, {"h20-3e", 141e9, 4.8e12}, {"h200", 141e9, 4.8e12},
  {"", 144e9, 4.8e12},  // what the guide calls 144G
};
// clang-format on

// Kept of each GPU for the CUDA context, recorded graphs and activations.
constexpr double kReserved = 3e9;
// Bytes of a 4-bit weight with an FP16 scale for each group of 128.
constexpr double kInt4 = 0.5 + 2.0 / 128;
constexpr double kGiB = 1 << 30;

double number(int64_t n) {
  return static_cast<double>(n);
}

// Bytes of one expert in the checkpoint's dtypes, scales included.
double expert_bytes(const model::ModelConfig& config, const PlanFormats& formats) {
  const double weights = 3 * number(config.hidden_size) * number(config.intermediate_size);
  if (formats.int4_experts) return weights * kInt4;
  if (!config.fp8_blocks) return weights * 2;
  const auto blocks = [](int64_t size) { return number(model::blocks_of({0, size}).count); };
  return weights + 3 * 4 * blocks(config.hidden_size) * blocks(config.intermediate_size);
}

double attention_bytes(const model::ModelConfig& config) {
  const double weights =
      2 * number(config.hidden_size) * number(config.q_width() + config.kv_width());
  return weights * (config.fp8_blocks ? 1 + 4.0 / 16384 : 2);
}

// What 4-bit experts save of a rank's weights.
double saved(const model::ModelConfig& config, const parallel::Topology& shape,
             const PlanFormats& formats) {
  if (!formats.int4_experts) return 0;
  const double experts =
      number(config.num_layers * config.num_experts) / number(shape.expert_size());
  return experts * (expert_bytes(config, {}) - expert_bytes(config, formats));
}

double kv_bytes(const model::ModelConfig& config, const parallel::Topology& shape,
                const PlanFormats& formats) {
  const int64_t heads =
      model::axis_share(model::Axis::kv_width, config, shape).count / config.head_dim;
  const DType dtype = formats.fp8_kv ? DType::f8_e4m3 : DType::bf16;
  return number(model::kv_bytes_per_token(config, heads, dtype));
}

// BF16 activations of the largest step, and FP32 logits of 256 rows.
double activation_bytes(const model::ModelConfig& config, const parallel::Topology& shape,
                        int64_t tokens) {
  const double q = number(config.q_width()) / number(shape.tensor_size);
  const double kv = number(model::axis_share(model::Axis::kv_width, config, shape).count);
  const double inner = number(model::axis_share(model::Axis::inner, config, shape).count);
  const double top = number(config.num_experts_per_token);
  const double hidden = number(config.hidden_size);
  const double per_token = 3 * hidden + 2 * q + 2 * kv + top * (inner + 1);
  return 2 * number(tokens) * per_token +
         4 * 256 * number(config.vocab_size) / number(shape.tensor_size);
}

std::string flags_of(const parallel::Topology& shape) {
  std::string out;
  if (shape.tensor_size > 1) out += fmt::format(" -tp {}", shape.tensor_size);
  if (shape.data_size > 1) out += fmt::format(" -dp {}", shape.data_size);
  if (shape.expert_parallel) out += " -ep";
  return out.empty() ? "(one rank)" : out.substr(1);
}

std::string formats_of(const model::ModelConfig& config, const PlanFormats& formats) {
  return fmt::format("{}/{}",
                     formats.int4_experts ? "int4"
                     : config.fp8_blocks  ? "fp8"
                                          : "bf16",
                     formats.fp8_kv ? "fp8" : "bf16");
}

// The ways to spread the model over so many GPUs that are worth a row: what the flags say, or all
// TP, TP + EP and DP + EP.
Result<std::vector<parallel::Topology>> shapes(const Values& values,
                                               const model::ModelConfig& config, int64_t gpus) {
  parallel::Topology asked;
  asked.expert_parallel = values.flag("enable-expert-parallel");
  if (values.given("tensor-parallel-size") || values.given("data-parallel-size")) {
    asked.tensor_size = *values.integer("tensor-parallel-size");
    asked.data_size = *values.integer("data-parallel-size");
    M2_TRY_VOID(model::check_topology(config, asked));
    if (asked.expert_size() != gpus)
      return fail(Code::invalid_argument, "{} ranks ({} engines of {}) on {} GPUs",
                  asked.expert_size(), asked.data_size, asked.tensor_size, gpus);
    return std::vector{asked};
  }
  std::vector<parallel::Topology> out;
  Result<void> last;
  for (const auto& [tensor, data, whole] :
       {std::tuple{gpus, int64_t{1}, false}, {gpus, int64_t{1}, true}, {int64_t{1}, gpus, true}}) {
    parallel::Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    shape.expert_parallel = whole;
    if (gpus == 1 && whole) continue;
    last = model::check_topology(config, shape);
    if (last.ok()) out.push_back(shape);
  }
  if (out.empty()) return last.error();
  return out;
}

struct Shown {
  std::string gpus;
  Gpus of;
  PlanRow row;
  double floor = 0;  // seconds; 0: bandwidth not known
};

Json as_json(const Shown& shown, const model::ModelConfig& config, double batch) {
  const PlanRow& row = shown.row;
  Json out{{"gpus", shown.gpus},
           {"tensor_parallel_size", row.shape.tensor_size},
           {"data_parallel_size", row.shape.data_size},
           {"expert_parallel", row.shape.expert_parallel},
           {"formats", formats_of(config, row.formats)},
           {"weight_bytes", row.all_weights},
           {"weight_bytes_per_rank", row.weights},
           {"reserved_bytes_per_rank", row.reserved},
           {"activation_bytes_per_rank", row.activations},
           {"kv_bytes_per_token_per_rank", row.kv_per_token},
           {"kv_tokens", row.kv_tokens},
           {"concurrency_at_full_context", row.sequences},
           {"longest_context", row.longest_context},
           {"fits", row.longest_context > 0}};
  if (shown.floor > 0) {
    out["decode_floor_ms"] = shown.floor * 1e3;
    out["decode_tokens_per_second"] = batch / shown.floor;
  }
  return out;
}

std::string as_line(const Shown& shown, const model::ModelConfig& config, double batch) {
  const PlanRow& row = shown.row;
  const std::string floor =
      shown.floor > 0 ? fmt::format("{:8.2f} {:8.0f}", shown.floor * 1e3, batch / shown.floor)
                      : fmt::format("{:>8} {:>8}", "-", "-");
  const std::string room =
      row.kv_tokens > 0 ? fmt::format("{:>12} {:>8.2f}", grouped(row.kv_tokens), row.sequences)
                        : fmt::format("{:>21}", "does not fit");
  return fmt::format("{:<10} {:<14} {:<10} {:>8.2f} {:>8.2f} {:>9.0f} {} {}\n", shown.gpus,
                     flags_of(row.shape), formats_of(config, row.formats), row.weights / 1e9,
                     row.activations / 1e9, row.kv_per_token, room, floor);
}

// The fastest arrangement of these GPUs in the formats asked for, or one as fast with clearly more
// room for KV.
const Shown* best(const std::vector<Shown>& rows, const std::string& gpus, bool fp8_kv) {
  const Shown* out = nullptr;
  for (const Shown& row : rows) {
    const bool asked = row.row.formats.fp8_kv == fp8_kv && !row.row.formats.int4_experts;
    if (row.gpus != gpus || !asked || row.row.kv_tokens == 0) continue;
    const double more = out ? number(row.row.kv_tokens) / number(out->row.kv_tokens) : 0;
    if (!out || row.floor < 0.95 * out->floor || (row.floor <= out->floor && more > 1.05))
      out = &row;
  }
  return out;
}

Result<model::ModelConfig> config_of(const std::string& model, const Values& values) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(model, ignored)) {
    M2_TRY(const std::filesystem::path folder, model_folder(model, values));
    M2_TRY(ModelSettings settings, read_settings(folder, values));
    return std::move(settings.config);
  }
  std::ifstream file(model);
  std::stringstream text;
  text << file.rdbuf();
  M2_TRY(Json json, parse_json(text.str()));
  model::apply_overrides(json, values.json("hf-overrides"));
  return model::read_config(json);
}

}  // namespace

Result<Gpus> parse_gpus(const std::string& text) {
  const auto wrong = [&] {
    return fail(Code::invalid_argument, "--gpus {}: not like 4x96GiB, 8x144G or 8xh200", text);
  };
  Gpus out;
  const char* end = text.data() + text.size();
  const auto [x, error] = std::from_chars(text.data(), end, out.count);
  if (error != std::errc{} || x == end || *x != 'x' || out.count < 1 || out.count > 1024)
    return wrong();
  const std::string kind(x + 1, end);
  for (const Known& known : kKnown) {
    if (kind != known.name || kind.empty()) continue;
    return Gpus{out.count, known.bytes, known.bandwidth};
  }
  const auto [unit, bad] = std::from_chars(kind.data(), kind.data() + kind.size(), out.bytes);
  const std::string suffix(unit, kind.data() + kind.size());
  const bool decimal = suffix == "G" || suffix == "GB" || suffix.empty();
  if (bad != std::errc{} || !(out.bytes > 0 && out.bytes < 1e6) || (!decimal && suffix != "GiB"))
    return wrong();
  out.bytes *= decimal ? 1e9 : kGiB;
  for (const Known& known : kKnown)
    if (std::abs(known.bytes / out.bytes - 1) < 0.08) out.bandwidth = known.bandwidth;
  return out;
}

PlanRow plan_row(const model::ModelConfig& config, const parallel::Topology& shape,
                 const Gpus& gpus, const PlanFormats& formats, const PlanRequest& request) {
  PlanRow out;
  out.shape = shape;
  out.formats = formats;
  const model::StoredTypes types(config);
  // Rank 0 holds the longest part of everything that does not divide evenly.
  out.weights = number(model::weight_bytes(config, shape, types)) - saved(config, shape, formats);
  out.all_weights = number(model::weight_bytes(config, {}, types)) - saved(config, {}, formats);
  out.activations = activation_bytes(config, shape, request.step_tokens);
  out.reserved = std::max(kReserved, out.activations + 1.5e9);
  out.kv_per_token = kv_bytes(config, shape, formats);
  const double free = gpus.bytes * request.memory_utilization - out.weights - out.reserved;
  if (free <= 0) return out;
  const double per_engine = free / out.kv_per_token;
  out.longest_context = std::min(request.max_model_len, static_cast<int64_t>(per_engine));
  out.kv_tokens = static_cast<int64_t>(per_engine) * shape.data_size;
  out.sequences = per_engine / number(request.max_model_len) * number(shape.data_size);
  return out;
}

double decode_floor(const model::ModelConfig& config, const parallel::Topology& shape,
                    const Gpus& gpus, const PlanFormats& formats, double batch, double context) {
  if (gpus.bandwidth == 0) return 0;
  const double layers = number(config.num_layers), experts = number(config.num_experts);
  const double top = number(config.num_experts_per_token), tensor = number(shape.tensor_size);
  // Experts that the batch hits in a layer, choices independent.
  const double hit = experts * (1 - std::pow(1 - top / experts, batch));
  const double expert = layers * hit * expert_bytes(config, formats) / number(shape.expert_size());
  const double router = layers * 4 * experts * number(config.hidden_size);
  const double head = 2 * number(config.vocab_size) * number(config.hidden_size) / tensor;
  const double of_engine = std::ceil(batch / number(shape.data_size));
  const double kv = of_engine * (context + 1) * kv_bytes(config, shape, formats);
  const double bytes = layers * attention_bytes(config) / tensor + expert + router + head + kv;
  return bytes / gpus.bandwidth;
}

const Command& plan_command() {
  static const std::vector<Option> options = [] {
    std::vector<Option> all(std::begin(kPlanOptions), std::end(kPlanOptions));
    const auto serve = serve_options();
    all.insert(all.end(), serve.begin(), serve.end());
    return all;
  }();
  static const Command command{"plan",
                               "MODEL",
                               "Say what a model needs and gives on some GPUs, from its "
                               "config.json alone. MODEL is a folder, a "
                               "name in the local Hugging Face cache, or a config.json.",
                               "Of each GPU, --gpu-memory-utilization of its memory is used; 3 GB "
                               "of that are kept for context, "
                               "graphs\nand activations. The floor is bytes read over the "
                               "datasheet's bandwidth; collectives are "
                               "not counted.\nRows with fp8 KV are what --kv-cache-dtype fp8 "
                               "gives; rows with int4 experts show what that format would "
                               "give,\nwhich m2 does not serve yet.",
                               options,
                               serve_options().size()};
  return command;
}

namespace {

// What is planned for: the model, and the decoding step whose floor is shown.
struct Asked {
  const std::string& model;
  const model::ModelConfig& config;
  PlanRequest request;
  double batch, context;
};

Asked asked_for(const Values& values, const std::string& model, const model::ModelConfig& config) {
  Asked out{model, config, {}, 0, 0};
  out.request.memory_utilization = *values.number("gpu-memory-utilization");
  const int64_t length = values.integer("max-model-len").value_or(-1);
  out.request.max_model_len = length > 0 ? length : config.max_position_embeddings;
  out.request.step_tokens =
      values.integer("max-num-batched-tokens").value_or(out.request.step_tokens);
  out.batch = number(std::max<int64_t>(1, *values.integer("batch")));
  out.context = number(std::max<int64_t>(0, *values.integer("context")));
  return out;
}

// Every arrangement of every machine, in every pair of formats.
Result<std::vector<Shown>> rows_for(const Values& values, const Asked& asked,
                                    const std::vector<std::string>& machines) {
  std::vector<Shown> rows;
  for (const std::string& name : machines) {
    M2_TRY(const Gpus gpus, parse_gpus(name));
    M2_TRY(const auto spreads, shapes(values, asked.config, gpus.count));
    for (const parallel::Topology& shape : spreads)
      for (const PlanFormats formats :
           {PlanFormats{}, PlanFormats{true, false}, PlanFormats{true, true}})
        rows.push_back(
            {name, gpus, plan_row(asked.config, shape, gpus, formats, asked.request),
             decode_floor(asked.config, shape, gpus, formats, asked.batch, asked.context)});
  }
  return rows;
}

std::string rows_as_json(const std::vector<Shown>& rows, const Asked& asked) {
  Json out{{"model", asked.model},
           {"weight_bytes", rows.front().row.all_weights},
           {"kv_bytes_per_token", kv_bytes(asked.config, {}, {})},
           {"max_model_len", asked.request.max_model_len},
           {"rows", Json::array()}};
  for (const Shown& row : rows) out["rows"].push_back(as_json(row, asked.config, asked.batch));
  return out.dump(2) + "\n";
}

std::string rows_as_table(const std::vector<Shown>& rows, const Asked& asked) {
  const double kv = kv_bytes(asked.config, {}, {}), weights = rows.front().row.all_weights;
  std::string out = fmt::format(
      "weights {:.2f} GB ({:.2f} GiB); KV {:.0f} B per token in BF16: {:.1f} GB per 1M tokens; "
      "longest context {}\n\n",
      weights / 1e9, weights / kGiB, kv, kv / 1e3, grouped(asked.request.max_model_len));
  out += fmt::format("{:<10} {:<14} {:<10} {:>8} {:>8} {:>9} {:>12} {:>8} {:>8} {:>8}\n", "GPUS",
                     "FLAGS", "W/KV", "W GB", "ACT GB", "KV B/TOK", "KV TOKENS", "x FULL",
                     "STEP ms", "TOK/S");
  for (const Shown& row : rows) out += as_line(row, asked.config, asked.batch);
  return out + fmt::format(
                   "\nPer rank: weights, activations of a step of {} tokens, KV. Over all: KV "
                   "tokens, sequences of the longest context, and\nthe floor of a decoding step "
                   "of {:.0f} after {:.0f} tokens. int4: what it would give; m2 does not serve it "
                   "yet.\n",
                   asked.request.step_tokens, asked.batch, asked.context);
}

}  // namespace

Result<std::string> plan_text(const Values& values) {
  if (values.positionals().size() != 1)
    return fail(Code::invalid_argument,
                "usage: m2 plan MODEL [--gpus 4x96GiB] (see m2 plan --help)");
  const std::string& model = values.positionals()[0];
  M2_TRY(const model::ModelConfig config, config_of(model, values));
  const Asked asked = asked_for(values, model, config);
  M2_TRY(const DType kv_dtype, read_kv_dtype(values));
  const bool fp8_kv = kv_dtype == DType::f8_e4m3;
  std::vector<std::string> machines = values.list("gpus");
  if (machines.empty()) machines = {"4x96G"};
  M2_TRY(const std::vector<Shown> rows, rows_for(values, asked, machines));
  if (values.flag("json")) return rows_as_json(rows, asked);
  std::string out = rows_as_table(rows, asked);
  for (const std::string& name : machines) {
    const Shown* row = best(rows, name, fp8_kv);
    out += row ? fmt::format("{}: m2 serve {} {}{}\n", name, model, flags_of(row->row.shape),
                             fp8_kv ? " --kv-cache-dtype fp8" : "")
               : fmt::format("{}: nothing fits\n", name);
  }
  return out;
}

}  // namespace m2::app
