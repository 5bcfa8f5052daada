#include "app/bench/offline.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "app/bench/dataset.h"
#include "app/bench/load_generator.h"
#include "app/bench/numpy_random.h"
#include "app/bench/statistics.h"
#include "app/model_files.h"
#include "app/serve_options.h"
#include "app/serving.h"
#include "base/log.h"
#include "text/python_json.h"

namespace m2::app::bench {
namespace {

using enum OptionKind;

// clang-format off
constexpr Option kLatencyOptions[] = {
  {"input-len", "", "bench", integer, "32", "Prompt tokens."},
  {"output-len", "", "bench", integer, "128", "Output tokens."},
  {"batch-size", "", "bench", integer, "8", "Requests at once."},
  {"num-iters-warmup", "", "bench", integer, "10", "Batches that do not count."},
  {"num-iters", "", "bench", integer, "30", "Batches that do."},
  {"output-json", "", "bench", text, "", "Write the numbers to this file."},
};
constexpr Option kThroughputOptions[] = {
  {"dataset-name", "", "bench", text, "random", "random, sharegpt or custom (JSON lines with prompt, sent as they are)."},
  {"dataset-path", "", "bench", text, "", "The data set's file."},
  {"input-len", "", "bench", integer, "512", "Prompt tokens of random prompts."},
  {"output-len", "", "bench", integer, "128", "Output tokens; of a file's prompts, if given, instead of what it says."},
  {"num-prompts", "", "bench", integer, "1000", "Requests."},
  {"output-json", "", "bench", text, "", "Write the numbers to this file."},
};
// clang-format on

// A bench's own options and those of `m2 serve`, on a free port of this machine alone.
std::vector<Option> with_serving(std::span<const Option> own) {
  constexpr std::pair<std::string_view, std::string_view> kPrivate[] = {
      {"host", "127.0.0.1"},
      {"port", "0"},
      {"disable-uvicorn-access-log", "true"},
      {"served-model-name", "bench"},
      {"max-queued-requests", "1048576"}};
  std::vector<Option> out(own.begin(), own.end());
  for (Option option : serve_options()) {
    if (std::ranges::count(own, option.name, &Option::name) > 0) continue;
    for (const auto& [name, value] : kPrivate) {
      if (option.name == name) option.fallback = value;
    }
    out.push_back(option);
  }
  return out;
}

constexpr int64_t kMostAtOnce = 1024;  // more than run; the server refuses a crowd

struct Sizes {
  int64_t input_len, output_len, requests;
  bool dataset = false;  // there are options for one
};

Result<int64_t> at_least(const Values& values, const char* name, int64_t least) {
  const int64_t value = *values.integer(name);
  if (value < least)
    return fail(Code::invalid_argument, "--{} must be at least {}, got {}", name, least, value);
  return value;
}

// Prompts of a file; none if they are to be random ids.
Dataset file_prompts(const Values& values, const std::filesystem::path& folder, int64_t count) {
  const std::string name = values.text("dataset-name");
  FileDataset file{values.text("dataset-path"), {}, true, false};
  if (name == "random" && file.path.empty()) return std::vector<BenchRequest>();
  if (name != "sharegpt" && name != "custom")
    return fail(Code::invalid_argument, "--dataset-name {}{} (chose from random, sharegpt, custom)",
                name, name == "random" ? " reads no --dataset-path" : " is not supported");
  if (file.path.empty())
    return fail(Code::invalid_argument, "--dataset-name {} needs --dataset-path", name);
  if (values.given("output-len")) file.output_len = values.integer("output-len");
  M2_TRY(const auto tokenizer, read_tokenizer(folder, values));
  const auto seed = static_cast<uint64_t>(std::max<int64_t>(0, *values.integer("seed")));
  const DatasetTools tools{*tokenizer, nullptr, seed, static_cast<size_t>(count)};
  return name == "custom" ? make_custom(file, tools) : make_sharegpt(file, tools);
}

// The model and a client of it, in this process.
class Bench {
 public:
  static Result<std::unique_ptr<Bench>> start(const Values& values, const Sizes& sizes) {
    start_logging("warning", "");
    const std::string model =
        values.positionals().empty() ? values.text("model") : values.positionals()[0];
    if (model.empty() || values.positionals().size() > 1)
      return fail(Code::invalid_argument, "name the model: --model MODEL");
    std::unique_ptr<Bench> out(new Bench(sizes));
    M2_TRY(const std::filesystem::path folder, model_folder(model, values));
    M2_TRY(const ModelSettings settings, read_settings(folder, values));
    // Ids that every vocabulary of the family has as ordinary tokens.
    out->id_limit_ = std::min<int64_t>(10'000, settings.config.vocab_size);
    if (const auto tokenizer = read_tokenizer(folder, values); tokenizer.ok())
      out->id_limit_ = std::min<int64_t>(out->id_limit_, (*tokenizer)->base_vocab_size());
    if (sizes.dataset) {
      M2_TRY(out->prompts_, file_prompts(values, folder, sizes.requests));
    }
    M2_TRY(out->serving_, Serving::start(model, values, SignalsEnd::process));
    Target target{false, true, "127.0.0.1", out->serving_->port(), "/v1/completions", {}};
    for (const std::string& key : values.list("api-key"))
      target.headers = {{"Authorization", "Bearer " + key}};
    out->generator_ = std::make_unique<LoadGenerator>(std::move(target), kMostAtOnce);
    return out;
  }

  // One run of all requests at once, with prompts nobody has seen before. Fails if one fails.
  Result<LoadReport> go() {
    std::vector<std::string> bodies;
    const auto random = [&] {
      return random_.randint(0, id_limit_, static_cast<size_t>(sizes_.input_len));
    };
    prompt_tokens_ = 0;
    for (int64_t i = 0; i < requests(); ++i) {
      const BenchRequest* given = prompts_.empty() ? nullptr : &prompts_[static_cast<size_t>(i)];
      prompt_tokens_ += given ? given->prompt_len : sizes_.input_len;
      const Json body{{"prompt", given ? Json(given->prompt) : Json(random())},
                      {"max_tokens", given ? given->output_len : sizes_.output_len},
                      {"temperature", 1.0},
                      {"top_p", 1.0},
                      {"ignore_eos", true},
                      {"stream", true},
                      {"stream_options", {{"include_usage", true}}}};
      bodies.push_back(to_text(body));
    }
    LoadGenerator::Run run;
    run.count = bodies.size();
    run.body = [&](size_t i) { return bodies[i]; };
    run.request_id = [](size_t i) { return std::to_string(i); };
    M2_TRY(LoadReport report, generator_->run(run));
    for (const RequestResult& result : report.results) {
      if (!result.success) return fail(Code::unavailable, "a request failed: {}", result.error);
    }
    return report;
  }

  int64_t requests() const { return prompts_.empty() ? sizes_.requests : std::ssize(prompts_); }
  int64_t prompt_tokens() const { return prompt_tokens_; }  // of the last run

 private:
  explicit Bench(const Sizes& sizes) : sizes_(sizes) {}

  const Sizes sizes_;
  std::vector<BenchRequest> prompts_;  // empty: random ids
  int64_t id_limit_ = 0, prompt_tokens_ = 0;
  NumpyLegacy random_{0};
  std::unique_ptr<Serving> serving_;
  std::unique_ptr<LoadGenerator> generator_;
};

Result<void> save(const Values& values, const Json& numbers) {
  const std::string path = values.text("output-json");
  if (path.empty()) return {};
  std::ofstream file(path, std::ios::trunc);
  file << text::python_json(numbers, true, 4);
  file.flush();
  if (!file) return fail(Code::unavailable, "cannot write {}", path);
  return {};
}

}  // namespace

const Command& latency_command() {
  static const std::vector<Option> options = with_serving(kLatencyOptions);
  static const Command command{"bench latency",
                               "[MODEL]",
                               "Loads a model and times one batch of requests, again and again.",
                               "",
                               options,
                               options.size() - std::size(kLatencyOptions)};
  return command;
}

Result<void> run_latency(const Values& values) {
  Sizes sizes{};
  M2_TRY(sizes.input_len, at_least(values, "input-len", 1));
  M2_TRY(sizes.output_len, at_least(values, "output-len", 1));
  M2_TRY(sizes.requests, at_least(values, "batch-size", 1));
  M2_TRY(const int64_t warmups, at_least(values, "num-iters-warmup", 0));
  M2_TRY(const int64_t iterations, at_least(values, "num-iters", 1));
  M2_TRY(const std::unique_ptr<Bench> bench, Bench::start(values, sizes));
  std::puts("Warming up...");
  std::fflush(stdout);
  for (int64_t i = 0; i < warmups; ++i) M2_TRY_VOID(bench->go());
  std::vector<double> latencies;
  for (int64_t i = 0; i < iterations; ++i) {
    M2_TRY(const LoadReport report, bench->go());
    latencies.push_back(report.duration);
    std::fprintf(stderr, "%lld/%lld batches\n", static_cast<long long>(i + 1),
                 static_cast<long long>(iterations));
  }
  const double average = mean(latencies);
  std::vector<double> sorted = latencies;
  std::ranges::sort(sorted);
  std::puts(fmt::format("Avg latency: {} seconds", text::python_float(average)).c_str());
  Json percentiles = Json::object();
  for (const int percent : {10, 25, 50, 75, 90, 99}) {
    const double value = percentile(sorted, percent);
    percentiles[std::to_string(percent)] = value;
    std::puts(fmt::format("{}% percentile latency: {} seconds", percent, text::python_float(value))
                  .c_str());
  }
  return save(values,
              {{"avg_latency", average}, {"latencies", latencies}, {"percentiles", percentiles}});
}

const Command& throughput_command() {
  static const std::vector<Option> options = with_serving(kThroughputOptions);
  static const Command command{"bench throughput",
                               "[MODEL]",
                               "Loads a model and times many requests at once.",
                               "",
                               options,
                               options.size() - std::size(kThroughputOptions)};
  return command;
}

Result<void> run_throughput(const Values& values) {
  Sizes sizes{};
  M2_TRY(sizes.input_len, at_least(values, "input-len", 1));
  M2_TRY(sizes.output_len, at_least(values, "output-len", 1));
  M2_TRY(sizes.requests, at_least(values, "num-prompts", 1));
  sizes.dataset = true;
  M2_TRY(const std::unique_ptr<Bench> bench, Bench::start(values, sizes));
  M2_TRY(const LoadReport report, bench->go());
  const int64_t prompt = bench->prompt_tokens();
  int64_t output = 0;
  for (const RequestResult& result : report.results) output += result.output_tokens;
  const double elapsed = report.duration;
  const double requests = static_cast<double>(bench->requests()) / elapsed;
  const double total = static_cast<double>(prompt + output) / elapsed;
  std::puts(fmt::format("Throughput: {:.2f} requests/s, {:.2f} total tokens/s, {:.2f} output "
                        "tokens/s\nTotal num prompt tokens:  {}\nTotal num output tokens:  {}",
                        requests, total, static_cast<double>(output) / elapsed, prompt, output)
                .c_str());
  return save(values, {{"elapsed_time", elapsed},
                       {"num_requests", bench->requests()},
                       {"total_num_tokens", prompt + output},
                       {"requests_per_second", requests},
                       {"tokens_per_second", total}});
}

}  // namespace m2::app::bench
