#include "api/reply.h"

#include "api/json_text.h"

namespace m2::api {

Json to_json(const Usage& usage, bool nulls) {
  Json out;
  out["prompt_tokens"] = usage.prompt_tokens;
  out["total_tokens"] = usage.prompt_tokens + usage.completion_tokens;
  out["completion_tokens"] = usage.completion_tokens;
  if (usage.cached_tokens)
    out["prompt_tokens_details"] = Json{{"cached_tokens", *usage.cached_tokens}};
  else if (nulls)
    out["prompt_tokens_details"] = nullptr;
  if (usage.reasoning_tokens)
    out["completion_tokens_details"] = Json{{"reasoning_tokens", *usage.reasoning_tokens}};
  return out;
}

std::string chunk_prefix(const ReplyHead& head, std::string_view object) {
  std::string prefix = "data: {\"id\":";
  append_json_string(prefix, head.id);
  prefix += ",\"object\":";
  append_json_string(prefix, object);
  prefix += ",\"created\":";
  append_json_integer(prefix, head.created);
  prefix += ",\"model\":";
  append_json_string(prefix, head.model);
  prefix += ",\"choices\":[";
  return prefix;
}

std::string error_frame(const std::string& error_json) {
  return "data: " + error_json + "\n\n";
}

}  // namespace m2::api
