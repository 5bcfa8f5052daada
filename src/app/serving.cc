#include "app/serving.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "app/device_options.h"
#include "app/serve_options.h"
#include "app/serve_settings.h"
#include "app/terminal.h"
#include "app/version.h"
#include "base/descriptors.h"
#include "base/log.h"
#include "model/kv_scales.h"
#include "model/weight_table.h"
#include "ops/instruction_set.h"

namespace m2::app {
namespace {

constexpr double kGiB = 1 << 30;

double gib(int64_t bytes) {
  return static_cast<double>(bytes) / kGiB;
}

// A GPU's budget: its share of the whole memory, which must be free.
Result<int64_t> gpu_budget(const Values& values, Device device, const DeviceMemory& memory) {
  const double share = *values.number("gpu-memory-utilization");
  const auto wanted = static_cast<int64_t>(static_cast<double>(memory.total) * share);
  if (memory.free < wanted)
    return fail(
        Code::resource_exhausted,
        "Free memory on device cuda:{} ({:.2f}/{:.2f} GiB) on startup is less than desired "
        "GPU memory utilization ({}, {:.2f} GiB). Decrease GPU memory utilization or reduce "
        "GPU memory used by other processes.",
        device.index, gib(memory.free), gib(memory.total), share, gib(wanted));
  return wanted;
}

// Ranks that follow end when node rank 0 has drained: a first signal to end is not for them.
void leave_signals_to_first() {
  struct sigaction once {};
  once.sa_handler = [](int) {};
  once.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  for (const int signal : {SIGTERM, SIGINT}) ::sigaction(signal, &once, nullptr);
}

}  // namespace

const Command& serve_command() {
  static const Command command{
      "serve", "[MODEL]",
      "Serve a MiniMax-M2 checkpoint over HTTP. MODEL is a folder, or a name such as "
      "MiniMaxAI/MiniMax-M2.5 in the local Hugging Face cache; without it, m2-micro is served.",
      "--help=GROUP shows one group. Names take _ for -, unique prefixes and --no-x; integers take "
      "1k "
      "= 1000 and\n1K = 1024; JSON options take dotted keys (-cc.cudagraph_mode NONE).",
      serve_options()};
  return command;
}

Result<std::unique_ptr<Serving>> Serving::start(const std::string& model, const Values& values,
                                                SignalsEnd signals_end) {
  std::unique_ptr<Serving> serving(new Serving(values, signals_end));
  M2_TRY_VOID(serving->build(model));
  return serving;
}

Serving::~Serving() {
  // Its threads ask the engines to the last.
  if (server_) {
    server_->stop();
    server_->wait();
  }
  for (std::jthread& thread : engine_threads_) thread.request_stop();
  for (std::jthread& thread : engine_threads_) thread.join();
  if (ranks_) ranks_->stop_listening();
}

// What all processes of one engine must agree on.
Json Serving::terms() const {
  Json out{{"version", kVersion}, {"config.json", settings_.fingerprint}};
  out["max-num-seqs"] = values_.integer("max-num-seqs").value_or(step_defaults_.sequences);
  out["max-num-batched-tokens"] =
      values_.integer("max-num-batched-tokens").value_or(step_defaults_.tokens);
  out["seed"] = *values_.integer("seed");
  out["load-format"] = values_.text("load-format");
  out["kv-cache-dtype"] = name_of(kv_dtype_);
  out["e8m0-scales"] = values_.flag("e8m0-scales");
  out["max-model-len"] = max_model_len_;
  out["speculative-config"] = values_.json("speculative-config");
  return out;
}

Nanos Serving::rank_deadline() const {
  return *values_.integer("rank-deadline-seconds") * kSecond;
}

Result<void> Serving::wait() {
  if (!server_) {
    leave_signals_to_first();
    const Result<void> ended = ranks_->wait();
    if (!ended.ok()) log_error("this process's ranks stop: {}", ended.error().text);
    return ended;
  }
  server_->wait();
  if (!ranks_lost_) return {};
  return fail(Code::unavailable, "the engine has lost ranks of other processes");
}

// With ranks in other processes, a dead engine cannot come back: the process answers 503 for a
// while, so that probes and clients hear of it, and ends. What is left of the others ends with it.
void Serving::watch_engines(std::stop_token stop) {
  constexpr auto kLook = std::chrono::milliseconds(100);
  constexpr Nanos kFarewell = 4 * kSecond;
  Nanos dead_since = 0;
  while (!stop.stop_requested()) {
    std::this_thread::sleep_for(kLook);
    if (!all_engines_->stats().dead) continue;
    const Nanos now = clock_.now();
    if (dead_since == 0) {
      dead_since = now;
      ranks_->abort_all(
          {Code::unavailable, "an engine that steps together with this one died", {}});
    }
    if (now - dead_since < kFarewell) continue;
    ranks_lost_ = true;
    server_->stop();
    return;
  }
}

Result<void> Serving::build(const std::string& model) {
  M2_TRY_VOID(check_serve_values(values_));
  M2_TRY_VOID(ops::choose_instruction_set(values_.text("cpu-isa")));
  M2_TRY(kv_dtype_, read_kv_dtype(values_));
  M2_TRY(speculation_, read_speculation(values_));
  M2_TRY(folder_, model_folder(model, values_));
  M2_TRY(settings_, read_settings(folder_, values_));
  M2_TRY(max_model_len_, choose_max_model_len(values_, settings_.config));
  if (values_.integer("tensor-parallel-size") != 1 || values_.integer("data-parallel-size") != 1)
    load_kernels_early();
  M2_TRY(device_, choose_device(values_));
  step_defaults_ = step_defaults(device_);
  M2_TRY(spread_, read_spread(values_, settings_.config));
  M2_TRY_VOID(spread_over_gpus());
  if (spread_.serves()) M2_TRY_VOID(start_server(model));
  M2_TRY(world_, meet_processes(spread_, terms()));

  log_info("Starting to load model {}...", model);
  if (server_) server_->set_progress("loading the tokenizer");
  if (server_) M2_TRY_VOID(read_text_files());
  M2_TRY_VOID(make_models());
  if (!server_) {
    ranks_->start(rank_deadline());
    log_info("The ranks of this process, {}, follow process 0.", world_.where.process);
    return {};
  }
  M2_TRY_VOID(start_engines());
  announce_ready();
  return {};
}

// The port is taken first: a second server on it is refused before minutes of loading, and probes
// get a 503 that says how far the loading is.
Result<void> Serving::start_server(const std::string& model) {
  M2_TRY(server::ServerOptions options, server_options(values_, settings_));
  options.handle_signals = signals_end_ == SignalsEnd::server;
  // When a process dies mpirun ends all, and gives each a second to say so.
  if (spread_.mpi && !values_.given("drain-seconds") && !values_.given("shutdown-timeout"))
    options.drain_seconds = 0;
  if (options.served_model_names.empty()) options.served_model_names = {model};
  served_name_ = options.served_model_names.front();
  options.first_engine = spread_.first_engine();
  constexpr int64_t kOthers = 512;  // files, threads' own, ranks
  const auto connections = static_cast<int64_t>(options.limits.max_connections);
  if (const int64_t limit = allow_descriptors(connections + kOthers); limit < connections)
    log_warning("The limit of file descriptors is {}: fewer than {} connections can be open.",
                limit, connections);
  server_ = std::make_unique<server::Server>(std::move(options), metrics_);
  return server_->start();
}

// Dummy weights need no file but config.json: without tokenizer.json text is bytes, and without a
// template there is no chat.
Result<void> Serving::read_text_files() {
  std::error_code ignored;
  const bool only_config = values_.text("load-format") == "dummy" && !values_.given("tokenizer") &&
                           !std::filesystem::exists(folder_ / "tokenizer.json", ignored);
  if (!only_config) {
    M2_TRY(tokenizer_, read_tokenizer(folder_, values_));
    M2_TRY(template_source_, chat_template_text(folder_, values_));
    M2_TRY(chat_template_, read_chat_template(folder_, values_));
    id_limit_ = std::min<int64_t>(tokenizer_->id_limit(), settings_.config.vocab_size);
    return {};
  }
  tokenizer_ = byte_tokenizer();
  id_limit_ = settings_.config.vocab_size;
  std::erase_if(settings_.config.eos_token_ids, [&](int64_t id) { return id >= id_limit_; });
  return {};
}

// The ranks of this process compute on consecutive GPUs, after those of mpirun's processes before
// it on this host.
Result<void> Serving::spread_over_gpus() {
  if (spread_.share.count == 0) device_ = Device{};  // a front for engines elsewhere
  if (!on_gpu()) return {};
  const int64_t ranks = spread_.share.count, gpus = spread_.local_gpus();
  device_.index += static_cast<int>(spread_.local_process * gpus);
  for (int64_t i = 0; gpus > 1 && i < gpus; ++i)
    if (const Result<void> usable = check_device(gpu_of(i * spread_.ranks_per_gpu)); !usable.ok())
      return fail(Code::invalid_argument,
                  "World size ({}) is larger than the number of available GPUs ({}) in this node: "
                  "{}; with --ranks-per-gpu several ranks share one",
                  ranks, i, usable.error().text);
  if (spread_.shape.round_robin) {
    log_warning("--expert-placement-strategy round_robin: GPUs hold runs of experts, as linear");
    spread_.shape.round_robin = false;
  }
  return {};
}

Device Serving::gpu_of(int64_t local_rank) const {
  return {device_.kind, device_.index + static_cast<int>(local_rank / spread_.ranks_per_gpu)};
}

Result<void> Serving::check_gpu_memory() {
  for (int64_t i = 0; i < spread_.share.count; ++i) {
    const Device device = gpu_of(i);
    const DeviceMemory memory = device_memory(device);
    M2_TRY(const int64_t budget, gpu_budget(values_, device, memory));
    const int64_t share = budget / spread_.ranks_per_gpu;
    gpu_budget_ = i == 0 ? share : std::min(gpu_budget_, share);
    // The dtypes the config promises; the files may differ a little.
    const auto topology = parallel::with_rank(spread_.shape, spread_.share.begin + i);
    const int64_t needed =
        model::weight_bytes(settings_.config, topology, model::StoredTypes(settings_.config));
    const int64_t free = memory.free / spread_.ranks_per_gpu;
    if (needed > free)
      return fail(Code::resource_exhausted,
                  "the {} weights take {:.2f} GiB, and {:.2f} of {:.2f} GiB are free {}on "
                  "device cuda:{}",
                  spread_.ranks() > 1 ? "rank's" : "model's", gib(needed), gib(free),
                  gib(memory.total), spread_.ranks_per_gpu > 1 ? "for it " : "", device.index);
  }
  return {};
}

Result<model::Weights> Serving::read_weights(const parallel::Topology& topology, Device device) {
  if (server_) server_->set_progress("loading weights");
  if (values_.text("load-format") == "dummy")
    return model::dummy_weights(settings_.config, topology, device,
                                static_cast<uint64_t>(*values_.integer("seed")));
  M2_TRY(const load::Checkpoint checkpoint, load::Checkpoint::open(folder_));
  ProgressBar bar("Loading safetensors checkpoint shards");
  const int64_t ranks = spread_.share.count;
  const int64_t before = topology.expert_rank() - spread_.share.begin;
  int64_t shown = -1;
  const auto progress = [&](int64_t done, int64_t total) {
    const int64_t share = total > 0 ? done * 100 / total : 100;
    const int64_t percent = (before * 100 + share) / ranks;
    if (percent == std::exchange(shown, percent)) return;
    if (server_) server_->set_progress(fmt::format("loading weights, {}%", percent));
    if (values_.flag("use-tqdm-on-load")) bar.update(before * total + done, ranks * total);
  };
  M2_TRY(model::Weights weights,
         model::load_weights(settings_.config, checkpoint, topology, device, progress));
  if (kv_dtype_ == DType::f8_e4m3) {
    M2_TRY(scaled_layers_, model::read_kv_scales(checkpoint, weights));
  }
  return weights;
}

// In the words that scripts of this family look for.
void Serving::log_kv_dtype() const {
  if (kv_dtype_ != DType::f8_e4m3) return;
  log_info(
      "Using fp8 data type to store kv cache. It reduces the GPU memory footprint and boosts the "
      "performance. Meanwhile, it may cause accuracy drop without a proper scaling factor.");
  if (scaled_layers_ > 0)
    log_info("The checkpoint has KV scales for {} of {} layers", scaled_layers_,
             settings_.config.num_layers);
  else
    log_warning(
        "Using KV cache scaling factor 1.0 for fp8_e4m3. If this is unintended, verify that "
        "k/v_scale scaling factors are properly set in the checkpoint.");
}

Result<void> Serving::make_models() {
  model::MemoryRequest request;
  request.max_model_len = max_model_len_;
  request.max_num_seqs = values_.integer("max-num-seqs").value_or(step_defaults_.sequences);
  request.max_num_batched_tokens =
      values_.integer("max-num-batched-tokens").value_or(step_defaults_.tokens);
  request.kv_cache_bytes = values_.integer("kv-cache-memory-bytes").value_or(0);
  request.num_blocks = values_.integer("num-gpu-blocks-override").value_or(0);
  request.most_logprobs = *values_.integer("max-logprobs");
  request.kv_dtype = kv_dtype_;
  request.drafted_rows =
      drafted_rows(speculation_, request.max_num_seqs, request.max_num_batched_tokens);
  model::RunnerOptions options;
  options.id_limit = id_limit_;
  if (values_.flag("e8m0-scales")) options.scales = ScaleFormat::e8m0;
  if (on_gpu()) {
    M2_TRY_VOID(check_gpu_memory());
    if (spread_.ranks_per_gpu == 1) {
      M2_TRY(GraphChoice graphs, choose_graphs(values_, request.max_num_seqs + request.drafted_rows,
                                               request.max_num_batched_tokens));
      if (!graphs.note.empty()) log_info("{}", graphs.note);
      options.graph_sizes = std::move(graphs.sizes);
    }
    request.padded_rows = options.graph_sizes.empty() ? 0 : options.graph_sizes.back();
    constexpr int64_t kGraphBytes = 300 << 20;  // a bound, not a measurement
    request.available_bytes = gpu_budget_ - (options.graph_sizes.empty() ? 0 : kGraphBytes);
    request.memory_utilization = 1;
    request.most_kv_bytes = gpu_budget_;
  } else {
    request.memory_utilization = *values_.number("gpu-memory-utilization");
  }

  const Nanos start = clock_.now();
  ranks_ = std::make_unique<RankModels>(spread_, world_, device_,
                                        static_cast<int>(*values_.integer("threads")));
  M2_TRY_VOID(ranks_->connect_devices());
  M2_TRY_VOID(ranks_->build(
      settings_.config,
      [this, read = int64_t{0}](const parallel::Topology& topology, Device device) mutable {
        Result<model::Weights> weights = read_weights(topology, device);
        if (server_ && ++read == spread_.share.count) server_->set_progress("preparing steps");
        return weights;
      },
      request, options));
  const double elapsed = seconds(clock_.now() - start);
  log_info("Loading weights took {:.2f} seconds", elapsed);
  log_info("Model loading took {:.2f} GiB memory and {:.6f} seconds", gib(ranks_->weight_bytes()),
           elapsed);
  log_models();
  return {};
}

void Serving::log_scales() const {
  if (!values_.flag("e8m0-scales")) return;
  if (!settings_.config.fp8_blocks)
    log_info("--e8m0-scales has no effect: the weights are not FP8");
  else
    log_info("FP8 scales are powers of two (E8M0): weights were requantised{}",
             on_gpu() ? ", activations are scaled so" : "; activations are not FP8 on the CPU");
}

void Serving::log_models() const {
  const int64_t tokens = ranks_->num_blocks() * model::kBlockSize * spread_.shape.data_size;
  log_info("Running on {}", describe_device(device_));
  if (!on_gpu()) log_info("Instructions of the CPU's operations: {}", ops::instruction_set());
  if (spread_.ranks() > 1)
    log_info("{} ranks: {} engines of {}, experts {}", spread_.ranks(), spread_.shape.data_size,
             spread_.shape.tensor_size,
             spread_.shape.expert_parallel ? "whole" : "cut over all ranks");
  log_kv_dtype();
  log_scales();
  log_info("Available KV cache memory: {:.2f} GiB", gib(ranks_->kv_bytes()));
  log_info("GPU KV cache size: {} tokens", grouped(tokens));
  log_info("Maximum concurrency for {} tokens per request: {:.2f}x", grouped(max_model_len_),
           static_cast<double>(tokens) / static_cast<double>(max_model_len_));
}

Result<void> Serving::start_engines() {
  for (const int64_t id : settings_.config.eos_token_ids) {
    if (id < 0 || id >= id_limit_)
      return fail(Code::invalid_argument, "eos_token_id {} is not a token of the tokenizer", id);
  }
  std::vector<engine::Engine*> engines;
  for (const RankModels::Head& head : ranks_->heads()) {
    engine::EngineConfig config =
        engine_config(values_, settings_.config, step_defaults_,
                      static_cast<engine::TokenId>(id_limit_), served_name_, head.engine);
    config.speculation = speculation_;
    engines_.push_back(std::make_unique<engine::Engine>(std::move(config), *head.model, *head.pool,
                                                        clock_, *server_, metrics_));
    engines.push_back(engines_.back().get());
    if (head.rounds) head.rounds->set_wake([engine = engines.back()] { engine->wake(); });
  }
  all_engines_ = std::make_unique<engine::Engines>(engines, ranks_->heads().front().engine);
  ranks_->start(rank_deadline());
  for (size_t i = 0; i < engines.size(); ++i)
    engine_threads_.emplace_back(
        [engine = engines[i], &head = ranks_->heads()[i]](std::stop_token stop) {
          use_device(head.device);
          engine->run(stop);
          head.stop();
        });
  if (!spread_.alone())
    watch_ = std::jthread([this](std::stop_token stop) { watch_engines(std::move(stop)); });

  server::ModelServices services;
  services.tokenizer = tokenizer_;
  services.chat_template = chat_template_;
  services.chat_template_source = template_source_;
  services.engine = all_engines_.get();
  services.max_model_len = max_model_len_;
  services.vocab_size = settings_.config.vocab_size;
  for (const int64_t id : settings_.config.eos_token_ids)
    services.eos_token_ids.push_back(static_cast<text::TokenId>(id));
  if (!settings_.config.eos_token_ids.empty())
    services.eos_token =
        tokenizer_->bytes(static_cast<text::TokenId>(settings_.config.eos_token_ids.front()));
  server_->ready(std::move(services));
  return {};
}

void Serving::announce_ready() {
  log_info("Supported tasks: ['generate']");
  if (!settings_.generation_json.empty())
    log_info(
        "Default sampling parameters have been overridden by the model's "
        "`generation_config.json`: `{}`. If this is not intended, please relaunch with "
        "`--generation-config vllm`.",
        to_text(settings_.generation_json));
  const std::string uds = values_.text("uds");
  const std::string host = values_.text("host");
  if (uds.empty()) {
    const bool is_ipv6 = host.find(':') != std::string::npos;
    log_info("Starting m2 API server 0 on {}://{}:{}",
             values_.given("ssl-certfile") ? "https" : "http",
             is_ipv6 ? fmt::format("[{}]", host) : host, port());
  } else {
    log_info("Starting m2 API server 0 on unix:{}", uds);
  }
  log_info("Available routes are:");
  for (const std::string& line : server_->route_lines()) log_info("Route: {}", line);
  log_info("Started server process [{}]", getpid());
  log_info("Waiting for application startup.");
  log_info("Application startup complete.");
}

}  // namespace m2::app
