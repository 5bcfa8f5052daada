#pragma once

#include <memory>
#include <optional>

#include "api/openai_chat.h"
#include "engine/token_constraint.h"
#include "server/context.h"
#include "text/output_constraint.h"

// What a request asks of the shape of its output, as the engine's constraint
// (contract.md 2.5, 4.10).

namespace m2::server {

// The grammars of one model's vocabulary: made on first use, compiled on the threads that plan
// requests, kept within a bound. Thread-safe.
class Grammars {
 public:
  Grammars(std::shared_ptr<const text::Tokenizer> tokenizer, std::vector<text::TokenId> eos_ids);
  text::GrammarCompiler& compiler();
  const std::shared_ptr<const text::TagTokens>& tags();

 private:
  void make();

  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  const std::vector<text::TokenId> eos_ids_;
  std::once_flag once_;
  std::unique_ptr<text::GrammarCompiler> compiler_;
  std::shared_ptr<const text::TagTokens> tags_;
};

// What a request says about it, in the form every protocol is translated to.
struct ConstraintAsked {
  Json response_format;        // null: not given; else as /v1/chat/completions takes it
  Json structured_outputs;     // null: not given
  Json tools = Json::array();  // the function tools, in the form of chat completions
  api::ToolChoice tool_choice;
  bool parallel_tool_calls = true;
  bool reads_tags =
      true;  // the output is read by an OutputReader, as it is but for /v1/completions
};

// The shape of the outputs; nothing: any text will do. Compiles grammars, so on a worker thread.
// Errors: invalid_argument with the field as param; a budget exceeded is the request's fault too.
Result<std::optional<text::OutputShape>> output_shape(const ConstraintAsked& asked,
                                                      Context& context);

// The constraint of one choice whose prompt ends, or not, in reasoning.
std::unique_ptr<engine::TokenConstraint> make_constraint(text::OutputShape shape,
                                                         bool starts_in_reasoning,
                                                         Context& context);

}  // namespace m2::server
