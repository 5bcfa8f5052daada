#include "app/doctor/golden.h"

#include <algorithm>
#include <cmath>

#include "app/doctor/small_model.h"
#include "load/file.h"
#include "model/config.h"
#include "model/weights.h"
#include "ops/instruction_set.h"
#include "ops/quantised.h"

namespace m2::app::doctor {
namespace {

constexpr uint64_t kMostGoldenBytes = 64 << 20;

struct Run {
  std::vector<int32_t> prompt, greedy;
  std::vector<size_t> positions;
  Rows logits;
};

// What roundings may do to m2-micro's answer rows. In the middle of 24, FP8 inputs moved logits by
// 1.9 to 3.4 % in transformers' forward with the reference's quantisation put in (72 runs, weights
// of the embedding off by 2^-9, with and without BF16 between operations), where the
// least of these faults moves them by 5: one block scale of q or of all w13 in one layer doubled;
// of v, o or w2, an expert left out, gate and up exchanged: 6 to 27. One row among them may be off
// by 18 %: another expert leads there.
Distances allowed_on(Device device) {
  constexpr double kAnotherExpert = 0.4;
  if (device.kind == DeviceKind::cpu) return {tolerance_of(device), tolerance_of(device)};
  return {ops::wants_quantised(device) ? kAllowedWithFp8Inputs : tolerance_of(device),
          kAnotherExpert};
}

// Whether products here round their inputs to BF16. FP8 activations are nearer to that as well.
bool rounds_inputs(Device device) {
  return device.kind == DeviceKind::cuda || ops::cpu::use_tiles();
}

template <class T>
Result<std::vector<T>> list(const Json& run, const char* key, double least, double most) {
  const auto found = run.find(key);
  if (found == run.end() || !found->is_array())
    return fail(Code::corrupt, "golden.json: a run without a list of {}", key);
  std::vector<T> out;
  for (const Json& value : *found) {
    const double number = value.is_number() ? value.get<double>() : HUGE_VAL;
    if (!(number >= least && number <= most))
      return fail(Code::corrupt, "golden.json: {} in {}", value.dump(), key);
    out.push_back(value.get<T>());
  }
  return out;
}

Result<Run> read_run(const Json& json, const model::ModelConfig& config) {
  const auto last_id = static_cast<double>(config.vocab_size - 1);
  Run out;
  M2_TRY(out.prompt, list<int32_t>(json, "prompt", 0, last_id));
  M2_TRY(out.greedy, list<int32_t>(json, "greedy", 0, last_id));
  const size_t rows = out.prompt.size() + out.greedy.size() - 1;
  if (out.prompt.empty() || out.greedy.empty() ||
      static_cast<int64_t>(rows) > config.max_position_embeddings)
    return fail(Code::corrupt, "golden.json: a prompt of {} tokens and an answer of {}",
                out.prompt.size(), out.greedy.size());
  M2_TRY(out.positions, list<size_t>(json, "positions", 0, static_cast<double>(rows - 1)));
  const auto logits = json.find("logits");
  if (logits == json.end() || !logits->is_array() || logits->size() != out.positions.size())
    return fail(Code::corrupt, "golden.json: not one row of logits for each position");
  for (const Json& row : *logits) {
    M2_TRY(std::vector<float> one, list<float>(Json{{"logits", row}}, "logits", -1e30, 1e30));
    if (std::ssize(one) != config.vocab_size)
      return fail(Code::corrupt, "golden.json: a row of {} logits, of a vocabulary of {}",
                  one.size(), config.vocab_size);
    out.logits.push_back(std::move(one));
  }
  return out;
}

Result<void> compare(const Machine& machine, const load::Checkpoint& checkpoint,
                     const model::ModelConfig& config, int64_t id_limit, const Run& run,
                     GoldenResult& out, Rows& here, Rows& expected) {
  M2_TRY(model::Weights weights, model::load_weights(config, checkpoint, {}, machine.device, {}));
  // The last answer's token is chosen, not fed.
  M2_TRY(const Rows rows, run_tokens(machine, config, std::move(weights), run.prompt,
                                     std::span(run.greedy).first(run.greedy.size() - 1)));
  for (size_t i = 0; i < run.greedy.size(); ++i) {
    const std::vector<float>& row = rows.at(run.prompt.size() - 1 + i);
    const auto best = std::max_element(row.begin(), row.begin() + id_limit) - row.begin();
    ++out.tokens;
    out.same_tokens += best == run.greedy[i];
  }
  for (size_t p = 0; p < run.positions.size(); ++p) {
    here.push_back(rows.at(run.positions[p]));
    expected.push_back(run.logits[p]);
  }
  ++out.runs;
  return {};
}

}  // namespace

Result<Json> read_golden(const std::filesystem::path& folder) {
  M2_TRY(const std::string text, load::read_text(folder / "golden.json", kMostGoldenBytes));
  Result<Json> golden = parse_json(text);
  if (!golden.ok())
    return fail(Code::corrupt, "{}/golden.json: {}", folder.string(), golden.error().text);
  return golden;
}

Result<GoldenResult> run_golden(const Machine& machine, const std::filesystem::path& folder,
                                const Json& golden) {
  M2_TRY(const load::Checkpoint checkpoint, load::Checkpoint::open(folder));
  M2_TRY(const model::ModelConfig config, model::read_config(checkpoint.config()));
  GoldenResult out;
  out.allowed = allowed_on(machine.device);
  Rows here, expected;
  const auto runs = golden.find("runs");
  if (runs == golden.end() || !runs->is_array())
    return fail(Code::corrupt, "golden.json has no list of runs");
  const auto limit = golden.find("id_limit");
  const int64_t id_limit = limit != golden.end() && limit->is_number_integer()
                               ? std::clamp<int64_t>(limit->get<int64_t>(), 1, config.vocab_size)
                               : config.vocab_size;
  for (const Json& json : *runs) {
    if (!json.is_object() || json.value("kv", Json()) != "bf16" ||
        json.value("inputs", Json()) != (rounds_inputs(machine.device) ? "bf16" : "f32"))
      continue;
    M2_TRY(const Run run, read_run(json, config));
    M2_TRY_VOID(compare(machine, checkpoint, config, id_limit, run, out, here, expected));
  }
  if (expected.empty()) return fail(Code::corrupt, "golden.json has no run that rounds as here");
  out.off = distances(here, expected);
  return out;
}

}  // namespace m2::app::doctor
