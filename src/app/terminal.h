#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace m2::app {

// True if the file descriptor is a terminal (and NO_COLOR is not the business of this function).
bool is_terminal(int descriptor);

// 1234567 -> "1,234,567", as people read it and the lines that scripts know have it. `number` >= 0.
std::string grouped(int64_t number);

// Everything on standard input.
std::string read_stdin();

// A progress bar on stderr: drawn in place on a terminal, a line every few seconds elsewhere.
class ProgressBar {
 public:
  enum class Unit { bytes, items };
  // `what` is what is counted, e.g. "Loading weights".
  explicit ProgressBar(std::string what, Unit unit = Unit::bytes);
  // So much done of total. Cheap; draws at most ten times a second.
  void update(int64_t done, int64_t total);

 private:
  std::string numbers(int64_t done, int64_t total, double elapsed) const;

  const std::string what_;
  const Unit unit_;
  const bool terminal_;
  const SteadyClock clock_;
  const Nanos start_;
  Nanos last_drawn_;
};

}  // namespace m2::app
