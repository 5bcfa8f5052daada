#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/request.h"
#include "text/tokenizer.h"

// Logprobs as the OpenAI surfaces print them (contract.md 4.6). Below -9999 they are -9999. Text at
// once, no trees: a long prompt's are millions of entries, and whoever prints them holds up others.

namespace m2::server {

struct LogprobStyle {
  const text::Tokenizer& tokenizer;
  bool tokens_as_ids = false;  // "token_id:N" instead of the token's text
};

// One item of a chat reply's logprobs.content, as JSON.
void append_chat_logprob(std::string& out, const engine::Logprobs& logprobs,
                         const LogprobStyle& style);

// The logprobs object of a completion choice, grown token by token.
class CompletionLogprobs {
 public:
  // `top`: how many of the most likely tokens are listed beside the chosen one.
  explicit CompletionLogprobs(int64_t top) : top_(top) {}

  // `logprobs` is null for the first token of a prompt.
  void add(text::TokenId token, const engine::Logprobs* logprobs, const LogprobStyle& style);
  bool empty() const { return tokens_.empty(); }
  // The object of what was added since the last take(), as JSON.
  std::string take();

 private:
  void add_top(const std::string& chosen, const engine::Logprobs& logprobs,
               const LogprobStyle& style);

  int64_t top_;
  int64_t offset_ = 0;  // of the next token, in characters
  // Items of the lists, comma separated.
  std::string text_offset_, token_logprobs_, tokens_, top_logprobs_;
};

// The prompt_logprobs field, as JSON: null for the first position, then {"id": {...}} for each.
std::string prompt_logprobs_json(std::span<const engine::Logprobs> positions,
                                 const LogprobStyle& style);

}  // namespace m2::server
