#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace m2::app {

struct HttpAnswer {
  long status = 0;
  std::string body;
};

// A small HTTP client over libcurl for the programs that ask a server (chat, eval, run-batch): http
// and https, proxies from the environment as curl reads them. Thread-safe.
class HttpClient {
 public:
  // `base_url` as given, e.g. http://127.0.0.1:8000 (a trailing /v1 or / is taken off).
  // `api_key` may be empty.
  HttpClient(std::string base_url, std::string api_key);

  Result<Json> get(const std::string& path) const;
  Result<std::string> get_text(const std::string& path) const;

  // POSTs `body`; an answer of any status is a result.
  Result<HttpAnswer> post(const std::string& path, const Json& body) const;

  // POSTs `body` and calls on_event with the data of each server-sent event until it returns false
  // or the stream ends. `is_wanted`, if given, is asked about once a second, whether anything comes
  // or not; false ends the stream, too. An answer that is not 200 is an error with the server's own
  // message.
  Result<void> stream(const std::string& path, const Json& body,
                      const std::function<bool(std::string_view data)>& on_event,
                      std::function<bool()> is_wanted = {}) const;

 private:
  std::string base_url_;
  std::string api_key_;
};

// The first name that the server lists. Fails if it lists none.
Result<std::string> first_model(const HttpClient& client);

// Splits a byte stream into server-sent events and hands out their data. Event names and comments
// are left out; `data` lines of one event are joined by newlines.
class SseReader {
 public:
  // Calls on_data(data) for each event completed by `bytes`; false stops and is returned.
  bool feed(std::string_view bytes, const std::function<bool(std::string_view)>& on_data);

 private:
  bool take_line(std::string_view line, const std::function<bool(std::string_view)>& on_data);
  std::string line_;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace m2::app
