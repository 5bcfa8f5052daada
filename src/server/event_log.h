#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/byte_budget.h"

namespace m2::server {

// The server-sent events of one response, numbered from 0, for those who read them again or follow
// them while they come. One that outgrows the budget forgets what it holds. Thread-safe.
class EventLog {
 public:
  explicit EventLog(std::shared_ptr<ByteBudget> budget) : held_(std::move(budget)) {}

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

  mutable std::mutex mutex_;
  std::string text_;
  std::vector<size_t> starts_;  // of each event in text_
  bool over_ = false, lost_ = false;
  HeldBytes held_;  // for text_
  std::map<int, Waiter> waiters_;
  int last_waiter_ = 0;
};

}  // namespace m2::server
