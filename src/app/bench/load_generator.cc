#include "app/bench/load_generator.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <deque>
#include <optional>
#include <unordered_set>

#include "app/bench/chunk.h"
#include "app/bench/response_reader.h"
#include "app/http_client.h"

namespace m2::app::bench {
namespace asio = boost::asio;
namespace ssl = asio::ssl;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

namespace {

constexpr Nanos kTimeout = 6 * 3600 * kSecond;
constexpr size_t kReadSize = 64 << 10;
constexpr size_t kMostErrorBytes = 64 << 10;
constexpr const char* kNoChunk =
    "Never received a valid chunk to calculate TTFT."
    "This response will be marked as failed!";

Nanos now() {
  return SteadyClock().now();
}

double thread_cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class Channel;

// What all connections of a run share.
struct Shared {
  asio::io_context io{1};
  std::optional<ssl::context> tls;
  tcp::resolver::results_type addresses;
  std::string head;  // request line and headers that are the same for all
  std::string host;
  const LoadGenerator::Run* run = nullptr;
  LoadReport* report = nullptr;
  std::string scratch = std::string(kReadSize, '\0');
  std::function<void(Channel*)> on_idle;
};

// One connection and the request it carries.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  explicit Channel(Shared& shared) : shared_(shared), socket_(shared.io) {}

  bool connected() const { return connected_; }
  Nanos began() const { return began_; }
  bool busy() const { return busy_; }

  // The request goes out; shared.on_idle is called once it has been answered or has failed.
  void start(size_t index) {
    index_ = index;
    busy_ = true;
    answered_ = false;
    reused_ = connected_;
    const std::string body = shared_.run->body(index);
    request_ = fmt::format("{}x-request-id: {}\r\nContent-Length: {}\r\n\r\n{}", shared_.head,
                           shared_.run->request_id(index), body.size(), body);
    began_ = last_ = now();
    result().start_time = seconds(began_);
    send();
  }

  // If connections are read in turns: it is this one's.
  void take_turn() {
    if (std::exchange(reading_, false)) receive();
  }

  void abandon(const std::string& error) {
    result().error = error;
    result().success = false;
    end();
  }

 private:
  RequestResult& result() { return shared_.report->results[index_]; }
  bool in_turns() const { return shared_.run->wait_for_turn && !shared_.tls; }

  void send() { connected_ ? write() : connect(); }

  void connect() {
    socket_ = tcp::socket(shared_.io);
    asio::async_connect(socket_, shared_.addresses,
                        [self = shared_from_this()](ErrorCode error, const tcp::endpoint&) {
                          if (error) return self->abandon("cannot connect: " + error.message());
                          self->on_connected();
                        });
  }

  void on_connected() {
    ErrorCode ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    if (!shared_.tls) {
      socket_.non_blocking(true, ignored);
      if (in_turns()) {
        // The event loop hears of nothing less.
        socket_.set_option(asio::socket_base::receive_low_watermark(kReadSize), ignored);
        // Nor is each of the first arrivals acknowledged at once: on one machine the server's send
        // would pay for it.
        const int off = 0;
        ::setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off);
      }
      connected_ = true;
      return write();
    }
    tls_.emplace(socket_, *shared_.tls);
    SSL_set_tlsext_host_name(tls_->native_handle(), shared_.host.c_str());
    tls_->set_verify_callback(ssl::host_name_verification(shared_.host), ignored);
    own_buffer_.resize(kReadSize);
    tls_->async_handshake(ssl::stream_base::client, [self = shared_from_this()](ErrorCode error) {
      if (error) return self->abandon("TLS: " + error.message());
      self->connected_ = true;
      self->write();
    });
  }

  void write() {
    const auto written = [self = shared_from_this()](ErrorCode error, size_t) {
      if (error) return self->lose(error);
      self->read();
    };
    tls_ ? asio::async_write(*tls_, asio::buffer(request_), written)
         : asio::async_write(socket_, asio::buffer(request_), written);
  }

  // A plain socket is read into one buffer that all connections share.
  void read() {
    if (in_turns()) {
      reading_ = true;
      return;
    }
    if (tls_) {
      tls_->async_read_some(asio::buffer(own_buffer_),
                            [self = shared_from_this()](ErrorCode error, size_t count) {
                              if (error) return self->on_end(error);
                              self->on_bytes({self->own_buffer_.data(), count});
                            });
      return;
    }
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](ErrorCode error) {
      error ? self->lose(error) : self->receive();
    });
  }

  void receive() {
    std::string& into = shared_.scratch;
    const ssize_t count = ::recv(socket_.native_handle(), into.data(), into.size(), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return read();
    if (count < 0) return on_end(ErrorCode(errno, boost::system::system_category()));
    if (count == 0) return on_end(asio::error::eof);
    on_bytes({into.data(), static_cast<size_t>(count)});
  }

  void on_bytes(std::string_view bytes) {
    answered_ = true;
    const Result<bool> done = response_.feed(bytes, on_body_);
    if (!done.ok()) return abandon(done.error().text);
    if (!*done) return read();
    complete();
  }

  // An idle connection may have been closed by the server: then the request goes out once more.
  void lose(ErrorCode error) {
    if (!reused_ || answered_) return abandon("connection lost: " + error.message());
    reused_ = false;
    disconnect();
    send();
  }

  void on_end(ErrorCode error) {
    if (error == asio::error::eof || error == ssl::error::stream_truncated) {
      if (response_.finish()) return complete();
      if (!reused_ || answered_)
        return abandon("the server closed the connection before the answer's end");
    }
    lose(error);
  }

  void on_body(std::string_view bytes) {
    if (response_.status() != 200) {
      if (error_body_.size() < kMostErrorBytes) error_body_ += bytes;
      return;
    }
    events_.feed(bytes, on_data_);
  }

  bool on_data(std::string_view data) {
    if (data == "[DONE]") return true;
    if (const Result<void> read = read_chunk(data, chunk_); !read.ok()) {
      result().error = "a chunk that is not what a completion streams: " + read.error().text;
      return true;
    }
    if (!chunk_.error.empty()) result().error = chunk_.error;
    if (chunk_.completion_tokens >= 0) result().output_tokens = chunk_.completion_tokens;
    if (chunk_.has_choices) on_event();
    return true;
  }

  void on_event() {
    RequestResult& to = result();
    const Nanos time = now();
    if (!to.success) {
      to.success = true;
      to.ttft = seconds(time - began_);
    } else {
      to.itl.push_back(seconds(time - last_));
    }
    last_ = time;
    to.latency = seconds(time - began_);
    to.text += chunk_.text;
    ++shared_.report->events;
    if (shared_.run->on_event) shared_.run->on_event(index_, chunk_.text, time);
  }

  void complete() {
    RequestResult& to = result();
    if (response_.status() != 200) {
      const std::string reason = response_.reason();
      to.error = reason.empty() ? fmt::format("HTTP {}", response_.status()) : reason;
      if (!error_body_.empty()) to.error += ": " + error_body_.substr(0, 500);
    } else if (!to.success) {
      to.error = to.error.empty() ? kNoChunk : to.error;
    } else if (!to.error.empty()) {
      to.success = false;  // a stream that ended with an error is no answer
    }
    if (!response_.keep_alive()) disconnect();
    end();
  }

  void end() {
    if (!std::exchange(busy_, false)) return;
    if (!result().success) disconnect();
    response_.next();
    events_ = {};
    error_body_.clear();
    request_.clear();
    shared_.on_idle(this);
  }

  void disconnect() {
    connected_ = false;
    tls_.reset();
    ErrorCode ignored;
    socket_.close(ignored);
    response_.next();
  }

  Shared& shared_;
  tcp::socket socket_;
  std::optional<ssl::stream<tcp::socket&>> tls_;
  std::string own_buffer_;  // with TLS
  bool connected_ = false, busy_ = false;
  bool reading_ = false;   // in its turn
  bool reused_ = false;    // this connection has served a request before
  bool answered_ = false;  // bytes of the answer have come
  size_t index_ = 0;
  std::string request_;
  Nanos began_ = 0, last_ = 0;
  ResponseReader response_;
  SseReader events_;
  Chunk chunk_;
  std::string error_body_;
  // Made once: a function object for each read would be an allocation.
  const ResponseReader::OnBody on_body_ = [this](std::string_view bytes) { on_body(bytes); };
  const std::function<bool(std::string_view)> on_data_ = [this](std::string_view data) {
    return on_data(data);
  };
};

std::string request_head(const Target& target) {
  const bool usual = target.port == (target.tls ? 443 : 80);
  const std::string host =
      target.host.find(':') == std::string::npos ? target.host : "[" + target.host + "]";
  std::string out = fmt::format(
      "POST {} HTTP/1.1\r\nHost: {}{}\r\nUser-Agent: m2-bench\r\nAccept: */*\r\n"
      "Content-Type: application/json\r\n",
      target.path, host, usual ? "" : fmt::format(":{}", target.port));
  for (const auto& [name, value] : target.headers) out += fmt::format("{}: {}\r\n", name, value);
  return out;
}

}  // namespace

Result<Target> parse_url(const std::string& url) {
  Target out;
  std::string_view rest = url;
  if (rest.starts_with("https://")) {
    out.tls = true;
    out.port = 443;
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else {
    return fail(Code::invalid_argument, "'{}' is no http:// or https:// address", url);
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  out.path = slash < rest.size() ? std::string(rest.substr(slash)) : "/";
  const size_t bracket = authority.rfind(']');
  const size_t colon = authority.rfind(':');
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    const std::string_view port = authority.substr(colon + 1);
    const bool digits = !port.empty() && port.size() < 6 &&
                        std::ranges::all_of(port, [](char c) { return c >= '0' && c <= '9'; });
    out.port = 0;
    for (const char c : digits ? port : std::string_view()) out.port = out.port * 10 + (c - '0');
    if (out.port < 1 || out.port > 65535)
      return fail(Code::invalid_argument, "'{}' has no valid port", url);
    authority = authority.substr(0, colon);
  }
  if (authority.starts_with('[') && authority.ends_with(']'))
    authority = authority.substr(1, authority.size() - 2);
  if (authority.empty()) return fail(Code::invalid_argument, "'{}' names no host", url);
  out.host = std::string(authority);
  return out;
}

// ---- a run

struct LoadGenerator::State {
  State(Target given, int64_t most) : target(std::move(given)), max_concurrency(most) {
    shared.on_idle = [this](Channel* channel) { on_idle(channel); };
  }

  Result<void> prepare() {
    ErrorCode error;
    tcp::resolver resolver(shared.io);
    shared.addresses = resolver.resolve(target.host, std::to_string(target.port), error);
    if (error)
      return fail(Code::unavailable, "cannot resolve {}: {}", target.host, error.message());
    shared.host = target.host;
    shared.head = request_head(target);
    if (!target.tls || shared.tls) return {};
    shared.tls.emplace(ssl::context::tls_client);
    shared.tls->set_default_verify_paths(error);
    if (error) return fail(Code::unavailable, "TLS: {}", error.message());
    shared.tls->set_verify_mode(target.verify ? ssl::verify_peer : ssl::verify_none, error);
    return {};
  }

  void arrive() {
    const auto& send_at = shared.run->send_at;
    const double elapsed = seconds(now() - began);
    while (arrived < shared.run->count && (send_at.empty() || send_at[arrived] <= elapsed))
      waiting.push_back(arrived++);
    fill();
    if (arrived == shared.run->count) return;
    arrival.expires_after(std::chrono::nanoseconds(
        static_cast<int64_t>(std::max(send_at[arrived] - elapsed, 0.0) * 1e9)));
    arrival.async_wait([this](ErrorCode error) {
      if (!error) arrive();
    });
  }

  // Starts what waits, as far as the bound allows.
  void fill() {
    while (!waiting.empty() &&
           (max_concurrency == 0 || static_cast<int64_t>(active.size()) < max_concurrency)) {
      std::shared_ptr<Channel> channel;
      if (idle.empty()) {
        channel = std::make_shared<Channel>(shared);
      } else {
        channel = std::move(idle.back());
        idle.pop_back();
      }
      const size_t index = waiting.front();
      waiting.pop_front();
      active.insert(channel);
      channel->start(index);
    }
  }

  void on_idle(Channel* channel) {
    auto held = channel->shared_from_this();
    active.erase(held);
    idle.push_back(std::move(held));
    ++done;
    if (shared.run->on_done) shared.run->on_done(done);
    if (done == shared.run->count) {
      finished = now();
      arrival.cancel();
      tick.cancel();
      return;
    }
    // Not from within the answer's own handler: a body may be large.
    asio::post(shared.io, [this] { fill(); });
  }

  void watch() {
    tick.expires_after(std::chrono::seconds(1));
    tick.async_wait([this](ErrorCode error) {
      if (error) return;
      const auto copy = active;
      for (const auto& channel : copy) {
        if (now() - channel->began() > kTimeout) channel->abandon("timed out after 6 hours");
      }
      if (done < shared.run->count) watch();
    });
  }

  void take_turns() {
    std::vector<std::shared_ptr<Channel>> channels;
    while (done < shared.run->count) {
      shared.io.poll();
      shared.run->wait_for_turn();
      channels.assign(active.begin(), active.end());  // an answer's end changes those
      for (const auto& channel : channels) channel->take_turn();
    }
  }

  Result<LoadReport> go(const Run& run) {
    LoadReport report;
    report.results.resize(run.count);
    if (run.count == 0) return report;
    M2_TRY_VOID(prepare());
    shared.run = &run;
    shared.report = &report;
    arrived = done = 0;
    const double cpu = thread_cpu_seconds();
    began = now();
    arrive();
    watch();
    shared.io.restart();
    if (run.wait_for_turn && !target.tls) take_turns();
    shared.io.run();
    report.cpu_seconds = thread_cpu_seconds() - cpu;
    report.duration = seconds(finished - began);
    return report;
  }

  const Target target;
  const int64_t max_concurrency;
  Shared shared;
  asio::steady_timer arrival{shared.io}, tick{shared.io};
  std::deque<size_t> waiting;
  std::vector<std::shared_ptr<Channel>> idle;
  std::unordered_set<std::shared_ptr<Channel>> active;
  Nanos began = 0, finished = 0;
  size_t arrived = 0, done = 0;
};

LoadGenerator::LoadGenerator(Target target, int64_t max_concurrency)
    : state_(std::make_unique<State>(std::move(target), max_concurrency)) {}

LoadGenerator::~LoadGenerator() {
  state_->idle.clear();
  state_->active.clear();
}

Result<LoadReport> LoadGenerator::run(const Run& run) {
  return state_->go(run);
}

}  // namespace m2::app::bench
