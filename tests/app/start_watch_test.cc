#include "app/start_watch.h"

#include <gtest/gtest.h>

#include <array>
#include <latch>
#include <string>

#include "base/log.h"
#include "parallel/shared_comm.h"

namespace m2::app {
namespace {

constexpr Nanos kMillisecond = kSecond / 1000;

// Three ranks that sum among themselves; the last comes when told.
class Ranks {
 public:
  Ranks() {
    auto made = parallel::make_thread_comms(3);
    for (size_t r = 0; r < made.size(); ++r)
      comms_[r] = parallel::count_collectives(std::move(made[r]), progress_[r]);
    for (size_t r = 0; r < comms_.size(); ++r)
      threads_[r] = std::jthread([this, r] {
        sum(r);
        if (r == 2) last_may_go_on_.wait();
        sum(r);
      });
  }

  std::vector<StartingRank> starting() const {
    std::vector<StartingRank> out;
    for (int r = 0; r < 3; ++r)
      out.push_back({4 + r, {DeviceKind::cuda, r}, &progress_[static_cast<size_t>(r)]});
    return out;
  }
  void abort(const Error& why) {
    for (auto& comm : comms_) comm->abort(why);
  }
  void let_last_go_on() { last_may_go_on_.count_down(); }
  // When all have begun what they will.
  void settle() const {
    while (progress_[0].begun() < 2 || progress_[1].begun() < 2 || progress_[2].begun() < 1)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void join(size_t r) { threads_[r].join(); }
  Result<void> status(size_t r) const { return comms_[r]->status(); }

 private:
  void sum(size_t r) {
    float number = 1;
    comms_[r]->all_reduce(Exec{}, Tensor(&number, DType::f32, {1}));
  }

  std::array<parallel::Progress, 3> progress_;
  std::array<std::unique_ptr<parallel::Comm>, 3> comms_;
  std::latch last_may_go_on_{1};
  std::array<std::jthread, 3> threads_;
};

// A rank that never answers: the others are freed, and hear which one it is.
TEST(StartWatch, NamesTheRankThatDoesNotCome) {
  Ranks ranks;
  ranks.settle();
  const StartWatch watch("finish their first steps", ranks.starting(),
                         {.patience = 50 * kMillisecond, .farewell = 100 * kSecond},
                         [&](const Error& why) { ranks.abort(why); });
  for (const size_t r : {0, 1}) {
    ranks.join(r);
    const Error error = ranks.status(r).error();
    EXPECT_EQ(error.code, Code::unavailable);
    EXPECT_TRUE(error.text.starts_with(
        "the ranks did not finish their first steps within 0.05 s: rank 6 (cuda:2) did not come: "
        "1 collectives begun, the last of them all_reduce, and 2 by rank 4 (cuda:0), 5 (cuda:1). "))
        << error.text;
    for (const char* advice : {"m2 doctor", "--enforce-eager", "--disable-custom-all-reduce"})
      EXPECT_NE(error.text.find(advice), std::string::npos) << advice;
  }
  ranks.let_last_go_on();
}

TEST(StartWatch, SaysIfAllRanksCameAndTheirDevicesDoNotGoOn) {
  Ranks ranks;
  ranks.let_last_go_on();
  for (const size_t r : {0, 1, 2}) ranks.join(r);
  EXPECT_EQ(who_is_late(ranks.starting()),
            "all of this process's ranks have begun 2 collectives, the last of them all_reduce");
}

TEST(StartWatch, SaysIfNobodyHasBegun) {
  const parallel::Progress first, second;
  EXPECT_EQ(who_is_late({{0, {DeviceKind::cuda, 0}, &first}, {1, {DeviceKind::cuda, 1}, &second}}),
            "none of this process's ranks has begun a collective (what another process is doing "
            "stands in its own log)");
}

TEST(StartWatch, LeavesAStartInPeace) {
  bool given_up = false;
  {
    const parallel::Progress progress;
    const StartWatch watch("find each other", {{0, {DeviceKind::cuda, 0}, &progress}},
                           {.patience = 100 * kSecond}, [&](const Error&) { given_up = true; });
  }
  EXPECT_FALSE(given_up);
}

// Whoever hangs in a driver never comes back, and cannot be waited for.
TEST(StartWatchDeathTest, EndsAProcessWhoseRankHangs) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto hang = [] {
    start_logging("info", "test");
    Ranks ranks;
    ranks.settle();
    const StartWatch watch("find each other", ranks.starting(),
                           {.patience = 20 * kMillisecond, .farewell = 20 * kMillisecond},
                           [&](const Error& why) { ranks.abort(why); });
    ranks.join(2);
  };
  EXPECT_EXIT(hang(), testing::ExitedWithCode(1),
              "did not find each other within 0.02 s: rank 6 .* so the process does");
}

}  // namespace
}  // namespace m2::app
