#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "app/device_options.h"
#include "app/model_files.h"
#include "app/options.h"
#include "app/rank_models.h"
#include "app/speculation_options.h"
#include "base/metrics.h"
#include "engine/engines.h"
#include "server/server.h"

namespace m2::app {

// What SIGINT and SIGTERM end: the server, which answers first what it has begun, or, as they do by
// default, the process: of a client whose own the server is.
enum class SignalsEnd : uint8_t { server, process };

// The world of one server, built in the order of its members: HTTP, ranks with their models,
// engines.
class Serving {
 public:
  // Reads `model` as `m2 serve` would with these values (of serve_options()), and starts to serve.
  // The port answers from the first moment on, with 503 until the model is ready. Returns when it
  // is ready. Errors name the flag, file or tensor at fault.
  static Result<std::unique_ptr<Serving>> start(const std::string& model, const Values& values,
                                                SignalsEnd signals_end);
  ~Serving();

  int port() const { return server_->port(); }
  // Returns when the server has been stopped, by a signal or by stop().
  // An error if ranks of other processes were lost.
  Result<void> wait();
  void stop() { server_->stop(); }

 private:
  Serving(const Values& values, SignalsEnd signals_end)
      : values_(values), signals_end_(signals_end) {}

  Result<void> build(const std::string& model);
  Json terms() const;
  Nanos rank_deadline() const;
  Result<void> start_server(const std::string& model);
  Result<void> read_text_files();
  Result<void> spread_over_gpus();
  Device gpu_of(int64_t local_rank) const;
  Result<model::Weights> read_weights(const parallel::Topology& topology, Device device);
  Result<void> check_gpu_memory();
  Result<void> make_models();
  void log_models() const;
  void log_kv_dtype() const;
  void log_scales() const;
  Result<void> start_engines();
  void announce_ready();
  bool on_gpu() const { return device_.kind == DeviceKind::cuda; }
  void watch_engines(std::stop_token stop);

  const Values& values_;
  const SignalsEnd signals_end_;
  std::filesystem::path folder_;
  std::string served_name_;
  ModelSettings settings_;
  int64_t max_model_len_ = 0;
  Device device_;
  StepDefaults step_defaults_{};
  DType kv_dtype_ = DType::bf16;
  std::optional<engine::SpeculationConfig> speculation_;
  int64_t scaled_layers_ = 0;  // whose FP8 scales the checkpoint has
  int64_t gpu_budget_ = 0;     // bytes of the GPU's memory that may be used
  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::shared_ptr<const text::ChatTemplate> chat_template_;
  std::string template_source_;  // for /tokenizer_info
  int64_t id_limit_ = 0;         // ids from here on are padding rows: never sampled

  Metrics metrics_;
  SteadyClock clock_;
  std::unique_ptr<server::Server> server_;
  Spread spread_;
  World world_;
  std::unique_ptr<RankModels> ranks_;
  std::vector<std::unique_ptr<engine::Engine>> engines_;
  std::unique_ptr<engine::Engines> all_engines_;
  std::vector<std::jthread> engine_threads_;
  std::atomic<bool> ranks_lost_{false};
  std::jthread watch_;
};

// `m2 serve`: its command, for parsing and help.
const Command& serve_command();

}  // namespace m2::app
