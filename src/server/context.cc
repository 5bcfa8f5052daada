#include "server/context.h"

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "server/constraint.h"

namespace m2::server {

Context::Context(const ServerOptions& options)
    : options_(options),
      turns_(options.keep_turns ? std::make_unique<TurnStore>(options.limits.max_turns,
                                                              options.limits.max_turn_bytes)
                                : nullptr),
      event_budget_(std::make_shared<ByteBudget>(options.limits.max_event_bytes)),
      body_budget_(std::make_shared<ByteBudget>(options.limits.max_all_bodies)),
      responses_(options.store_responses
                     ? std::make_unique<ResponseStore>(options.limits.max_responses,
                                                       options.limits.max_response_bytes)
                     : nullptr) {}

void Context::set_services(ModelServices services) {
  M2_CHECK(!owned_services_, "the model can be attached once");
  int64_t longest = 1;
  for (text::TokenId id = 0; id < services.tokenizer->id_limit(); ++id)
    longest = std::max(longest, static_cast<int64_t>(services.tokenizer->bytes(id).size()));
  services.max_token_bytes = longest;
  // The engine's masks have a bit for each token of the tokenizer.
  if (services.tokenizer->id_limit() <= services.vocab_size)
    services.grammars = std::make_shared<Grammars>(services.tokenizer, services.eos_token_ids);
  owned_services_ = std::make_unique<const ModelServices>(std::move(services));
  services_.store(owned_services_.get(), std::memory_order_release);
}

std::string Context::progress() const {
  std::lock_guard lock(mutex_);
  return progress_;
}

void Context::set_progress(std::string progress) {
  std::lock_guard lock(mutex_);
  progress_ = std::move(progress);
}

namespace {

// Seconds since the engine last finished a step or an idle wait; 0 before its first, when there is
// no tick to judge by.
double silence(const engine::EngineStats& stats) {
  return stats.last_tick == 0 ? 0 : seconds(SteadyClock().now() - stats.last_tick);
}

}  // namespace

bool Context::engine_alive() const {
  const ModelServices* model = services();
  if (!model) return false;
  const engine::EngineStats stats = model->engine->stats();
  return !stats.dead && silence(stats) < options_.engine_deadline_seconds;
}

bool Context::engine_lost() const {
  const ModelServices* model = services();
  if (!model) return false;
  const engine::EngineStats stats = model->engine->stats();
  return stats.dead || silence(stats) >= options_.live_deadline_seconds;
}

void Context::note_unknown_fields(const std::vector<std::string>& names) {
  if (names.empty()) return;
  constexpr size_t kShown = 8;
  std::string list;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i)
    list += (i > 0 ? ", '" : "'") + printable(names[i], 40) + "'";
  if (names.size() > kShown) list += ", ...";
  say_once("The following fields were present in the request but ignored: {" + list + "}");
}

void Context::say_once(const std::string& text) {
  constexpr size_t kRemembered = 1000;  // clients choose the text: forget rather than grow
  {
    std::lock_guard lock(mutex_);
    if (said_.size() >= kRemembered || !said_.insert(text).second) return;
  }
  log_warning("{}", text);
}

}  // namespace m2::server
