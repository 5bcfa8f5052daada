#include "app/start_watch.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <mutex>

#include "base/log.h"

namespace m2::app {
namespace {

// False if asked to stop before.
bool sleep_whole(const std::stop_token& stop, Nanos time) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any woken;
  woken.wait_for(lock, stop, std::chrono::nanoseconds(time), [] { return false; });
  return !stop.stop_requested();
}

}  // namespace

std::string who_is_late(const std::vector<StartingRank>& ranks) {
  std::vector<int64_t> begun;
  for (const StartingRank& rank : ranks) begun.push_back(rank.progress->begun());
  const auto [least, most] = std::ranges::minmax(begun);
  if (most == 0)
    return "none of this process's ranks has begun a collective (what another process is doing "
           "stands in its own log)";
  if (least == most)
    return fmt::format("all of this process's ranks have begun {} collectives, the last of them {}",
                       most, ranks.front().progress->last());
  std::vector<std::string> late, waiting;
  const char* last = "";
  for (size_t i = 0; i < ranks.size(); ++i) {
    const bool is_late = begun[i] == least;
    if (is_late) last = ranks[i].progress->last();
    (is_late ? late : waiting)
        .push_back(fmt::format("{} (cuda:{})", ranks[i].rank, ranks[i].device.index));
  }
  return fmt::format(
      "rank {} did not come: {} collectives begun, the last of them {}, and {} by rank {}",
      fmt::join(late, ", "), least, last, most, fmt::join(waiting, ", "));
}

StartWatch::StartWatch(std::string doing, std::vector<StartingRank> ranks, Limits limits,
                       std::function<void(const Error&)> give_up)
    : doing_(std::move(doing)),
      ranks_(std::move(ranks)),
      limits_(limits),
      give_up_(std::move(give_up)),
      thread_([this](const std::stop_token& stop) { watch(stop); }) {}

void StartWatch::watch(const std::stop_token& stop) {
  if (!sleep_whole(stop, limits_.patience)) return;
  const Error why = fail(
      Code::unavailable,
      "the ranks did not {} within {:g} s: {}. `m2 doctor` checks the GPUs and the links between "
      "them; --enforce-eager leaves out recorded graphs, --disable-custom-all-reduce sums through "
      "peer memory, NCCL_DEBUG=INFO lets NCCL speak",
      doing_, seconds(limits_.patience), who_is_late(ranks_));
  give_up_(why);
  if (!sleep_whole(stop, limits_.farewell)) return;
  log_error("{}; the start does not end, so the process does", why.text);
  std::_Exit(1);
}

}  // namespace m2::app
