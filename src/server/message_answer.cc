#include <utility>

#include "server/chat_answers.h"

namespace m2::server {
namespace {

using text::OutputDelta;

class MessageAnswer : public Answer {
 public:
  MessageAnswer(AnswerSetup setup, ChatAnswerSetup chat)
      : setup_(std::move(setup)),
        chat_(std::move(chat)),
        writer_(setup_.head.id, setup_.head.model),
        counts_(setup_),
        turn_(chat_.turn, setup_.tokenizer) {}

  void begin(std::string& out) override { writer_.begin(usage(), setup_.stream ? &out : nullptr); }

  void prompt_logprobs(size_t, const std::vector<engine::Logprobs>&) override {}

  void step(size_t, const Step& step, std::string& out) override {
    std::string* listener = setup_.stream ? &out : nullptr;
    if (step.token >= 0) counts_.add_output(0);
    const std::vector<OutputDelta>& deltas = turn_.read(step);
    if (step.token >= 0 && turn_.in_reasoning()) counts_.add_reasoning();
    for (const OutputDelta& delta : deltas) write(delta, listener);
    if (!step.finish) return;
    stop_ = stop_of(*step.finish);
    writer_.finish(stop_, usage(), turn_.call_was_cut(), listener);
  }

  std::string end() override {
    return setup_.stream ? std::string() : writer_.to_json(stop_, usage());
  }

  void cached_tokens(int64_t tokens) override { counts_.set_cached(tokens); }

  std::string fail(const api::ApiError& error) override {
    return api::anthropic_error_frame(error);
  }

 private:
  void write(const OutputDelta& delta, std::string* out) {
    switch (delta.kind) {
      case OutputDelta::Kind::reasoning:
        if (chat_.include_reasoning) writer_.thinking(delta.text, out);
        return;
      case OutputDelta::Kind::content:
        writer_.text(delta.text, out);
        return;
      case OutputDelta::Kind::call_begin:
        writer_.begin_tool_use(delta.id, delta.name, out);
        return;
      case OutputDelta::Kind::call_arguments:
        writer_.input(delta.text, out);
        return;
    }
  }

  api::MessageStop stop_of(const api::Finish& finish) const {
    if (finish.reason == "length")
      return {chat_.context_bound ? "model_context_window_exceeded" : "max_tokens", {}};
    if (finish.stop_reason.is_string()) return {"stop_sequence", finish.stop_reason};
    if (!turn_.message().tool_calls.empty()) return {"tool_use", {}};
    return {"end_turn", {}};
  }

  api::MessageUsage usage() const {
    const api::Usage usage = counts_.total(true);
    return {usage.prompt_tokens, usage.cached_tokens.value_or(0), usage.completion_tokens,
            usage.reasoning_tokens.value_or(0)};
  }

  const AnswerSetup setup_;
  const ChatAnswerSetup chat_;
  api::MessageWriter writer_;
  TokenCounts counts_;
  TurnReader turn_;
  api::MessageStop stop_;
};

}  // namespace

std::unique_ptr<Answer> make_message_answer(AnswerSetup setup, ChatAnswerSetup chat) {
  return std::make_unique<MessageAnswer>(std::move(setup), std::move(chat));
}

}  // namespace m2::server
