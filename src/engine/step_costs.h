#pragma once

#include <cstdint>

#include "base/clock.h"

namespace m2::engine {

// What steps of decoding take, as a line over their rows that follows the last hundred or so:
// contexts grow, and the load changes. One thread.
class StepCosts {
 public:
  // A step of so many rows, none of a prompt, took so long. Nothing if it took no time.
  void note(int64_t rows, Nanos took);

  // What another row adds to a step of `rows`, in shares of that step: 0 until it is known.
  double of_another_row(double rows) const;

 private:
  double slope() const;

  // Weighted sums over steps: of ones, rows, times, and their products.
  double steps_ = 0, rows_ = 0, times_ = 0, rows_rows_ = 0, rows_times_ = 0;
  double relative_slope_ = 0;  // of the mean time; as of when steps of several sizes were seen
};

}  // namespace m2::engine
