#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

// What all replies have in common.

namespace m2::api {

struct ReplyHead {
  std::string id;       // chatcmpl-..., cmpl-...
  int64_t created = 0;  // seconds since 1970
  std::string model;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::optional<int64_t> reasoning_tokens;
  std::optional<int64_t> cached_tokens;  // set if --enable-prompt-tokens-details
};

// Why a choice ended.
struct Finish {
  std::string reason;  // stop, length, tool_calls, abort, error
  Json stop_reason;    // the stop string, the stop token's id, or null
};

// With `nulls`, members without a value are printed as null, else left out.
Json to_json(const Usage& usage, bool nulls);

// How every SSE frame of a stream's chunks begins, up to the list of choices:
// data: {"id":...,"object":OBJECT,"created":...,"model":...,"choices":[
std::string chunk_prefix(const ReplyHead& head, std::string_view object);

// The SSE frame that ends every OpenAI stream.
inline constexpr char kDoneFrame[] = "data: [DONE]\n\n";

// The SSE frame of an error in mid-stream, `error_json` being a whole error body.
std::string error_frame(const std::string& error_json);

}  // namespace m2::api
