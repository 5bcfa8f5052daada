#include <utility>

#include "server/answer.h"
#include "server/logprobs.h"

namespace m2::server {
namespace {

class TextAnswer : public Answer {
 public:
  TextAnswer(AnswerSetup setup, TextAnswerSetup text)
      : setup_(std::move(setup)),
        text_(std::move(text)),
        chunks_(setup_.head),
        style_{*setup_.tokenizer, setup_.tokens_as_ids},
        counts_(setup_) {
    const size_t count = setup_.prompts.size() * static_cast<size_t>(setup_.n);
    for (size_t i = 0; i < count; ++i) choices_.emplace_back(text_.logprobs.value_or(0));
  }

  void begin(std::string&) override {}

  void prompt_logprobs(size_t index, const std::vector<engine::Logprobs>& positions) override {
    Choice& choice = choices_[index];
    if (setup_.prompt_logprobs >= 0)
      choice.prompt_logprobs = prompt_logprobs_json(positions, style_);
    if (!echoes() || !text_.logprobs) return;
    const auto& prompt = *prompt_of(index);
    choice.logprobs.add(prompt[0], nullptr, style_);
    for (size_t i = 0; i < positions.size(); ++i)
      choice.logprobs.add(prompt[i + 1], &positions[i], style_);
  }

  void step(size_t index, const Step& step, std::string& out) override {
    Choice& choice = choices_[index];
    std::string text;
    if (!std::exchange(choice.begun, true) && echoes()) text = echo_of(index);
    if (!text_.only_echo) {
      text += step.text;
      note_token(index, choice, step);
    }
    if (step.finish) choice.finish = text_.only_echo ? api::Finish{"length", {}} : *step.finish;
    choice.text += text;
    if (setup_.stream && (step.shows || step.finish))
      stream_step(index, choice, step.finish != nullptr, out);
  }

  std::string end() override {
    if (!setup_.stream) return whole();
    std::string out;
    if (setup_.include_usage) chunks_.usage(counts_.total(false), out);
    return out + api::kDoneFrame;
  }

  void cached_tokens(int64_t tokens) override { counts_.set_cached(tokens); }

 private:
  struct Choice {
    explicit Choice(int64_t top) : logprobs(top) {}
    std::string text;  // a stream's: not yet sent
    CompletionLogprobs logprobs;
    std::vector<int32_t> token_ids;  // not yet sent
    std::string prompt_logprobs;     // JSON
    api::Finish finish;
    bool begun = false;
    bool prompt_ids_sent = false;
  };

  bool echoes() const { return !text_.echo.empty(); }
  size_t prompt_index(size_t choice) const { return choice / static_cast<size_t>(setup_.n); }
  const std::vector<engine::TokenId>* prompt_of(size_t choice) const {
    return setup_.prompts[prompt_index(choice)].get();
  }
  // With token ids asked for, the prompt goes out as ids.
  std::string echo_of(size_t choice) const {
    return setup_.return_token_ids ? std::string() : text_.echo[prompt_index(choice)];
  }

  void note_token(size_t index, Choice& choice, const Step& step) {
    if (step.token < 0) return;
    counts_.add_output(index);
    if (setup_.return_token_ids) choice.token_ids.push_back(step.token);
    if (text_.logprobs && step.logprobs) choice.logprobs.add(step.token, step.logprobs, style_);
  }

  // One chunk a token (or stream_interval), without text too: clients that measure count chunks
  // (contract.md 6.2).
  void stream_step(size_t index, Choice& choice, bool last, std::string& out) {
    const std::string text = std::exchange(choice.text, {});
    const std::string logprobs = choice.logprobs.empty() ? std::string() : choice.logprobs.take();
    const std::vector<int32_t> ids = std::exchange(choice.token_ids, {});
    const api::Usage usage = counts_.of_choice(index);
    const bool send_prompt =
        setup_.return_token_ids && !std::exchange(choice.prompt_ids_sent, true);
    api::CompletionChunks::Chunk chunk;
    chunk.index = static_cast<int>(index);
    chunk.text = text;
    chunk.logprobs = logprobs;
    chunk.finish = last ? &choice.finish : nullptr;
    chunk.prompt_token_ids = send_prompt ? prompt_of(index) : nullptr;
    chunk.token_ids = setup_.return_token_ids ? &ids : nullptr;
    chunk.usage = setup_.continuous_usage ? &usage : nullptr;
    chunks_.append(chunk, out);
  }

  std::string whole() {
    api::CompletionReply reply;
    reply.head = setup_.head;
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      api::CompletionReplyChoice out;
      out.text = std::move(choice.text);
      if (text_.logprobs) out.logprobs = choice.logprobs.take();
      out.finish = choice.finish;
      out.prompt_logprobs = std::move(choice.prompt_logprobs);
      if (setup_.return_token_ids) {
        out.token_ids = choice.token_ids;
        out.prompt_token_ids = *prompt_of(i);
      }
      reply.choices.push_back(std::move(out));
    }
    reply.usage = counts_.total(false);
    return api::to_json(reply);
  }

  const AnswerSetup setup_;
  const TextAnswerSetup text_;
  const api::CompletionChunks chunks_;
  const LogprobStyle style_;
  TokenCounts counts_;
  DenseVector<Choice> choices_;
};

}  // namespace

std::unique_ptr<Answer> make_text_answer(AnswerSetup setup, TextAnswerSetup text) {
  return std::make_unique<TextAnswer>(std::move(setup), std::move(text));
}

}  // namespace m2::server
