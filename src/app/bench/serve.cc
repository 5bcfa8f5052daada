#include "app/bench/serve.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "app/bench/dataset.h"
#include "app/bench/plot.h"
#include "app/bench/progress.h"
#include "app/bench/report.h"
#include "app/environment.h"
#include "app/http_client.h"
#include "app/model_files.h"
#include "base/descriptors.h"
#include "base/log.h"
#include "load/hub.h"
#include "text/python_json.h"

namespace m2::app::bench {
namespace {

using enum OptionKind;

// clang-format off
constexpr Option kOptions[] = {
  {"backend", "", "server", text, "openai", "openai or vllm (completions), openai-chat (chat completions)."},
  {"base-url", "", "server", text, "", "http:// or https:// address, instead of host and port."},
  {"host", "", "server", text, "127.0.0.1", "Where the server listens."},
  {"port", "", "server", integer, "8000", "And its port."},
  {"endpoint", "", "server", text, "", "Path of the requests [/v1/completions, or /v1/chat/completions]."},
  {"header", "", "server", list, "", "KEY=VALUE: a header of every request."},
  {"insecure", "", "server", flag, "false", "Do not verify the server's certificate."},
  {"api-key", "", "server", text, "", "Key for the server.", "OPENAI_API_KEY"},
  {"ready-check-timeout-sec", "", "server", integer, "0", "Wait so long for a first request to succeed; 0: do not try."},

  {"model", "", "model", text, "", "Model to ask for; the server's first one if not given."},
  {"served-model-name", "", "model", text, "", "Its name in requests, if another."},
  {"tokenizer", "", "model", text, "", "Folder or hub name with tokenizer.json [the model's]."},
  {"tokenizer-mode", "", "model", text, "auto", "Accepted; there is one tokenizer."},
  {"trust-remote-code", "", "model", flag, "false", "Accepted; no code comes from a checkpoint."},
  {"skip-tokenizer-init", "", "model", flag, "false", "Accepted; prompts are counted in tokens, so a tokenizer is needed."},
  {"revision", "", "model", text, "main", "Branch, tag or commit of a hub name."},
  {"download-dir", "", "model", text, "", "Hub cache to look in, instead of HF_HUB_CACHE or HF_HOME."},
  {"chat-template", "", "model", text, "", "Chat template of custom and sonnet prompts: a file, or the template itself."},

  {"dataset-name", "", "data", text, "random", "random, sharegpt, custom, sonnet or prefix_repetition."},
  {"dataset-path", "", "data", text, "", "The data set's file."},
  {"num-prompts", "", "data", integer, "1000", "Requests of the run."},
  {"seed", "", "data", integer, "0", "Of prompts and arrivals."},
  {"no-oversample", "", "data", flag, "false", "A file with too few rows makes a shorter run."},
  {"input-len", "", "data", integer, "", "Prompt tokens, for every data set that has such an option."},
  {"output-len", "", "data", integer, "", "Output tokens, likewise."},
  {"random-input-len", "", "data", integer, "1024", "Prompt tokens."},
  {"random-output-len", "", "data", integer, "128", "Output tokens."},
  {"random-range-ratio", "", "data", number, "0.0", "Lengths are drawn from L(1-r) to L(1+r)."},
  {"random-prefix-len", "", "data", integer, "0", "Tokens that all prompts begin with."},
  {"random-batch-size", "", "data", integer, "1", "1, the only one for completions."},
  {"sharegpt-output-len", "", "data", integer, "", "Output tokens, instead of the data set's."},
  {"custom-output-len", "", "data", integer, "256", "Output tokens; -1: output_tokens of each row."},
  {"skip-chat-template", "", "data", flag, "false", "Send custom prompts as they are."},
  {"sonnet-input-len", "", "data", integer, "550", "Prompt tokens."},
  {"sonnet-output-len", "", "data", integer, "150", "Output tokens."},
  {"sonnet-prefix-len", "", "data", integer, "200", "Tokens that all prompts begin with."},
  {"prefix-repetition-prefix-len", "", "data", integer, "256", "Tokens of a prefix."},
  {"prefix-repetition-suffix-len", "", "data", integer, "256", "Tokens after it."},
  {"prefix-repetition-num-prefixes", "", "data", integer, "10", "Different prefixes."},
  {"prefix-repetition-output-len", "", "data", integer, "128", "Output tokens."},

  {"request-rate", "", "load", text, "inf", "Requests a second; inf: all at once."},
  {"burstiness", "", "load", text, "1.0", "Shape of the gaps' gamma distribution: 1 is Poisson, inf is even."},
  {"max-concurrency", "", "load", integer, "", "Requests at once; the others wait."},
  {"num-warmups", "", "load", integer, "0", "Requests before the run that do not count."},
  {"ramp-up-strategy", "", "load", text, "", "linear or exponential: the rate grows over the run."},
  {"ramp-up-start-rps", "", "load", integer, "", "From this rate."},
  {"ramp-up-end-rps", "", "load", integer, "", "To this one."},

  {"temperature", "", "request", number, "", "Sampling temperature; 0 is greedy."},
  {"top-p", "", "request", number, "", "Nucleus."},
  {"top-k", "", "request", integer, "", "Most likely tokens."},
  {"min-p", "", "request", number, "", "Least probability, relative to the largest."},
  {"frequency-penalty", "", "request", number, "", "Frequency penalty."},
  {"presence-penalty", "", "request", number, "", "Presence penalty."},
  {"repetition-penalty", "", "request", number, "", "Repetition penalty."},
  {"logprobs", "", "request", integer, "", "Log probabilities of so many tokens."},
  {"ignore-eos", "", "request", flag, "false", "Go on after the end token; random prompts always do."},
  {"extra-body", "", "request", json, "", "Fields of every request; they win."},
  {"request-id-prefix", "", "request", text, "", "Of x-request-id [bench-<8 hex digits>-]."},

  {"percentile-metrics", "", "result", text, "ttft,tpot,itl", "Sections of the table: ttft, tpot, itl, e2el."},
  {"metric-percentiles", "", "result", text, "99", "Percentiles of each, parted by commas."},
  {"goodput", "", "result", list, "", "KEY:MS, of ttft, tpot, e2el: count the requests within all of them."},
  {"save-result", "", "result", flag, "false", "Write the numbers to a JSON file."},
  {"save-detailed", "", "result", flag, "false", "With every request's numbers and texts."},
  {"append-result", "", "result", flag, "false", "Add to the file instead of replacing it."},
  {"result-dir", "", "result", text, "", "Where."},
  {"result-filename", "", "result", text, "", "Its name [{label or backend}-{rate}qps-...json]."},
  {"metadata", "", "result", list, "", "KEY=VALUE: fields of the JSON."},
  {"label", "", "result", text, "", "A name for the run."},
  {"plot", "", "result", text, "", "Draw the run to FILE.svg (or FILE.png, if gnuplot is installed)."},
  {"disable-tqdm", "", "result", flag, "false", "No progress bar."},

  {"use-beam-search", "", "other", flag, "false", "Refused: not a thing this family is served with."},
  {"profile", "", "other", flag, "false", "Refused: this server has no /start_profile."},
  {"lora-modules", "", "other", list, "", "Refused: adapters are not served."},
};
// clang-format on

Error bad(std::string text) {
  return Error{Code::invalid_argument, std::move(text), {}};
}

Result<double> rate_of(const Values& values, const char* name) {
  const std::string text = values.text(name);
  if (text == "inf" || text == "infinity" || text == "Infinity") return kInfiniteRate;
  double rate = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rate);
  if (error != std::errc{} || end != text.data() + text.size() || !(rate > 0))
    return bad(fmt::format("--{} must be above 0, or inf; got '{}'", name, text));
  return rate;
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(by, begin), text.size());
    if (end > begin) out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

Result<std::pair<std::string, std::string>> pair_of(const std::string& text, char by,
                                                    const char* option) {
  const size_t at = text.find(by);
  if (at == std::string::npos || at == 0)
    return bad(fmt::format("--{} '{}': write KEY{}VALUE", option, text, by));
  return std::pair(text.substr(0, at), text.substr(at + 1));
}

Result<double> number_in(const std::string& text, double least, double most, const char* what) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most)
    return bad(fmt::format("{} '{}' is not a number from {} to {}", what, text, least, most));
  return value;
}

Result<void> refuse_combinations(const Values& values) {
  for (const char* name : {"use-beam-search", "profile"}) {
    if (values.flag(name)) return fail(Code::unsupported, "--{} is not supported", name);
  }
  if (values.given("lora-modules"))
    return fail(Code::unsupported, "--lora-modules is not supported: adapters are not served");
  const std::string dataset = values.text("dataset-name");
  if (dataset == "random" && values.given("dataset-path"))
    return bad(
        "Cannot use 'random' dataset with --dataset-path. Please specify the appropriate "
        "--dataset-name (e.g., 'sharegpt', 'custom', 'sonnet') for your dataset file.");
  const bool needs_file = dataset == "sharegpt" || dataset == "custom" || dataset == "sonnet";
  if (needs_file && !values.given("dataset-path"))
    return bad(fmt::format("--dataset-name {} needs --dataset-path", dataset));
  if (values.integer("random-batch-size") != 1)
    return bad("--random-batch-size: only 1 is meant for completions");
  const bool detailed_alone =
      values.flag("save-detailed") && !values.flag("save-result") && !values.flag("append-result");
  if (detailed_alone) return bad("--save-detailed needs --save-result");
  return {};
}

Result<ArrivalPlan> read_arrivals(const Values& values) {
  ArrivalPlan plan;
  M2_TRY(plan.rate, rate_of(values, "request-rate"));
  M2_TRY(plan.burstiness, rate_of(values, "burstiness"));
  plan.ramp_up = values.text("ramp-up-strategy");
  const auto start = values.integer("ramp-up-start-rps"), end = values.integer("ramp-up-end-rps");
  if (plan.ramp_up.empty()) {
    if (start || end)
      return bad("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy");
    return plan;
  }
  if (plan.ramp_up != "linear" && plan.ramp_up != "exponential")
    return bad(fmt::format("--ramp-up-strategy {}: linear or exponential", plan.ramp_up));
  if (!std::isinf(plan.rate))
    return bad(
        "When using ramp-up, do not specify --request-rate. The request rate will be controlled "
        "by ramp-up parameters. Please remove the --request-rate argument.");
  if (!start || !end)
    return bad(
        "When using --ramp-up-strategy, both --ramp-up-start-rps and --ramp-up-end-rps must be "
        "specified");
  if (*start < 0 || *end < 0) return bad("Ramp-up start and end RPS must be non-negative");
  if (*start > *end) return bad("Ramp-up start RPS must be less than end RPS");
  if (plan.ramp_up == "exponential" && *start == 0)
    return bad("For exponential ramp-up, the start RPS cannot be 0.");
  if (*end == 0) return bad("A ramp-up must end above 0 requests a second");
  plan.start_rate = static_cast<double>(*start);
  plan.end_rate = static_cast<double>(*end);
  return plan;
}

Result<void> read_server(const Values& values, ServeBench& out, const std::string& api_key) {
  out.backend = values.text("backend");
  if (out.backend == "openai-chat") {
    out.protocol = Protocol::chat;
  } else if (out.backend != "openai" && out.backend != "vllm") {
    return fail(Code::unsupported,
                "--backend {} is not supported (chose from openai, vllm, openai-chat)",
                out.backend);
  }
  out.base_url = values.text("base-url");
  const std::string host = values.text("host");
  if (out.base_url.empty())
    out.base_url =
        fmt::format("http://{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]",
                    *values.integer("port"));
  while (out.base_url.ends_with('/')) out.base_url.pop_back();
  std::string endpoint = values.text("endpoint");
  if (endpoint.empty())
    endpoint = out.protocol == Protocol::chat ? "/v1/chat/completions" : "/v1/completions";
  if (!endpoint.ends_with("completions") && !endpoint.ends_with("profile"))
    return bad(
        fmt::format("--endpoint {}: the URL must end with 'completions' or 'profile'", endpoint));
  if (out.protocol == Protocol::chat && !endpoint.ends_with("chat/completions"))
    return bad(
        fmt::format("--endpoint {}: --backend openai-chat asks /v1/chat/completions", endpoint));
  M2_TRY(out.target, parse_url(out.base_url + endpoint));
  out.target.verify = !values.flag("insecure");
  if (!api_key.empty()) out.target.headers.emplace_back("Authorization", "Bearer " + api_key);
  for (const std::string& header : values.list("header")) {
    M2_TRY(auto pair, pair_of(header, '=', "header"));
    if ((pair.first + pair.second).find_first_of("\r\n") != std::string::npos)
      return bad("--header: a line break in a header");
    out.target.headers.push_back(std::move(pair));
  }
  return {};
}

Result<void> read_results(const Values& values, ServeBench& out) {
  for (const std::string& name : split(values.text("percentile-metrics"), ',')) {
    const auto metric = metric_named(name);
    if (!metric) return bad(fmt::format("--percentile-metrics {}: of ttft, tpot, itl, e2el", name));
    out.metrics.push_back(*metric);
  }
  for (const std::string& text : split(values.text("metric-percentiles"), ',')) {
    M2_TRY(const double percent, number_in(text, 0, 100, "--metric-percentiles"));
    out.percents.push_back(percent);
  }
  for (const std::string& text : values.list("goodput")) {
    M2_TRY(const auto pair, pair_of(text, ':', "goodput"));
    const auto metric = metric_named(pair.first);
    if (!metric || *metric == Metric::itl)
      return bad(fmt::format("--goodput {}: of ttft, tpot, e2el", text));
    M2_TRY(const double most, number_in(pair.second, 0, 1e12, "--goodput"));
    out.levels.emplace_back(*metric, most);
  }
  for (const std::string& text : values.list("metadata")) {
    M2_TRY(auto pair, pair_of(text, '=', "metadata"));
    out.metadata.push_back(std::move(pair));
  }
  return {};
}

void read_sampling(const Values& values, ServeBench& out) {
  constexpr std::pair<const char*, const char*> kNumbers[] = {
      {"temperature", "temperature"},
      {"top-p", "top_p"},
      {"min-p", "min_p"},
      {"frequency-penalty", "frequency_penalty"},
      {"presence-penalty", "presence_penalty"},
      {"repetition-penalty", "repetition_penalty"}};
  for (const auto& [flag_name, field] : kNumbers) {
    if (const auto value = values.number(flag_name)) out.sampling[field] = *value;
  }
  if (const auto top_k = values.integer("top-k")) out.sampling["top_k"] = *top_k;
}

}  // namespace

const Command& serve_bench_command() {
  static const Command command{
      "bench serve", "",
      "Measures a running server: sends it requests, prints throughput and latencies.",
      "Names take _ for - and unique prefixes. What this client itself costs is printed on stderr.",
      kOptions};
  return command;
}

Result<ServeBench> read_serve_bench(const Values& values, const std::string& api_key) {
  if (!values.positionals().empty())
    return bad(
        fmt::format("'{}' is no option (see m2 bench serve --help)", values.positionals()[0]));
  M2_TRY_VOID(refuse_combinations(values));
  ServeBench out;
  M2_TRY_VOID(read_server(values, out, api_key));
  M2_TRY(out.arrivals, read_arrivals(values));
  M2_TRY_VOID(read_results(values, out));
  read_sampling(values, out);
  out.extra_body = values.json("extra-body");
  out.model = values.text("model");
  out.request_model = values.text("served-model-name");
  out.tokenizer = values.text("tokenizer");
  out.dataset = values.text("dataset-name");
  const int64_t prompts = *values.integer("num-prompts");
  if (prompts < 1 || prompts > 10'000'000)
    return bad(fmt::format("--num-prompts must be from 1 to 10000000, got {}", prompts));
  out.num_prompts = static_cast<size_t>(prompts);
  const int64_t seed = *values.integer("seed");
  if (seed < 0 || seed > UINT32_MAX)
    return bad(fmt::format("--seed must be from 0 to 4294967295, got {}", seed));
  out.seed = static_cast<uint64_t>(seed);
  out.max_concurrency = values.integer("max-concurrency");
  if (out.max_concurrency && *out.max_concurrency < 1)
    return bad("--max-concurrency must be at least 1");
  out.num_warmups = *values.integer("num-warmups");
  out.ready_seconds = static_cast<double>(*values.integer("ready-check-timeout-sec"));
  if (out.num_warmups < 0 || out.ready_seconds < 0)
    return bad("--num-warmups and --ready-check-timeout-sec must not be negative");
  out.logprobs = values.integer("logprobs");
  // Random tokens end where they like; only with the end ignored are all outputs as long as asked.
  out.ignore_eos = values.flag("ignore-eos") || out.dataset == "random";
  out.request_id_prefix = values.text("request-id-prefix");
  if (out.request_id_prefix.empty())
    out.request_id_prefix = fmt::format("bench-{:08x}-", std::random_device{}());
  return out;
}

std::string request_body(const ServeBench& bench, const BenchRequest& request) {
  Json body;
  body["model"] = bench.request_model.empty() ? bench.model : bench.request_model;
  if (bench.protocol == Protocol::chat) {
    const Json part{{"type", "text"}, {"text", request.prompt}};
    body["messages"] = Json::array({{{"role", "user"}, {"content", Json::array({part})}}});
    body["max_completion_tokens"] = request.output_len;
  } else {
    body["prompt"] = request.prompt;
    body["repetition_penalty"] = 1.0;
    body["max_tokens"] = request.output_len;
    body["logprobs"] = bench.logprobs ? Json(*bench.logprobs) : Json();
  }
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (bench.ignore_eos) body["ignore_eos"] = true;
  for (const Json* fields : {&bench.sampling, &bench.extra_body}) {
    for (const auto& [name, value] : fields->items()) body[name] = value;
  }
  return to_text(body);
}

std::string result_file_name(const ServeBench& bench, const std::string& label,
                             const std::string& date) {
  std::string rate = text::python_float(bench.arrivals.rate);
  if (!bench.arrivals.ramp_up.empty())
    rate = fmt::format("ramp-up-{}-{}qps-{}", bench.arrivals.ramp_up,
                       static_cast<int64_t>(bench.arrivals.start_rate),
                       static_cast<int64_t>(bench.arrivals.end_rate));
  const std::string concurrency =
      bench.max_concurrency ? fmt::format("-concurrency{}", *bench.max_concurrency) : "";
  const std::string model = bench.model.substr(bench.model.rfind('/') + 1);
  return fmt::format("{}-{}qps{}-{}-{}.json", label.empty() ? bench.backend : label, rate,
                     concurrency, model, date);
}

// ---- the run

namespace {

void say(const std::string& line) {
  std::fputs((line + "\n").c_str(), stdout);
  std::fflush(stdout);
}

std::string python_text(const Json& value) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_number_float()) return text::python_float(value.get<double>());
  if (value.is_string()) return "'" + value.get<std::string>() + "'";
  if (!value.is_array()) return to_text(value);
  std::string out = "[";
  for (const Json& item : value) out += (out.size() > 1 ? ", " : "") + python_text(item);
  return out + "]";
}

// Every option and its value, as Python's argparse shows them. The key stays out.
std::string namespace_line(const Values& values) {
  const Json given = values.given_values();
  std::string out;
  for (const Option& option : kOptions) {
    Json value;
    const std::string name(option.name);
    const bool rate = name == "request-rate" || name == "burstiness";
    if (rate && rate_of(values, name.c_str()).ok()) {
      value = *rate_of(values, name.c_str());
    } else if (given.contains(name)) {
      value = name == "api-key" ? Json("***") : given[name];
    } else if (option.kind == flag) {
      value = values.flag(name);
    } else if (option.kind == integer && values.integer(name)) {
      value = *values.integer(name);
    } else if (option.kind == number && values.number(name)) {
      value = *values.number(name);
    } else if (option.kind == OptionKind::text && !option.fallback.empty()) {
      value = option.fallback;
    }
    std::string key = name;
    std::replace(key.begin(), key.end(), '-', '_');
    out += fmt::format("{}{}={}", out.empty() ? "" : ", ", key, python_text(value));
  }
  return "Namespace(" + out + ")";
}

struct TextTools {
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;
};

Result<TextTools> read_text_tools(const ServeBench& bench, const Values& values) {
  const std::string& name = bench.tokenizer.empty() ? bench.model : bench.tokenizer;
  Result<std::filesystem::path> folder = model_folder(name, values);
  if (!folder.ok())
    return fail(folder.error().code,
                "{} (the tokenizer is needed to make prompts; --tokenizer says where it is)",
                folder.error().text);
  TextTools out;
  M2_TRY(out.tokenizer, text::Tokenizer::load((*folder / "tokenizer.json").string()));
  const bool templated = bench.dataset == "sonnet" ||
                         (bench.dataset == "custom" && !values.flag("skip-chat-template"));
  if (templated) {
    M2_TRY(out.chat_template, read_chat_template(*folder, values));
  }
  return out;
}

Dataset make_dataset(const ServeBench& bench, const Values& values, const TextTools& text_tools) {
  const DatasetTools tools{*text_tools.tokenizer, text_tools.chat_template.get(), bench.seed,
                           bench.num_prompts};
  const auto input = [&](const char* name) {
    return values.integer("input-len").value_or(*values.integer(name));
  };
  const auto output = [&](const char* name) {
    return values.integer("output-len").value_or(*values.integer(name));
  };
  if (bench.dataset == "random")
    return make_random({input("random-input-len"), output("random-output-len"),
                        *values.number("random-range-ratio"), *values.integer("random-prefix-len")},
                       tools);
  if (bench.dataset == "prefix_repetition")
    return make_prefix_repetition(
        {*values.integer("prefix-repetition-prefix-len"),
         *values.integer("prefix-repetition-suffix-len"),
         *values.integer("prefix-repetition-num-prefixes"), output("prefix-repetition-output-len")},
        tools);
  FileDataset file{values.text("dataset-path"), {}, !values.flag("no-oversample"), true};
  if (bench.dataset == "sharegpt") {
    file.output_len = values.integer("sharegpt-output-len");
    if (values.given("output-len")) file.output_len = values.integer("output-len");
    return make_sharegpt(file, tools);
  }
  if (bench.dataset == "custom") {
    file.output_len = output("custom-output-len");
    // A chat request is templated by the server.
    file.apply_chat_template =
        !values.flag("skip-chat-template") && bench.protocol != Protocol::chat;
    return make_custom(file, tools);
  }
  if (bench.dataset == "sonnet") {
    file.apply_chat_template = bench.protocol != Protocol::chat;
    return make_sonnet(file,
                       {input("sonnet-input-len"), *values.integer("sonnet-prefix-len"),
                        output("sonnet-output-len")},
                       tools);
  }
  return fail(Code::unsupported,
              "--dataset-name {} is not supported (chose from random, sharegpt, custom, sonnet, "
              "prefix_repetition)",
              bench.dataset);
}

// Sends one request again and again until it succeeds or the time is up.
Result<void> check_ready(const ServeBench& bench, const BenchRequest& request) {
  constexpr auto kPause = std::chrono::seconds(1);
  const SteadyClock clock;
  const Nanos start = clock.now();
  while (true) {
    LoadGenerator generator(bench.target, 1);
    LoadGenerator::Run run;
    run.count = 1;
    run.body = [&](size_t) { return request_body(bench, request); };
    run.request_id = [&](size_t) { return bench.request_id_prefix + "test"; };
    const Result<LoadReport> report = generator.run(run);
    const std::string error = report.ok() ? report->results[0].error : report.error().text;
    if (report.ok() && report->results[0].success) return {};
    if (seconds(clock.now() - start) >= bench.ready_seconds)
      return fail(Code::unavailable,
                  "Initial test run failed - Please make sure benchmark arguments are correctly "
                  "specified. Error: {}",
                  error);
    std::this_thread::sleep_for(kPause);
  }
}

std::string iso_time(std::time_t time) {
  char text[32];
  std::tm parts{};
  localtime_r(&time, &parts);
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  return text;
}

// The moments at which a ramp reached another whole rate.
Json rps_changes(const ArrivalPlan& plan, const std::vector<double>& send_at, std::time_t start) {
  if (plan.ramp_up.empty()) return {};
  Json out = Json::array();
  int64_t last = -1;
  for (size_t i = 0; i < send_at.size(); ++i) {
    const auto rate = static_cast<int64_t>(rate_at(plan, i, send_at.size()));
    if (rate == last) continue;
    last = rate;
    out.push_back(
        {{"rps", rate}, {"timestamp", iso_time(start + static_cast<std::time_t>(send_at[i]))}});
  }
  return out;
}

void describe_traffic(const ServeBench& bench) {
  const ArrivalPlan& plan = bench.arrivals;
  if (plan.ramp_up.empty()) {
    say("Traffic request rate: " + text::python_float(plan.rate));
  } else {
    say(fmt::format("Traffic ramp-up strategy: {}.", plan.ramp_up));
    say(
        fmt::format("Will increase RPS from {:.0f} to {:.0f} RPS over the duration of the "
                    "benchmark.",
                    plan.start_rate, plan.end_rate));
  }
  say(fmt::format("Burstiness factor: {} ({})", text::python_float(plan.burstiness),
                  plan.burstiness == 1 ? "Poisson process" : "Gamma distribution"));
  say("Maximum request concurrency: " +
      (bench.max_concurrency ? std::to_string(*bench.max_concurrency) : "None"));
}

std::optional<Speculation> fetch_speculation(const ServeBench& bench, const std::string& key) {
  const Result<std::string> metrics = HttpClient(bench.base_url, key).get_text("/metrics");
  return metrics.ok() ? read_speculation(*metrics) : std::nullopt;
}

Result<void> save(const ServeBench& bench, const Values& values, Json result, std::time_t time) {
  char date[32];
  std::tm parts{};
  localtime_r(&time, &parts);
  std::strftime(date, sizeof date, "%Y%m%d-%H%M%S", &parts);
  const std::string label = values.text("label");
  Json out{{"date", date},
           {"endpoint_type", bench.backend},
           {"backend", bench.backend},
           {"label", label.empty() ? Json() : Json(label)},
           {"model_id", bench.model},
           {"tokenizer_id", bench.tokenizer.empty() ? bench.model : bench.tokenizer},
           {"num_prompts", bench.num_prompts}};
  for (const auto& [key, value] : bench.metadata) out[key] = value;
  const ArrivalPlan& plan = bench.arrivals;
  out["request_rate"] = std::isinf(plan.rate) ? Json("inf") : Json(plan.rate);
  out["burstiness"] = std::isinf(plan.burstiness) ? Json("inf") : Json(plan.burstiness);
  out["max_concurrency"] = bench.max_concurrency ? Json(*bench.max_concurrency) : Json();
  if (!plan.ramp_up.empty()) {
    out["ramp_up_strategy"] = plan.ramp_up;
    out["ramp_up_start_rps"] = static_cast<int64_t>(plan.start_rate);
    out["ramp_up_end_rps"] = static_cast<int64_t>(plan.end_rate);
  }
  out.update(result);

  namespace fs = std::filesystem;
  std::string name = values.text("result-filename");
  if (name.empty()) name = result_file_name(bench, label, date);
  fs::path path = name;
  if (const std::string folder = values.text("result-dir"); !folder.empty()) {
    std::error_code ignored;
    fs::create_directories(folder, ignored);
    path = fs::path(folder) / name;
  }
  const bool append = values.flag("append-result");
  std::ofstream file(path, append ? std::ios::app : std::ios::trunc);
  if (append && file.tellp() > 0) file << '\n';
  file << text::python_json(out, true);
  file.flush();
  if (!file) return fail(Code::unavailable, "cannot write {}", path.string());
  return {};
}

// A stream is a socket. Without a bound on streams their number is a matter of the server's speed.
void allow_sockets(const ServeBench& bench) {
  const auto prompts = static_cast<int64_t>(bench.num_prompts);
  const int64_t streams = std::min(prompts, bench.max_concurrency.value_or(prompts));
  const int64_t needed = streams + 64;
  const int64_t limit = allow_descriptors(needed);
  if (limit < needed)
    log_warning("{} requests at once need {} file descriptors; the limit is {}", streams, needed,
                limit);
}

// Asks once for an answer, if a limit of time says so.
Result<void> ask_if_ready(const ServeBench& bench, const BenchRequest& request) {
  if (bench.ready_seconds <= 0) {
    say("Skipping endpoint ready check.");
    return {};
  }
  say("Starting initial single prompt test run...");
  M2_TRY_VOID(check_ready(bench, request));
  say("Initial test run completed.");
  return {};
}

// Requests like `run`'s, all with one prompt, which do not count.
Result<void> warm_up(const ServeBench& bench, const BenchRequest& request, LoadGenerator& generator,
                     const LoadGenerator::Run& run) {
  if (bench.num_warmups <= 0) return {};
  say(fmt::format("Warming up with {} requests...", bench.num_warmups));
  LoadGenerator::Run warm = run;
  warm.count = static_cast<size_t>(bench.num_warmups);
  warm.body = [&](size_t) { return request_body(bench, request); };
  warm.request_id = [&](size_t index) {
    return bench.request_id_prefix + "warmup-" + std::to_string(index);
  };
  M2_TRY_VOID(generator.run(warm));
  say("Warmup run completed.");
  return {};
}

// What servers do not say: prompts' lengths, and tokens of answers that came without a count.
void count_tokens(std::span<const BenchRequest> requests, const TextTools& tools,
                  std::span<RequestResult> results) {
  for (size_t i = 0; i < requests.size(); ++i) {
    RequestResult& result = results[i];
    result.prompt_len = requests[i].prompt_len;
    if (result.success && result.output_tokens == 0)
      result.output_tokens =
          std::ssize(tools.tokenizer->encode(result.text, text::AddedTokens::all));
  }
}

void say_failures(std::span<const RequestResult> results) {
  constexpr int64_t kMostShown = 10;
  say(fmt::format("Failed requests during benchmark run detected (capping to {}):", kMostShown));
  int64_t shown = 0;
  for (const RequestResult& result : results) {
    if (!result.success && shown < kMostShown)
      say(fmt::format("Error {}: {}", shown++, result.error));
  }
}

// What the server has drafted since `before`, if anything.
std::optional<Speculation> speculation_since(const ServeBench& bench, const std::string& key,
                                             const std::optional<Speculation>& before) {
  if (!before) return std::nullopt;
  const auto after = fetch_speculation(bench, key);
  if (!after || after->drafts <= before->drafts) return std::nullopt;
  return difference(*after, *before);
}

void say_own_cost(const LoadReport& report) {
  std::fprintf(
      stderr, "load generator: %lld events, %.2f us of CPU per event on one thread\n",
      static_cast<long long>(report.events),
      report.events > 0 ? report.cpu_seconds / static_cast<double>(report.events) * 1e6 : 0.0);
}

}  // namespace

Result<void> run_serve_bench(const Values& values) {
  M2_TRY(const std::string level, log_level("info"));
  start_logging(level, "");
  const std::string key = values.text("api-key");
  M2_TRY(ServeBench bench, read_serve_bench(values, key));
  const std::string plot = values.text("plot");
  M2_TRY_VOID(check_plot_file(plot));
  say(namespace_line(values));
  if (bench.model.empty()) {
    say("Model not specified, fetching first model from server...");
    M2_TRY(bench.model, first_model(HttpClient(bench.base_url, key)));
    say("Using model: " + bench.model);
  }
  M2_TRY(const TextTools tools, read_text_tools(bench, values));
  M2_TRY(const std::vector<BenchRequest> requests, make_dataset(bench, values, tools));
  bench.num_prompts = requests.size();
  if (!bench.sampling.contains("temperature"))
    say("WARNING: m2 bench serve does not set temperature==0 (greedy) in requests by default. The "
        "default will be determined on the server side and can be model/API specific. For the old "
        "behavior, include --temperature=0.");

  M2_TRY_VOID(ask_if_ready(bench, requests[0]));
  allow_sockets(bench);
  LoadGenerator generator(bench.target, bench.max_concurrency.value_or(0));
  LoadGenerator::Run run;
  run.body = [&](size_t index) { return request_body(bench, requests[index]); };
  run.request_id = [&](size_t index) { return bench.request_id_prefix + std::to_string(index); };
  M2_TRY_VOID(warm_up(bench, requests[0], generator, run));

  say("Starting main benchmark run...");
  describe_traffic(bench);
  const std::optional<Speculation> before = fetch_speculation(bench, key);
  NumpyLegacy random(static_cast<uint32_t>(bench.seed));
  const std::vector<double> send_at = arrival_seconds(bench.arrivals, requests.size(), random);
  RequestBar bar(requests.size(), !values.flag("disable-tqdm"));
  run.count = requests.size();
  run.send_at = send_at;
  run.on_done = [&](size_t done) { bar.update(done); };
  const std::time_t started = std::time(nullptr);
  M2_TRY(LoadReport report, generator.run(run));
  bar.finish();

  count_tokens(requests, tools, report.results);
  const ReportOptions options{bench.max_concurrency, bench.arrivals.rate, bench.metrics,
                              bench.percents};
  const Summary summary = summarise(report.results, report.duration, bench.percents, bench.levels);
  if (summary.failed > 0) say_failures(report.results);
  const std::optional<Speculation> speculation = speculation_since(bench, key, before);
  say("tip: install termplotlib and gnuplot to plot the metrics");
  std::fputs(result_table(summary, options, speculation).c_str(), stdout);
  std::fflush(stdout);
  say_own_cost(report);
  if (values.flag("save-result") || values.flag("append-result")) {
    const JsonDetail detail{report.results, values.flag("save-detailed"),
                            rps_changes(bench.arrivals, send_at, started)};
    M2_TRY_VOID(save(bench, values, result_json(summary, options, detail, speculation), started));
  }
  if (!plot.empty()) M2_TRY_VOID(draw_plot(plot, report.results));
  return {};
}

}  // namespace m2::app::bench
