#include "base/bounded_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace m2 {
namespace {

TEST(BoundedQueue, RefusesWhatIsBeyondItsCapacity) {
  BoundedQueue<std::unique_ptr<int>> queue(2);
  EXPECT_TRUE(queue.push(std::make_unique<int>(1)));
  EXPECT_TRUE(queue.push(std::make_unique<int>(2)));
  auto third = std::make_unique<int>(3);
  EXPECT_FALSE(queue.push(std::move(third)));
  ASSERT_TRUE(third);  // untouched: the caller can still answer with it
  queue.push_always(std::move(third));

  std::vector<std::unique_ptr<int>> out;
  queue.drain(out, 0);
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(*out[2], 3);
}

TEST(BoundedQueue, WakesItsReader) {
  BoundedQueue<int> queue(8);
  std::jthread writer([&] { queue.push(5); });
  std::vector<int> out;
  while (out.empty()) queue.drain(out, kSecond);
  EXPECT_EQ(out[0], 5);
}

TEST(BoundedQueue, CloseEndsWaiting) {
  BoundedQueue<int> queue(8);
  std::jthread closer([&] { queue.close(); });
  std::vector<int> out;
  queue.drain(out, 60 * kSecond);
  EXPECT_FALSE(queue.push(1));
}

}  // namespace
}  // namespace m2
