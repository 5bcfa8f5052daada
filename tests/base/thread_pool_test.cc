#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <set>
#include <thread>
#include <vector>

namespace m2 {
namespace {

TEST(ThreadPoolTest, RunsOnceOnEveryThread) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
      pool.run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
      for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
    }
  }
}

TEST(ThreadPoolTest, TheCallerIsThreadZero) {
  ThreadPool pool(3);
  std::vector<std::thread::id> ids(3);
  pool.run([&](int thread) { ids[static_cast<size_t>(thread)] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_EQ(std::set<std::thread::id>(ids.begin(), ids.end()).size(), 3u);
}

TEST(ThreadPoolTest, ForEachVisitsEveryIndexOnce) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      pool.for_each(count, [&](int64_t i) { ++visits[static_cast<size_t>(i)]; });
      for (const auto& visit : visits) ASSERT_EQ(visit.load(), 1);
    }
    pool.for_each(-1, [](int64_t) { FAIL(); });
  }
}

// Each thread walks up its share; a thread that is done walks down another's.
TEST(ThreadPoolTest, ForEachGivesConsecutiveSharesAndStealsTheirEnds) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::thread::id> ran(100);
    std::vector<int> order(100);
    std::atomic<int> next{0};
    // Index 0 begins first and lasts until all others are done: the other thread must steal 49..1.
    std::atomic<bool> begun{false};
    pool.for_each(100, [&](int64_t i) {
      if (i == 0) begun = true;
      while (!begun) std::this_thread::yield();
      ran[static_cast<size_t>(i)] = std::this_thread::get_id();
      order[static_cast<size_t>(i)] = next++;
      while (i == 0 && next < 100) std::this_thread::yield();
    });
    for (size_t i = 1; i < 100; ++i) ASSERT_NE(ran[i], ran[0]) << i;
    for (size_t i = 51; i < 100; ++i) ASSERT_GT(order[i], order[i - 1]) << i;
    for (size_t i = 2; i < 50; ++i) ASSERT_LT(order[i], order[i - 1]) << i;
  }
}

// What a job wrote, plain memory, is seen by the caller afterwards and by the next job.
TEST(ThreadPoolTest, JobsSeeWhatEarlierOnesWrote) {
  ThreadPool pool(3);
  std::vector<int> now(300, 0), next(300, 0);
  for (int round = 0; round < 100; ++round) {
    // Each element follows one that another thread may have written in the round before.
    pool.for_each(300, [&](int64_t i) {
      next[static_cast<size_t>(i)] = now[static_cast<size_t>((i + 149) % 300)] + 1;
    });
    std::swap(now, next);
  }
  for (const int value : now) ASSERT_EQ(value, 100);
}

TEST(ThreadPoolTest, BarrierSeparatesPhases) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    std::vector<int> first(static_cast<size_t>(threads)), sums(static_cast<size_t>(threads));
    for (int round = 1; round <= 50; ++round) {
      pool.run([&](int thread) {
        first[static_cast<size_t>(thread)] = round;
        pool.barrier();
        int sum = 0;
        for (const int value : first) sum += value;
        sums[static_cast<size_t>(thread)] = sum;
        pool.barrier();
      });
      for (const int sum : sums) ASSERT_EQ(sum, round * threads);
    }
  }
}

// Long enough pauses that the threads have gone to sleep in between.
TEST(ThreadPoolTest, WakesSleepingThreads) {
  ThreadPool pool(3);
  std::atomic<int> calls{0};
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    pool.run([&](int) { ++calls; });
  }
  EXPECT_EQ(calls.load(), 15);
}

TEST(ThreadPoolTest, ZeroMeansEveryUsableCpu) {
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_EQ(ThreadPool(0).size(), usable_cpus());
}

}  // namespace
}  // namespace m2
