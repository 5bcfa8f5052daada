#include "base/metrics.h"

#include <gtest/gtest.h>

#include <thread>

namespace m2 {
namespace {

TEST(Metrics, RendersThePrometheusTextFormat) {
  Metrics metrics;
  metrics.counter("m2_requests_total", "Requests.", "route=\"chat\"").add(2);
  metrics.counter("m2_requests_total", "Requests.", "route=\"health\"").add();
  metrics.gauge("m2_usage", "Share.", "").set(0.25);
  Histogram& histogram = metrics.histogram("m2_seconds", "Time.", "", {0.5, 1});
  for (const double value : {0.1, 0.5, 0.7, 3.0}) histogram.observe(value);
  EXPECT_EQ(metrics.render(),
            "# HELP m2_requests_total Requests.\n"
            "# TYPE m2_requests_total counter\n"
            "m2_requests_total{route=\"chat\"} 2.0\n"
            "m2_requests_total{route=\"health\"} 1.0\n"
            "# HELP m2_usage Share.\n"
            "# TYPE m2_usage gauge\n"
            "m2_usage 0.25\n"
            "# HELP m2_seconds Time.\n"
            "# TYPE m2_seconds histogram\n"
            "m2_seconds_bucket{le=\"0.5\"} 2.0\n"
            "m2_seconds_bucket{le=\"1.0\"} 3.0\n"
            "m2_seconds_bucket{le=\"+Inf\"} 4.0\n"
            "m2_seconds_sum 4.3\n"
            "m2_seconds_count 4.0\n");
}

TEST(Metrics, CountsFromManyThreads) {
  Metrics metrics;
  Counter& counter = metrics.counter("c", "", "");
  Histogram& histogram = metrics.histogram("h", "", "", {1});
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) {
        counter.add();
        histogram.observe(0.5);
      }
    });
  }
  threads.clear();
  EXPECT_EQ(counter.value(), 40'000);
  EXPECT_EQ(histogram.count_in_bucket(0), 40'000u);
}

TEST(Metrics, EscapesLabels) {
  EXPECT_EQ(label_value("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
}

}  // namespace
}  // namespace m2
