#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/message.h"
#include "text/tokenizer.h"

namespace m2::text {

// Budgets of one render (reliability.md 6.6).
struct TemplateLimits {
  int64_t max_steps = 5'000'000;
  size_t max_output_bytes = 16u << 20;
  int max_depth = 256;      // of expressions, blocks and macro calls
  double max_seconds = 2;
};

// A Jinja chat template: the subset that chat templates of this family and of common models use,
// with Hugging Face's environment (trim_blocks, lstrip_blocks, loop controls, tojson =
// json.dumps(ensure_ascii=False), raise_exception, strftime_now). Immutable; thread-safe.
class ChatTemplate {
 public:
  // Parses the template. Errors name line and cause.
  static Result<std::shared_ptr<const ChatTemplate>> parse(std::string source);

  virtual ~ChatTemplate() = default;

  // Renders with `variables` (messages, tools, add_generation_prompt, ...; an object) in scope.
  // raise_exception() and undefined operations become errors with the text of the reference.
  virtual Result<std::string> render(const Json& variables,
                                     const TemplateLimits& limits = {}) const = 0;

  // Like render(), but tells the template's own text from values that came out of `variables`:
  // pieces of the first kind read every added token (AddedTokens::all), pieces of the second only
  // the non-special ones. Joined, the pieces are exactly render()'s text.
  virtual Result<std::vector<TextPiece>> render_pieces(
      const Json& variables, const TemplateLimits& limits = {}) const = 0;

  // True if the template's text mentions `name` as a variable (chat_template_kwargs may only carry
  // names the template uses).
  virtual bool uses(std::string_view name) const = 0;
};

// The template's variables for a conversation: messages with reasoning as `reasoning_content`,
// null content left out, arguments as objects, empty tool_calls dropped; tools (absent if empty);
// add_generation_prompt; then template_kwargs.
Json template_variables(const Conversation& conversation);

// The prompt of a conversation. continue_final_message cuts the text after the last message's
// content, as transformers does; if that content cannot be found in the text, an error.
Result<std::vector<TextPiece>> render_prompt(const ChatTemplate& chat_template,
                                             const Conversation& conversation,
                                             const TemplateLimits& limits = {});

}  // namespace m2::text
