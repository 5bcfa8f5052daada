// Covers: server/io_loop
#include "server/io_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "server/context.h"
#include "server/router.h"

namespace m2::server {
namespace {

ServerOptions with_a_name() {
  ServerOptions options;
  options.served_model_names = {"m"};
  return options;
}

struct Loop {
  const ServerOptions options = with_a_name();
  Context context{options};
  Metrics metrics;
  Router router{context, metrics};
  boost::asio::thread_pool workers{1};
  std::atomic<int64_t> busy{0};
  IoLoop loop{router, context, workers, busy};
  std::atomic<int> posted{0};

  // An engine that makes `steps` steps' events as fast as they are taken.
  std::jthread engine(int steps) {
    return std::jthread([this, steps] {
      for (int i = 0; i < steps; ++i) {
        loop.post_events(std::make_shared<const std::vector<engine::Event>>(100));
        ++posted;
      }
    });
  }
  // Waits until the engine has posted so many, then a while in which it could post more.
  void settle(int steps) const {
    while (posted < steps) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
};

TEST(IoLoop, AnEngineWaitsForALoopThatIsManyStepsBehind) {
  Loop it;
  const std::jthread engine = it.engine(10 * IoLoop::kMostBehind);
  it.settle(IoLoop::kMostBehind);
  EXPECT_EQ(it.posted, IoLoop::kMostBehind);
  std::jthread io([&] { it.loop.run(); });
  it.settle(10 * IoLoop::kMostBehind);
  EXPECT_EQ(it.posted, 10 * IoLoop::kMostBehind);
  it.loop.stop();
}

TEST(IoLoop, AnEngineDoesNotWaitForALoopThatHasStopped) {
  Loop it;
  const std::jthread engine = it.engine(3 * IoLoop::kMostBehind);
  it.settle(IoLoop::kMostBehind);
  it.loop.stop();
  it.settle(3 * IoLoop::kMostBehind);
}

}  // namespace
}  // namespace m2::server
