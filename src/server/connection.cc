#include "server/connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <charconv>
#include <utility>

#include "api/error.h"
#include "base/prefetch.h"
#include "server/message_exchange.h"

namespace m2::server {
namespace {

using ErrorCode = boost::system::error_code;

Nanos now() {
  return SteadyClock().now();
}

void append_chunk_size(size_t size, std::string& out) {
  char digits[18];
  char* end = std::to_chars(digits, digits + 16, size, 16).ptr;
  *end++ = '\r';
  *end++ = '\n';
  out.append(digits, end);
}

}  // namespace

// The request being answered. Outlives its connection's interest in it: whoever answers may hold it
// for as long as they like.
class Connection::Turn : public Exchange {
 public:
  Turn(std::shared_ptr<Connection> connection, HttpRequest request)
      : connection_(std::move(connection)),
        body_held_(std::move(connection_->body_held_)),
        request_(std::move(request)),
        began_(now()) {}

  HttpRequest& request() override { return request_; }

  void release_body() override {
    std::string().swap(request_.body);
    body_held_.reset();
  }

  void send(HttpReply reply) override {
    if (!connection_ || status_ != 0) return;
    status_ = reply.status;
    over_ = true;
    reply_bytes_ = reply.body.size();
    connection_->answer(reply);
  }

  void begin_events(const HeaderList& headers) override {
    if (!connection_ || status_ != 0) return;
    status_ = 200;
    streaming_ = true;
    if (request_.http10) connection_->close_after_ = true;
    connection_->chunked_ = !request_.http10;
    HttpReply reply;
    reply.content_type = "text/event-stream; charset=utf-8";
    reply.headers.emplace_back("cache-control", "no-cache");
    reply.headers.emplace_back("x-accel-buffering", "no");
    reply.headers.insert(reply.headers.end(), headers.begin(), headers.end());
    connection_->pending_ += reply_head(reply, request_, std::nullopt, connection_->close_after_);
    connection_->queue_flush();
  }

  void write_events(std::string_view frames) override {
    if (!connection_ || !streaming_ || over_ || frames.empty()) return;
    Connection& c = *connection_;
    if (c.backlog() > c.limits_.max_send_buffer + c.largest_burst_) return c.lose_client();
    c.events_ += frames;
    reply_bytes_ += frames.size();
    c.queue_flush();
  }

  void end_events() override {
    if (!connection_ || !streaming_ || over_) return;
    over_ = true;
    connection_->queue_flush();
  }

  void on_ready(std::function<void()> ready) override {
    if (connection_) ready_ = std::move(ready);
  }

  // Tells who waits that everything has been taken.
  void taken() {
    if (auto ready = std::exchange(ready_, nullptr)) ready();
  }

  void on_gone(std::function<void()> gone) override { gone_ = std::move(gone); }

  // The connection has no more use for this turn; `lost`: its client has gone before the end.
  void release(bool lost) {
    const auto connection = std::exchange(connection_, nullptr);
    ready_ = nullptr;
    auto gone = std::exchange(gone_, nullptr);
    // Not at once: whoever is told may be the one whose write found it out.
    if (lost && gone) boost::asio::post(connection->socket_.get_executor(), std::move(gone));
  }

  bool streaming() const { return streaming_; }
  bool over() const { return over_; }
  int status() const { return status_; }
  // With what is to be said of the reply.
  const HttpRequest& answered() {
    request_.reply_bytes = reply_bytes_;
    return request_;
  }
  void prefetch() const { fetch_lines(this, &request_); }
  Nanos began() const { return began_; }

 private:
  // What a token needs stands before the request.
  std::shared_ptr<Connection> connection_;  // null once released
  int status_ = 0;
  bool streaming_ = false;
  bool over_ = false;  // everything has been said
  size_t reply_bytes_ = 0;
  std::function<void()> ready_;
  std::unique_ptr<HeldBytes> body_held_;  // for the request's body
  HttpRequest request_;
  std::function<void()> gone_;
  const Nanos began_;
};

Connection::Connection(Socket socket, std::unique_ptr<TlsSession> tls, std::string peer,
                       const Limits& limits, ConnectionHost& host, std::atomic<int64_t>& busy)
    : socket_(std::move(socket)),
      tls_(std::move(tls)),
      limits_(limits),
      host_(host),
      peer_(std::move(peer)),
      busy_(busy),
      parser_(limits) {}

void Connection::start() {
  ErrorCode ignored;
  socket_.non_blocking(true, ignored);
  began_ = phase_began_ = now();
  wait_readable();
}

// ---- reading

void Connection::wait_readable() {
  if (waiting_readable_ || phase_ == Phase::closed) return;
  waiting_readable_ = true;
  socket_.async_wait(Socket::wait_read, [self = shared_from_this()](ErrorCode error) {
    self->waiting_readable_ = false;
    if (!error) self->on_readable();
  });
}

void Connection::on_readable() {
  if (phase_ == Phase::closed) return;
  static thread_local std::string scratch(64 << 10, '\0');  // idle connections hold no buffer
  ErrorCode error;
  const size_t count = socket_.read_some(boost::asio::buffer(scratch), error);
  if (error == boost::asio::error::would_block) return wait_readable();
  if (error) return phase_ == Phase::answering ? lose_client() : close();
  if (phase_ == Phase::lingering) return wait_readable();
  const bool idle = input_.empty() && parser_.state() == HttpParser::State::header;
  if (!take_input({scratch.data(), count})) return;
  if (phase_ == Phase::reading && idle && !input_.empty()) phase_began_ = now();
  if (phase_ == Phase::reading) return advance();
  // A request is being answered: go on watching for the client's leaving, within bounds.
  if (input_.size() <= limits_.max_pipelined) wait_readable();
}

// Appends the text that came; false if that was the connection's end.
bool Connection::take_input(std::string_view bytes) {
  if (!tls_) {
    input_ += bytes;
    return true;
  }
  const bool goes_on = tls_->read(bytes, input_, tls_out_);
  if (goes_on) {
    if (!tls_out_.empty()) queue_flush();
    return true;
  }
  ErrorCode ignored;  // an alert that says why, if the client still listens
  if (!writing_) socket_.write_some(boost::asio::buffer(tls_out_), ignored);
  phase_ == Phase::answering ? lose_client() : close();
  return false;
}

// Takes what the body at hand has of the bytes that large bodies share. False if there are not so
// many.
bool Connection::hold_body() {
  const size_t bytes = parser_.body_bytes();
  if (bytes <= limits_.small_body) return true;
  if (!body_held_) body_held_ = std::make_unique<HeldBytes>(host_.body_budget());
  return body_held_->resize(bytes - limits_.small_body);
}

void Connection::advance() {
  const HttpParser::State state = parser_.feed(input_);
  if (!hold_body()) return refuse({503, "the bodies of other requests take all room for them"});
  switch (state) {
    case HttpParser::State::complete:
      return begin_turn();
    case HttpParser::State::refused:
      return refuse(parser_.refusal());
    case HttpParser::State::body:
      if (parser_.request().expects_continue && !std::exchange(continue_sent_, true)) {
        pending_ += "HTTP/1.1 100 Continue\r\n\r\n";
        queue_flush();
      }
      break;
    case HttpParser::State::header:
      break;
  }
  wait_readable();
}

// ---- answering

void Connection::open_turn(HttpRequest request) {
  phase_ = Phase::answering;
  ++busy_;
  request.peer = peer_;
  largest_burst_ = 0;
  chunked_ = false;
  last_progress_ = last_queued_ = now();
  turn_ =
      std::allocate_shared<Turn>(DenseAllocator<Turn>(), shared_from_this(), std::move(request));
}

void Connection::begin_turn() {
  HttpRequest request = std::move(parser_.request());
  close_after_ = !request.keep_alive || host_.closing();
  open_turn(std::move(request));
  wait_readable();
  host_.handle(turn_);
}

void Connection::answer(const HttpReply& reply) {
  close_after_ = close_after_ || reply.close || host_.closing();
  const HttpRequest& request = turn_->request();
  pending_ += reply_head(reply, request, reply.body.size(), close_after_);
  if (request.method != "HEAD") pending_ += reply.body;
  queue_flush();
}

void Connection::refuse(const HttpRefusal& refusal) {
  HttpRequest request;
  request.path = parser_.request().path;  // as far as it is known
  open_turn(std::move(request));
  HttpReply reply;
  reply.status = refusal.status;
  reply.close = true;
  reply.error = api::http_error(refusal.status, refusal.message);
  reply.body = api::to_json(*reply.error);
  parser_.next();  // lets go of what has come
  turn_->release_body();
  if (speaks_anthropic(turn_->request().path))
    return message_exchange(turn_)->send(std::move(reply));
  turn_->send(std::move(reply));
}

void Connection::end_turn() {
  const auto turn = std::exchange(turn_, nullptr);
  host_.on_answered(turn->answered(), turn->status(), seconds(now() - turn->began()));
  turn->release(false);
  --busy_;
  if (close_after_) return linger();
  parser_.next();
  phase_ = Phase::reading;
  phase_began_ = now();
  continue_sent_ = false;
  if (input_.empty()) return wait_readable();
  advance();
}

// ---- writing

void Connection::queue_flush() {
  last_queued_ = host_.time();
  if (std::exchange(flush_queued_, true)) return;
  host_.flush_soon(shared_from_this());
}

void Connection::prefetch() const {
  fetch_lines(this, &tls_out_);
}

void Connection::prefetch_rest() const {
  fetch_lines(events_.data(), events_.data() + events_.size());
  if (turn_) turn_->prefetch();
}

void Connection::flush_now() {
  flush_queued_ = false;
  flush();
}

// What leaves is put together in memory of the thread's, which stays in its cache; a thousand
// connections' own would not. As a rule the kernel takes all of it at once.
void Connection::flush() {
  if (writing_ || phase_ == Phase::closed) return;
  static thread_local std::string burst;
  burst.clear();
  if (!pending_.empty()) std::swap(burst, pending_);
  if (!events_.empty()) {
    if (chunked_) append_chunk_size(events_.size(), burst);
    burst += std::string_view(events_);
    largest_burst_ = std::max(largest_burst_, events_.size());
    if (chunked_) burst += "\r\n";
    events_.clear();
  }
  const bool ends = turn_ && turn_->over();
  if (ends && chunked_) burst += "0\r\n\r\n";
  if (burst.empty() && tls_out_.empty()) {
    if (ends) end_turn();
    return;
  }
  if (tls_) {
    tls_->write(burst, tls_out_);
    burst = std::exchange(tls_out_, {});
  }
  last_progress_ = host_.time();
  size_t sent = 0;
  const Taken taken = give(burst, sent);
  if (taken == Taken::all) {
    on_written(burst);
  } else if (taken == Taken::some) {
    sending_ = std::move(burst);
    sent_ = sent;
    writing_ = true;
    wait_writable();
  }
  if (burst.capacity() > limits_.max_send_buffer) std::string().swap(burst);
}

// Writes what is left of `bytes` from `sent` on, as much as the kernel takes. The connection is
// lost if it takes none for good.
Connection::Taken Connection::give(std::string_view bytes, size_t& sent) {
  while (sent < bytes.size()) {
    ErrorCode error;
    sent +=
        socket_.write_some(boost::asio::buffer(bytes.data() + sent, bytes.size() - sent), error);
    if (error == boost::asio::error::would_block || error == boost::asio::error::try_again)
      return Taken::some;
    if (error) return lose_client(), Taken::lost;
    last_progress_ = host_.time();
  }
  return Taken::all;
}

void Connection::write_rest() {
  const Taken taken = give(sending_, sent_);
  if (taken == Taken::some) return wait_writable();
  if (taken == Taken::lost) return;
  writing_ = false;
  sent_ = 0;
  on_written(std::exchange(sending_, {}));
}

void Connection::wait_writable() {
  socket_.async_wait(Socket::wait_write, [self = shared_from_this()](ErrorCode error) {
    if (self->phase_ == Phase::closed) return;
    error ? self->lose_client() : self->write_rest();
  });
}

void Connection::on_written(std::string_view bytes) {
  host_.on_sent(bytes);
  if (!pending_.empty() || !events_.empty() || !tls_out_.empty()) return flush();
  if (!turn_) return;
  if (turn_->over()) return end_turn();
  const auto turn = turn_;
  turn->taken();
}

// ---- ending

// Lets the client read the last answer: a close with unread input would destroy it on the way.
void Connection::linger() {
  ErrorCode ignored;
  if (tls_) {
    tls_->finish(tls_out_);
    socket_.write_some(boost::asio::buffer(tls_out_), ignored);
  }
  socket_.shutdown(Socket::shutdown_send, ignored);
  phase_ = Phase::lingering;
  phase_began_ = now();
  input_.clear();
  wait_readable();
}

void Connection::lose_client() {
  if (phase_ == Phase::closed) return;
  const auto turn = std::exchange(turn_, nullptr);
  close();
  if (!turn) return;
  host_.on_answered(turn->answered(), turn->status() ? turn->status() : 499,
                    seconds(now() - turn->began()));
  --busy_;
  turn->release(true);
}

void Connection::close() {
  if (phase_ == Phase::closed) return;
  if (turn_) return lose_client();
  phase_ = Phase::closed;
  ErrorCode ignored;
  socket_.close(ignored);
}

bool Connection::on_tick(Nanos time) {
  const auto since = [time](Nanos moment) { return time - moment; };
  switch (phase_) {
    case Phase::reading:
      if (tls_ && !tls_->established()) {
        if (since(began_) > limits_.header_deadline) close();
        break;
      }
      if (input_.empty() && parser_.state() == HttpParser::State::header) {
        if (since(phase_began_) > limits_.keep_alive_idle) close();
      } else {
        const auto bytes = static_cast<double>(parser_.body_bytes());
        const double allowed =
            seconds(limits_.header_deadline) + bytes / static_cast<double>(limits_.min_body_rate);
        if (seconds(since(phase_began_)) > allowed) refuse({408, "the request came too slowly"});
      }
      break;
    case Phase::answering:
      if (writing_ && since(last_progress_) > limits_.write_stall)
        lose_client();
      else if (turn_->streaming() && !turn_->over() && since(last_queued_) > limits_.ping_interval)
        turn_->write_events(ping_frame(turn_->request().path));
      break;
    case Phase::lingering:
      if (since(phase_began_) > limits_.linger) close();
      break;
    case Phase::closed:
      break;
  }
  return phase_ != Phase::closed;
}

}  // namespace m2::server
