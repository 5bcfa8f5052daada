#pragma once

#include <atomic>
#include <boost/asio/generic/stream_protocol.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/dense_memory.h"
#include "server/byte_budget.h"
#include "server/exchange.h"
#include "server/http_parser.h"
#include "server/limits.h"
#include "server/tls.h"

// Includes Boost.Asio: for connection.cc and io_loop.h only.

namespace m2::server {

class Connection;

// What a connection reports to, and asks.
class ConnectionHost {
 public:
  virtual ~ConnectionHost() = default;
  virtual void handle(std::shared_ptr<Exchange> exchange) = 0;
  virtual void on_answered(const HttpRequest& request, int status, double seconds) = 0;
  virtual void on_sent(std::string_view bytes) = 0;
  // When this turn of the io thread began, or later: deadlines need no more.
  virtual Nanos time() const = 0;
  // Whether connections should end with the answer they are giving.
  virtual bool closing() const = 0;
  // What the bodies of all requests may hold together.
  virtual const std::shared_ptr<ByteBudget>& body_budget() const = 0;
  // Calls connection->flush_now() at the end of this turn of the io thread.
  virtual void flush_soon(std::shared_ptr<Connection> connection) = 0;
};

// One client's connection: reads requests one after the other, has each answered before the next
// is looked at, and keeps every deadline and bound of Limits. Lives on one io thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  // `tls` may be null.
  Connection(Socket socket, std::unique_ptr<TlsSession> tls, std::string peer, const Limits& limits,
             ConnectionHost& host, std::atomic<int64_t>& busy);

  void start();
  // Checks the deadlines; false once the connection is closed and can be forgotten.
  bool on_tick(Nanos now);
  void close();
  // Sends what was queued. For ConnectionHost::flush_soon().
  void flush_now();
  // Ask for the memory that flush_now() will need: its own, and, when that has come, the rest.
  void prefetch() const;
  void prefetch_rest() const;

 private:
  class Turn;  // the Exchange of the request being answered
  enum class Phase { reading, answering, lingering, closed };

  void wait_readable();
  bool take_input(std::string_view bytes);
  void on_readable();
  void advance();
  bool hold_body();
  void open_turn(HttpRequest request);
  void begin_turn();
  void end_turn();
  void refuse(const HttpRefusal& refusal);
  void answer(const HttpReply& reply);
  void queue_flush();
  void flush();
  enum class Taken { all, some, lost };
  Taken give(std::string_view bytes, size_t& sent);
  void write_rest();
  void wait_writable();
  void on_written(std::string_view bytes);
  void linger();
  void lose_client();
  // Bytes of earlier turns that the client has not taken.
  size_t backlog() const { return pending_.size() + sending_.size() - sent_; }

  // What a token of a stream needs, first and together: prefetch() fetches to the end of it.
  Socket socket_;
  std::shared_ptr<Turn> turn_;
  DenseString events_;   // SSE frames of this turn of the io thread
  std::string pending_;  // to be written next
  Phase phase_ = Phase::reading;
  bool chunked_ = false;  // the frames of turn_ are
  bool writing_ = false;
  bool flush_queued_ = false;
  bool close_after_ = false;
  bool waiting_readable_ = false;
  bool continue_sent_ = false;
  const std::unique_ptr<TlsSession> tls_;
  const Limits& limits_;
  ConnectionHost& host_;
  size_t largest_burst_ = 0;  // bytes of one turn: a stream may always send that much
  Nanos last_progress_ = 0;   // of the client's reading
  Nanos last_queued_ = 0;
  std::string sending_;  // what the kernel did not take at once
  size_t sent_ = 0;      // of it, since

  std::string tls_out_;  // what TLS itself has to say, before what is pending
  const std::string peer_;
  std::atomic<int64_t>& busy_;  // requests being answered, on all connections
  HttpParser parser_;
  std::unique_ptr<HeldBytes> body_held_;  // for the body being read
  std::string input_;                     // read, not parsed
  Nanos began_ = 0;
  Nanos phase_began_ = 0;
};

}  // namespace m2::server
