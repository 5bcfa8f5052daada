#include "server/openapi.h"

#include <algorithm>

namespace m2::server {
namespace {

Json content(Json schema) {
  return Json{{"application/json", {{"schema", std::move(schema)}}}};
}

Json error_schema() {
  Json error = {{"type", "object"},
                {"properties",
                 {{"message", {{"type", "string"}}},
                  {"type", {{"type", "string"}}},
                  {"param", {{"type", Json::array({"string", "null"})}}},
                  {"code", {{"type", "integer"}}}}}};
  return {{"type", "object"}, {"properties", {{"error", std::move(error)}}}};
}

Json responses(const RouteDescription& route) {
  const auto refusal = [](const char* why) {
    return Json{{"description", why},
                {"content", content({{"$ref", "#/components/schemas/Error"}})}};
  };
  Json out = {{"200", {{"description", "Success"}}}};
  if (route.body) {
    out["400"] = refusal("The request cannot be served as it is");
    out["404"] = refusal("No such model");
    out["413"] = refusal("The body is too large");
    out["429"] = refusal("Too much is waiting; Retry-After says when to come back");
  }
  if (route.needs_key) out["401"] = Json{{"description", "A key is needed"}};
  out["503"] = refusal("The model is loading, the engine stands still or the server shuts down");
  return out;
}

std::string operation_id(std::string_view path, const std::string& method) {
  std::string id = method;
  for (const char c : path) id += c == '/' || c == '{' || c == '}' || c == '.' ? '_' : c;
  return id;
}

// Calls `each` with every word of a list separated by blanks.
template <class Each>
void for_words(std::string_view list, Each each) {
  while (!list.empty()) {
    const size_t blank = std::min(list.find(' '), list.size());
    each(list.substr(0, blank));
    list.remove_prefix(std::min(blank + 1, list.size()));
  }
}

// Parameters of a path such as /v1/responses/{id}, and of the query of GET.
Json parameters_of(const RouteDescription& route, const std::string& method) {
  const std::string_view path = route.path;
  Json out = Json::array();
  for (size_t at = path.find('{'); at != std::string_view::npos; at = path.find('{', at + 1)) {
    const std::string name(path.substr(at + 1, path.find('}', at) - at - 1));
    out.push_back(
        {{"name", name}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}});
  }
  if (method != "get") return out;
  for_words(route.query, [&](std::string_view word) {
    const size_t colon = word.find(':');
    out.push_back({{"name", word.substr(0, colon)},
                   {"in", "query"},
                   {"schema", {{"type", word.substr(colon + 1)}}}});
  });
  return out;
}

Json operation(const RouteDescription& route, const std::string& method) {
  Json out = {{"operationId", operation_id(route.path, method)}};
  if (Json parameters = parameters_of(route, method); !parameters.empty())
    out["parameters"] = std::move(parameters);
  if (route.body && method == "post")
    out["requestBody"] = Json{{"required", true}, {"content", content(route.body())}};
  out["responses"] = responses(route);
  if (route.needs_key)
    out["security"] = Json::array({Json{{"key", Json::array()}}, Json::object()});
  return out;
}

}  // namespace

std::string_view docs_page() {
  return R"(<!doctype html>
<html lang="en"><meta charset="utf-8"><title>m2</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
code { font-family: monospace } summary { cursor: pointer } td { padding-right: 2em }
</style>
<h1>m2</h1><p><a href="openapi.json">openapi.json</a></p><div id="routes"></div>
<script>
const add = (parent, tag, text) => {
  const node = parent.appendChild(document.createElement(tag));
  if (text !== undefined) node.textContent = text;
  return node;
};
const typeOf = schema => (schema.anyOf ?? [schema]).map(
  s => s.enum ? s.enum.join(" or ") : s.items ? `list of ${typeOf(s.items)}` : s.type ?? "any"
).filter(t => t !== "null").join(" or ");
const show = (routes, path, method, operation) => {
  const route = add(routes, "details");
  add(add(route, "summary"), "code", `${method.toUpperCase()} ${path}`);
  const table = add(route, "table");
  const row = (name, kind) => {
    const line = add(table, "tr");
    add(add(line, "td"), "code", name);
    add(line, "td", kind);
  };
  for (const p of operation.parameters ?? []) row(p.name, `${p.schema.type}, in the ${p.in}`);
  const body = operation.requestBody?.content["application/json"].schema;
  for (const [name, schema] of Object.entries(body?.properties ?? {}))
    row(name, typeOf(schema) + (body.required.includes(name) ? ", required" : ""));
};
fetch("openapi.json").then(reply => reply.json()).then(document_ => {
  const routes = document.getElementById("routes");
  for (const [path, methods] of Object.entries(document_.paths))
    for (const [method, operation] of Object.entries(methods))
      show(routes, path, method, operation);
});
</script>
)";
}

std::string openapi_text(std::span<const RouteDescription> routes, const std::string& version) {
  Json out;
  out["openapi"] = "3.1.0";
  out["info"] = Json{{"title", "m2"}, {"version", version}};
  out["paths"] = Json::object();
  for (const RouteDescription& route : routes) {
    Json& path = out["paths"][std::string(route.path)];
    for_words(route.methods, [&](std::string_view word) {
      std::string method(word);
      if (method == "HEAD" || method == "OPTIONS") return;
      std::transform(method.begin(), method.end(), method.begin(),
                     [](char c) { return static_cast<char>(c + 32); });
      path[method] = operation(route, method);
    });
  }
  out["components"]["schemas"]["Error"] = error_schema();
  out["components"]["securitySchemes"]["key"] = Json{{"type", "http"}, {"scheme", "bearer"}};
  return to_text(out);
}

}  // namespace m2::server
