#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace m2::server {

// Bytes that all event logs together may hold. Thread-safe.
class EventBudget {
 public:
  explicit EventBudget(size_t max_bytes) : max_bytes_(max_bytes) {}

  // False, and nothing taken, if they are not there.
  bool take(size_t bytes);
  void give_back(size_t bytes) { used_ -= bytes; }
  size_t used() const { return used_; }

 private:
  const size_t max_bytes_;
  std::atomic<size_t> used_{0};
};

// The server-sent events of one response, numbered from 0, for those who read them again or follow
// them while they come. One that outgrows the budget forgets what it holds. Thread-safe.
class EventLog {
 public:
  explicit EventLog(std::shared_ptr<EventBudget> budget) : budget_(std::move(budget)) {}
  ~EventLog();

  // `frames`: whole ones, each of which ends with an empty line.
  void append(std::string_view frames);
  void end();

  struct Piece {
    std::string frames;
    size_t next = 0;    // the event after them
    bool over = false;  // none comes after them
    bool lost = false;  // the events are no longer there
  };
  // Events from number `next` on: at least one if there is one, whole ones up to `max_bytes`.
  Piece read(size_t next, size_t max_bytes) const;

  size_t bytes() const;

  // Calls `wake` once, from whichever thread, as soon as read(next) has something to say; at once
  // if it has. The number returned is for forget().
  int wait(size_t next, std::function<void()> wake);
  void forget(int waiter);

 private:
  struct Waiter {
    size_t next;
    std::function<void()> wake;
  };

  bool has_news(size_t next) const { return over_ || lost_ || next < starts_.size(); }
  void lose();
  std::vector<std::function<void()>> take_waiters();

  const std::shared_ptr<EventBudget> budget_;
  mutable std::mutex mutex_;
  std::string text_;
  std::vector<size_t> starts_;  // of each event in text_
  bool over_ = false, lost_ = false;
  size_t taken_ = 0;  // of the budget
  std::map<int, Waiter> waiters_;
  int last_waiter_ = 0;
};

}  // namespace m2::server
