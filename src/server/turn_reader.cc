#include "server/turn_reader.h"

#include <algorithm>
#include <utility>

namespace m2::server {

using text::OutputDelta;

TurnReader::TurnReader(const TurnSetup& setup, std::shared_ptr<const text::Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)),
      store_(setup.store),
      tenant_(setup.tenant),
      opening_(setup.opening),
      parallel_(setup.reader.parallel_tool_calls),
      reader_(setup.reader, setup.make_call_id) {}

const std::vector<OutputDelta>& TurnReader::read(const Step& step) {
  static const std::vector<OutputDelta> kNothing;
  if (shown_) deltas_.clear();
  const size_t gathered = deltas_.size();
  if (store_ && step.token >= 0) tokens_.push_back(step.token);
  reader_.feed(step.text, deltas_);
  in_reasoning_ = reader_.in_reasoning();
  if (step.finish) reader_.finish(step.finish->reason == "length", deltas_);
  for (size_t i = gathered; i < deltas_.size(); ++i)
    calls_begun_ += deltas_[i].kind == OutputDelta::Kind::call_begin;
  if (step.finish && store_) remember(*step.finish);
  if (!shown_) merge_deltas();
  shown_ = step.shows || step.finish;
  return shown_ ? deltas_ : kNothing;
}

// Texts of one kind that follow each other become one.
void TurnReader::merge_deltas() {
  size_t kept = 0;
  for (size_t i = 1; i < deltas_.size(); ++i) {
    OutputDelta& last = deltas_[kept];
    OutputDelta& next = deltas_[i];
    const bool same = next.kind != OutputDelta::Kind::call_begin && next.kind == last.kind &&
                      next.call_index == last.call_index;
    if (same)
      last.text += next.text;
    else if (++kept != i)
      deltas_[kept] = std::move(next);
  }
  if (!deltas_.empty()) deltas_.resize(kept + 1);
}

void TurnReader::remember(const api::Finish& finish) {
  if (message().tool_calls.empty()) return;
  Turn turn;
  turn.tenant = tenant_;
  turn.message = message();
  // The tokens are the turn only if the model ended it itself, every call was kept, and none of
  // them but the last is a control token, whose text the reader never saw.
  const bool ended = finish.reason == "stop" && finish.stop_reason.is_null() && !tokens_.empty();
  const bool plain = ended && parallel_ &&
                     std::none_of(tokens_.begin(), tokens_.end() - 1,
                                  [&](text::TokenId id) { return tokenizer_->is_special(id); });
  if (plain) {
    turn.opening = opening_;
    turn.end_text = tokenizer_->bytes(tokens_.back());
    turn.tokens = std::move(tokens_);
  }
  store_->put(std::move(turn));
}

}  // namespace m2::server
