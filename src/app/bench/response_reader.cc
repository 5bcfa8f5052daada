// With sanitizers on, the compiler takes an empty boost::optional inside Beast for a value in use.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "app/bench/response_reader.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <limits>

namespace m2::app::bench {
namespace http = boost::beast::http;
namespace beast = boost::beast;

struct ResponseReader::Machine : http::basic_parser<false> {
  Machine() {
    eager(true);
    body_limit(std::numeric_limits<std::uint64_t>::max());
    header_limit(64 << 10);
  }

  using Text = beast::string_view;
  using Status = beast::error_code;

  void on_request_impl(http::verb, Text, Text, int, Status&) override {}
  void on_response_impl(int code, Text text, int, Status&) override {
    status = code;
    reason.assign(text.data(), text.size());
  }
  void on_field_impl(http::field, Text, Text, Status&) override {}
  void on_header_impl(Status&) override {}
  void on_body_init_impl(const boost::optional<std::uint64_t>&, Status&) override {}
  std::size_t on_body_impl(Text body, Status&) override {
    (*on_body)({body.data(), body.size()});
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t, Text, Status&) override {}
  std::size_t on_chunk_body_impl(std::uint64_t, Text body, Status&) override {
    (*on_body)({body.data(), body.size()});
    return body.size();
  }
  void on_finish_impl(Status&) override {}

  const OnBody* on_body = nullptr;  // during feed()
  int status = 0;
  std::string reason;
};

ResponseReader::ResponseReader() : machine_(std::make_unique<Machine>()) {}
ResponseReader::~ResponseReader() = default;

Result<bool> ResponseReader::feed(std::string_view bytes, const OnBody& on_body) {
  machine_->on_body = &on_body;
  std::string_view input = bytes;
  if (!rest_.empty()) {
    rest_ += bytes;
    input = rest_;
  }
  while (!input.empty() && !machine_->is_done()) {
    beast::error_code error;
    const size_t used = machine_->put(boost::asio::buffer(input.data(), input.size()), error);
    input.remove_prefix(used);
    if (error == http::error::need_more) break;
    if (error) return fail(Code::unavailable, "the answer is not HTTP: {}", error.message());
  }
  rest_ = std::string(input);
  return machine_->is_done();
}

bool ResponseReader::finish() {
  if (!machine_->got_some()) return false;
  const OnBody ignore = [](std::string_view) {};
  machine_->on_body = &ignore;
  beast::error_code error;
  machine_->put_eof(error);
  return !error && machine_->is_done();
}

void ResponseReader::next() {
  machine_ = std::make_unique<Machine>();
  rest_.clear();
}

int ResponseReader::status() const {
  return machine_->status;
}
std::string ResponseReader::reason() const {
  return machine_->reason;
}
bool ResponseReader::keep_alive() const {
  return machine_->keep_alive();
}

}  // namespace m2::app::bench
