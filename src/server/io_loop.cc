#include "server/io_loop.h"

#include <sched.h>

#include <boost/asio/post.hpp>
#include <utility>

#include "base/prefetch.h"
#include "base/thread_name.h"

namespace m2::server {
namespace {

// Deadlines are kept to this precision.
constexpr auto kTick = std::chrono::milliseconds(100);

// How many requests or connections ahead their memory is asked for: first their own, then, when
// that has come, what it points to.
constexpr size_t kFar = 8, kNear = 4;
constexpr size_t kReceiverSize = 256;

}  // namespace

IoLoop::IoLoop(Router& router, const Context& context, boost::asio::thread_pool& workers,
               std::atomic<int64_t>& busy)
    : router_(router),
      context_(context),
      workers_(workers),
      busy_(busy),
      work_(boost::asio::make_work_guard(io_)),
      timer_(io_),
      ear_(io_) {}

IoLoop::~IoLoop() {
  // Connections hold handlers of io_, and io_ holds connections: let go of both in order.
  for (const auto& connection : connections_) connection->close();
  connections_.clear();
  unflushed_.clear();
  listeners_.clear();
  if (bell_) ear_.release();  // it is the bell's
}

void IoLoop::run() {
  name_thread("m2-io");
  tick();
  io_.run();
}

void IoLoop::stop() {
  io_.stop();
  stopped_ = true;
  behind_ = 0;  // whoever waits need not
  behind_.notify_all();
}

void IoLoop::tick() {
  const Nanos now = time_ = SteadyClock().now();
  std::erase_if(connections_, [now](const auto& connection) { return !connection->on_tick(now); });
  connection_count_ = connections_.size();
  timer_.expires_after(kTick);
  timer_.async_wait([this](boost::system::error_code error) {
    if (!error) tick();
  });
}

void IoLoop::add(Connection::Socket socket, std::unique_ptr<TlsSession> tls, std::string peer) {
  ++connection_count_;
  auto connection = std::allocate_shared<Connection>(
      DenseAllocator<Connection>(), std::move(socket), std::move(tls), std::move(peer),
      context_.limits(), *this, busy_);
  boost::asio::post(io_, [this, connection] {
    connections_.push_back(connection);
    connection->start();
  });
}

void IoLoop::put_events(EventBatch events) {
  for (int behind = behind_; behind >= kMostBehind && !stopped_; behind = behind_)
    behind_.wait(behind);
  ++behind_;
  const std::lock_guard lock(inbox_mutex_);
  inbox_.push_back(std::move(events));
}

void IoLoop::post_events(EventBatch events) {
  put_events(std::move(events));
  boost::asio::post(io_, [this] { take_events(); });
}

void IoLoop::listen_to(Doorbell& bell, size_t place) {
  bell_ = &bell;
  bell_place_ = place;
  ear_.assign(bell.ear(place));
  wait_for_bell();
}

void IoLoop::wait_for_bell() {
  using Descriptor = boost::asio::posix::stream_descriptor;
  ear_.async_wait(Descriptor::wait_read, [this](boost::system::error_code error) {
    if (error) return;
    bell_->hush(bell_place_);
    take_events();
    wait_for_bell();
  });
}

void IoLoop::take_events() {
  core_.store(::sched_getcpu(), std::memory_order_relaxed);
  {
    const std::lock_guard lock(inbox_mutex_);
    taken_.swap(inbox_);
  }
  for (const EventBatch& events : taken_) {
    deliver(*events);
    --behind_;
    behind_.notify_all();
  }
  taken_.clear();
}

// A thousand requests do not stay in the cache from step to step: what each needs is asked for
// while those before it are at work.
void IoLoop::deliver(const std::vector<engine::Event>& events) {
  time_ = SteadyClock().now();
  own_.clear();
  for (const engine::Event& event : events) {
    const auto listener = listeners_.find(event.id);
    if (listener != listeners_.end())  // not another loop's, nor cancelled
      own_.push_back({&event, reinterpret_cast<const char*>(listener->second.receiver.get())});
  }
  for (size_t i = 0; i < own_.size(); ++i) {
    if (i + kFar < own_.size())
      fetch_lines(own_[i + kFar].receiver, own_[i + kFar].receiver + kReceiverSize);
    if (i + kNear < own_.size()) {
      const auto near = listeners_.find(own_[i + kNear].event->id);
      if (near != listeners_.end()) near->second.receiver->prefetch(near->second.tag);
    }
    const auto listener = listeners_.find(own_[i].event->id);
    if (listener == listeners_.end()) continue;  // cancelled by one before
    const Listener held = listener->second;      // may forget itself
    held.receiver->on_event(held.tag, *own_[i].event);
  }
}

void IoLoop::post_shutdown() {
  boost::asio::post(io_, [this] {
    const auto listeners = listeners_;
    for (const auto& [id, listener] : listeners) listener.receiver->on_shutdown();
  });
}

void IoLoop::post(std::function<void()> task) {
  boost::asio::post(io_, std::move(task));
}

void IoLoop::run_aside(std::function<void()> work, std::function<void()> done) {
  struct Task {
    std::function<void()> work, done;
  };
  auto task = std::make_unique<Task>(Task{std::move(work), std::move(done)});
  // Moved to the worker and back, so that what it holds is let go of on this thread.
  boost::asio::post(workers_, [this, task = std::move(task)]() mutable {
    task->work();
    boost::asio::post(io_, [task = std::move(task)] { task->done(); });
  });
}

void IoLoop::listen(engine::RequestId id, std::shared_ptr<EventReceiver> receiver, size_t tag) {
  listeners_[id] = {std::move(receiver), tag};
}

void IoLoop::forget(engine::RequestId id) {
  listeners_.erase(id);
}

void IoLoop::handle(std::shared_ptr<Exchange> exchange) {
  router_.handle(std::move(exchange), *this);
}

void IoLoop::on_answered(const HttpRequest& request, int status, double seconds) {
  router_.on_answered(request, status, seconds);
}

void IoLoop::on_sent(std::string_view bytes) {
  if (const auto& told = context_.options().on_sent) told(bytes, SteadyClock().now());
}

void IoLoop::flush_soon(std::shared_ptr<Connection> connection) {
  unflushed_.push_back(std::move(connection));
  if (unflushed_.size() > 1) return;
  boost::asio::post(io_, [this] { flush_all(); });
}

// Those that come to it meanwhile wait for the next turn.
void IoLoop::flush_all() {
  flushing_.swap(unflushed_);
  for (size_t i = 0; i < flushing_.size(); ++i) {
    if (i + kFar < flushing_.size()) flushing_[i + kFar]->prefetch();
    if (i + kNear < flushing_.size()) flushing_[i + kNear]->prefetch_rest();
    flushing_[i]->flush_now();
  }
  flushing_.clear();
}

bool IoLoop::closing() const {
  return context_.draining();
}

}  // namespace m2::server
