#include "server/event_follower.h"

#include <utility>

#include "api/error.h"
#include "api/reply.h"

namespace m2::server {
namespace {

constexpr size_t kPiece = 64 << 10;

class EventFollower : public std::enable_shared_from_this<EventFollower> {
 public:
  EventFollower(std::shared_ptr<Exchange> exchange, IoThread& thread, std::shared_ptr<EventLog> log,
                size_t first)
      : exchange_(std::move(exchange)), thread_(thread), log_(std::move(log)), next_(first) {}

  void begin() {
    exchange_->on_gone([self = shared_from_this()] {
      self->gone_ = true;
      self->log_->forget(self->waiter_);
    });
    exchange_->begin_events({});
    go_on();
  }

 private:
  void go_on() {
    if (gone_) return;
    EventLog::Piece piece = log_->read(next_, kPiece);
    if (piece.lost)
      piece.frames = api::error_frame(api::to_json(
          {500, "server_error", "the events of this response are no longer kept", {}}));
    next_ = piece.next;
    exchange_->write_events(piece.frames);
    if (piece.lost || piece.over) return exchange_->end_events();
    if (!piece.frames.empty())
      return exchange_->on_ready([self = shared_from_this()] { self->go_on(); });
    waiter_ = log_->wait(next_, [weak = weak_from_this(), &thread = thread_] {
      thread.post([weak] {
        if (const auto self = weak.lock()) self->go_on();
      });
    });
  }

  const std::shared_ptr<Exchange> exchange_;  // holds this, by on_gone()
  IoThread& thread_;
  const std::shared_ptr<EventLog> log_;
  size_t next_;
  int waiter_ = 0;
  bool gone_ = false;
};

}  // namespace

void follow_events(std::shared_ptr<Exchange> exchange, IoThread& thread,
                   std::shared_ptr<EventLog> log, size_t first) {
  std::make_shared<EventFollower>(std::move(exchange), thread, std::move(log), first)->begin();
}

}  // namespace m2::server
