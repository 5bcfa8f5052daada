#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "server/options.h"
#include "server/response_store.h"
#include "server/turn_store.h"

namespace m2::server {

// What every request's code may look at. Thread-safe.
class Context {
 public:
  explicit Context(const ServerOptions& options);

  const ServerOptions& options() const { return options_; }
  const Limits& limits() const { return options_.limits; }

  // Null until the model is ready; then the same for good.
  const ModelServices* services() const { return services_.load(std::memory_order_acquire); }
  void set_services(ModelServices services);

  // What is kept between requests; null where the option is off.
  TurnStore* turns() const { return turns_.get(); }
  ResponseStore* responses() const { return responses_.get(); }
  const std::shared_ptr<ByteBudget>& event_budget() const { return event_budget_; }
  const std::shared_ptr<ByteBudget>& body_budget() const { return body_budget_; }

  std::string progress() const;
  void set_progress(std::string progress);

  // Counts one request that was served with so many choices a prompt.
  void count_choices(int64_t n) {
    if (choices_) choices_->observe(static_cast<double>(n));
  }
  void set_choices_metric(Histogram* choices) { choices_ = choices; }

  // Generating requests under way; Slot counts one.
  class Slot {
   public:
    explicit Slot(Context& context) : context_(context) { ++context_.under_way_; }
    ~Slot() { --context_.under_way_; }
    Slot(const Slot&) = delete;
    Slot& operator=(const Slot&) = delete;

   private:
    Context& context_;
  };
  int64_t under_way() const { return under_way_.load(); }

  void set_draining() { draining_ = true; }
  bool draining() const { return draining_; }

  // True if the engine runs and has shown life within its deadline.
  bool engine_alive() const;
  // True if the engine is dead, or has been silent for longer than the live deadline. False while
  // the model is loading.
  bool engine_lost() const;

  // Says so in the log, once per set of names.
  void note_unknown_fields(const std::vector<std::string>& names);
  // Logs `text` the first time it is asked to.
  void say_once(const std::string& text);

 private:
  const ServerOptions& options_;
  const std::unique_ptr<TurnStore> turns_;
  const std::shared_ptr<ByteBudget> event_budget_;  // of responses in the background
  const std::shared_ptr<ByteBudget> body_budget_;
  const std::unique_ptr<ResponseStore> responses_;
  std::unique_ptr<const ModelServices> owned_services_;
  std::atomic<const ModelServices*> services_{nullptr};
  std::atomic<int64_t> under_way_{0};
  std::atomic<bool> draining_{false};
  mutable std::mutex mutex_;
  std::string progress_ = "starting";
  Histogram* choices_ = nullptr;  // outlives this
  std::set<std::string> said_;
};

}  // namespace m2::server
