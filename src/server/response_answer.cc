#include <deque>
#include <utility>

#include "server/chat_answers.h"
#include "server/ids.h"
#include "server/logprobs.h"

namespace m2::server {
namespace {

using text::OutputDelta;

// Logprobs of tokens whose text is still held back, or belongs to nobody. A text that comes out is
// the end of what those tokens say.
class PendingLogprobs {
 public:
  void add(size_t bytes, std::string json) {
    items_.push_back({bytes, std::move(json)});
    bytes_ += bytes;
  }

  // Those of the tokens that `text` came from, as JSON, comma separated.
  std::string take(std::string_view text) {
    while (!items_.empty() && bytes_ - items_.front().bytes >= text.size()) drop_first();
    std::string out;
    for (const Item& item : items_) {
      if (!out.empty()) out += ',';
      out += item.json;
    }
    clear();
    return out;
  }

  void clear() {
    items_.clear();
    bytes_ = 0;
  }

 private:
  struct Item {
    size_t bytes;
    std::string json;
  };

  void drop_first() {
    bytes_ -= items_.front().bytes;
    items_.pop_front();
  }

  std::deque<Item> items_;
  size_t bytes_ = 0;
};

class ResponseAnswer : public Answer {
 public:
  ResponseAnswer(AnswerSetup setup, ChatAnswerSetup chat, ResponseAnswerSetup response)
      : setup_(std::move(setup)),
        chat_(std::move(chat)),
        response_(std::move(response)),
        writer_(response_.head, random_hex),
        style_{*setup_.tokenizer, setup_.tokens_as_ids},
        counts_(setup_),
        turn_(chat_.turn, setup_.tokenizer) {}

  void begin(std::string& out) override {
    writer_.begin(listener());
    if (response_.head.background) keep(api::ResponseState{});
    tell(out);
  }

  void prompt_logprobs(size_t, const std::vector<engine::Logprobs>&) override {}

  void step(size_t, const Step& step, std::string& out) override {
    if (step.token >= 0) counts_.add_output(0);
    Step shown = step;
    shown.shows = shown.shows || response_.logprobs;  // which go with the text of their tokens
    const std::vector<OutputDelta>& deltas = turn_.read(shown);
    if (step.token >= 0 && turn_.in_reasoning()) counts_.add_reasoning();
    note_logprobs(step);
    for (const OutputDelta& delta : deltas) write(delta, listener());
    if (step.finish) finish(*step.finish, listener());
    tell(out);
  }

  std::string end() override { return setup_.stream ? std::string() : writer_.to_json(state_); }

  void cached_tokens(int64_t tokens) override { counts_.set_cached(tokens); }

  std::string fail(const api::ApiError& error) override {
    state_.status = "failed";
    state_.error_code = error.status == 429 ? "rate_limit_exceeded" : "server_error";
    state_.error_message = error.message;
    writer_.finish(state_, true, &events_);
    if (response_.head.background) keep(state_);
    return end_of_events();
  }

  std::string detach(std::function<void()> cancel) override {
    cancel_ = std::move(cancel);
    api::ResponseState queued;
    queued.status = "queued";
    response_.store->put(response_.head.id, stored(queued));
    return writer_.to_json(queued);
  }

  std::string cancelled() override {
    state_.status = "cancelled";
    writer_.finish(state_, true, &events_);
    keep(state_);
    return end_of_events();
  }

 private:
  // Where events go; null if nobody wants them.
  std::string* listener() { return setup_.stream || response_.events ? &events_ : nullptr; }

  // Hands on the events that have gathered.
  void tell(std::string& out) {
    if (response_.events) {
      response_.events->append(events_);
      if (!state_.status.empty() && state_.status != "in_progress") response_.events->end();
    }
    if (setup_.stream) out += events_;
    events_.clear();
  }

  std::string end_of_events() {
    std::string out;
    tell(out);
    return out;
  }

  void note_logprobs(const Step& step) {
    if (!response_.logprobs || !step.logprobs) return;
    std::string json;
    append_chat_logprob(json, *step.logprobs, style_);
    pending_.add(setup_.tokenizer->bytes(step.token).size(), std::move(json));
  }

  void write(const OutputDelta& delta, std::string* out) {
    switch (delta.kind) {
      case OutputDelta::Kind::reasoning:
        pending_.clear();
        if (chat_.include_reasoning) writer_.reasoning(delta.text, out);
        return;
      case OutputDelta::Kind::content:
        writer_.content(delta.text, pending_.take(delta.text), out);
        return;
      case OutputDelta::Kind::call_begin:
        pending_.clear();
        writer_.begin_call(delta.id, delta.name, out);
        return;
      case OutputDelta::Kind::call_arguments:
        writer_.arguments(delta.text, out);
        return;
    }
  }

  void finish(const api::Finish& finish, std::string* out) {
    const api::Usage usage = counts_.total(true);
    state_.usage =
        api::ResponseUsage{usage.prompt_tokens, usage.completion_tokens,
                           usage.cached_tokens.value_or(0), usage.reasoning_tokens.value_or(0)};
    if (finish.reason == "stop") {
      state_.status = "completed";
    } else if (finish.reason == "length") {
      state_.status = "incomplete";
      state_.incomplete_reason = "max_output_tokens";
    } else {
      state_.status = "failed";
      state_.error_code = "server_error";
      state_.error_message = "the request was aborted";
    }
    writer_.finish(state_, turn_.call_was_cut(), out);
    keep(state_);
  }

  api::ChatMessage answer_message() const {
    const text::AssistantMessage& read = turn_.message();
    api::ChatMessage message;
    message.role = "assistant";
    if (read.has_content) message.content = read.content;
    if (read.has_reasoning) message.reasoning = read.reasoning;
    for (const auto& call : read.tool_calls)
      message.tool_calls.push_back({call.id, call.name, Json(call.arguments)});
    return message;
  }

  StoredResponse stored(const api::ResponseState& state) {
    StoredResponse out;
    out.json = writer_.to_json(state);
    out.tenant = response_.tenant;
    out.background = response_.head.background;
    out.events = response_.events;
    out.running = state.status == "queued" || state.status == "in_progress";
    if (out.running) {
      out.cancel = cancel_;
    } else if (state.status == "completed" || state.status == "incomplete") {
      response_.conversation.push_back(answer_message());
      out.conversation = std::make_shared<const std::vector<api::ChatMessage>>(
          std::exchange(response_.conversation, {}));
    }
    return out;
  }

  // One in the background may have been cancelled or deleted meanwhile, and stays so.
  void keep(const api::ResponseState& state) {
    if (!response_.store) return;
    const std::string& id = response_.head.id;
    if (!response_.head.background)
      response_.store->put(id, stored(state));
    else if (state.status == "cancelled")
      response_.store->update(id, stored(state));
    else
      response_.store->update_running(id, stored(state));
  }

  const AnswerSetup setup_;
  const ChatAnswerSetup chat_;
  ResponseAnswerSetup response_;
  api::ResponseWriter writer_;
  const LogprobStyle style_;
  TokenCounts counts_;
  TurnReader turn_;
  PendingLogprobs pending_;
  api::ResponseState state_;
  std::string events_;  // not yet told
  std::function<void()> cancel_;
};

}  // namespace

std::unique_ptr<Answer> make_response_answer(AnswerSetup setup, ChatAnswerSetup chat,
                                             ResponseAnswerSetup response) {
  return std::make_unique<ResponseAnswer>(std::move(setup), std::move(chat), std::move(response));
}

}  // namespace m2::server
