#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/answer.h"
#include "server/turn_store.h"
#include "text/output_reader.h"

namespace m2::server {

// How the turns of one request are read and remembered.
struct TurnSetup {
  text::ReaderOptions reader;
  std::string (*make_call_id)() = nullptr;  // nullptr: as chat's are
  TurnStore* store = nullptr;               // null: nothing is remembered
  std::string tenant;                       // for whom
  std::string opening;                      // opening_of() the prompt
};

// Reads one choice of an answer that chats: its text into deltas, its tokens for the turn store.
class TurnReader {
 public:
  TurnReader(const TurnSetup& setup, std::shared_ptr<const text::Tokenizer> tokenizer);

  // What a step says, with what has gathered since the last one that shows; nothing if this one
  // does not show. Valid until the next. With the choice's last step the message is complete and,
  // if it ended in calls, remembered.
  const std::vector<text::OutputDelta>& read(const Step& step);

  const text::AssistantMessage& message() const { return reader_.message(); }
  // Whether the step's token was one of reasoning.
  bool in_reasoning() const { return in_reasoning_; }
  // Whether the last call told was cut off by the length limit, and is not part of the message.
  bool call_was_cut() const { return calls_begun_ > message().tool_calls.size(); }

 private:
  void merge_deltas();
  void remember(const api::Finish& finish);

  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  TurnStore* const store_;
  const std::string tenant_, opening_;
  const bool parallel_;
  text::OutputReader reader_;
  std::vector<text::OutputDelta> deltas_;
  bool shown_ = true;                  // what is in deltas_
  std::vector<text::TokenId> tokens_;  // sampled so far; kept only for the store
  size_t calls_begun_ = 0;
  bool in_reasoning_ = false;
};

}  // namespace m2::server
