#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "parallel/comm.h"

namespace m2::parallel {

// How far a rank has come: the collectives it has begun. Any thread may ask.
class Progress {
 public:
  int64_t begun() const { return begun_.load(std::memory_order_acquire); }
  const char* last() const { return last_.load(std::memory_order_relaxed); }

  // `name` lasts. The rank's own thread.
  void begin(const char* name) {
    last_.store(name, std::memory_order_relaxed);
    begun_.fetch_add(1, std::memory_order_release);
  }

 private:
  std::atomic<int64_t> begun_{0};
  std::atomic<const char*> last_{"nothing"};
};

// `inner`, with an account of what its rank has begun. What a recorded graph repeats is not
// counted. `progress` outlives it.
std::unique_ptr<Comm> count_collectives(std::unique_ptr<Comm> inner, Progress& progress);

}  // namespace m2::parallel
