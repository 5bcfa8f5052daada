#pragma once

#include <memory>
#include <string>
#include <vector>

#include "app/serving.h"

// Commands that are clients ask a server that is there, or one of their own for as long as they
// run.

namespace m2::app {

// A server of this process, if there is one, and the address to send requests to.
struct ServerToAsk {
  std::unique_ptr<Serving> own;
  std::string url;
};

// `words` with what keeps a server of our own on a free port of this machine alone.
std::vector<std::string> with_private_server(std::vector<std::string> words);

// `url_or_model`: an address with "://", else a MODEL to serve with `serve_values` (of
// with_private_server()); empty: m2-micro.
Result<ServerToAsk> server_to_ask(const std::string& url_or_model, const Values& serve_values);

}  // namespace m2::app
