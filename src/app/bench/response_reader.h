#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace m2::app::bench {

// Reads HTTP/1.1 responses from bytes as they come, one after the other.
class ResponseReader {
 public:
  using OnBody = std::function<void(std::string_view)>;
  ResponseReader();
  ~ResponseReader();

  // Calls on_body with each piece of the body. Returns whether the response is complete: then
  // next() begins another. Errors: the bytes are not HTTP.
  Result<bool> feed(std::string_view bytes, const OnBody& on_body);
  // The connection ended; whether that completes the response.
  bool finish();
  void next();

  int status() const;  // 0: not read yet
  std::string reason() const;
  bool keep_alive() const;

 private:
  struct Machine;
  std::unique_ptr<Machine> machine_;
  std::string rest_;  // bytes of a line that is not complete
};

}  // namespace m2::app::bench
