#include "app/bench/plot.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

namespace m2::app::bench {
namespace {

constexpr double kWidth = 440, kHeight = 260, kLeft = 56, kBottom = 36, kTop = 28, kRight = 12;
constexpr size_t kBins = 40;

using Points = std::vector<std::pair<double, double>>;  // x, height of its bar

struct Series {
  std::string title, unit;
  Points bars;
  double bar_width = 1;
};

// Counts in bins of equal width from the least to the 99.9th of a hundred: a few far ones would
// flatten the rest.
Series histogram(std::string title, std::vector<double> seconds) {
  Series out{std::move(title), "ms", {}, 1};
  if (seconds.empty()) return out;
  std::ranges::sort(seconds);
  const double low = seconds.front() * 1000;
  const double last =
      seconds[static_cast<size_t>(static_cast<double>(seconds.size() - 1) * 0.999)] * 1000;
  out.bar_width = std::max((last - low) / static_cast<double>(kBins), 1e-6);
  for (size_t i = 0; i < kBins; ++i)
    out.bars.emplace_back(low + out.bar_width * static_cast<double>(i), 0);
  for (const double value : seconds) {
    const auto bin = static_cast<size_t>((value * 1000 - low) / out.bar_width);
    if (bin <= kBins) ++out.bars[std::min(bin, kBins - 1)].second;
  }
  return out;
}

Series events_per_second(std::span<const RequestResult> results) {
  Series out{"Output events per second", "s", {}, 1};
  double first = INFINITY;
  for (const RequestResult& result : results) {
    if (result.success) first = std::min(first, result.start_time);
  }
  const auto add = [&](double time) {
    const auto second = static_cast<size_t>(std::max(time - first, 0.0));
    while (out.bars.size() <= second)
      out.bars.emplace_back(static_cast<double>(out.bars.size()), 0);
    ++out.bars[second].second;
  };
  for (const RequestResult& result : results) {
    if (!result.success) continue;
    double time = result.start_time + result.ttft;
    add(time);
    for (const double gap : result.itl) add(time += gap);
  }
  return out;
}

std::array<Series, 4> all_series(std::span<const RequestResult> results) {
  std::vector<double> ttfts, tpots, itls;
  for (const RequestResult& result : results) {
    if (!result.success) continue;
    ttfts.push_back(result.ttft);
    if (result.output_tokens > 1)
      tpots.push_back((result.latency - result.ttft) /
                      static_cast<double>(result.output_tokens - 1));
    itls.insert(itls.end(), result.itl.begin(), result.itl.end());
  }
  return {histogram("Time to first token", std::move(ttfts)),
          histogram("Time per output token", std::move(tpots)),
          histogram("Inter-token latency", std::move(itls)), events_per_second(results)};
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     text);
}

std::string panel(const Series& series, double x, double y) {
  std::string out = fmt::format("<g transform=\"translate({:.0f},{:.0f})\">\n", x, y);
  const double width = kWidth - kLeft - kRight, height = kHeight - kTop - kBottom;
  const double base = kTop + height;
  out += label(kWidth / 2, 16, "middle", series.title);
  out +=
      fmt::format("<path d=\"M{0:.1f} {1:.1f}V{2:.1f}H{3:.1f}\" fill=\"none\" stroke=\"#444\"/>\n",
                  kLeft, kTop, base, kLeft + width);
  double most = 0;
  for (const auto& [at, value] : series.bars) most = std::max(most, value);
  if (most == 0) return out + label(kWidth / 2, kTop + height / 2, "middle", "no data") + "</g>\n";
  const double low = series.bars.front().first;
  const double high = series.bars.back().first + series.bar_width;
  const double scale = width / (high - low);
  for (const auto& [at, value] : series.bars) {
    if (value == 0) continue;
    const double tall = value / most * height;
    out += fmt::format(
        "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"#4878a8\"/>\n",
        kLeft + (at - low) * scale, base - tall, std::max(series.bar_width * scale - 0.5, 0.5),
        tall);
  }
  out += label(kLeft - 6, kTop + 10, "end", fmt::format("{:.0f}", most));
  out += label(kLeft, base + 16, "middle", fmt::format("{:.3g}", low));
  out += label(kLeft + width, base + 16, "end", fmt::format("{:.3g} {}", high, series.unit));
  return out + "</g>\n";
}

bool has_gnuplot() {
  return std::system("command -v gnuplot > /dev/null 2>&1") == 0;
}

// The same four panels, by gnuplot; its commands and data go through a pipe.
Result<void> draw_png(const std::string& file, std::span<const RequestResult> results) {
  if (file.find('\'') != std::string::npos)
    return fail(Code::invalid_argument, "--plot {}: a quote in the name", file);
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen("gnuplot", "w"), pclose);
  if (!pipe) return fail(Code::unavailable, "cannot start gnuplot");
  std::string script = fmt::format(
      "set terminal png size 960,600\nset output '{}'\nset multiplot layout 2,2\n"
      "set style fill solid\nunset key\n",
      file);
  for (const Series& series : all_series(results)) {
    script += fmt::format("set title '{}'\nset xlabel '{}'\nplot '-' using 1:2 with boxes\n",
                          series.title, series.unit);
    if (series.bars.empty()) script += "0 0\n";
    for (const auto& [at, value] : series.bars) script += fmt::format("{} {}\n", at, value);
    script += "e\n";
  }
  if (std::fputs(script.c_str(), pipe.get()) < 0)
    return fail(Code::unavailable, "gnuplot does not take its input");
  return {};
}

}  // namespace

Result<void> check_plot_file(const std::string& file) {
  if (file.empty() || file.ends_with(".svg")) return {};
  if (!file.ends_with(".png"))
    return fail(Code::invalid_argument, "--plot {}: the name must end in .svg or .png", file);
  if (!has_gnuplot())
    return fail(Code::unavailable,
                "--plot {}: PNG is drawn by gnuplot, which is not installed; use a name in .svg",
                file);
  return {};
}

std::string svg_of(std::span<const RequestResult> results) {
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
      "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      2 * kWidth, 2 * kHeight);
  const std::array<Series, 4> series = all_series(results);
  for (size_t i = 0; i < series.size(); ++i)
    out +=
        panel(series[i], static_cast<double>(i % 2) * kWidth, static_cast<double>(i / 2) * kHeight);
  return out + "</svg>\n";
}

Result<void> draw_plot(const std::string& file, std::span<const RequestResult> results) {
  if (file.ends_with(".png")) return draw_png(file, results);
  std::ofstream out(file, std::ios::trunc);
  out << svg_of(results);
  out.flush();
  if (!out) return fail(Code::unavailable, "cannot write {}", file);
  return {};
}

}  // namespace m2::app::bench
