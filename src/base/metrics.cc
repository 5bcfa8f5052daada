#include "base/metrics.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace m2 {
namespace {

std::string number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return fmt::format("{:.1f}", value);
  return fmt::format("{}", value);
}

std::string braces(const std::string& labels, const std::string& extra = {}) {
  if (labels.empty() && extra.empty()) return {};
  return "{" + labels + (labels.empty() || extra.empty() ? "" : ",") + extra + "}";
}

}  // namespace

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {
  M2_CHECK(std::is_sorted(bounds_.begin(), bounds_.end()));
}

void Histogram::observe(double value, uint64_t times) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(times, std::memory_order_relaxed);
  sum_.add(value * static_cast<double>(times));
}

Metrics::Series& Metrics::add_series(const std::string& name, const std::string& help,
                                     const std::string& type, const std::string& labels) {
  std::lock_guard lock(mutex_);
  auto family = std::find_if(families_.begin(), families_.end(),
                             [&](const auto& f) { return f->name == name; });
  if (family == families_.end()) {
    families_.push_back(std::make_unique<Family>(Family{name, help, type, {}}));
    family = families_.end() - 1;
    (*family)->series.reserve(64);
  }
  M2_CHECK((*family)->type == type, "metric {} registered with two types", name);
  for (const Series& series : (*family)->series)
    M2_CHECK(series.labels != labels, "metric {}{} registered twice", name, braces(labels));
  (*family)->series.push_back(Series{labels, nullptr, nullptr, nullptr});
  return (*family)->series.back();
}

Counter& Metrics::counter(const std::string& name, const std::string& help,
                          const std::string& labels) {
  Series& series = add_series(name, help, "counter", labels);
  series.counter = std::make_unique<Counter>();
  return *series.counter;
}

Gauge& Metrics::gauge(const std::string& name, const std::string& help, const std::string& labels) {
  Series& series = add_series(name, help, "gauge", labels);
  series.gauge = std::make_unique<Gauge>();
  return *series.gauge;
}

Histogram& Metrics::histogram(const std::string& name, const std::string& help,
                              const std::string& labels, std::vector<double> bounds) {
  Series& series = add_series(name, help, "histogram", labels);
  series.histogram = std::make_unique<Histogram>(std::move(bounds));
  return *series.histogram;
}

std::string Metrics::render() const {
  std::lock_guard lock(mutex_);
  std::string out;
  for (const auto& family : families_) {
    out += "# HELP " + family->name + " " + family->help + "\n";
    out += "# TYPE " + family->name + " " + family->type + "\n";
    for (const Series& series : family->series) {
      if (series.counter)
        out += family->name + braces(series.labels) + " " + number(series.counter->value()) + "\n";
      if (series.gauge)
        out += family->name + braces(series.labels) + " " + number(series.gauge->value()) + "\n";
      if (!series.histogram) continue;
      const Histogram& histogram = *series.histogram;
      uint64_t cumulative = 0;
      for (size_t i = 0; i <= histogram.bounds().size(); ++i) {
        cumulative += histogram.count_in_bucket(i);
        const std::string bound =
            i < histogram.bounds().size() ? number(histogram.bounds()[i]) : "+Inf";
        out += family->name + "_bucket" + braces(series.labels, "le=\"" + bound + "\"") + " " +
               number(static_cast<double>(cumulative)) + "\n";
      }
      out += family->name + "_sum" + braces(series.labels) + " " + number(histogram.sum()) + "\n";
      out += family->name + "_count" + braces(series.labels) + " " +
             number(static_cast<double>(cumulative)) + "\n";
    }
  }
  return out;
}

std::string label_value(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace m2
