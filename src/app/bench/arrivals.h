#pragma once

#include <limits>
#include <string>
#include <vector>

#include "app/bench/numpy_random.h"

namespace m2::app::bench {

constexpr double kInfiniteRate = std::numeric_limits<double>::infinity();

// When requests are sent (contract.md 6.4).
struct ArrivalPlan {
  double rate = kInfiniteRate;  // requests a second
  double burstiness = 1;        // shape of the gaps' gamma distribution; infinity: all gaps alike
  std::string ramp_up;          // "linear", "exponential": the rate goes from start to end; "": no
  double start_rate = 0;
  double end_rate = 0;
};

// Seconds after the start at which each of `count` requests is sent, ascending.
std::vector<double> arrival_seconds(const ArrivalPlan& plan, size_t count, NumpyLegacy& random);

// The rate at request `index` of `count`.
double rate_at(const ArrivalPlan& plan, size_t index, size_t count);

}  // namespace m2::app::bench
