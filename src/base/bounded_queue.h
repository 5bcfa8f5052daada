#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace m2 {

// Many producers, one consumer, at most `capacity` items. push() never blocks: a full queue is the
// caller's news (HTTP 429). Thread-safe.
template <class T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // False if the queue is full or closed; `item` is then untouched.
  bool push(T&& item) {
    {
      std::lock_guard lock(mutex_);
      if (closed_ || items_.size() >= capacity_) return false;
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
    return true;
  }

  // Like push(), but beyond the capacity too: for messages that free something (a cancellation).
  void push_always(T&& item) {
    {
      std::lock_guard lock(mutex_);
      items_.push_back(std::move(item));
    }
    ready_.notify_one();
  }

  // Moves everything queued to the end of `out`. Waits up to `wait` for a first item; 0 = no wait.
  void drain(std::vector<T>& out, Nanos wait) {
    std::unique_lock lock(mutex_);
    if (wait > 0)
      ready_.wait_for(lock, std::chrono::nanoseconds(wait),
                      [&] { return closed_ || !items_.empty(); });
    while (!items_.empty()) {
      out.push_back(std::move(items_.front()));
      items_.pop_front();
    }
  }

  // Ends waiting and refuses later push() calls; what is queued can still be drained.
  void close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
    }
    ready_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<T> items_;
  const size_t capacity_;
  bool closed_ = false;
};

}  // namespace m2
