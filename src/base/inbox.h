#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace m2 {

// What many threads tell one, in order. Has no bound of its own: whoever puts things in that could
// be too many counts them (as the engine does its queued requests). Thread-safe.
template <class T>
class Inbox {
 public:
  // Never blocks.
  void put(T&& item) {
    {
      std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
  }

  // Moves everything that is there to the end of `out`. Waits up to `wait` for a first item; 0 = no
  // wait. One thread.
  void drain(std::vector<T>& out, Nanos wait) {
    std::unique_lock lock(mutex_);
    if (wait > 0)
      ready_.wait_for(lock, std::chrono::nanoseconds(wait), [&] { return !items_.empty(); });
    while (!items_.empty()) {
      out.push_back(std::move(items_.front()));
      items_.pop_front();
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;
};

}  // namespace m2
