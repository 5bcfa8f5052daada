#include "engine/engines.h"

#include <algorithm>

namespace m2::engine {
namespace {

// How much busier, in the units of load, the engine may be that knows the prompt's beginning: two
// waiting requests.
constexpr int64_t kWorthPrefix = 8;

}  // namespace

Result<RequestId> Engines::submit(Request request) {
  const auto size = static_cast<int64_t>(engines_.size());
  if (request.engine != -1 && (request.engine < first_ || request.engine >= first_ + size))
    return fail(Code::invalid_argument, "data_parallel_rank {} is out of range [{}, {}).",
                request.engine, first_, first_ + size);
  if (size == 1) return engines_[0]->submit(std::move(request));
  const int64_t engine = request.engine >= 0 ? request.engine - first_ : choose(request);
  affinity_.note(request.prompt, request.cache_salt, engine);
  return engines_[static_cast<size_t>(engine)]->submit(std::move(request));
}

int64_t Engines::choose(const Request& request) {
  const size_t first = next_.fetch_add(1, std::memory_order_relaxed);
  std::vector<int64_t> loads;
  for (const Engine* engine : engines_) loads.push_back(engine->load());
  size_t least = first % loads.size();
  for (size_t i = 1; i < loads.size(); ++i) {
    const size_t other = (first + i) % loads.size();
    if (loads[other] < loads[least]) least = other;
  }
  const Affinity::Match known = affinity_.find(request.prompt, request.cache_salt);
  if (known.engine >= 0 && loads[static_cast<size_t>(known.engine)] <= loads[least] + kWorthPrefix)
    return known.engine;
  return static_cast<int64_t>(least);
}

size_t Engines::engine_of(RequestId id) const {
  const auto index = static_cast<int64_t>(id >> kEngineShift) - first_;
  return static_cast<size_t>(std::clamp<int64_t>(index, 0, std::ssize(engines_) - 1));
}

EngineStats Engines::stats() const {
  EngineStats sum = engines_[0]->stats();
  for (size_t i = 1; i < engines_.size(); ++i) {
    const EngineStats one = engines_[i]->stats();
    for (int64_t EngineStats::*field :
         {&EngineStats::running, &EngineStats::waiting, &EngineStats::kv_blocks_used,
          &EngineStats::kv_blocks_total, &EngineStats::prompt_tokens,
          &EngineStats::generation_tokens, &EngineStats::preemptions, &EngineStats::prefix_queries,
          &EngineStats::prefix_hits, &EngineStats::steps})
      sum.*field += one.*field;
    sum.last_tick = std::min(sum.last_tick, one.last_tick);
    sum.dead = sum.dead || one.dead;
  }
  return sum;
}

}  // namespace m2::engine
