#include "app/bench/arrivals.h"

#include <algorithm>
#include <cmath>

namespace m2::app::bench {
namespace {

double gap(double rate, double burstiness, NumpyLegacy& random) {
  if (std::isinf(rate)) return 0;
  if (std::isinf(burstiness)) return 1 / rate;
  return random.gamma(burstiness, 1 / (rate * burstiness));
}

}  // namespace

double rate_at(const ArrivalPlan& plan, size_t index, size_t count) {
  if (plan.ramp_up.empty()) return plan.rate;
  const double progress =
      static_cast<double>(index) / static_cast<double>(std::max<size_t>(count, 2) - 1);
  if (plan.ramp_up == "linear")
    return plan.start_rate + (plan.end_rate - plan.start_rate) * progress;
  return plan.start_rate * std::pow(plan.end_rate / plan.start_rate, progress);
}

std::vector<double> arrival_seconds(const ArrivalPlan& plan, size_t count, NumpyLegacy& random) {
  std::vector<double> out(count);
  double now = 0;
  for (size_t i = 0; i < count; ++i) {
    double rate = rate_at(plan, i, count);
    // A ramp from 0: its first gap is that of the next request.
    if (rate <= 0) rate = rate_at(plan, i + 1, count);
    now += gap(rate, plan.burstiness, random);
    out[i] = now;
  }
  if (count == 0 || !plan.ramp_up.empty() || now == 0) return out;
  // The whole takes what the rate says, whatever the draw.
  const double factor = static_cast<double>(count) / plan.rate / now;
  for (double& time : out) time *= factor;
  return out;
}

}  // namespace m2::app::bench
