#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/message.h"

namespace m2::text {

enum class ReasoningParser { none, minimax_m2, minimax_m2_append_think };
enum class ToolCallParser { none, minimax_m2 };

// The parser of that name, or an error listing the names (contract.md 5.1: "invalid reasoning
// parser: X (chose from { a,b })").
Result<ReasoningParser> reasoning_parser_named(std::string_view name);
Result<ToolCallParser> tool_call_parser_named(std::string_view name);

struct ReaderOptions {
  ReasoningParser reasoning = ReasoningParser::minimax_m2;
  ToolCallParser tools = ToolCallParser::minimax_m2;
  // Tools as the request declared them: [{"type":"function","function":{name, parameters}}].
  Json tool_schemas = Json::array();
  // True if the prompt ended inside thinking (the template opened <think>).
  bool starts_in_reasoning = true;
  bool parallel_tool_calls = true;  // false: only the first call is kept
};

// One step of what a client sees. Exactly one member says something.
struct OutputDelta {
  enum class Kind { reasoning, content, call_begin, call_arguments };
  Kind kind;
  std::string text;     // reasoning, content or argument text
  int call_index = 0;   // call_begin, call_arguments
  std::string id;       // call_begin
  std::string name;     // call_begin
};

// Reads what the model writes: reasoning, content and tool calls (contract.md 2, 3, 12), one state
// machine for streamed and plain answers. The concatenation of the deltas of each kind does not
// depend on how the text was cut into feed() calls, and equals message(). Never fails: malformed
// text becomes content or a repaired call as the tables of contract.md say. Linear time. One per
// request; not thread-safe.
class OutputReader {
 public:
  // `make_id` gives call ids; nullptr: "chatcmpl-tool-<32 random hex>".
  explicit OutputReader(ReaderOptions options, std::string (*make_id)() = nullptr);
  ~OutputReader();
  OutputReader(OutputReader&&) noexcept;

  // Appends to `out` what became certain with this piece of text.
  void feed(std::string_view text, std::vector<OutputDelta>& out);

  // The end of the text. `cut_by_length`: the model was stopped, not finished; an open call is then
  // left out of message().
  void finish(bool cut_by_length, std::vector<OutputDelta>& out);

  // The whole message; after finish().
  const AssistantMessage& message() const;

  // Whether the text read so far ends inside reasoning (for counting reasoning tokens).
  bool in_reasoning() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// "chatcmpl-tool-" and 32 random hex digits.
std::string random_call_id();

}  // namespace m2::text
