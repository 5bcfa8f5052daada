// Covers: server/io_loop
#include "server/io_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/thread_pool.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "server/context.h"
#include "server/doorbell.h"
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

TEST(IoLoop, IsWokenOnlyWhileARequestMayHaveEvents) {
  Loop it;
  EXPECT_FALSE(it.loop.expects_events());
  it.loop.expect(1);
  it.loop.expect(1);
  it.loop.expect(-1);
  EXPECT_TRUE(it.loop.expects_events());
  it.loop.expect(-1);
  EXPECT_FALSE(it.loop.expects_events());
}

// Hears events and writes down which; `on_heard` may do what a request does while it hears one.
struct Hearer : EventReceiver {
  void on_event(size_t tag, const engine::Event& event) override {
    heard.emplace_back(tag, event.id);
    if (on_heard) on_heard(event.id);
  }
  void on_shutdown() override {}
  std::vector<std::pair<size_t, engine::RequestId>> heard;
  std::function<void(engine::RequestId)> on_heard;
};

// Steps may come by both ways, as more or fewer loops have requests; their order stays.
TEST(IoLoop, TakesEventsInOrderWhetherItIsRungForOrPostedTo) {
  constexpr engine::RequestId kSteps = 500;
  const auto bell = Doorbell::make(2);
  Loop it;
  it.loop.listen_to(*bell, 1);
  const auto hearer = std::make_shared<Hearer>();
  for (engine::RequestId id = 1; id <= kSteps; ++id) it.loop.listen(id, hearer, 0);
  hearer->on_heard = [&](engine::RequestId id) {
    if (id == kSteps) it.loop.stop();
  };
  std::jthread io([&] { it.loop.run(); });
  for (engine::RequestId id = 1; id <= kSteps; ++id) {
    auto events = std::make_shared<std::vector<engine::Event>>();
    events->emplace_back().id = id;
    if (id % 3 == 0) {
      it.loop.post_events(events);
    } else {
      it.loop.put_events(events);
      bell->ring(id % 2);
    }
  }
  io.join();
  ASSERT_EQ(hearer->heard.size(), kSteps);
  for (size_t i = 0; i < kSteps; ++i) EXPECT_EQ(hearer->heard[i].second, i + 1);
  EXPECT_GE(it.loop.core(), 0);
}

// One request's event may end another whose event is in the same step, and its memory with it.
TEST(IoLoop, WhoIsForgottenDuringAStepHearsNothingOfIt) {
  Loop it;
  constexpr engine::RequestId kRequests = 100;
  const auto hearer = std::make_shared<Hearer>();
  std::vector<std::shared_ptr<Hearer>> others;
  for (engine::RequestId id = 1; id <= kRequests; ++id) {
    const bool even = id % 2 == 0;
    if (even) others.push_back(std::make_shared<Hearer>());
    it.loop.listen(id, even ? others.back() : hearer, id);
  }
  // Each odd one ends an even one whose event is still to come.
  hearer->on_heard = [&](engine::RequestId id) {
    it.loop.forget(id + 3);
    if (id + 3 <= kRequests) others[(id + 3) / 2 - 1].reset();
  };
  auto events = std::make_shared<std::vector<engine::Event>>();
  for (engine::RequestId id = 1; id <= kRequests + 10; ++id) events->emplace_back().id = id;
  it.loop.post_events(events);
  it.loop.post([&] { it.loop.stop(); });
  it.loop.run();
  ASSERT_EQ(hearer->heard.size(), kRequests / 2);
  for (size_t i = 0; i < hearer->heard.size(); ++i)
    EXPECT_EQ(hearer->heard[i], std::pair(size_t{2 * i + 1}, engine::RequestId{2 * i + 1}));
  ASSERT_NE(others[0], nullptr);  // nobody ends request 2
  EXPECT_EQ(others[0]->heard.size(), 1u);
  for (size_t i = 1; i < others.size(); ++i) EXPECT_EQ(others[i], nullptr) << i;
}

}  // namespace
}  // namespace m2::server
