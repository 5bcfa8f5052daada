#include <utility>

#include "api/json_text.h"
#include "server/chat_answers.h"
#include "server/logprobs.h"

namespace m2::server {
namespace {

using text::OutputDelta;

class ChatAnswer : public Answer {
 public:
  ChatAnswer(AnswerSetup setup, ChatAnswerSetup chat)
      : setup_(std::move(setup)),
        chat_(std::move(chat)),
        chunks_(setup_.head),
        style_{*setup_.tokenizer, setup_.tokens_as_ids},
        counts_(setup_) {
    for (int64_t i = 0; i < setup_.n; ++i) choices_.emplace_back(chat_.turn, setup_.tokenizer);
  }

  void begin(std::string& out) override {
    if (!setup_.stream) return;
    for (size_t i = 0; i < choices_.size(); ++i) {
      const api::Usage usage = counts_.of_choice(i);
      chunks_.begin(static_cast<int>(i), chat_.role,
                    setup_.return_token_ids ? setup_.prompts[0].get() : nullptr,
                    setup_.continuous_usage ? &usage : nullptr, out);
      if (chat_.echo.empty()) continue;
      delta_.clear();
      api::append_content_delta(delta_, chat_.echo);
      send(i, choices_[i], delta_, nullptr, out);
    }
  }

  void prompt_logprobs(size_t, const std::vector<engine::Logprobs>& positions) override {
    if (setup_.prompt_logprobs >= 0) prompt_logprobs_ = prompt_logprobs_json(positions, style_);
  }

  void step(size_t index, const Step& step, std::string& out) override {
    Choice& choice = choices_[index];
    note_token(index, choice, step);
    const std::vector<OutputDelta>& deltas = choice.turn.read(step);
    if (step.token >= 0 && choice.turn.in_reasoning()) counts_.add_reasoning();
    if (step.finish) choice.finish = finish_of(choice, *step.finish);
    const bool last = step.finish != nullptr;
    if (setup_.stream && (step.shows || last)) stream_step(index, choice, deltas, last, out);
  }

  std::string end() override {
    if (!setup_.stream) return whole();
    std::string out;
    if (setup_.include_usage) chunks_.usage(counts_.total(true), out);
    return out + api::kDoneFrame;
  }

  void cached_tokens(int64_t tokens) override { counts_.set_cached(tokens); }

 private:
  struct Choice {
    Choice(const TurnSetup& setup, const std::shared_ptr<const text::Tokenizer>& tokenizer)
        : turn(setup, tokenizer) {}
    TurnReader turn;
    std::string logprobs;            // JSON items not yet sent, comma separated
    std::vector<int32_t> token_ids;  // not yet sent
    api::Finish finish;
  };

  void note_token(size_t index, Choice& choice, const Step& step) {
    if (step.token < 0) return;
    counts_.add_output(index);
    if (setup_.return_token_ids) choice.token_ids.push_back(step.token);
    if (!chat_.logprobs || !step.logprobs) return;
    if (!choice.logprobs.empty()) choice.logprobs += ',';
    append_chat_logprob(choice.logprobs, *step.logprobs, style_);
  }

  // contract.md 2.5. A call that the length limit cut off is no call: then the reason stays.
  api::Finish finish_of(const Choice& choice, const api::Finish& finish) const {
    using Kind = api::ToolChoice::Kind;
    if (choice.turn.message().tool_calls.empty()) return finish;
    const bool stopped = finish.reason == "stop";
    const bool cut = finish.reason == "length" && choice.turn.call_was_cut();
    const bool counts = chat_.tool_choice == Kind::required ? stopped
                        : chat_.tool_choice == Kind::named  ? false
                                                            : stopped || !cut;
    if (!counts || (!stopped && finish.reason != "length")) return finish;
    return {"tool_calls", finish.stop_reason};
  }

  // The members of a delta object, or nothing if the client is not to see it.
  bool print(const OutputDelta& delta, std::string& out) const {
    switch (delta.kind) {
      case OutputDelta::Kind::reasoning:
        if (chat_.include_reasoning) api::append_reasoning_delta(out, delta.text);
        return chat_.include_reasoning;
      case OutputDelta::Kind::content:
        api::append_content_delta(out, delta.text);
        return true;
      case OutputDelta::Kind::call_begin:
        api::append_call_delta(out, delta.call_index, delta.id, delta.name);
        return true;
      case OutputDelta::Kind::call_arguments:
        api::append_arguments_delta(out, delta.call_index, delta.text);
        return true;
    }
    return false;
  }

  void stream_step(size_t index, Choice& choice, const std::vector<OutputDelta>& deltas, bool last,
                   std::string& out) {
    for (const OutputDelta& delta : deltas) {
      delta_.clear();
      if (print(delta, delta_)) send(index, choice, delta_, nullptr, out);
    }
    if (last) return send(index, choice, "\"content\":\"\"", &choice.finish, out);
    // Token ids go out with every step that shows.
    if (!choice.token_ids.empty()) send(index, choice, "\"content\":\"\"", nullptr, out);
  }

  // One chunk, with the logprobs and token ids that have gathered.
  void send(size_t index, Choice& choice, std::string_view delta, const api::Finish* finish,
            std::string& out) {
    std::string logprobs = std::exchange(choice.logprobs, {});
    if (!logprobs.empty()) logprobs = "{\"content\":[" + logprobs + "]}";
    const std::vector<int32_t> ids = std::exchange(choice.token_ids, {});
    const api::Usage usage = counts_.of_choice(index);
    api::ChatChunks::Chunk chunk;
    chunk.index = static_cast<int>(index);
    chunk.delta = delta;
    chunk.logprobs = logprobs;
    chunk.finish = finish;
    chunk.token_ids = setup_.return_token_ids ? &ids : nullptr;
    chunk.usage = setup_.continuous_usage ? &usage : nullptr;
    chunks_.append(chunk, out);
  }

  api::ChatReplyMessage message_of(const Choice& choice) const {
    const text::AssistantMessage& read = choice.turn.message();
    api::ChatReplyMessage message;
    message.role = chat_.role;
    if (read.has_content || !chat_.echo.empty()) message.content = chat_.echo + read.content;
    if (read.has_reasoning && chat_.include_reasoning) message.reasoning = read.reasoning;
    for (const auto& call : read.tool_calls)
      message.tool_calls.push_back({call.id, call.name, call.arguments});
    return message;
  }

  std::string whole() {
    api::ChatReply reply;
    reply.head = setup_.head;
    for (Choice& choice : choices_) {
      api::ChatReplyChoice out;
      out.message = message_of(choice);
      if (chat_.logprobs) out.logprobs = "{\"content\":[" + choice.logprobs + "]}";
      out.finish = choice.finish;
      if (setup_.return_token_ids) out.token_ids = choice.token_ids;
      reply.choices.push_back(std::move(out));
    }
    reply.usage = counts_.total(true);
    reply.prompt_logprobs = std::move(prompt_logprobs_);
    if (setup_.return_token_ids) reply.prompt_token_ids = *setup_.prompts[0];
    return api::to_json(reply);
  }

  const AnswerSetup setup_;
  const ChatAnswerSetup chat_;
  const api::ChatChunks chunks_;
  const LogprobStyle style_;
  TokenCounts counts_;
  DenseVector<Choice> choices_;
  std::string prompt_logprobs_;  // JSON
  std::string delta_;
};

}  // namespace

std::unique_ptr<Answer> make_chat_answer(AnswerSetup setup, ChatAnswerSetup chat) {
  return std::make_unique<ChatAnswer>(std::move(setup), std::move(chat));
}

}  // namespace m2::server
