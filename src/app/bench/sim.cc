#include "app/bench/sim.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <thread>
#include <unordered_map>

#include "app/bench/child.h"
#include "app/bench/load_generator.h"
#include "app/bench/metrics.h"
#include "app/bench/numpy_random.h"
#include "app/bench/progress.h"
#include "app/bench/send_floor.h"
#include "app/bench/sim_model.h"
#include "app/bench/sim_words.h"
#include "app/bench/statistics.h"
#include "app/environment.h"
#include "app/model_files.h"
#include "base/descriptors.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "server/server.h"
#include "text/python_json.h"

namespace m2::app::bench {
namespace {

using enum OptionKind;

// clang-format off
constexpr Option kOptions[] = {
  {"preset", "", "hardware", text, "guide", "guide (4x H20-3e, 10 streams, 2048/1024), h200x4, h200x8 (64 streams), or none."},
  {"gpu", "", "hardware", text, "", "h200, h100, h20-3e or h20."},
  {"gpus", "", "hardware", integer, "", "1, 2, 4 or 8."},
  {"layout", "", "hardware", text, "", "tp, tpep or dpep."},
  {"weights", "", "hardware", text, "fp8", "bf16, fp8, int4 or int4g32."},
  {"kv", "", "hardware", text, "bf16", "bf16 or fp8."},
  {"step-scale", "", "hardware", number, "1", "Multiplies every step's time."},

  {"streams", "", "load", integer, "", "Requests at once, up to 10,000."},
  {"num-prompts", "", "load", integer, "", "Requests in all [as many as streams; guide: 100]."},
  {"input-len", "", "load", integer, "", "Prompt tokens."},
  {"output-len", "", "load", integer, "", "Output tokens."},
  {"backend", "", "load", text, "vllm", "vllm (completions), or openai-chat, which goes through template and parsers."},
  {"seed", "", "load", integer, "0", "Of the prompts."},
  {"yielding-client", "", "load", flag, "true", "The clients run only when the server leaves a core idle (SCHED_IDLE), as if they had a machine of their own."},

  {"tokenizer", "", "server", text, "", "Folder with tokenizer.json, and chat_template.jinja for openai-chat. Needed."},
  {"chat-template", "", "server", text, "", "Chat template: a file, or the template itself."},
  {"max-num-seqs", "", "server", integer, "1024", "Sequences running at once."},
  {"max-num-batched-tokens", "", "server", integer, "8192", "Tokens of one step."},
  {"io-threads", "", "server", integer, "2", "Threads of connections."},

  {"save-result", "", "result", text, "", "Write the numbers to this JSON file."},
  {"disable-tqdm", "", "result", flag, "false", "No progress bar."},
};
// clang-format on

struct SimSetup {
  RooflineCase hardware;
  double scale = 1;
  int64_t streams = 10, prompts = 10, input_len = 2048, output_len = 1024;
  int64_t max_num_seqs = 1024, max_num_batched_tokens = 8192;
  int io_threads = 2;
  bool chat = false;
  uint64_t seed = 0;
  bool yielding_client = true, progress = true;
};

struct Preset {
  const char* name;
  const char* gpu;
  int64_t gpus, streams, prompts;
};
constexpr Preset kPresets[] = {{"guide", "h20-3e", 4, 10, 100},
                               {"h200x4", "h200", 4, 64, 64},
                               {"h200x8", "h200", 8, 64, 64},
                               {"none", "h200", 8, 10, 10}};

Result<int64_t> bounded(const Values& values, const char* name, int64_t fallback, int64_t most) {
  const int64_t value = values.integer(name).value_or(fallback);
  if (value < 1 || value > most)
    return fail(Code::invalid_argument, "--{} must be from 1 to {}, got {}", name, most, value);
  return value;
}

Result<SimSetup> read_setup(const Values& values) {
  const std::string name = values.text("preset");
  const auto preset = std::ranges::find(kPresets, name, &Preset::name);
  if (preset == std::end(kPresets))
    return fail(Code::invalid_argument,
                "--preset {}: unknown (chose from guide, h200x4, h200x8, none)", name);
  SimSetup out;
  out.hardware.gpu = values.given("gpu") ? values.text("gpu") : preset->gpu;
  out.hardware.gpus = values.integer("gpus").value_or(preset->gpus);
  M2_TRY(out.hardware.layout,
         layout_named(values.given("layout") ? values.text("layout") : std::string("tp")));
  M2_TRY(out.hardware.weights, weights_named(values.text("weights")));
  M2_TRY(out.hardware.kv, kv_named(values.text("kv")));
  M2_TRY_VOID(check_case(out.hardware));
  out.scale = *values.number("step-scale");
  if (!(out.scale >= 0 && out.scale <= 1000))
    return fail(Code::invalid_argument, "--step-scale must be from 0 to 1000");
  M2_TRY(out.streams, bounded(values, "streams", preset->streams, 10'000));
  const int64_t requests = values.given("streams") ? out.streams : preset->prompts;
  M2_TRY(out.prompts, bounded(values, "num-prompts", requests, 1'000'000));
  M2_TRY(out.input_len, bounded(values, "input-len", 2048, 190'000));
  M2_TRY(out.output_len, bounded(values, "output-len", 1024, 190'000));
  M2_TRY(out.max_num_seqs, bounded(values, "max-num-seqs", 1024, 65536));
  M2_TRY(out.max_num_batched_tokens, bounded(values, "max-num-batched-tokens", 8192, 1 << 20));
  M2_TRY(const int64_t threads, bounded(values, "io-threads", 2, 64));
  out.io_threads = static_cast<int>(threads);
  const std::string backend = values.text("backend");
  if (backend != "vllm" && backend != "openai" && backend != "openai-chat")
    return fail(Code::unsupported, "--backend {}: vllm, openai or openai-chat", backend);
  out.chat = backend == "openai-chat";
  out.seed = static_cast<uint64_t>(std::max<int64_t>(0, *values.integer("seed")));
  out.yielding_client = values.flag("yielding-client");
  out.progress = !values.flag("disable-tqdm");
  return out;
}

// Streams that get a token in one step.
int64_t streams_at_once(const SimSetup& setup) {
  return std::min(setup.streams, setup.max_num_seqs);
}

// Threads that write to them: one while there are few connections.
int writers(const SimSetup& setup) {
  const auto few = static_cast<int64_t>(server::ServerOptions().few_connections);
  return setup.streams <= few ? 1 : setup.io_threads;
}

// A stream is a socket here and another in the clients' process; the kernel's share is measured
// with both ends here.
Result<void> allow_sockets(const SimSetup& setup) {
  const int64_t needed = std::max(setup.streams, 2 * streams_at_once(setup)) + 256;
  const int64_t limit = allow_descriptors(needed);
  if (limit >= needed) return {};
  return fail(Code::resource_exhausted, "{} streams need {} file descriptors; the limit is {}",
              setup.streams, needed, limit);
}

// Of this process.
std::set<int> thread_ids() {
  std::set<int> out;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    int id = 0;
    for (const char c : entry.path().filename().string()) id = id * 10 + (c - '0');
    out.insert(id);
  }
  return out;
}

std::set<int> less(const std::set<int>& all, const std::set<int>& known) {
  std::set<int> out;
  std::ranges::set_difference(all, known, std::inserter(out, out.end()));
  return out;
}

double cpu_seconds(const std::set<int>& threads) {
  double total = 0;
  for (const int id : threads) {
    std::ifstream file(fmt::format("/proc/self/task/{}/schedstat", id));
    double nanos = 0;
    if (file >> nanos) total += nanos * 1e-9;
  }
  return total;
}

// Prompts of about `length` words with their spaces, none the beginning of another.
std::vector<std::string> make_prompts(const text::Tokenizer& tokenizer, const SimSetup& setup) {
  constexpr int32_t kCommon = 2048;  // ids below are of frequent words
  std::vector<std::string> words;
  for (int32_t id = 0; id < std::min(kCommon, tokenizer.base_vocab_size()); ++id) {
    const std::string_view bytes = tokenizer.bytes(id);
    const bool word =
        bytes.size() >= 3 && bytes[0] == ' ' &&
        std::ranges::all_of(bytes.substr(1), [](char c) { return c >= 'a' && c <= 'z'; });
    if (word) words.emplace_back(bytes);
  }
  NumpyGenerator random(setup.seed);
  std::vector<std::string> out(static_cast<size_t>(setup.prompts));
  for (std::string& prompt : out) {
    for (const int64_t i :
         random.integers(0, std::ssize(words), static_cast<size_t>(setup.input_len)))
      prompt += words[static_cast<size_t>(i)];
  }
  return out;
}

struct Costs {
  double io = 0, workers = 0;  // CPU seconds
};
Costs operator-(const Costs& a, const Costs& b) {
  return {a.io - b.io, a.workers - b.workers};
}

// The server, its engine and the model beneath, in the order they are built.
struct World {
  World(const SimSetup& given, const text::Tokenizer& tokenizer, StepWords& given_words)
      : setup(given),
        words(given_words),
        vocabulary(tokenizer.id_limit()),
        model(limits(), setup.hardware, words, setup.scale) {}

  model::StepModel::Limits limits() const {
    constexpr int64_t kBlock = 16, kMostBlocks = 4'000'000;
    const auto blocks =
        static_cast<int64_t>(kv_capacity_tokens(setup.hardware) / static_cast<double>(kBlock));
    return {.vocab_size = vocabulary,
            .num_blocks = std::clamp<int64_t>(blocks, 1, kMostBlocks),
            .block_size = kBlock,
            .max_model_len = 196'608,
            .max_step_tokens = setup.max_num_batched_tokens,
            .max_sequences = setup.max_num_seqs,
            .most_edits = 1024 * setup.max_num_seqs,
            .mask_words = (vocabulary + 31) / 32};
  }

  Result<void> start(std::shared_ptr<const text::Tokenizer> tokenizer,
                     std::shared_ptr<const text::ChatTemplate> chat_template, AddedLatency& added) {
    server::ServerOptions options;
    options.host = "127.0.0.1";
    options.port = 0;
    options.served_model_names = {"sim"};
    options.io_threads = setup.io_threads;
    options.handle_signals = false;
    options.access_log = false;
    options.drain_seconds = 1;
    options.limits.max_requests = 2 * setup.streams + 64;
    options.on_sent = [this, &added](std::string_view bytes, Nanos now) {
      words.add_sent(added.record(bytes, now));
    };
    std::set<int> before = thread_ids();
    server = std::make_unique<server::Server>(std::move(options), metrics);
    workers = less(thread_ids(), before);
    before = thread_ids();
    M2_TRY_VOID(server->start());
    io = less(thread_ids(), before);
    engine::EngineConfig config;
    config.max_num_seqs = setup.max_num_seqs;
    config.max_num_batched_tokens = setup.max_num_batched_tokens;
    config.max_queued_requests = setup.streams + 64;
    config.max_queued_tokens = (setup.streams + 64) * (setup.input_len + 512);
    config.metric_labels = "model_name=\"sim\",engine=\"0\"";
    config.log_interval = 0;
    engine =
        std::make_unique<engine::Engine>(std::move(config), model, pool, clock, *server, metrics);
    before = thread_ids();
    engine_thread = std::jthread([this](std::stop_token stop) { engine->run(stop); });
    server::ModelServices services;
    services.tokenizer = std::move(tokenizer);
    services.chat_template = std::move(chat_template);
    engines = std::make_unique<engine::Engines>(std::vector{engine.get()});
    services.engine = engines.get();
    services.max_model_len = model.limits().max_model_len;
    services.vocab_size = vocabulary;
    server->ready(std::move(services));
    return {};
  }

  ~World() { stop(); }

  void stop() {
    if (!server) return;
    server->stop();
    server->wait();
    engine_thread.request_stop();
    if (engine_thread.joinable()) engine_thread.join();
  }

  Costs costs() const { return {cpu_seconds(io), cpu_seconds(workers)}; }

  const SimSetup setup;
  StepWords& words;
  const int64_t vocabulary;
  SimModel model;
  ThreadPool pool{1};
  SteadyClock clock;
  Metrics metrics;
  std::unique_ptr<server::Server> server;
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<engine::Engines> engines;
  std::jthread engine_thread;
  std::set<int> io, workers;
};

// This thread takes only what nobody else wants of the cores.
void yield_to_server() {
  const sched_param parameters{};
  if (sched_setscheduler(0, SCHED_IDLE, &parameters) != 0)
    log_warning("the clients cannot run at idle priority: they share the cores as equals");
}

// Bytes of this process in memory: now, and the most since forget_peak().
struct Resident {
  double now = 0, peak = 0;
};
Resident resident() {
  Resident out;
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    double* to = line.starts_with("VmRSS:") ? &out.now : line.starts_with("VmHWM:") ? &out.peak : 0;
    if (to) *to = 1024 * std::stod(line.substr(6));
  }
  return out;
}
void forget_peak() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

std::string request_body(const SimSetup& setup, const std::string& prompt) {
  Json body{{"model", "sim"}};
  if (setup.chat) {
    body["messages"] = Json::array({{{"role", "user"}, {"content", prompt}}});
    body["max_completion_tokens"] = setup.output_len;
  } else {
    body["prompt"] = prompt;
    body["max_tokens"] = setup.output_len;
  }
  body["temperature"] = 0;
  body["ignore_eos"] = true;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  return to_text(body);
}

// What stands before a token's text in its chunk. A chat's words are all reasoning: none ends it.
const char* text_key(const SimSetup& setup) {
  return setup.chat ? "\"reasoning\":\"" : "\"text\":\"";
}

// Of one token, as it goes out: close enough for what a send costs.
size_t chunk_bytes(const SimSetup& setup) {
  return setup.chat ? 200 : 230;
}
constexpr int kFloorRounds = 100;

// The clients' process: every stream's requests, and what came of them in numbers.
Json run_clients(const SimSetup& setup, const StepWords& words,
                 const std::vector<std::string>& prompts, int port) {
  // Few are better woken by what arrives: one wake of theirs reads it all. Of many, each arrival
  // would cost the server's threads.
  const bool yields = setup.yielding_client;
  const bool in_turns = yields && writers(setup) > 1 && setup.streams == streams_at_once(setup);
  if (yields) yield_to_server();
  const char* path = setup.chat ? "/v1/chat/completions" : "/v1/completions";
  LoadGenerator generator({false, true, "127.0.0.1", port, path, {}}, setup.streams);
  AddedLatency added(words, text_key(setup));
  RequestBar bar(prompts.size(), setup.progress);
  LoadGenerator::Run run;
  run.count = prompts.size();
  run.body = [&](size_t i) { return request_body(setup, prompts[i]); };
  run.request_id = [](size_t i) { return std::to_string(i); };
  run.on_done = [&](size_t done) { bar.update(done); };
  run.on_event = [&](size_t, const std::string& text, Nanos now) {
    added.record_word(text, now);
    if (yields && !in_turns) words.wait_until_sent();
  };
  StepWords::Seen seen;
  if (in_turns) run.wait_for_turn = [&] { words.wait_for_more(seen); };
  const Result<LoadReport> report = generator.run(run);
  if (!report.ok()) return {{"error", report.error().text}};
  bar.finish();
  const double percents[] = {99};
  const Summary summary = summarise(report->results, report->duration, percents, {});
  const auto failed = std::ranges::find(report->results, false, &RequestResult::success);
  return {{"failed", summary.failed},
          {"error", failed == report->results.end() ? "" : failed->error},
          {"output_throughput", summary.output_throughput},
          {"ttft_ms", summary.ttft.mean},
          {"tpot_ms", summary.tpot.mean},
          {"read_p50_ms", added.percentile_ms(50)},
          {"read_p99_ms", added.percentile_ms(99)},
          {"event_us",
           report->cpu_seconds * 1e6 / static_cast<double>(std::max<int64_t>(1, report->events))}};
}

double at_percent(std::vector<double> values, double percent) {
  std::ranges::sort(values);
  return percentile(values, percent);
}

// One line of the report: what, the figure, and the goal if there is one.
class Report {
 public:
  void line(const std::string& key, const std::string& label, double value, const char* unit,
            std::optional<double> goal = {}) {
    numbers_[key] = value;
    text_ += fmt::format("{:<48} {:>12.3f} {:<6}", label, value, unit);
    if (goal) text_ += fmt::format(" goal <= {:g}: {}", *goal, value <= *goal ? "met" : "NOT met");
    while (text_.ends_with(' ')) text_.pop_back();
    text_ += '\n';
  }
  void heading(const std::string& title) { text_ += title + "\n"; }
  const std::string& text() const { return text_; }
  const Json& numbers() const { return numbers_; }

 private:
  std::string text_;
  Json numbers_ = Json::object();
};

// The steps of one size, where most of the run happened.
std::vector<SimStep> steady_steps(const std::vector<SimStep>& steps) {
  std::unordered_map<int64_t, int64_t> counts;
  for (const SimStep& step : steps) {
    if (step.tokens == step.sequences) ++counts[step.sequences];
  }
  int64_t usual = 0, most = 0;
  for (const auto& [sequences, count] : counts) {
    if (count > most || (count == most && sequences > usual)) usual = sequences, most = count;
  }
  std::vector<SimStep> out;
  for (const SimStep& step : steps) {
    if (step.tokens == step.sequences && step.sequences == usual) out.push_back(step);
  }
  if (out.size() > 20) out.erase(out.begin(), out.begin() + 5);
  return out;
}

template <class Member>
std::vector<double> micros(const std::vector<SimStep>& steps, Member member) {
  std::vector<double> out;
  for (const SimStep& step : steps) out.push_back(static_cast<double>(step.*member) * 1e-3);
  return out;
}

void report_steps(const World& world, Report& out) {
  const std::vector<SimStep>& all = world.model.steps();
  const std::vector<SimStep> steady = steady_steps(all);
  double busy = 0, idle = 0;
  for (size_t i = 1; i < all.size(); ++i) {
    busy += static_cast<double>(all[i].gpu);
    idle += static_cast<double>(all[i].idle);
  }
  const double batch = steady.empty() ? 0 : static_cast<double>(steady[0].sequences);
  std::optional<double> goal;
  if (batch > 0 && batch <= 64) goal = 30;
  if (batch > 64 && batch <= 1024) goal = 30 + (batch - 64) * 170 / 960;
  out.heading(
      fmt::format("{} steps; {} of them decode {} sequences:", all.size(), steady.size(), batch));
  const std::vector<double> host = micros(steady, &SimStep::host);
  out.line("gpu_step_ms", "  GPU time of a step, mean", mean(micros(steady, &SimStep::gpu)) / 1000,
           "ms");
  out.line("host_step_us", "  engine's host CPU a step, mean", mean(host), "us");
  out.line("host_step_p50_us", "  engine's host CPU a step, median", at_percent(host, 50), "us",
           goal);
  out.line("host_step_p99_us", "  engine's host CPU a step, p99", at_percent(host, 99), "us");
  out.line("idle_steady_us", "  GPU idle before a step, mean", mean(micros(steady, &SimStep::idle)),
           "us", 0);
  out.line("gpu_idle_percent", "GPU idle, of the whole run",
           busy > 0 ? 100 * idle / (busy + idle) : 0, "%", 0);
}

void report_costs(const World& world, const Costs& costs, const SendFloor& floor, int64_t tokens,
                  Report& out) {
  double engine = 0;
  for (const SimStep& step : world.model.steps()) engine += static_cast<double>(step.host) * 1e-9;
  const double per_token = 1e6 / static_cast<double>(std::max<int64_t>(1, tokens));
  out.line("token_cpu_us", "  CPU a streamed token, engine and connections",
           (engine + costs.io) * per_token, "us", 5);
  out.line("token_engine_us", "    of it the engine", engine * per_token, "us");
  out.line("token_io_us", "    of it the connections", costs.io * per_token, "us");
  out.line("send_floor_us", "    of that the kernel's send, measured alone", floor.cpu_us, "us");
  out.line("prompt_cpu_ms", "  CPU a prompt (JSON, template, tokens)",
           costs.workers / static_cast<double>(world.setup.prompts) * 1e3, "ms");
}

double number_of(const Json& seen, const char* key) {
  return seen.value(key, 0.0);
}

// What everything but the model adds to a token's time: from the end of its step on the GPU until
// the kernel has its chunk, all of it, for the client's socket. On this machine's loopback that
// call delivers it there too. When a client then reads it is a matter of the clients, who share the
// cores here: said beside it, without a goal.
void report_latency(const SimSetup& setup, const AddedLatency& added, const SendFloor& floor,
                    const Json& seen, Report& out) {
  constexpr double kGoal = 2;
  const bool stated = setup.streams <= 1000;
  out.line("added_p50_ms", "  added latency, GPU to socket, median", added.percentile_ms(50), "ms");
  out.line("added_p99_ms", "  added latency, GPU to socket, p99", added.percentile_ms(99), "ms",
           stated ? std::optional(kGoal) : std::nullopt);
  out.line("floor_p50_ms", "    of it the kernel's sends alone, median", floor.median_ms, "ms");
  out.line("floor_p99_ms", "    of it the kernel's sends alone, p99", floor.p99_ms, "ms");
  // Whether the goal can be met here at all: the last of a step's tokens waits for both.
  if (stated) {
    out.line("room_ms", "    what these leave of the goal at p99", kGoal - floor.p99_ms, "ms");
    out.line("beside_sends_ms", "    the connections' CPU beside them, a step and thread",
             static_cast<double>(streams_at_once(setup)) *
                 (number_of(out.numbers(), "token_io_us") - floor.cpu_us) * 1e-3 / writers(setup),
             "ms");
  }
  out.line("timed_events", "    tokens it was measured on", static_cast<double>(added.count()), "");
  out.line("read_p50_ms", "    until these clients had read it, median",
           number_of(seen, "read_p50_ms"), "ms");
  out.line("read_p99_ms", "    until these clients had read it, p99",
           number_of(seen, "read_p99_ms"), "ms");
  out.line("client_event_us", "  the clients' CPU an event", number_of(seen, "event_us"), "us", 5);
}

}  // namespace

const Command& sim_command() {
  static const Command command{
      "bench sim", "",
      "The real engine and server over a model whose steps take the time real GPUs would.",
      "CPU times are of threads, so a busy machine does not spoil them; latencies are wall clock.",
      kOptions};
  return command;
}

Result<void> run_sim(const Values& values) {
  M2_TRY(const std::string level, log_level("warning"));
  start_logging(level, "");
  M2_TRY(const SimSetup setup, read_setup(values));
  M2_TRY_VOID(allow_sockets(setup));
  if (!values.given("tokenizer"))
    return fail(Code::invalid_argument, "--tokenizer FOLDER is needed: it has tokenizer.json");
  const std::filesystem::path folder = values.text("tokenizer");
  M2_TRY(const auto tokenizer, read_tokenizer(folder));
  std::shared_ptr<const text::ChatTemplate> chat_template;
  if (setup.chat) {
    M2_TRY(chat_template, read_chat_template(folder, values));
  }
  StepWords words(*tokenizer);
  if (words.tokens().size() < 64)
    return fail(Code::unsupported, "the tokenizer has too few words of letters");
  const std::vector<std::string> prompts = make_prompts(*tokenizer, setup);
  std::printf("%lldx %s, %lld streams, %lld requests of %lld + %lld tokens\n",
              static_cast<long long>(setup.hardware.gpus), setup.hardware.gpu.c_str(),
              static_cast<long long>(setup.streams), static_cast<long long>(setup.prompts),
              static_cast<long long>(tokenizer->encode(prompts[0], text::AddedTokens::all).size()),
              static_cast<long long>(setup.output_len));
  M2_TRY(Child clients,
         Child::start([&](int port) { return run_clients(setup, words, prompts, port); }));
  M2_TRY(const SendFloor floor, measure_send_floor(streams_at_once(setup), writers(setup),
                                                   chunk_bytes(setup), kFloorRounds));
  AddedLatency added(words, text_key(setup));
  World world(setup, *tokenizer, words);
  M2_TRY_VOID(world.start(tokenizer, chat_template, added));
  forget_peak();
  const Resident memory_before = resident();
  const Costs before = world.costs();
  M2_TRY(const Json seen, clients.run(world.server->port()));
  const Resident memory = resident();
  const Costs after = world.costs();
  const engine::EngineStats stats = world.engine->stats();
  world.stop();

  Report out;
  report_steps(world, out);
  out.heading("Streams:");
  out.line("failed", "  failed requests", number_of(seen, "failed"), "", 0);
  out.line("output_tokens_per_s", "  output tokens a second", number_of(seen, "output_throughput"),
           "");
  out.line("ttft_ms", "  TTFT, mean", number_of(seen, "ttft_ms"), "ms");
  out.line("tpot_ms", "  TPOT, mean", number_of(seen, "tpot_ms"), "ms");
  report_costs(world, after - before, floor, stats.generation_tokens, out);
  report_latency(setup, added, floor, seen, out);
  out.line("memory_mb", "resident memory of the server at most", memory.peak * 1e-6, "MB");
  out.line(
      "memory_stream_kb", "  grown by the run, a stream",
      std::max(0.0, memory.peak - memory_before.now) * 1e-3 / static_cast<double>(setup.streams),
      "kB");
  std::fputs(out.text().c_str(), stdout);
  if (const std::string file = values.text("save-result"); !file.empty()) {
    std::ofstream to(file, std::ios::trunc);
    to << text::python_json(out.numbers(), true) << '\n';
    to.flush();
    if (!to) return fail(Code::unavailable, "cannot write {}", file);
  }
  const std::string error = seen["error"].get<std::string>();
  if (!error.empty()) return fail(Code::unavailable, "a request failed: {}", error);
  return {};
}

}  // namespace m2::app::bench
