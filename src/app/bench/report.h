#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/bench/metrics.h"
#include "base/json.h"

namespace m2::app::bench {

// Counters of speculative decoding, as the server's /metrics gives them; of a run: after - before.
struct Speculation {
  int64_t drafts = 0, draft_tokens = 0, accepted_tokens = 0;
  std::vector<int64_t> accepted_at;  // by position in the draft
};
// Reads them from Prometheus text; nothing if there are none.
std::optional<Speculation> read_speculation(std::string_view metrics);
Speculation difference(const Speculation& after, const Speculation& before);

// What the table and the JSON show beside the numbers.
struct ReportOptions {
  std::optional<int64_t> max_concurrency;
  double request_rate = 0;       // infinity: not shown
  std::vector<Metric> metrics;   // with a section of their own
  std::vector<double> percents;  // of each
};

// The table of contract.md 6.5, with its last newline.
std::string result_table(const Summary& summary, const ReportOptions& options,
                         const std::optional<Speculation>& speculation);

// Fields of the result JSON from `duration` on (contract.md 6.7).
struct JsonDetail {
  std::span<const RequestResult> results;
  bool detailed = false;   // every request's numbers and texts
  Json rps_change_events;  // null: no ramp-up
};
Json result_json(const Summary& summary, const ReportOptions& options, const JsonDetail& detail,
                 const std::optional<Speculation>& speculation);

// "99", "99.9".
std::string percent_text(double percent);

}  // namespace m2::app::bench
