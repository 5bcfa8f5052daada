#pragma once

#include <cstddef>

#include "base/clock.h"

namespace m2::app::bench {

// "Done so many of so many requests" on stderr, redrawn in place on a terminal; elsewhere a line
// every ten seconds.
class RequestBar {
 public:
  RequestBar(size_t total, bool enabled);
  void update(size_t done);  // cheap
  void finish();

 private:
  void draw(Nanos now);
  const size_t total_;
  const bool enabled_, terminal_;
  const SteadyClock clock_;
  const Nanos start_;
  Nanos drawn_ = 0;
  size_t done_ = 0;
};

}  // namespace m2::app::bench
