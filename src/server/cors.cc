#include "server/cors.h"

#include <algorithm>

namespace m2::server {
namespace {

constexpr std::string_view kMethods = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT";
// Headers that need no leave.
constexpr std::string_view kSafeHeaders[] = {"accept", "accept-language", "content-language",
                                             "content-type"};

bool allows_all(const std::vector<std::string>& allowed) {
  return std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
}

bool allows(const std::vector<std::string>& allowed, const std::string& value) {
  return allows_all(allowed) || std::find(allowed.begin(), allowed.end(), value) != allowed.end();
}

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return out;
}

std::string joined(const std::vector<std::string>& words) {
  std::string out;
  for (const std::string& word : words) out += (out.empty() ? "" : ", ") + word;
  return out;
}

// Each name of a comma-separated list, in lower case.
std::vector<std::string> names_of(std::string_view list) {
  std::vector<std::string> out;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view name = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
    while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
    if (!name.empty()) out.push_back(lower(name));
  }
  return out;
}

bool allows_headers(const Cors& cors, const std::string& asked) {
  if (allows_all(cors.headers)) return true;
  std::vector<std::string> allowed(std::begin(kSafeHeaders), std::end(kSafeHeaders));
  for (const std::string& name : cors.headers) allowed.push_back(lower(name));
  const std::vector<std::string> names = names_of(asked);
  return std::all_of(names.begin(), names.end(),
                     [&](const std::string& name) { return allows(allowed, name); });
}

}  // namespace

HeaderList cors_headers(const Cors& cors, const HttpRequest& request) {
  if (request.origin.empty() || !allows(cors.origins, request.origin)) return {};
  HeaderList out;
  // With credentials a browser takes no "*".
  if (allows_all(cors.origins) && !cors.credentials) {
    out.emplace_back("access-control-allow-origin", "*");
  } else {
    out.emplace_back("access-control-allow-origin", request.origin);
    out.emplace_back("vary", "Origin");
  }
  if (cors.credentials) out.emplace_back("access-control-allow-credentials", "true");
  return out;
}

HttpReply cors_preflight(const Cors& cors, const HttpRequest& request) {
  HttpReply reply;
  reply.content_type = "text/plain; charset=utf-8";
  std::string refused;
  const auto check = [&](bool allowed, const char* what) {
    if (!allowed) refused += (refused.empty() ? "" : ", ") + std::string(what);
  };
  check(request.origin.empty() || allows(cors.origins, request.origin), "origin");
  check(request.cors_method.empty() || allows(cors.methods, request.cors_method), "method");
  check(allows_headers(cors, request.cors_headers), "headers");
  if (!refused.empty()) {
    reply.status = 400;
    reply.body = "Disallowed CORS " + refused;
    return reply;
  }
  reply.body = "OK";
  const bool echoes = allows_all(cors.headers) && !request.cors_headers.empty();
  reply.headers = {
      {"access-control-allow-methods",
       allows_all(cors.methods) ? std::string(kMethods) : joined(cors.methods)},
      {"access-control-allow-headers", echoes ? request.cors_headers : joined(cors.headers)},
      {"access-control-max-age", "600"}};
  return reply;
}

}  // namespace m2::server
