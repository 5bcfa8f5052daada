#pragma once

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/dense_memory.h"
#include "server/connection.h"
#include "server/doorbell.h"
#include "server/exchange.h"
#include "server/router.h"

// Includes Boost.Asio: for io_loop.cc and server.cc only.

namespace m2::server {

using EventBatch = std::shared_ptr<const std::vector<engine::Event>>;

// One io thread: its event loop, its connections and the engine requests they wait for. run() is
// called on that thread; put_events(), post_events(), add() and post() from any.
class IoLoop : public IoThread, public ConnectionHost {
 public:
  IoLoop(Router& router, const Context& context, boost::asio::thread_pool& workers,
         std::atomic<int64_t>& busy);
  ~IoLoop() override;

  void run();
  void stop();
  boost::asio::io_context& io() { return io_; }

  void add(Connection::Socket socket, std::unique_ptr<TlsSession> tls, std::string peer);
  size_t connections() const { return connection_count_; }

  // An engine's thread: the events of a whole step, for when this loop is next woken. Waits while
  // it is kMostBehind steps behind: what an engine makes faster than it can be sent must not pile
  // up.
  static constexpr int kMostBehind = 64;
  void put_events(EventBatch events);
  // And wakes it.
  void post_events(EventBatch events);
  // Before run(): `bell`, which outlives this, wakes this loop too. It is listener `place` there.
  void listen_to(Doorbell& bell, size_t place);
  // Any thread: the core it was on when it last took events; -1 at first.
  int core() const { return core_.load(std::memory_order_relaxed); }
  // Tells everything that waits for the engine that the server goes down.
  void post_shutdown();

  void post(std::function<void()> task) override;
  void run_aside(std::function<void()> work, std::function<void()> done) override;
  void listen(engine::RequestId id, std::shared_ptr<EventReceiver> receiver, size_t tag) override;
  void forget(engine::RequestId id) override;
  void expect(int more) override { expecting_ += more; }
  // Any thread. False only while no request of this loop's can have events.
  bool expects_events() const { return expecting_ > 0; }

  void handle(std::shared_ptr<Exchange> exchange) override;
  void on_answered(const HttpRequest& request, int status, double seconds) override;
  void on_sent(std::string_view bytes) override;
  Nanos time() const override { return time_; }
  bool closing() const override;
  const std::shared_ptr<ByteBudget>& body_budget() const override { return context_.body_budget(); }
  void flush_soon(std::shared_ptr<Connection> connection) override;

 private:
  struct Listener {
    std::shared_ptr<EventReceiver> receiver;
    size_t tag;
  };

  struct Own {
    const engine::Event* event;
    const char* receiver;  // its memory; it may be gone when its turn comes
  };

  void wait_for_bell();
  void take_events();
  void deliver(const std::vector<engine::Event>& events);
  void flush_all();
  void tick();

  Router& router_;
  const Context& context_;
  boost::asio::thread_pool& workers_;
  std::atomic<int64_t>& busy_;
  std::atomic<int> expecting_{0};  // requests; outlives all that io_ and listeners_ hold
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  boost::asio::steady_timer timer_;
  std::vector<std::shared_ptr<Connection>> connections_;
  std::atomic<size_t> connection_count_{0};
  std::unordered_map<engine::RequestId, Listener, std::hash<engine::RequestId>, std::equal_to<>,
                     DenseAllocator<std::pair<const engine::RequestId, Listener>>>
      listeners_;
  Nanos time_ = SteadyClock().now();  // the last one read, at each tick and at each step's events
  std::vector<Own> own_;              // of the events being delivered, this loop's
  std::atomic<int> behind_{0};        // steps put and not yet delivered
  std::mutex inbox_mutex_;            // of inbox_
  std::vector<EventBatch> inbox_, taken_;
  Doorbell* bell_ = nullptr;
  size_t bell_place_ = 0;
  boost::asio::posix::stream_descriptor ear_;
  std::atomic<int> core_{-1};
  std::atomic<bool> stopped_{false};
  std::vector<std::shared_ptr<Connection>> unflushed_, flushing_;  // one handler flushes them all
};

}  // namespace m2::server
