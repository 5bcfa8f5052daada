#include "app/own_server.h"

#include "app/micro_model.h"
#include "base/log.h"

namespace m2::app {

std::vector<std::string> with_private_server(std::vector<std::string> words) {
  words.insert(words.end(), {"--host", "127.0.0.1", "--port", "0", "--disable-uvicorn-access-log"});
  return words;
}

Result<ServerToAsk> server_to_ask(const std::string& url_or_model, const Values& serve_values) {
  if (url_or_model.find("://") != std::string::npos) return ServerToAsk{nullptr, url_or_model};
  std::string model = url_or_model;
  if (model.empty()) {
    M2_TRY(model, micro_model());
  }
  ServerToAsk out;
  M2_TRY(out.own, Serving::start(model, serve_values, SignalsEnd::process));
  out.url = fmt::format("http://127.0.0.1:{}", out.own->port());
  return out;
}

}  // namespace m2::app
