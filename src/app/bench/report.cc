#include "app/bench/report.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "text/python_json.h"

namespace m2::app::bench {
namespace {

constexpr size_t kWidth = 50;

// Python's "{s:{c}^{n=50}}": the odd character goes to the right.
std::string centred(std::string_view title, char fill) {
  const size_t rest = kWidth - std::min(kWidth, title.size());
  return std::string(rest / 2, fill) + std::string(title) + std::string(rest - rest / 2, fill) +
         '\n';
}

std::string row(std::string_view label, int64_t value) {
  return fmt::format("{:<40} {:<10}\n", label, value);
}
std::string row(std::string_view label, double value) {
  return fmt::format("{:<40} {:<10.2f}\n", label, value);
}

struct Section {
  std::string_view title, name;
};
constexpr Section kSections[] = {{"Time to First Token", "TTFT"},
                                 {"Time per Output Token (excl. 1st token)", "TPOT"},
                                 {"Inter-token Latency", "ITL"},
                                 {"End-to-end Latency", "E2EL"}};

std::string section(Metric metric, const Distribution& numbers, std::span<const double> percents) {
  const auto& [title, name] = kSections[static_cast<size_t>(metric)];
  std::string out = centred(title, '-');
  out += row(fmt::format("Mean {} (ms):", name), numbers.mean);
  out += row(fmt::format("Median {} (ms):", name), numbers.median);
  for (size_t i = 0; i < percents.size(); ++i)
    out +=
        row(fmt::format("P{} {} (ms):", percent_text(percents[i]), name), numbers.percentiles[i]);
  return out;
}

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

double acceptance_rate(const Speculation& s) {
  return 100 * share(s.accepted_tokens, s.draft_tokens);
}
double acceptance_length(const Speculation& s) {
  return 1 + share(s.accepted_tokens, s.drafts);
}

std::string speculation_section(const Speculation& s) {
  std::string out = centred("Speculative Decoding", '-');
  out += row("Acceptance rate (%):", acceptance_rate(s));
  out += row("Acceptance length:", acceptance_length(s));
  out += row("Drafts:", s.drafts);
  out += row("Draft tokens:", s.draft_tokens);
  out += row("Accepted tokens:", s.accepted_tokens);
  if (s.accepted_at.empty()) return out;
  out += "Per-position acceptance (%):\n";
  for (size_t i = 0; i < s.accepted_at.size(); ++i)
    out += row(fmt::format("  Position {}:", i), 100 * share(s.accepted_at[i], s.drafts));
  return out;
}

// The value after the labels of a sample line, or nothing.
std::optional<double> sample_value(std::string_view line) {
  const size_t blank = line.rfind(' ');
  if (blank == std::string_view::npos) return std::nullopt;
  double value;
  const auto [end, error] =
      std::from_chars(line.data() + blank + 1, line.data() + line.size(), value);
  return error == std::errc{} ? std::optional(value) : std::nullopt;
}

size_t position_of(std::string_view line) {
  constexpr std::string_view kLabel = "position=\"";
  constexpr size_t kMostPositions = 64;
  const size_t begin = line.find(kLabel);
  size_t position = kMostPositions;
  if (begin != std::string_view::npos)
    std::from_chars(line.data() + begin + kLabel.size(), line.data() + line.size(), position);
  return std::min(position, kMostPositions);
}

}  // namespace

std::string percent_text(double percent) {
  if (percent == std::floor(percent)) return std::to_string(static_cast<int64_t>(percent));
  return text::python_float(percent);
}

std::optional<Speculation> read_speculation(std::string_view metrics) {
  constexpr std::string_view kPrefix = "vllm:spec_decode_num_";
  Speculation out;
  bool found = false;
  for (size_t begin = 0; begin < metrics.size();) {
    const size_t end = std::min(metrics.find('\n', begin), metrics.size());
    std::string_view line = metrics.substr(begin, end - begin);
    begin = end + 1;
    if (!line.starts_with(kPrefix)) continue;
    const std::string_view rest = line.substr(kPrefix.size());
    const auto value = static_cast<int64_t>(sample_value(line).value_or(0));
    const auto is = [&](std::string_view name) {
      return rest.starts_with(name) && !rest.substr(name.size()).starts_with("_created") &&
             !rest.substr(name.size()).starts_with("_per_pos");
    };
    if (is("drafts")) {
      out.drafts += value;
      found = true;
    } else if (is("draft_tokens")) {
      out.draft_tokens += value;
    } else if (is("accepted_tokens_per_pos")) {
      const size_t position = position_of(line);
      if (position >= out.accepted_at.size()) out.accepted_at.resize(position + 1);
      out.accepted_at[position] += value;
    } else if (is("accepted_tokens")) {
      out.accepted_tokens += value;
    }
  }
  return found ? std::optional(out) : std::nullopt;
}

Speculation difference(const Speculation& after, const Speculation& before) {
  Speculation out = after;
  out.drafts -= before.drafts;
  out.draft_tokens -= before.draft_tokens;
  out.accepted_tokens -= before.accepted_tokens;
  for (size_t i = 0; i < std::min(out.accepted_at.size(), before.accepted_at.size()); ++i)
    out.accepted_at[i] -= before.accepted_at[i];
  return out;
}

std::string result_table(const Summary& summary, const ReportOptions& options,
                         const std::optional<Speculation>& speculation) {
  std::string out = centred(" Serving Benchmark Result ", '=');
  out += row("Successful requests:", summary.completed);
  out += row("Failed requests:", summary.failed);
  if (options.max_concurrency) out += row("Maximum request concurrency:", *options.max_concurrency);
  if (std::isfinite(options.request_rate))
    out += row("Request rate configured (RPS):", options.request_rate);
  out += row("Benchmark duration (s):", summary.duration);
  out += row("Total input tokens:", summary.input_tokens);
  out += row("Total generated tokens:", summary.output_tokens);
  out += row("Request throughput (req/s):", summary.request_throughput);
  if (summary.goodput) out += row("Request goodput (req/s):", *summary.goodput);
  out += row("Output token throughput (tok/s):", summary.output_throughput);
  out += row("Peak output token throughput (tok/s):", summary.peak_output);
  out += row("Peak concurrent requests:", static_cast<double>(summary.peak_concurrent));
  out += row("Total Token throughput (tok/s):", summary.total_throughput);
  for (const Metric metric : options.metrics)
    out += section(metric, summary.of(metric), options.percents);
  if (speculation) out += speculation_section(*speculation);
  return out + std::string(kWidth, '=') + '\n';
}

Json result_json(const Summary& summary, const ReportOptions& options, const JsonDetail& detail,
                 const std::optional<Speculation>& speculation) {
  Json out{{"duration", summary.duration},
           {"completed", summary.completed},
           {"failed", summary.failed},
           {"total_input_tokens", summary.input_tokens},
           {"total_output_tokens", summary.output_tokens},
           {"request_throughput", summary.request_throughput},
           {"request_goodput", summary.goodput ? Json(*summary.goodput) : Json()},
           {"output_throughput", summary.output_throughput},
           {"total_token_throughput", summary.total_throughput}};
  if (detail.detailed) {
    for (const char* name :
         {"input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors"})
      out[name] = Json::array();
    out["output_lens"] = summary.output_lens;
    for (const RequestResult& result : detail.results) {
      out["input_lens"].push_back(result.prompt_len);
      out["ttfts"].push_back(result.ttft);
      out["itls"].push_back(result.itl);
      out["start_times"].push_back(result.start_time);
      out["generated_texts"].push_back(result.text);
      out["errors"].push_back(result.error);
    }
  }
  out["max_output_tokens_per_s"] = summary.peak_output;
  out["max_concurrent_requests"] = summary.peak_concurrent;
  out["rtfx"] = 0.0;
  if (!detail.rps_change_events.is_null()) out["rps_change_events"] = detail.rps_change_events;
  if (speculation) {
    Json rates = Json::array();
    for (const int64_t accepted : speculation->accepted_at)
      rates.push_back(share(accepted, speculation->drafts));
    out["spec_decode_acceptance_rate"] = acceptance_rate(*speculation);
    out["spec_decode_acceptance_length"] = acceptance_length(*speculation);
    out["spec_decode_num_drafts"] = speculation->drafts;
    out["spec_decode_draft_tokens"] = speculation->draft_tokens;
    out["spec_decode_accepted_tokens"] = speculation->accepted_tokens;
    out["spec_decode_per_position_acceptance_rates"] = rates;
  }
  for (const Metric metric : options.metrics) {
    const Distribution& numbers = summary.of(metric);
    const std::string name(metric_name(metric));
    out["mean_" + name + "_ms"] = numbers.mean;
    out["median_" + name + "_ms"] = numbers.median;
    out["std_" + name + "_ms"] = numbers.deviation;
    for (size_t i = 0; i < options.percents.size(); ++i)
      out["p" + percent_text(options.percents[i]) + "_" + name + "_ms"] = numbers.percentiles[i];
  }
  return out;
}

}  // namespace m2::app::bench
