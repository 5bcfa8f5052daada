#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "text/grammar.h"
#include "text/tokenizer.h"

namespace m2::text {

// The tags that OutputReader acts on, as one vocabulary can write them: their own tokens, and the
// tokens that would complete one that was begun in plain text. Immutable; shared.
class TagTokens {
 public:
  enum Tag : size_t { think_open, think_close, block_open, kTags };

  TagTokens(std::shared_ptr<const Tokenizer> tokenizer, std::vector<TokenId> stop_ids);

  TokenId id(Tag tag) const { return ids_[tag]; }       // -1: the vocabulary has no such token
  TokenId block_close() const { return block_close_; }  // -1: none
  bool complete() const;                                // it has all of them
  const std::vector<TokenId>& stop_ids() const { return stop_ids_; }
  const std::vector<TokenId>& newlines() const { return newlines_; }  // "\n" and "\n\n"
  TokenId newline() const { return newlines_.empty() ? -1 : newlines_[0]; }
  std::string_view bytes(TokenId id) const { return tokenizer_->bytes(id); }
  size_t ids() const { return static_cast<size_t>(tokenizer_->id_limit()); }

  // How much of each tag the text so far ends with.
  using Begun = std::array<uint8_t, kTags>;
  static void advance(Begun& begun, std::string_view bytes);
  // Clears the bits of plain tokens that would complete a tag, so begun.
  void forbid_spelled(const Begun& begun, std::span<uint32_t> words) const;
  static bool any_begun(const Begun& begun) { return begun != Begun{}; }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<TokenId> stop_ids_, newlines_;
  std::array<TokenId, kTags> ids_;
  TokenId block_close_;
  std::array<std::vector<std::vector<TokenId>>, kTags> completing_;  // by bytes begun
};

// What one output must be. All grammars are of one vocabulary.
struct OutputShape {
  bool starts_in_reasoning =
      false;               // then nothing but the end of reasoning is asked until it comes
  bool reads_tags = true;  // an OutputReader reads it: plain text must not spell its tags
  std::shared_ptr<const Grammar> content;  // of the text after reasoning; null: free text
  std::shared_ptr<const Grammar> calls;    // from the tool-call token on; null: no tool calls
  bool calls_required = false;             // the text after reasoning is tool calls alone
  bool one_block = false;                  // the output ends with its first block of calls
};

// Says token by token what may come next so that an output takes its shape (contract.md 2.5, 4.10):
// reasoning, then a text of the grammar; or tool calls; or free text in which tool calls, once
// begun, are whole and right. One per output; not thread-safe.
class OutputConstraint {
 public:
  OutputConstraint(OutputShape shape, std::shared_ptr<const TagTokens> tags);

  // The ids that may come next, into `words` [mask_words(tags.ids())]. False: any.
  bool fill(std::span<uint32_t> words);
  void accept(TokenId token);
  // What is accepted between the two is taken back by the second. Not one in another.
  void begin_trial();
  void end_trial();
  bool complete() const;
  // Whether its grammar gave up (GrammarMatcher::spent()).
  bool spent() const { return matcher_ && matcher_->spent(); }
  // What the last fill() or accept() cost its grammar (GrammarMatcher::work()).
  int64_t work() const { return matcher_ ? matcher_->work() : 0; }

 private:
  enum class Phase : uint8_t {
    reasoning,
    opening,  // before a text of the grammar
    content,  // a text of the grammar
    newline,  // the one before required calls
    tag,      // the tool-call token
    calls,
    free,    // any text, or the tool-call token
    over,    // nothing but the end
    broken,  // a token came that was not allowed
  };

  void begin_answer(bool after_reasoning);
  void enter_calls();
  void fill_free(std::span<uint32_t> words) const;
  void allow_only(std::span<const TokenId> ids, std::span<uint32_t> words) const;
  void match(TokenId token);

  const OutputShape shape_;
  const std::shared_ptr<const TagTokens> tags_;
  // How far the output has come, but for its text in a grammar.
  struct Place {
    Phase phase = Phase::free;
    bool newlines_due = false;  // those after reasoning have not come
    TagTokens::Begun begun{};
  };
  Place place_;
  std::shared_ptr<GrammarMatcher> matcher_;  // of content or calls

  // Of the output, while there is a trial.
  Place own_place_;
  std::shared_ptr<GrammarMatcher> own_matcher_;
};

}  // namespace m2::text
