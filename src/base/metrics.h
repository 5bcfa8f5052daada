#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace m2 {

// Prometheus metrics, text format 0.0.4. Series are declared at start-up, with labels from fixed
// sets: nothing a client sends may add a series. Observing is lock-free and thread-safe.

class Counter {
 public:
  void add(double by = 1) {
    double old = value_.load(std::memory_order_relaxed);
    while (!value_.compare_exchange_weak(old, old + by, std::memory_order_relaxed)) {
    }
  }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Gauge {
 public:
  void set(double value) { value_.store(value, std::memory_order_relaxed); }
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

class Histogram {
 public:
  // `bounds` are the inclusive upper bounds, ascending, without +Inf.
  explicit Histogram(std::vector<double> bounds);
  void observe(double value, uint64_t times = 1);

  const std::vector<double>& bounds() const { return bounds_; }
  uint64_t count_in_bucket(size_t i) const { return counts_[i].load(std::memory_order_relaxed); }
  double sum() const { return sum_.value(); }

 private:
  std::vector<double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;  // one per bound, then +Inf; not cumulative
  Counter sum_;
};

class Metrics {
 public:
  // `labels` is the text between the braces, e.g. `model_name="m",engine="0"`; may be empty.
  // References stay valid for the life of the registry. Registering the same name and labels
  // twice is a bug.
  Counter& counter(const std::string& name, const std::string& help, const std::string& labels);
  Gauge& gauge(const std::string& name, const std::string& help, const std::string& labels);
  Histogram& histogram(const std::string& name, const std::string& help, const std::string& labels,
                       std::vector<double> bounds);

  // The whole registry as Prometheus text. Thread-safe.
  std::string render() const;

 private:
  struct Series {
    std::string labels;
    std::unique_ptr<Counter> counter;
    std::unique_ptr<Gauge> gauge;
    std::unique_ptr<Histogram> histogram;
  };
  struct Family {
    std::string name, help, type;
    std::vector<Series> series;
  };
  Series& add_series(const std::string& name, const std::string& help, const std::string& type,
                     const std::string& labels);

  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Family>> families_;
};

// Escapes a label's value: backslash, double quote and newline.
std::string label_value(const std::string& text);

}  // namespace m2
