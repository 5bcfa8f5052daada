#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "base/clock.h"

namespace m2::engine {

// Engines that share experts step together, round after round, and fall asleep together when a
// round was of no tokens. This is one engine's account of the rounds, which it keeps beside its
// thread's work: whoever begins one while others may sleep calls them, and who is called joins.
class Rounds {
 public:
  // `call_others(round)`: makes all other engines want() that round, wherever they are.
  explicit Rounds(std::function<void(uint64_t round)> call_others)
      : call_others_(std::move(call_others)) {}

  // Another engine has begun `round` and waits for us. Any thread; calls set_wake()'s.
  void want(uint64_t round) {
    uint64_t known = wanted_.load(std::memory_order_relaxed);
    while (known < round &&
           !wanted_.compare_exchange_weak(known, round, std::memory_order_release)) {
    }
    if (wake_) wake_();
  }
  // What wakes the engine's thread out of its idle wait.
  void set_wake(std::function<void()> wake) { wake_ = std::move(wake); }

  // ---- the engine's thread

  // Before a round.
  void begin() {
    ++round_;
    if (last_total_ == 0 && call_others_) call_others_(round_);
  }
  // After it: the tokens of all engines.
  void end(int64_t total) {
    last_total_ = total;
    last_meeting_ = SteadyClock().now();
  }
  // Whether an engine without work must begin a round now: the last one was not of nothing, it is
  // called, or nobody has been heard of for a while.
  bool due() const {
    constexpr Nanos kHeartbeat = kSecond / 2;  // the engine asks once a second
    return last_total_ != 0 || wanted_.load(std::memory_order_acquire) > round_ ||
           SteadyClock().now() - last_meeting_ >= kHeartbeat;
  }

 private:
  const std::function<void(uint64_t)> call_others_;
  std::function<void()> wake_;
  std::atomic<uint64_t> wanted_{0};
  uint64_t round_ = 0;
  int64_t last_total_ = 0;
  Nanos last_meeting_ = 0;
};

}  // namespace m2::engine
