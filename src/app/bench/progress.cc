#include "app/bench/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

#include "app/terminal.h"

namespace m2::app::bench {
namespace {

constexpr int kCells = 30;

std::string minutes(double time) {
  const auto whole = static_cast<int64_t>(time);
  return fmt::format("{:02}:{:02}", whole / 60, whole % 60);
}

}  // namespace

RequestBar::RequestBar(size_t total, bool enabled)
    : total_(total),
      enabled_(enabled),
      terminal_(is_terminal(STDERR_FILENO)),
      start_(clock_.now()),
      drawn_(start_) {}

void RequestBar::update(size_t done) {
  done_ = done;
  const Nanos now = clock_.now();
  if (enabled_ && now - drawn_ >= (terminal_ ? kSecond / 10 : 10 * kSecond)) draw(now);
}

void RequestBar::finish() {
  if (!enabled_) return;
  draw(clock_.now());
  if (terminal_) std::fputc('\n', stderr);
}

void RequestBar::draw(Nanos now) {
  drawn_ = now;
  const double elapsed = seconds(now - start_);
  const double share = total_ > 0 ? static_cast<double>(done_) / static_cast<double>(total_) : 1;
  const double rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  const double left = rate > 0 ? static_cast<double>(total_ - done_) / rate : 0;
  const int filled = static_cast<int>(share * kCells);
  const std::string text =
      fmt::format("{:3.0f}%|{:#<{}}{:.<{}}| {}/{} [{}<{}, {:.2f}it/s]", share * 100, "", filled, "",
                  kCells - filled, done_, total_, minutes(elapsed), minutes(left), rate);
  std::fputs((terminal_ ? "\r" + text : text + "\n").c_str(), stderr);
}

}  // namespace m2::app::bench
