// Covers: server/doorbell
#include "server/doorbell.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>
#include <vector>

namespace m2::server {
namespace {

bool rings(const Doorbell& bell, size_t listener, int wait_ms = 0) {
  pollfd watched{bell.ear(listener), POLLIN, 0};
  return ::poll(&watched, 1, wait_ms) == 1;
}

TEST(Doorbell, EachListenerHearsEachRingUntilItIsHushed) {
  const auto bell = Doorbell::make(3);
  ASSERT_NE(bell, nullptr);
  for (size_t first = 0; first < 3; ++first) {
    for (size_t i = 0; i < 3; ++i) EXPECT_FALSE(rings(*bell, i));
    bell->ring(first);
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(rings(*bell, i));
    bell->hush(first);
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(rings(*bell, i), i != first);
    bell->ring(2 - first);  // heard by who is hushed, and once by who is not
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(rings(*bell, i));
      bell->hush(i);
    }
  }
}

TEST(Doorbell, NoRingIsMissedBetweenAHushAndTheNextWait) {
  constexpr int kRings = 20'000;
  const auto bell = Doorbell::make(2);
  std::atomic<int> rung{0};
  std::vector<std::jthread> listeners;
  for (size_t i = 0; i < 2; ++i) {
    listeners.emplace_back([&, i] {
      for (int seen = 0; seen < kRings;) {
        ASSERT_TRUE(rings(*bell, i, 10'000)) << "after " << seen << " of " << rung;
        bell->hush(i);
        seen = rung;
      }
    });
  }
  for (int i = 0; i < kRings; ++i) {
    ++rung;
    bell->ring(static_cast<size_t>(i % 2));
  }
}

TEST(Doorbell, IsNoneWhereNoDescriptorsAreLeft) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few = before;
  for (few.rlim_cur = 0; few.rlim_cur < 64; ++few.rlim_cur) {
    ::setrlimit(RLIMIT_NOFILE, &few);
    if (Doorbell::make(2)) break;
  }
  ::setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_GE(few.rlim_cur, 4u);   // it needs two descriptors a listener
  EXPECT_LT(few.rlim_cur, 64u);  // and keeps none of those it could not use
}

}  // namespace
}  // namespace m2::server
