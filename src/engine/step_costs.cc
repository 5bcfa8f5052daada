#include "engine/step_costs.h"

#include <algorithm>

namespace m2::engine {
namespace {

constexpr double kKept = 0.98;    // of what is known, at each step
constexpr double kOutlier = 1.5;  // times what was expected: something else took that long
constexpr double kApart = 0.05;   // rows², below which sizes are too much alike to tell a slope

}  // namespace

double StepCosts::slope() const {
  return steps_ > 0 ? relative_slope_ * times_ / steps_ : 0;
}

void StepCosts::note(int64_t rows, Nanos took) {
  if (rows <= 0 || took <= 0) return;
  const auto x = static_cast<double>(rows);
  double y = seconds(took);
  if (steps_ > 1) {
    const double expected = times_ / steps_ + slope() * (x - rows_ / steps_);
    if (expected > 0) y = std::min(y, kOutlier * expected);
  }
  for (double* sum : {&steps_, &rows_, &times_, &rows_rows_, &rows_times_}) *sum *= kKept;
  steps_ += 1;
  rows_ += x;
  times_ += y;
  rows_rows_ += x * x;
  rows_times_ += x * y;
  const double mean_rows = rows_ / steps_, mean_time = times_ / steps_;
  const double apart = rows_rows_ / steps_ - mean_rows * mean_rows;
  if (apart < kApart) return;
  const double slope = (rows_times_ / steps_ - mean_rows * mean_time) / apart;
  // Between a step that costs the same for any number of rows and one that is its rows alone.
  relative_slope_ = std::clamp(slope / mean_time, 0.0, 1 / mean_rows);
}

double StepCosts::of_another_row(double rows) const {
  if (steps_ <= 0) return 0;
  const double mean_time = times_ / steps_;
  const double here = mean_time + slope() * (rows - rows_ / steps_);
  return here > 0 ? slope() / here : 1;
}

}  // namespace m2::engine
