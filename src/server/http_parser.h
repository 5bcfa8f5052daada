#pragma once

#include <memory>
#include <string>

#include "server/http_message.h"
#include "server/limits.h"

namespace m2::server {

// Reads HTTP/1.1 requests out of a growing buffer, one after the other. Strict where leniency lets
// two parsers disagree about where a request ends (request smuggling). Not thread-safe.
class HttpParser {
 public:
  explicit HttpParser(const Limits& limits);
  ~HttpParser();

  enum class State { header, body, complete, refused };

  // Takes what it can from the front of `input`; call again when more has come. Once complete or
  // refused it takes nothing until next().
  State feed(std::string& input);

  State state() const { return state_; }
  // Bytes of the body read so far.
  size_t body_bytes() const;
  // After State::body or complete. The body is there when complete.
  HttpRequest& request() { return request_; }
  // After State::refused.
  const HttpRefusal& refusal() const { return refusal_; }

  // Gets ready for the connection's next request.
  void next();

 private:
  struct Machine;  // the Beast parser
  bool folds(const std::string& input);
  State refuse(int status, std::string message);
  State accept_header();

  const Limits& limits_;
  std::unique_ptr<Machine> machine_;
  HttpRequest request_;
  HttpRefusal refusal_;
  State state_ = State::header;

  // The header's lines, as far as `input` has been looked at.
  struct Lines {
    size_t scanned = 0;       // bytes at the front of `input`
    size_t line_bytes = 0;    // of the line at hand
    bool skipped = false;     // an empty line before the request
    bool begun = false;       // a line that is not empty has ended
    bool ended_line = false;  // the last byte ended one
    bool over = false;
  };
  Lines lines_;
};

}  // namespace m2::server
