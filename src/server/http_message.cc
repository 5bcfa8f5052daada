#include "server/http_message.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <iterator>

#include "api/error.h"

namespace m2::server {

HttpReply json_reply(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  return reply;
}

HttpReply error_reply(const api::ApiError& error) {
  HttpReply reply;
  reply.status = error.status;
  reply.body = api::to_json(error);
  reply.error = error;
  if (error.status == 429) reply.headers.emplace_back("retry-after", "1");
  if (error.status == 503) reply.headers.emplace_back("retry-after", "5");
  return reply;
}

std::string reply_head(const HttpReply& reply, const HttpRequest& request,
                       std::optional<size_t> body_size, bool close) {
  std::string out;
  auto at = std::back_inserter(out);
  fmt::format_to(at, "HTTP/1.1 {} {}\r\n", reply.status, api::status_phrase(reply.status));
  // A server with a clock says what it shows (RFC 9110, 6.6.1).
  fmt::format_to(at, "date: {:%a, %d %b %Y %H:%M:%S} GMT\r\n", fmt::gmtime(std::time(nullptr)));
  if (!reply.content_type.empty()) fmt::format_to(at, "content-type: {}\r\n", reply.content_type);
  if (body_size)
    fmt::format_to(at, "content-length: {}\r\n", *body_size);
  else if (!request.http10)
    out += "transfer-encoding: chunked\r\n";
  for (const auto& [name, value] : request.reply_headers)
    fmt::format_to(at, "{}: {}\r\n", name, value);
  for (const auto& [name, value] : reply.headers) fmt::format_to(at, "{}: {}\r\n", name, value);
  if (close)
    out += "connection: close\r\n";
  else if (request.http10)
    out += "connection: keep-alive\r\n";
  return out + "\r\n";
}

}  // namespace m2::server
