#include "server/message_exchange.h"

#include <utility>

#include "api/anthropic_messages.h"
#include "server/ids.h"

namespace m2::server {
namespace {

class MessageExchange : public Exchange {
 public:
  explicit MessageExchange(std::shared_ptr<Exchange> exchange) : exchange_(std::move(exchange)) {}

  HttpRequest& request() override { return exchange_->request(); }
  void release_body() override { exchange_->release_body(); }

  void send(HttpReply reply) override {
    if (reply.error) reply.body = api::anthropic_error_json(*reply.error);
    reply.headers.emplace_back("request-id", id_);
    exchange_->send(std::move(reply));
  }

  void begin_events(const HeaderList& headers) override {
    HeaderList more = headers;
    more.emplace_back("request-id", id_);
    exchange_->begin_events(more);
  }

  void write_events(std::string_view frames) override { exchange_->write_events(frames); }
  void end_events() override { exchange_->end_events(); }
  void on_ready(std::function<void()> ready) override { exchange_->on_ready(std::move(ready)); }
  void on_gone(std::function<void()> gone) override { exchange_->on_gone(std::move(gone)); }

 private:
  const std::shared_ptr<Exchange> exchange_;
  const std::string id_ = "req_" + random_hex();
};

}  // namespace

bool speaks_anthropic(std::string_view path) {
  constexpr std::string_view kRoot = "/v1/messages";
  return path.starts_with(kRoot) && (path.size() == kRoot.size() || path[kRoot.size()] == '/');
}

std::string_view ping_frame(std::string_view path) {
  return speaks_anthropic(path) ? "event: ping\ndata: {\"type\": \"ping\"}\n\n" : ": ping\n\n";
}

std::shared_ptr<Exchange> message_exchange(std::shared_ptr<Exchange> exchange) {
  return std::make_shared<MessageExchange>(std::move(exchange));
}

}  // namespace m2::server
