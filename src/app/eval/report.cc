#include "app/eval/report.h"

#include <fmt/format.h>

#include "app/eval/judge.h"

namespace m2::app::eval {
namespace {

constexpr size_t kMostDifferences = 20;  // shown whole
constexpr size_t kMostTextBytes = 300;

double percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100 * static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::string share(int64_t part, int64_t whole) {
  return whole > 0 ? fmt::format("{:.1f} %", percent(part, whole)) : "-";
}

SetOutcome all_of(const std::vector<SetOutcome>& sets) {
  SetOutcome out{"all", {}, 0};
  for (const SetOutcome& set : sets) {
    out.outcomes.insert(out.outcomes.end(), set.outcomes.begin(), set.outcomes.end());
    out.seconds += set.seconds;
  }
  return out;
}

std::string row(const SetOutcome& set) {
  const auto count = static_cast<int64_t>(set.outcomes.size());
  const Interval interval = wilson_interval(set.right(), count);
  const double speed =
      set.seconds > 0 ? static_cast<double>(set.completion_tokens()) / set.seconds : 0;
  return fmt::format("{:<16}{:>7}{:>7}{:>10}  {:>5.1f} - {:>5.1f}{:>10}{:>8}{:>10}{:>10.0f}{:>8}\n",
                     set.name, count, set.right(), share(set.right(), count), 100 * interval.low,
                     100 * interval.high, share(set.ended(), count), set.calls(),
                     share(set.valid_calls(), set.calls()), speed, set.failed());
}

bool differ(const Outcome& a, const Outcome& b) {
  return a.right != b.right || a.content != b.content || a.calls.size() != b.calls.size();
}

std::string shown(const Outcome& outcome) {
  std::string text = outcome.error.empty() ? outcome.content : outcome.error;
  for (const Json& call : outcome.calls)
    text += (text.empty() ? "" : " ") + to_text(call.value("function", Json()));
  if (text.size() > kMostTextBytes) text = text.substr(0, kMostTextBytes) + "...";
  return fmt::format("{:<6} {}", outcome.right ? "right" : "wrong", to_text(Json(text)));
}

}  // namespace

std::string table(const std::vector<SetOutcome>& sets) {
  std::string out = fmt::format("{:<16}{:>7}{:>7}{:>10}  {:>13}{:>10}{:>8}{:>10}{:>10}{:>8}\n",
                                "set", "items", "right", "accuracy", "95 % interval", "stopped",
                                "calls", "valid", "tokens/s", "failed");
  for (const SetOutcome& set : sets) out += row(set);
  if (sets.size() > 1) out += row(all_of(sets));
  return out;
}

std::string comparison(const std::vector<ItemSet>& items, const std::string& name_a,
                       const std::vector<SetOutcome>& a, const std::string& name_b,
                       const std::vector<SetOutcome>& b) {
  std::string out =
      fmt::format("A: {}\nB: {}\n{:<16}{:>7}{:>10}{:>10}{:>10}{:>10}{:>10}{:>14}\n", name_a, name_b,
                  "set", "items", "A", "B", "B - A", "only A", "only B", "texts differ");
  std::string details;
  size_t differences = 0;
  for (size_t s = 0; s < items.size(); ++s) {
    const auto count = static_cast<int64_t>(items[s].items.size());
    int64_t only_a = 0, only_b = 0, different = 0;
    for (size_t i = 0; i < items[s].items.size(); ++i) {
      const Outcome &one = a[s].outcomes[i], &other = b[s].outcomes[i];
      only_a += one.right && !other.right;
      only_b += other.right && !one.right;
      if (!differ(one, other)) continue;
      ++different;
      if (++differences <= kMostDifferences)
        details += fmt::format("\n{}: {}\n  A {}\n  B {}\n", items[s].name, items[s].items[i].id,
                               shown(one), shown(other));
    }
    out += fmt::format("{:<16}{:>7}{:>10}{:>10}{:>+10.1f}{:>10}{:>10}{:>14}\n", items[s].name,
                       count, share(a[s].right(), count), share(b[s].right(), count),
                       percent(b[s].right(), count) - percent(a[s].right(), count), only_a, only_b,
                       different);
  }
  if (differences > kMostDifferences)
    details +=
        fmt::format("\n... and {} more (--output has all)\n", differences - kMostDifferences);
  return out + details;
}

std::string answer_lines(const std::vector<ItemSet>& items, const std::vector<SetOutcome>& sets) {
  std::string out;
  for (size_t s = 0; s < items.size(); ++s) {
    for (size_t i = 0; i < items[s].items.size(); ++i) {
      const Outcome& outcome = sets[s].outcomes[i];
      Json line{{"set", items[s].name},
                {"id", items[s].items[i].id},
                {"right", outcome.right},
                {"content", outcome.content}};
      if (!outcome.calls.empty()) line["calls"] = outcome.calls;
      if (!outcome.error.empty()) line["error"] = outcome.error;
      out += to_text(line) + "\n";
    }
  }
  return out;
}

}  // namespace m2::app::eval
