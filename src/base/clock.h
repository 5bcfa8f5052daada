#pragma once

#include <chrono>
#include <cstdint>

namespace m2 {

// Monotonic time in nanoseconds since an arbitrary start. Signed, so differences are safe.
using Nanos = int64_t;

constexpr Nanos kSecond = 1'000'000'000;

// Where time comes from. The engine asks only this, so that a simulation can drive it.
// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanos now() const = 0;
};

class SteadyClock : public Clock {
 public:
  Nanos now() const override {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

// A clock that moves only when told to. For tests; one thread.
class ManualClock : public Clock {
 public:
  Nanos now() const override { return now_; }
  void advance(Nanos by) { now_ += by; }

 private:
  Nanos now_ = 0;
};

inline double seconds(Nanos nanos) { return static_cast<double>(nanos) / 1e9; }

}  // namespace m2
