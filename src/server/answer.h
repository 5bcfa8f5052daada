#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/error.h"
#include "api/openai_completions.h"
#include "base/dense_memory.h"
#include "engine/request.h"
#include "server/options.h"

// How the outcome of one request is written, by the surface it came by: streamed or whole. Knows no
// engine and no socket.

namespace m2::server {

// What one step of the engine means for one choice, after detokenising and stop strings.
struct Step {
  std::string_view text;                       // became certain
  engine::TokenId token = -1;                  // -1: none in this step
  const engine::Logprobs* logprobs = nullptr;  // of the token, if asked for
  const api::Finish* finish = nullptr;         // the choice's last step
  bool shows = true;  // a stream says now what has gathered; false: with a later step
};

class Answer : public Dense {
 public:
  virtual ~Answer() = default;

  // Before the first step. Streams begin with what this appends.
  virtual void begin(std::string& out) = 0;
  // Positions 1.. of a choice's prompt, if asked for; before its first step.
  virtual void prompt_logprobs(size_t choice, const std::vector<engine::Logprobs>& positions) = 0;
  // Reads one step. A stream's frames are appended to `out`.
  virtual void step(size_t choice, const Step& step, std::string& out) = 0;
  // After every choice's last step: the end of a stream, or the whole reply's JSON.
  virtual std::string end() = 0;

  virtual void cached_tokens(int64_t tokens) = 0;

  // The request failed: nothing else is called from here on. A stream, if there is one, ends with
  // what this returns.
  virtual std::string fail(const api::ApiError& error);

  // The request goes on without its client, who gets what this returns. `cancel` ends the request
  // (then cancelled() is called, and nothing else; a stream ends with what it returns) and may be
  // called from any thread for as long as the server lives. For plans with `background` only.
  virtual std::string detach(std::function<void()> cancel);
  virtual std::string cancelled();
};

// What an answer needs from its request and server.
struct AnswerSetup {
  api::ReplyHead head;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::vector<std::shared_ptr<const std::vector<engine::TokenId>>> prompts;
  int64_t n = 1;  // choices of each prompt
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool prompt_tokens_details = false;
  bool tokens_as_ids = false;
  bool return_token_ids = false;
  int64_t prompt_logprobs = -1;  // -1: not part of the reply
};

struct TextAnswerSetup {
  std::vector<std::string> echo;  // per prompt, its text; empty: no echo
  bool only_echo = false;         // max_tokens 0: nothing but the prompt
  std::optional<int64_t> logprobs;
};
std::unique_ptr<Answer> make_text_answer(AnswerSetup setup, TextAnswerSetup text);

// Token counts of a request, and the usage objects made of them.
class TokenCounts {
 public:
  explicit TokenCounts(const AnswerSetup& setup);

  void add_output(size_t choice) { ++completion_[choice]; }
  void add_reasoning() { ++reasoning_; }
  void set_cached(int64_t tokens) { cached_ = tokens; }

  api::Usage total(bool with_reasoning) const;
  api::Usage of_choice(size_t choice) const;

 private:
  DenseVector<int64_t> prompt_;      // per prompt
  DenseVector<int64_t> completion_;  // per choice
  int64_t n_;
  int64_t reasoning_ = 0;
  int64_t cached_ = 0;
  bool details_;
};

}  // namespace m2::server
