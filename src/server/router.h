#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/error.h"
#include "base/metrics.h"
#include "server/context.h"
#include "server/exchange.h"

namespace m2::server {

// Which code answers which path (contract.md 4.1), who may call it, and what is counted about it.
// Thread-safe after construction.
class Router {
 public:
  Router(Context& context, Metrics& metrics);
  ~Router();

  // Answers the exchange, now or later, on `thread`.
  void handle(std::shared_ptr<Exchange> exchange, IoThread& thread);

  // "/health, Methods: GET, HEAD" of every route.
  std::vector<std::string> route_lines() const;

  // Counts and logs an answered request.
  void on_answered(const HttpRequest& request, int status, double seconds);

 private:
  struct Route;
  struct Series;  // metrics of one route

  const Route* find(std::string_view path) const;
  // Whether the request's key is one of ours; says in the request whose it is.
  bool authorize(HttpRequest& request) const;
  std::optional<api::ApiError> overload() const;
  void describe_routes();
  void add_series(const Route* route, std::string_view method);

  Context& context_;
  Metrics& metrics_;
  std::vector<std::array<unsigned char, 32>> key_hashes_;
  std::vector<Route> routes_;
  std::string openapi_;  // the text of /openapi.json
  std::vector<std::unique_ptr<Series>> series_;
};

}  // namespace m2::server
