#pragma once

#include <chrono>

#include "text/chat_template.h"
#include "text/jinja/failure.h"

namespace m2::text::jinja {

// What one render may still spend. Every node evaluated, value made and 64 bytes of text written
// cost a step, so steps bound time and memory alike. The clock is read every few steps: one step
// takes a few milliseconds at most (a pass over a text of max_output_bytes).
class Budget {
 public:
  explicit Budget(const TemplateLimits& limits)
      : limits_(limits),
        steps_left_(limits.max_steps),
        deadline_(Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                     std::chrono::duration<double>(limits.max_seconds))) {}

  void step(size_t count = 1) {
    steps_left_ -= static_cast<int64_t>(count);
    if (steps_left_ < next_check_) check();
  }

  // Before a text grows by `added` bytes to `size` bytes.
  void text(size_t added, size_t size) {
    if (size > limits_.max_output_bytes)
      exhausted("the template made a text of more than {} bytes (max_output_bytes)",
                limits_.max_output_bytes);
    step(1 + added / 64);
  }

  void enter() {
    if (++depth_ > limits_.max_depth)
      exhausted("the template nests deeper than {} levels (max_depth)", limits_.max_depth);
  }
  void leave() { --depth_; }

  size_t max_bytes() const { return limits_.max_output_bytes; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kStepsPerClockRead = 128;

  void check() {
    if (steps_left_ < 0)
      exhausted("the template took more than {} steps (max_steps)", limits_.max_steps);
    if (Clock::now() > deadline_)
      exhausted("the template took longer than {} s (max_seconds)", limits_.max_seconds);
    next_check_ = steps_left_ - kStepsPerClockRead;
  }

  TemplateLimits limits_;
  int64_t steps_left_;
  int64_t next_check_ = INT64_MAX;
  Clock::time_point deadline_;
  int depth_ = 0;
};

// One level of nesting, for as long as it lives.
class Level {
 public:
  explicit Level(Budget& budget) : budget_(budget) { budget.enter(); }
  ~Level() { budget_.leave(); }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

 private:
  Budget& budget_;
};

}  // namespace m2::text::jinja
