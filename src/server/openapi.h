#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/json.h"

namespace m2::server {

// One row of the router's table, as /openapi.json describes it.
struct RouteDescription {
  std::string_view path;
  std::string_view methods;  // separated by blanks
  Json (*body)() = nullptr;  // schema of the request's body; null: it has none
  bool needs_key = false;
  std::string_view query;  // parameters of the query, "name:type", separated by blanks
};

// The document of these routes, OpenAPI 3.1. HEAD and OPTIONS are left out.
std::string openapi_text(std::span<const RouteDescription> routes, const std::string& version);

// A page that shows that document to people; it loads nothing but the document, from beside itself.
std::string_view docs_page();

}  // namespace m2::server
