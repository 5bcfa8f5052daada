#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/openai_chat.h"

// POST /v1/responses (contract.md 4.11).

namespace m2::api {

// A tool of a namespace is called by one flat name, `namespace__name`; the reply names both.
struct NamespacedName {
  std::string space, name;
};
using NamespacedTools = std::map<std::string, NamespacedName, std::less<>>;  // by flat name

// Flat names of custom tools: their calls carry text, not JSON (`input` for `arguments`).
using CustomTools = std::set<std::string, std::less<>>;

// What the engine is to answer stands in the base: `messages` are those of `input`, `tools` the
// tools in the chat form (a custom tool is a function with one string, `input`), sampling and
// limits under chat's names.
struct ResponsesRequest : ChatRequest {
  std::string instructions;  // empty: none
  std::optional<std::string> previous_response_id;
  std::optional<int64_t> max_output_tokens;
  bool store = true;
  bool background = false;
  bool include_logprobs = false;   // include: message.output_text.logprobs
  bool include_encrypted = false;  // include: reasoning.encrypted_content
  NamespacedTools namespaced;
  CustomTools custom;
  std::set<std::string> told_only;  // syntaxes of custom tools' formats that nothing enforces
  Json echoed = Json::object();     // fields that the reply repeats as they were sent
};

// Reads a request's body. Errors are of the validation kind; names of fields nobody knows, and item
// and tool types that mean nothing here (item:TYPE, tool:TYPE), are appended to `unknown`.
Result<ResponsesRequest> responses_request_from_json(const Json& body,
                                                     std::vector<std::string>& unknown);

// The JSON Schema of that body.
Json responses_request_schema();

// What is the same in every state of one response.
struct ResponseHead {
  std::string id;          // resp_...
  int64_t created_at = 0;  // seconds since 1970
  std::string model;
  bool background = false;
  bool store = false;
  bool encrypted = false;  // reasoning items carry encrypted_content
  Json echoed = Json::object();
  NamespacedTools namespaced;
  CustomTools custom;
};

struct ResponseUsage {
  int64_t input_tokens = 0, output_tokens = 0, cached_tokens = 0, reasoning_tokens = 0;
};

// A response's state, as `status` names it.
struct ResponseState {
  std::string status = "in_progress";  // queued, completed, incomplete, failed, cancelled
  std::string incomplete_reason;       // max_output_tokens
  std::string error_code, error_message;
  std::optional<ResponseUsage> usage;
};

// Reads the text of the member `input` out of the arguments of a custom tool's call, as they come.
// Arguments of another form are the text themselves: its first string, else all of it.
class InputText {
 public:
  // What became certain.
  std::string feed(std::string_view arguments);
  // The rest, when the call has ended.
  std::string finish();

 private:
  std::string raw_;      // arguments so far
  size_t at_ = 0;        // of raw_, handed out
  bool closed_ = false;  // the string has ended
};

// Makes one response out of what the model writes, and tells each step as server-sent events in the
// order of contract.md 4.11. Every method appends its events to `out`; nullptr: nobody listens. The
// items do not depend on how the text was cut into calls.
class ResponseWriter {
 public:
  // `make_id` gives the hex part of items' ids.
  ResponseWriter(ResponseHead head, std::string (*make_id)());

  void begin(std::string* out);
  void reasoning(std::string_view text, std::string* out);
  // `logprobs`: JSON objects of the tokens in this text, comma separated; may be empty.
  void content(std::string_view text, std::string_view logprobs, std::string* out);
  void begin_call(std::string_view call_id, std::string_view name, std::string* out);
  void arguments(std::string_view text, std::string* out);
  // Closes what is open and ends the response. `drop_call`: the last call was cut off; it is not
  // closed and not part of the response.
  void finish(ResponseState state, bool drop_call, std::string* out);

  // The whole response as JSON, in the state given.
  std::string to_json(const ResponseState& state) const;

 private:
  enum class Kind { none, reasoning, message, call, custom_call };

  void input(std::string_view text, std::string* out);
  void open(Kind kind, Json item, std::string* out);
  // `status`: completed or incomplete, the item's.
  void close(std::string_view status, std::string* out);
  void begin_event(std::string_view type, std::string& out);
  // `item` and `part`: JSON.
  void item_event(std::string_view type, std::string_view item, std::string* out);
  void part_event(std::string_view type, std::string_view part, std::string* out);
  void text_event(std::string_view type, std::string_view name, std::string_view text,
                  std::string_view more, std::string* out);
  void state_event(std::string_view type, const ResponseState& state, std::string* out);

  const ResponseHead head_;
  std::string (*const make_id_)();
  int64_t sequence_ = 0;
  std::string output_;      // items that are closed, as JSON, comma separated
  int64_t items_ = 0;       // of them
  Kind kind_ = Kind::none;  // of the item that is open
  Json item_;
  std::string item_id_;
  std::string text_;      // of the open item: its text, arguments or input
  InputText input_;       // of the open custom call
  std::string logprobs_;  // of the open message
};

}  // namespace m2::api
