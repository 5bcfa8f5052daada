#pragma once

#include <span>

// numpy's mean, std, median and percentile of float64 arrays, to the last bit: sums are pairwise in
// numpy's order, percentiles are its `linear` method. Of an empty array each is 0, as benchmark
// clients print it.

namespace m2::app::bench {

double sum(std::span<const double> values);
double mean(std::span<const double> values);
double standard_deviation(std::span<const double> values);  // of the population

// `sorted` is ascending; `percent` is in [0, 100].
double percentile(std::span<const double> sorted, double percent);
double median(std::span<const double> sorted);

}  // namespace m2::app::bench
