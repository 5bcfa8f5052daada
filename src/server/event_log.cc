#include "server/event_log.h"

#include <algorithm>
#include <utility>

namespace m2::server {

void EventLog::append(std::string_view frames) {
  if (frames.empty()) return;
  std::vector<std::function<void()>> wakes;
  {
    std::lock_guard lock(mutex_);
    if (over_ || lost_) return;
    if (held_.resize(text_.size() + frames.size())) {
      constexpr std::string_view kEnd = "\n\n";
      for (size_t at = 0; at < frames.size();) {
        starts_.push_back(text_.size() + at);
        const size_t end = frames.find(kEnd, at);
        at = end == std::string_view::npos ? frames.size() : end + kEnd.size();
      }
      text_ += frames;
    } else {
      lose();
    }
    wakes = take_waiters();
  }
  for (const auto& wake : wakes) wake();
}

void EventLog::lose() {
  lost_ = true;
  text_ = {};
  starts_ = {};
  (void)held_.resize(0);
}

void EventLog::end() {
  std::vector<std::function<void()>> wakes;
  {
    std::lock_guard lock(mutex_);
    over_ = true;
    wakes = take_waiters();
  }
  for (const auto& wake : wakes) wake();
}

std::vector<std::function<void()>> EventLog::take_waiters() {
  std::vector<std::function<void()>> out;
  for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
    const bool woken = has_news(waiter->second.next);
    if (woken) out.push_back(std::move(waiter->second.wake));
    waiter = woken ? waiters_.erase(waiter) : std::next(waiter);
  }
  return out;
}

EventLog::Piece EventLog::read(size_t next, size_t max_bytes) const {
  std::lock_guard lock(mutex_);
  Piece piece;
  piece.lost = lost_;
  piece.next = next;
  if (next < starts_.size()) {
    const size_t begin = starts_[next];
    const auto past = std::upper_bound(starts_.begin() + static_cast<std::ptrdiff_t>(next) + 1,
                                       starts_.end(), begin + max_bytes);
    // The event that begins before the bound and ends behind it waits, unless it is the only one.
    auto end = past == starts_.end() && text_.size() - begin <= max_bytes ? past : past - 1;
    if (end == starts_.begin() + static_cast<std::ptrdiff_t>(next)) ++end;
    piece.next = static_cast<size_t>(end - starts_.begin());
    const size_t stop = end == starts_.end() ? text_.size() : *end;
    piece.frames = text_.substr(begin, stop - begin);
  }
  piece.over = over_ && piece.next >= starts_.size();
  return piece;
}

size_t EventLog::bytes() const {
  std::lock_guard lock(mutex_);
  return text_.size() + starts_.size() * sizeof(size_t);
}

int EventLog::wait(size_t next, std::function<void()> wake) {
  {
    std::lock_guard lock(mutex_);
    if (!has_news(next)) {
      waiters_[++last_waiter_] = {next, std::move(wake)};
      return last_waiter_;
    }
  }
  wake();
  return 0;
}

void EventLog::forget(int waiter) {
  std::lock_guard lock(mutex_);
  waiters_.erase(waiter);
}

}  // namespace m2::server
