#pragma once

#include "api/generation.h"
#include "engine/request.h"
#include "server/options.h"

// The one validator between clients and the engine (reliability.md R1): what passes it may be
// submitted. Texts are those of contract.md 4.5.

namespace m2::server {

// What a surface asks for beyond the shared fields.
struct LogprobsWanted {
  std::optional<int64_t> sample;  // top logprobs with each token; -1: the whole vocabulary
  std::optional<int64_t> prompt;
};

// Everything but max_tokens and seed offsets, which need the prompt and the choice.
Result<engine::SamplingParams> sampling_params(const api::GenerationFields& fields,
                                               const LogprobsWanted& logprobs,
                                               const ServerOptions& options,
                                               const ModelServices& model);

// Keeps a token (-1: none) from being chosen; an error if allowed_token_ids leaves no other.
Result<void> forbid_token(engine::TokenId id, const ModelServices& model,
                          engine::SamplingParams& params);

// How many tokens a request asks for, as sent: `name` is the field's.
struct AskedLength {
  std::optional<int64_t> max_tokens;
  const char* name = "max_tokens";
  // As many as the context leaves, at most max_tokens; else the context must have room for all.
  bool at_most = false;

  // Tokens of the context that the prompt must leave.
  int64_t reserved() const { return at_most ? 0 : max_tokens.value_or(0); }
};

// Checks what can be known before the prompt's length is.
Result<void> check_asked_length(const AskedLength& asked, const ModelServices& model);

// Refuses a prompt whose texts together are so long that they cannot be as few tokens as fit,
// before they are encoded. A prompt that is to be truncated passes.
Result<void> check_text_length(std::span<const std::string_view> texts,
                               const api::GenerationFields& fields, const AskedLength& asked,
                               const ModelServices& model);

// The end of reasoning that thinking_token_budget forces, for a prompt that ends in reasoning.
void set_thinking_budget(const api::GenerationFields& fields, const text::Tokenizer& tokenizer,
                         engine::SamplingParams& out);

// Keeps the last tokens of the prompt (truncation_side "right": the first), as
// truncate_prompt_tokens asks.
Result<void> truncate_prompt(const api::GenerationFields& fields, const AskedLength& asked,
                             const ModelServices& model, std::vector<engine::TokenId>& prompt);

// The most tokens this prompt may be answered with: what was asked, the model's context and
// generation_config bound it.
Result<int64_t> output_limit(const AskedLength& asked, int64_t min_tokens, size_t prompt_tokens,
                             const ServerOptions& options, const ModelServices& model);

// Prompt ids as a client sent them.
Result<std::vector<engine::TokenId>> checked_ids(std::span<const int64_t> ids,
                                                 const ModelServices& model);

}  // namespace m2::server
