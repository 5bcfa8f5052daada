#include "app/bench/metrics.h"

#include <algorithm>
#include <cmath>

#include "app/bench/statistics.h"

namespace m2::app::bench {
namespace {

constexpr std::string_view kNames[] = {"ttft", "tpot", "itl", "e2el"};

Distribution distribution(std::vector<double> values, std::span<const double> percents) {
  constexpr double kMilliseconds = 1000;
  Distribution out;
  out.mean = mean(values) * kMilliseconds;
  out.deviation = standard_deviation(values) * kMilliseconds;
  std::ranges::sort(values);
  out.median = median(values) * kMilliseconds;
  for (const double percent : percents)
    out.percentiles.push_back(percentile(values, percent) * kMilliseconds);
  return out;
}

// Seconds for each token after the first; 0 if there is none.
double time_per_token(const RequestResult& result) {
  if (result.output_tokens <= 1) return 0;
  return (result.latency - result.ttft) / static_cast<double>(result.output_tokens - 1);
}

bool meets(const RequestResult& result, const ServiceLevel& level) {
  const double most = level.second / 1000;
  switch (level.first) {
    case Metric::ttft:
      return result.ttft <= most;
    case Metric::tpot:
      return time_per_token(result) <= most;
    case Metric::e2el:
      return result.latency <= most;
    case Metric::itl:
      break;
  }
  return false;
}

// Peaks over seconds counted from the earliest start.
void find_peaks(std::span<const RequestResult> results, Summary& out) {
  double first = INFINITY, last = 0;
  for (const RequestResult& result : results) {
    if (!result.success) continue;
    first = std::min(first, result.start_time);
    last = std::max(last, result.start_time + result.latency);
  }
  if (!std::isfinite(first)) return;
  const auto seconds = static_cast<size_t>(std::ceil(last - first)) + 1;
  std::vector<double> events(seconds);
  std::vector<int64_t> live(seconds);
  const auto second_of = [&](double time) {
    return std::min(static_cast<size_t>(std::max(time - first, 0.0)), seconds - 1);
  };
  for (const RequestResult& result : results) {
    if (!result.success) continue;
    double time = result.start_time + result.ttft;
    ++events[second_of(time)];
    for (const double gap : result.itl) ++events[second_of(time += gap)];
    const size_t end = second_of(result.start_time + result.latency);
    for (size_t i = second_of(result.start_time); i <= end; ++i) ++live[i];
  }
  out.peak_output = *std::ranges::max_element(events);
  out.peak_concurrent = *std::ranges::max_element(live);
}

}  // namespace

std::optional<Metric> metric_named(std::string_view name) {
  for (const Metric metric : kMetrics) {
    if (metric_name(metric) == name) return metric;
  }
  return std::nullopt;
}

std::string_view metric_name(Metric metric) {
  return kNames[static_cast<size_t>(metric)];
}

const Distribution& Summary::of(Metric metric) const {
  const Distribution* all[] = {&ttft, &tpot, &itl, &e2el};
  return *all[static_cast<size_t>(metric)];
}

Summary summarise(std::span<const RequestResult> results, double duration,
                  std::span<const double> percents, std::span<const ServiceLevel> levels) {
  Summary out;
  out.duration = duration;
  std::vector<double> ttfts, tpots, itls, e2els;
  int64_t good = 0;
  for (const RequestResult& result : results) {
    out.output_lens.push_back(result.success ? result.output_tokens : 0);
    if (!result.success) {
      ++out.failed;
      continue;
    }
    ++out.completed;
    out.input_tokens += result.prompt_len;
    out.output_tokens += result.output_tokens;
    ttfts.push_back(result.ttft);
    if (result.output_tokens > 1) tpots.push_back(time_per_token(result));
    itls.insert(itls.end(), result.itl.begin(), result.itl.end());
    e2els.push_back(result.latency);
    good += std::ranges::all_of(levels, [&](const auto& level) { return meets(result, level); });
  }
  const auto rate = [&](int64_t count) {
    return duration > 0 ? static_cast<double>(count) / duration : 0;
  };
  out.request_throughput = rate(out.completed);
  out.output_throughput = rate(out.output_tokens);
  out.total_throughput = rate(out.input_tokens + out.output_tokens);
  if (!levels.empty()) out.goodput = rate(good);
  find_peaks(results, out);
  out.ttft = distribution(std::move(ttfts), percents);
  out.tpot = distribution(std::move(tpots), percents);
  out.itl = distribution(std::move(itls), percents);
  out.e2el = distribution(std::move(e2els), percents);
  return out;
}

}  // namespace m2::app::bench
