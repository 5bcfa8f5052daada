#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/error.h"

// One HTTP/1.1 request and what is needed to answer it. No sockets here.

namespace m2::server {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;   // of the target, as sent: not percent-decoded
  std::string query;  // after '?'
  std::string body;
  std::string authorization, content_type, content_encoding, request_id, origin;
  std::string api_key;                 // x-api-key
  bool from_anthropic_client = false;  // it sent anthropic-version
  std::string data_parallel_rank;      // X-data-parallel-rank
  std::string peer;                    // address of the client, for the log
  std::string tenant;                  // whose API key it came with; empty: all clients are alike
  std::string cors_method, cors_headers;  // Access-Control-Request-Method, -Headers
  HeaderList reply_headers;               // of every reply to it: the echoed X-Request-Id, CORS
  size_t body_bytes = 0;                  // of the body, which may be gone by then
  size_t reply_bytes = 0;                 // of the reply so far, without its head
  bool keep_alive = true;
  bool http10 = false;  // no chunked replies
  bool expects_continue = false;
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  HeaderList headers;
  std::optional<api::ApiError> error;  // what the body says, if that is an error
  bool close = false;                  // end the connection afterwards
};

// 200 with a JSON body.
HttpReply json_reply(std::string body);
// The reply that carries an error's body; 429 and 503 say when to come back.
HttpReply error_reply(const api::ApiError& error);

// A refusal of the transport itself, before any route is looked at.
struct HttpRefusal {
  int status = 400;
  std::string message;
};

// The status line and header lines of a reply. `body_size`: the Content-Length; nullopt: a chunked
// stream, or one that ends with the connection (HTTP/1.0).
std::string reply_head(const HttpReply& reply, const HttpRequest& request,
                       std::optional<size_t> body_size, bool close);

}  // namespace m2::server
