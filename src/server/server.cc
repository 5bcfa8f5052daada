#include "server/server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "server/context.h"
#include "server/doorbell.h"
#include "server/io_loop.h"
#include "server/router.h"

namespace m2::server {
namespace asio = boost::asio;
using ErrorCode = boost::system::error_code;

namespace {

using Protocol = asio::generic::stream_protocol;
using Acceptor = asio::basic_socket_acceptor<Protocol>;
using Endpoint = Protocol::endpoint;

// The client's address as it stands in the log.
std::string peer_name(const Endpoint& endpoint) {
  char text[INET6_ADDRSTRLEN] = "";
  const auto* address = static_cast<const sockaddr*>(endpoint.data());
  if (address->sa_family == AF_INET) {
    const auto* ip = reinterpret_cast<const sockaddr_in*>(address);
    inet_ntop(AF_INET, &ip->sin_addr, text, sizeof text);
    return fmt::format("{}:{}", text, ntohs(ip->sin_port));
  }
  if (address->sa_family == AF_INET6) {
    const auto* ip = reinterpret_cast<const sockaddr_in6*>(address);
    inet_ntop(AF_INET6, &ip->sin6_addr, text, sizeof text);
    return fmt::format("[{}]:{}", text, ntohs(ip->sin6_port));
  }
  return "unix";
}

// Takes away the socket that an earlier run left at a path: one that nobody listens on. Anything
// else that stands there stays, and bind() says so.
void remove_dead_socket(const std::string& path, asio::io_context& io) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return;
  ErrorCode error;
  asio::local::stream_protocol::socket(io).connect(path, error);
  if (error == asio::error::connection_refused) ::unlink(path.c_str());
}

Result<Endpoint> endpoint_of(const ServerOptions& options, asio::io_context& io) {
  if (!options.uds.empty()) {
    if (options.uds.size() >= sizeof(sockaddr_un::sun_path))
      return fail(Code::invalid_argument, "--uds {}: a socket's path has at most {} bytes",
                  options.uds, sizeof(sockaddr_un::sun_path) - 1);
    remove_dead_socket(options.uds, io);
    return Endpoint(asio::local::stream_protocol::endpoint(options.uds));
  }
  ErrorCode error;
  const auto address = asio::ip::make_address(options.host, error);
  const auto port = static_cast<unsigned short>(options.port);
  if (!error) return Endpoint(asio::ip::tcp::endpoint(address, port));
  asio::ip::tcp::resolver resolver(io);
  const auto found = resolver.resolve(options.host, std::to_string(options.port), error);
  if (error || found.empty())
    return fail(Code::invalid_argument, "cannot resolve --host {}: {}", options.host,
                error.message());
  // Of a name's addresses one is listened on. Clients that try several do not mind which; others
  // take the first of IPv4.
  const auto ipv4 = std::ranges::find_if(
      found, [](const auto& entry) { return entry.endpoint().address().is_v4(); });
  return Endpoint((ipv4 == found.end() ? found.begin() : ipv4)->endpoint());
}

}  // namespace

struct Server::State {
  State(ServerOptions given, Metrics& metrics)
      : options(std::move(given)),
        context(options),
        router(context, metrics),
        workers(static_cast<size_t>(std::max(1, options.worker_threads))) {
    for (int i = 0; i < std::max(1, options.io_threads); ++i)
      loops.push_back(std::make_unique<IoLoop>(router, context, workers, busy));
    if (loops.size() > 1) bell = Doorbell::make(loops.size());
    for (size_t i = 0; bell && i < loops.size(); ++i) loops[i]->listen_to(*bell, i);
    signals = std::make_unique<asio::signal_set>(main_io());
    drain_timer = std::make_unique<asio::steady_timer>(main_io());
    accept_timer = std::make_unique<asio::steady_timer>(main_io());
    acceptor = std::make_unique<Acceptor>(main_io());
  }

  asio::io_context& main_io() { return loops.front()->io(); }
  IoLoop& next_loop() const;
  void hand_out(const EventBatch& events);

  Result<void> bind();
  void accept();
  void take(IoLoop& loop, Connection::Socket socket, const Endpoint& peer);
  void wait_for_signal();
  void begin_drain();
  void watch_drain();
  void end_streams();
  void stop_loops();
  size_t connections() const;

  const ServerOptions options;
  std::unique_ptr<Tls> tls;  // null: plain HTTP
  Context context;
  Router router;
  std::atomic<int64_t> busy{0};  // requests being answered
  asio::thread_pool workers;
  std::unique_ptr<Doorbell> bell;  // of several loops; null: each is woken by itself
  std::vector<std::unique_ptr<IoLoop>> loops;
  std::unique_ptr<Acceptor> acceptor;
  std::unique_ptr<asio::signal_set> signals;
  std::unique_ptr<asio::steady_timer> drain_timer, accept_timer;
  Endpoint peer;         // of the connection being accepted
  Nanos drain_ends = 0;  // 0: not draining
  bool streams_ended = false;
  bool is_bound = false;
  int port = 0;
  std::mutex threads_mutex;
  std::vector<std::thread> threads;
};

// ---- listening

Result<void> Server::State::bind() {
  if (!options.tls.certificate_file.empty()) {
    M2_TRY(tls, Tls::make(options.tls));
  }
  M2_TRY(const Endpoint endpoint, endpoint_of(options, main_io()));
  const std::string where =
      options.uds.empty() ? fmt::format("{}:{}", options.host, options.port) : options.uds;
  const auto failed = [&](const ErrorCode& error) {
    return fail(Code::unavailable, "cannot listen on {}: {}", where, error.message());
  };
  ErrorCode error;
  if (acceptor->open(endpoint.protocol(), error), error) return failed(error);
  acceptor->set_option(asio::socket_base::reuse_address(true), error);
  if (acceptor->bind(endpoint, error), error) return failed(error);
  is_bound = true;
  if (acceptor->listen(4096, error), error) return failed(error);
  const Endpoint bound = acceptor->local_endpoint(error);
  const auto* address = static_cast<const sockaddr*>(bound.data());
  if (address->sa_family == AF_INET)
    port = ntohs(reinterpret_cast<const sockaddr_in*>(address)->sin_port);
  if (address->sa_family == AF_INET6)
    port = ntohs(reinterpret_cast<const sockaddr_in6*>(address)->sin6_port);
  return {};
}

// Whose the next connection will be. To wake a second thread for a step's events costs more than to
// write a few more streams one after the other.
IoLoop& Server::State::next_loop() const {
  const auto fewer = [](const auto& a, const auto& b) {
    return a->connections() < b->connections();
  };
  for (const auto& loop : loops)
    if (loop->connections() < options.few_connections) return *loop;
  return **std::ranges::min_element(loops, fewer);
}

void Server::State::accept() {
  IoLoop& loop = next_loop();
  acceptor->async_accept(loop.io(), peer,
                         [this, &loop](ErrorCode error, Connection::Socket socket) {
                           if (error == asio::error::operation_aborted) return;
                           if (!error) {
                             take(loop, std::move(socket), peer);
                             return accept();
                           }
                           // Out of file descriptors, most likely: trying at once again would only
                           // burn a core.
                           accept_timer->expires_after(std::chrono::milliseconds(100));
                           accept_timer->async_wait([this](ErrorCode stopped) {
                             if (!stopped) accept();
                           });
                         });
}

void Server::State::take(IoLoop& loop, Connection::Socket socket, const Endpoint& from) {
  if (connections() >= options.limits.max_connections) return;  // closes it
  const int on = 1;
  ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // The kernel would hold megabytes for a client that does not read.
  const int buffer = static_cast<int>(options.limits.max_send_buffer);
  ::setsockopt(socket.native_handle(), SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
  loop.add(std::move(socket), tls ? tls->session() : nullptr, peer_name(from));
}

size_t Server::State::connections() const {
  size_t sum = 0;
  for (const auto& loop : loops) sum += loop->connections();
  return sum;
}

// Loops without a request are not woken, unless several others are. One that last ran on another
// core than this thread is the first to be woken: it finds its core free, and the next stays on
// this one. The other way round both would come to share one.
void Server::State::hand_out(const EventBatch& events) {
  if (!bell ||
      std::ranges::count_if(loops, [](auto& loop) { return loop->expects_events(); }) < 2) {
    for (const auto& loop : loops)
      if (loop->expects_events()) loop->post_events(events);
    return;
  }
  const int here = ::sched_getcpu();
  size_t first = 0;
  for (size_t i = 0; i < loops.size(); ++i) {
    if (!loops[i]->expects_events()) continue;
    loops[i]->put_events(events);
    if (loops[i]->core() != here) first = i;
  }
  bell->ring(first);
}

// ---- going down, all on the first loop's thread

void Server::State::wait_for_signal() {
  signals->async_wait([this](ErrorCode error, int signal) {
    if (error) return;
    if (streams_ended) {
      log_info("signal {} again: stopping at once", signal);
      return stop_loops();
    }
    if (drain_ends != 0) {
      log_info("signal {} again: ending {} requests now", signal, busy.load());
      drain_ends = SteadyClock().now();
    } else {
      log_info("signal {}: finishing {} requests, for {} s at most", signal, busy.load(),
               options.drain_seconds);
      begin_drain();
    }
    wait_for_signal();
  });
}

void Server::State::begin_drain() {
  if (drain_ends != 0) return;
  context.set_draining();
  drain_ends = SteadyClock().now() + static_cast<Nanos>(options.drain_seconds * 1e9);
  watch_drain();
}

void Server::State::watch_drain() {
  const Nanos now = SteadyClock().now();
  if (busy == 0) return stop_loops();
  if (now >= drain_ends) end_streams();
  if (streams_ended && now >= drain_ends + kSecond) return stop_loops();
  drain_timer->expires_after(std::chrono::milliseconds(20));
  drain_timer->async_wait([this](ErrorCode error) {
    if (!error) watch_drain();
  });
}

void Server::State::end_streams() {
  if (std::exchange(streams_ended, true)) return;
  for (const auto& loop : loops) loop->post_shutdown();
}

void Server::State::stop_loops() {
  for (const auto& loop : loops) loop->stop();
}

// ---- the public face

Server::Server(ServerOptions options, Metrics& metrics)
    : state_(std::make_unique<State>(std::move(options), metrics)) {
  M2_CHECK(!state_->options.served_model_names.empty());
}

Server::~Server() {
  state_->stop_loops();
  wait();
  // As long as it is listened on nobody else can have bound the path.
  if (state_->is_bound && !state_->options.uds.empty()) ::unlink(state_->options.uds.c_str());
}

Result<void> Server::start() {
  M2_TRY_VOID(state_->bind());
  if (state_->options.handle_signals) {
    state_->signals->add(SIGINT);
    state_->signals->add(SIGTERM);
    state_->wait_for_signal();
  }
  std::signal(SIGPIPE, SIG_IGN);
  state_->accept();
  std::lock_guard lock(state_->threads_mutex);
  for (const auto& loop : state_->loops)
    state_->threads.emplace_back([&loop = *loop] { loop.run(); });
  return {};
}

int Server::port() const {
  return state_->port;
}

std::vector<std::string> Server::route_lines() const {
  return state_->router.route_lines();
}

void Server::set_progress(std::string progress) {
  state_->context.set_progress(std::move(progress));
}

void Server::ready(ModelServices services) {
  state_->context.set_services(std::move(services));
}

void Server::stop() {
  asio::post(state_->main_io(), [state = state_.get()] {
    state->begin_drain();
    state->drain_ends = SteadyClock().now();
  });
}

void Server::wait() {
  std::lock_guard lock(state_->threads_mutex);
  for (std::thread& thread : state_->threads) thread.join();
  state_->threads.clear();
  state_->workers.join();
}

void Server::on_events(std::vector<engine::Event>&& events) {
  state_->hand_out(std::make_shared<const std::vector<engine::Event>>(std::move(events)));
}

}  // namespace m2::server
