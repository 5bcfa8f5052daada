#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "api/generation.h"
#include "api/reply.h"
#include "base/dense_memory.h"

// POST /v1/completions (contract.md 4.4, 4.7).

namespace m2::api {

// Text, or token ids as sent.
using CompletionPrompt = std::variant<std::string, std::vector<int64_t>>;

struct CompletionRequest : GenerationFields {
  std::vector<CompletionPrompt> prompts;  // at least one
  std::optional<int64_t> logprobs;
  bool has_suffix = false;
};

// Reads a request's body. Errors are of the validation kind; names of fields nobody knows are
// appended to `unknown`.
Result<CompletionRequest> completion_request_from_json(const Json& body,
                                                       std::vector<std::string>& unknown);

Json completion_request_schema();

struct CompletionReplyChoice {
  std::string text;
  std::string logprobs, prompt_logprobs;  // JSON; empty unless asked for
  Finish finish;
  Json token_ids, prompt_token_ids;  // null unless asked for
};

struct CompletionReply {
  ReplyHead head;
  std::vector<CompletionReplyChoice> choices;  // in order of index
  Usage usage;
};

std::string to_json(const CompletionReply& reply);

// Writes the chunks of one streamed reply as SSE frames.
class CompletionChunks {
 public:
  explicit CompletionChunks(const ReplyHead& head);

  struct Chunk {
    int index = 0;
    std::string_view text = {};
    std::string_view logprobs = {};  // JSON; empty: null
    const Finish* finish = nullptr;
    const std::vector<int32_t>* prompt_token_ids = nullptr;
    const std::vector<int32_t>* token_ids = nullptr;
    const Usage* usage = nullptr;  // continuous_usage_stats; else null is printed
  };
  void append(const Chunk& chunk, std::string& out) const;
  void usage(const Usage& usage, std::string& out) const;

 private:
  DenseString prefix_;
};

}  // namespace m2::api
