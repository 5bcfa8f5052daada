#include "app/bench/statistics.h"

#include <cmath>
#include <vector>

namespace m2::app::bench {
namespace {

// numpy/core/src/umath/loops_utils: eight partial sums up to 128 values, halves above.
double pairwise(const double* values, size_t count) {
  constexpr size_t kLanes = 8, kBlock = 128;
  if (count < kLanes) {
    double total = -0.0;
    for (size_t i = 0; i < count; ++i) total += values[i];
    return total;
  }
  if (count <= kBlock) {
    double lane[kLanes];
    for (size_t j = 0; j < kLanes; ++j) lane[j] = values[j];
    size_t i = kLanes;
    for (; i + kLanes <= count; i += kLanes) {
      for (size_t j = 0; j < kLanes; ++j) lane[j] += values[i + j];
    }
    double total =
        ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    for (; i < count; ++i) total += values[i];
    return total;
  }
  const size_t half = count / 2 / kLanes * kLanes;
  return pairwise(values, half) + pairwise(values + half, count - half);
}

}  // namespace

double sum(std::span<const double> values) {
  return values.empty() ? 0 : pairwise(values.data(), values.size());
}

double mean(std::span<const double> values) {
  return values.empty() ? 0 : sum(values) / static_cast<double>(values.size());
}

double standard_deviation(std::span<const double> values) {
  if (values.empty()) return 0;
  const double centre = mean(values);
  std::vector<double> squares;
  squares.reserve(values.size());
  for (const double value : values) squares.push_back((value - centre) * (value - centre));
  return std::sqrt(mean(squares));
}

double percentile(std::span<const double> sorted, double percent) {
  if (sorted.empty()) return 0;
  const double place = static_cast<double>(sorted.size() - 1) * (percent / 100);
  const double floor = std::floor(place);
  const auto below = static_cast<size_t>(floor);
  if (below + 1 >= sorted.size()) return sorted.back();
  const double low = sorted[below], high = sorted[below + 1];
  const double t = place - floor;
  // numpy's _lerp: from the nearer end.
  return t >= 0.5 ? high - (high - low) * (1 - t) : low + (high - low) * t;
}

double median(std::span<const double> sorted) {
  if (sorted.empty()) return 0;
  const size_t half = sorted.size() / 2;
  return sorted.size() % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

}  // namespace m2::app::bench
