#include "app/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/log.h"

namespace m2::app {
namespace {

constexpr Nanos kRedraw = kSecond / 10;
constexpr Nanos kLogEvery = 5 * kSecond;
constexpr int kBarCells = 30;

}  // namespace

bool is_terminal(int descriptor) {
  return isatty(descriptor) == 1;
}

std::string grouped(int64_t number) {
  std::string out = std::to_string(number);
  for (auto i = static_cast<int64_t>(out.size()) - 3; i > 0; i -= 3)
    out.insert(static_cast<size_t>(i), ",");
  return out;
}

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

ProgressBar::ProgressBar(std::string what, Unit unit)
    : what_(std::move(what)),
      unit_(unit),
      terminal_(is_terminal(STDERR_FILENO)),
      start_(clock_.now()),
      last_drawn_(start_) {}

std::string ProgressBar::numbers(int64_t done, int64_t total, double elapsed) const {
  const auto rate = [elapsed](double amount) { return elapsed > 0 ? amount / elapsed : 0.0; };
  if (unit_ == Unit::items)
    return fmt::format("{}/{} | {:.1f} s | {:.1f}/s", done, total, elapsed,
                       rate(static_cast<double>(done)));
  constexpr double kGiB = 1 << 30;
  const double gib = static_cast<double>(done) / kGiB;
  return fmt::format("{:.2f}/{:.2f} GiB | {:.1f} s | {:.2f} GiB/s", gib,
                     static_cast<double>(total) / kGiB, elapsed, rate(gib));
}

void ProgressBar::update(int64_t done, int64_t total) {
  const Nanos now = clock_.now();
  const bool last = done >= total;
  if (!last && now - last_drawn_ < (terminal_ ? kRedraw : kLogEvery)) return;
  if (!terminal_ && last && now - start_ < kLogEvery) return;  // too quick for a line
  last_drawn_ = now;

  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1.0;
  const std::string text =
      fmt::format("{:3.0f}% | {}", share * 100, numbers(done, total, seconds(now - start_)));
  if (!terminal_) {
    log_info("{}: {}", what_, text);
    return;
  }
  const int filled = static_cast<int>(share * kBarCells);
  std::fputs(fmt::format("\r{}: [{:#<{}}{:.<{}}] {}{}", what_, "", filled, "", kBarCells - filled,
                         text, last ? "\n" : "")
                 .c_str(),
             stderr);
}

}  // namespace m2::app
