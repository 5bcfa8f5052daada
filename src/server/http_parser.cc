// With sanitizers on, the compiler takes an empty boost::optional inside Beast for a value in use.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "server/http_parser.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <limits>

namespace m2::server {
namespace http = boost::beast::http;

struct HttpParser::Machine {
  http::request_parser<http::string_body> beast;
};

namespace {

using Fields = http::request_parser<http::string_body>::value_type;

template <class Text>
std::string text(const Text& view) {
  return std::string(view.data(), view.size());
}

bool equals(std::string_view a, std::string_view lower) {
  return std::equal(a.begin(), a.end(), lower.begin(), lower.end(), [](char x, char y) {
    return (x >= 'A' && x <= 'Z' ? static_cast<char>(x + 32) : x) == y;
  });
}

// Checks of RFC 9112 that the library leaves to its user; empty if there is nothing to refuse.
HttpRefusal framing_problem(const Fields& message) {
  if (message.version() != 10 && message.version() != 11)
    return {505, "only HTTP/1.0 and HTTP/1.1 are served"};
  if (message.version() == 11 && message.count(http::field::host) != 1)
    return {400, "exactly one Host header is needed"};
  if (message.count(http::field::host) > 1) return {400, "more than one Host header"};
  const size_t encodings = message.count(http::field::transfer_encoding);
  const size_t lengths = message.count(http::field::content_length);
  if (lengths > 1) return {400, "more than one Content-Length header"};
  if (encodings > 1) return {400, "more than one Transfer-Encoding header"};
  if (encodings > 0 && lengths > 0)
    return {400, "Content-Length and Transfer-Encoding exclude each other"};
  if (encodings > 0 && message.version() == 10) return {400, "HTTP/1.0 has no Transfer-Encoding"};
  if (encodings > 0 && !equals(text(message[http::field::transfer_encoding]), "chunked"))
    return {501, "the only Transfer-Encoding served is chunked"};
  if (lengths > 0) {
    const std::string length = text(message[http::field::content_length]);
    if (length.empty() || length.find_first_not_of("0123456789") != std::string::npos)
      return {400, "Content-Length should be a decimal number"};
  }
  return {0, {}};
}

HttpRefusal size_problem(const Fields& message, const Limits& limits) {
  constexpr size_t kLongestMethod = 32;
  if (message.method_string().size() > kLongestMethod) return {400, "the method is too long"};
  if (message.target().size() > limits.max_target) return {414, "the request target is too long"};
  size_t lines = 0;
  for (const auto& field : message) {
    if (++lines > limits.max_header_lines) return {431, "too many header lines"};
    if (field.name_string().size() + field.value().size() + 4 > limits.max_header_line)
      return {431, "a header line is too long"};
  }
  return {0, {}};
}

// The origin form of a target; empty if it has none.
std::string origin_form(std::string target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (target.compare(0, scheme.size(), scheme) != 0) continue;
    const size_t slash = target.find('/', scheme.size());
    return slash == std::string::npos ? "/" : target.substr(slash);
  }
  if (target.empty() || (target.front() != '/' && target != "*")) return {};
  return target;
}

std::string path_of(const std::string& target) {
  return target.substr(0, target.find('?'));
}

HttpRefusal refusal_of(boost::beast::error_code error) {
  if (error == http::error::header_limit || error == http::error::buffer_overflow)
    return {431, "the request header is too large"};
  if (error == http::error::body_limit) return {413, "the request body is too large"};
  if (error == http::error::bad_version) return {505, "only HTTP/1.0 and HTTP/1.1 are served"};
  return {400, "malformed HTTP request: " + error.message()};
}

}  // namespace

HttpParser::HttpParser(const Limits& limits) : limits_(limits) {
  next();
}
HttpParser::~HttpParser() = default;

void HttpParser::next() {
  machine_ = std::make_unique<Machine>();
  machine_->beast.eager(true);
  machine_->beast.header_limit(static_cast<uint32_t>(limits_.max_header_bytes));
  machine_->beast.body_limit(limits_.max_body);
  request_ = HttpRequest();
  state_ = State::header;
  lines_ = {};
}

HttpParser::State HttpParser::refuse(int status, std::string message) {
  refusal_ = {status, std::move(message)};
  return state_ = State::refused;
}

HttpParser::State HttpParser::accept_header() {
  const Fields& message = machine_->beast.get();
  for (const HttpRefusal& problem : {size_problem(message, limits_), framing_problem(message)})
    if (problem.status != 0) return refuse(problem.status, problem.message);
  const std::string target = origin_form(text(message.target()));
  if (target.empty()) return refuse(400, "the request target should be a path");

  if (std::any_of(target.begin(), target.end(), [](char c) { return c <= ' ' || c > '~'; }))
    return refuse(400, "the request target should be ASCII");
  const size_t question = std::min(target.find('?'), target.size());
  request_.method = text(message.method_string());
  request_.path = path_of(target);
  if (question < target.size()) request_.query = target.substr(question + 1);
  request_.authorization = text(message[http::field::authorization]);
  request_.content_type = text(message[http::field::content_type]);
  request_.content_encoding = text(message[http::field::content_encoding]);
  request_.api_key = text(message["X-Api-Key"]);
  request_.from_anthropic_client = !message["Anthropic-Version"].empty();
  request_.request_id = text(message["X-Request-Id"]);
  request_.data_parallel_rank = text(message["X-data-parallel-rank"]);
  request_.origin = text(message[http::field::origin]);
  request_.cors_method = text(message[http::field::access_control_request_method]);
  request_.cors_headers = text(message[http::field::access_control_request_headers]);
  request_.keep_alive = message.keep_alive();
  request_.http10 = message.version() == 10;
  request_.expects_continue = equals(text(message[http::field::expect]), "100-continue");
  return state_ = State::body;
}

// Whether a header line goes on on the next one (RFC 9112, 5.2): the library joins the two without
// a word, where others see two lines. Each byte is looked at once.
bool HttpParser::folds(const std::string& input) {
  Lines& at = lines_;
  for (; at.scanned < input.size() && !at.over; ++at.scanned) {
    const char c = input[at.scanned];
    if (at.ended_line && (c == ' ' || c == '\t')) return true;
    at.ended_line = c == '\n' && at.line_bytes > 0;
    if (c == '\n') {
      at.over = at.line_bytes == 0 && at.begun;
      at.begun = at.begun || at.line_bytes > 0;
      at.line_bytes = 0;
    } else if (c != '\r') {
      ++at.line_bytes;
    }
  }
  return false;
}

HttpParser::State HttpParser::feed(std::string& input) {
  // One empty line before a request is forgiven (RFC 9112, 2.2).
  if (state_ == State::header && lines_.scanned == 0 && !lines_.skipped) {
    if (input == "\r") return state_;
    lines_.skipped = !input.empty();
    if (input.starts_with("\r\n")) input.erase(0, 2);
  }
  if (state_ == State::header && folds(input))
    return refuse(400, "malformed HTTP request: a header line is folded");
  auto& beast = machine_->beast;
  size_t taken = 0;
  while (state_ == State::header || state_ == State::body) {
    if (beast.is_done()) {
      request_.body = std::move(beast.get().body());
      request_.body_bytes = request_.body.size();
      state_ = State::complete;
      break;
    }
    if (taken == input.size()) break;
    boost::beast::error_code error;
    const size_t used =
        beast.put(boost::asio::const_buffer(input.data() + taken, input.size() - taken), error);
    taken += used;
    if (error && error != http::error::need_more) {
      const HttpRefusal why = refusal_of(error);
      if (request_.path.empty()) request_.path = path_of(text(beast.get().target()));
      refuse(why.status, why.message);
    } else if (state_ == State::header && beast.is_header_done()) {
      accept_header();
    } else if (used == 0) {
      // A line that does not end: a header is bounded by the library, a chunk's size line here.
      if (input.size() - taken > limits_.max_header_bytes) refuse(400, "a line is too long");
      break;
    }
  }
  input.erase(0, taken);
  lines_.scanned -= std::min(lines_.scanned, taken);
  return state_;
}

size_t HttpParser::body_bytes() const {
  return state_ == State::complete ? request_.body_bytes : machine_->beast.get().body().size();
}

}  // namespace m2::server
