#include "base/inbox.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace m2 {
namespace {

TEST(Inbox, GivesWhatWasPutInInOrder) {
  Inbox<std::unique_ptr<int>> inbox;
  std::vector<std::unique_ptr<int>> out;
  out.push_back(std::make_unique<int>(0));
  for (int i = 1; i <= 3; ++i) inbox.put(std::make_unique<int>(i));
  inbox.drain(out, 0);
  ASSERT_EQ(out.size(), 4u);
  for (int i = 0; i <= 3; ++i) EXPECT_EQ(*out[static_cast<size_t>(i)], i);
  inbox.drain(out, 0);
  EXPECT_EQ(out.size(), 4u) << "given once";
}

TEST(Inbox, WakesItsReader) {
  Inbox<int> inbox;
  std::jthread writer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    inbox.put(5);
  });
  std::vector<int> out;
  inbox.drain(out, 60 * kSecond);
  EXPECT_EQ(out, std::vector<int>{5});
}

TEST(Inbox, WaitsNoLongerThanItIsAskedTo) {
  Inbox<int> inbox;
  std::vector<int> out;
  const SteadyClock clock;
  const Nanos start = clock.now();
  inbox.drain(out, kSecond / 50);
  EXPECT_TRUE(out.empty());
  EXPECT_GE(clock.now() - start, kSecond / 50);
}

TEST(Inbox, LosesNothingOfManyWriters) {
  constexpr int kWriters = 4, kEach = 5000;
  Inbox<int> inbox;
  std::vector<std::jthread> writers;
  for (int w = 0; w < kWriters; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < kEach; ++i) inbox.put(w * kEach + i);
    });
  std::vector<int> out, next(kWriters, 0);
  while (out.size() < kWriters * kEach) inbox.drain(out, kSecond);
  for (const int item : out) {
    int& expected = next[static_cast<size_t>(item / kEach)];
    ASSERT_EQ(item % kEach, expected++) << "each writer's come in order";
  }
}

}  // namespace
}  // namespace m2
