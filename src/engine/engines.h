#pragma once

#include <atomic>
#include <vector>

#include "engine/affinity.h"
#include "engine/engine.h"

namespace m2::engine {

// Several engines behind one wall: each request goes to one of them. Thread-safe.
class Engines {
 public:
  // engines[i] has EngineConfig::index first + i; all outlive this. At least one.
  explicit Engines(std::vector<Engine*> engines, int64_t first = 0)
      : engines_(std::move(engines)), first_(first) {}

  size_t size() const { return engines_.size(); }

  // As Engine::submit(), on request.engine (an index), or, if that is -1, on the engine that is
  // least busy (waiting * 4 + running), or on one hardly busier whose prefix cache knows the
  // prompt's beginning. Fails with invalid_argument if there is no such engine.
  Result<RequestId> submit(Request request);
  void cancel(RequestId id) { engines_[engine_of(id)]->cancel(id); }

  // Sums over the engines, but of drafts; last_tick is the oldest, dead that of any.
  EngineStats stats() const;

 private:
  int64_t choose(const Request& request);
  size_t engine_of(RequestId id) const;

  const std::vector<Engine*> engines_;
  const int64_t first_;
  Affinity affinity_;
  std::atomic<size_t> next_{0};  // who is asked first, so that equals take turns
};

}  // namespace m2::engine
