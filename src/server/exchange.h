#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "engine/request.h"
#include "server/http_message.h"

namespace m2::server {

// One request and the way to answer it: either one send(), or begin_events(), any number of
// write_events() and end_events(). Calls after the end, or after the client has gone, do nothing.
// All on the exchange's io thread.
class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual HttpRequest& request() = 0;
  // The request's body is not needed any more: its memory is for others.
  virtual void release_body() = 0;
  virtual void send(HttpReply reply) = 0;

  // 200 and the head of a text/event-stream, with `headers` in it; frames follow. What is written
  // in one turn of the io thread leaves in one piece.
  virtual void begin_events(const HeaderList& headers) = 0;
  virtual void write_events(std::string_view frames) = 0;
  virtual void end_events() = 0;

  // `ready` is called once, when the client has taken all that was written.
  virtual void on_ready(std::function<void()> ready) = 0;

  // `gone` is called once if the client leaves, or stops reading, before the answer's end.
  virtual void on_gone(std::function<void()> gone) = 0;
};

// Hears what the engine does with its requests, on its io thread.
class EventReceiver {
 public:
  virtual ~EventReceiver() = default;
  // `tag` is what was given to listen().
  virtual void on_event(size_t tag, const engine::Event& event) = 0;
  // An event is about to come: asks for the memory it will need.
  virtual void prefetch(size_t) const {}
  // The server is going down: end with an error now.
  virtual void on_shutdown() = 0;
};

// One of the server's io threads, as those see it whose requests live there. Everything about one
// request happens on one such thread, so nothing about it needs a lock.
class IoThread {
 public:
  virtual ~IoThread() = default;

  // Runs `task` on this thread, soon. May be called from any.
  virtual void post(std::function<void()> task) = 0;

  // Runs `work` on a worker thread, then `done` on this one.
  virtual void run_aside(std::function<void()> work, std::function<void()> done) = 0;

  // Events of `id` go to `receiver` until forgotten. Call in the turn that submitted the request:
  // its events wait for the end of the turn.
  virtual void listen(engine::RequestId id, std::shared_ptr<EventReceiver> receiver,
                      size_t tag) = 0;
  virtual void forget(engine::RequestId id) = 0;

  // So many more (or fewer) of the thread's requests may have events to come. It is woken for a
  // step's events only while there are any, so say so before the request is submitted.
  virtual void expect(int more) = 0;
};

}  // namespace m2::server
