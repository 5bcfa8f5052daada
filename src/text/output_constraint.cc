#include "text/output_constraint.h"

#include <algorithm>

#include "base/check.h"

namespace m2::text {
namespace {

constexpr std::array<std::string_view, TagTokens::kTags> kTagTexts = {"<think>", "</think>",
                                                                      "<minimax:tool_call>"};

void allow(TokenId id, std::span<uint32_t> words) {
  if (id >= 0) words[static_cast<size_t>(id) / 32] |= 1u << (static_cast<size_t>(id) % 32);
}

void forbid(TokenId id, std::span<uint32_t> words) {
  if (id >= 0) words[static_cast<size_t>(id) / 32] &= ~(1u << (static_cast<size_t>(id) % 32));
}

}  // namespace

TagTokens::TagTokens(std::shared_ptr<const Tokenizer> tokenizer, std::vector<TokenId> stop_ids)
    : tokenizer_(std::move(tokenizer)),
      stop_ids_(std::move(stop_ids)),
      block_close_(tokenizer_->id_of("</minimax:tool_call>")) {
  for (size_t tag = 0; tag < kTags; ++tag) {
    const std::string_view text = kTagTexts[tag];
    ids_[tag] = tokenizer_->id_of(text);
    completing_[tag].resize(text.size());
    for (TokenId id = 0; id < tokenizer_->id_limit(); ++id) {
      const std::string_view bytes = tokenizer_->bytes(id);
      if (id == ids_[tag] || bytes.empty()) continue;
      if (bytes.find(text) != std::string_view::npos) completing_[tag][0].push_back(id);
      for (size_t begun = 1; begun < text.size(); ++begun)
        if (bytes.starts_with(text.substr(begun))) completing_[tag][begun].push_back(id);
    }
  }
  for (const char* text : {"\n", "\n\n"})
    if (const TokenId id = tokenizer_->id_of(text); id >= 0) newlines_.push_back(id);
}

bool TagTokens::complete() const {
  return std::ranges::all_of(ids_, [](TokenId id) { return id >= 0; }) && !newlines_.empty();
}

// No tag holds a '<' but its first character, so what is begun is one beginning at most.
void TagTokens::advance(Begun& begun, std::string_view bytes) {
  if (bytes.empty()) return;
  const size_t less = bytes.rfind('<');
  const std::string_view rest = less == std::string_view::npos ? bytes : bytes.substr(less);
  for (size_t tag = 0; tag < kTags; ++tag) {
    size_t at = less == std::string_view::npos ? begun[tag] : 0;
    if (less == std::string_view::npos && at == 0) continue;
    const std::string_view text = kTagTexts[tag];
    const bool goes_on = at + rest.size() < text.size() && text.substr(at).starts_with(rest);
    begun[tag] = goes_on ? static_cast<uint8_t>(at + rest.size()) : 0;
  }
}

void TagTokens::forbid_spelled(const Begun& begun, std::span<uint32_t> words) const {
  for (size_t tag = 0; tag < kTags; ++tag) {
    for (const TokenId id : completing_[tag][0]) forbid(id, words);
    if (begun[tag] > 0)
      for (const TokenId id : completing_[tag][begun[tag]]) forbid(id, words);
  }
}

OutputConstraint::OutputConstraint(OutputShape shape, std::shared_ptr<const TagTokens> tags)
    : shape_(std::move(shape)), tags_(std::move(tags)) {
  if (shape_.starts_in_reasoning)
    place_.phase = Phase::reasoning;
  else
    begin_answer(false);
}

void OutputConstraint::begin_answer(bool after_reasoning) {
  place_.begun = {};
  if (shape_.calls_required) {
    place_.phase = Phase::newline;
  } else if (shape_.content) {
    matcher_ = std::make_shared<GrammarMatcher>(shape_.content);
    place_.phase = Phase::opening;
    place_.newlines_due = after_reasoning;
  } else {
    place_.phase = Phase::free;
  }
}

void OutputConstraint::enter_calls() {
  matcher_ = std::make_shared<GrammarMatcher>(shape_.calls);
  place_.phase = Phase::calls;
}

void OutputConstraint::allow_only(std::span<const TokenId> ids, std::span<uint32_t> words) const {
  std::ranges::fill(words, 0u);
  for (const TokenId id : ids) allow(id, words);
}

bool OutputConstraint::fill(std::span<uint32_t> words) {
  M2_CHECK(words.size() >= mask_words(tags_->ids()));
  switch (place_.phase) {
    case Phase::reasoning: {
      const bool must_answer = shape_.calls_required || shape_.content;
      if (!must_answer && !TagTokens::any_begun(place_.begun)) return false;
      fill_free(words);
      return true;
    }
    case Phase::free:
      fill_free(words);
      return true;
    case Phase::opening:
    case Phase::content:
      matcher_->fill(words);
      forbid(tags_->block_close(), words);  // grammars of calls mean it, this is none
      if (shape_.reads_tags) tags_->forbid_spelled(place_.begun, words);
      if (place_.phase == Phase::content) return true;
      if (place_.newlines_due)
        for (const TokenId id : tags_->newlines()) allow(id, words);
      if (shape_.calls) allow(tags_->id(TagTokens::block_open), words);
      return true;
    case Phase::calls:
      matcher_->fill(words);
      return true;
    case Phase::newline: {
      const TokenId newline = tags_->newline();
      allow_only({&newline, 1}, words);
      return true;
    }
    case Phase::tag: {
      const TokenId tag = tags_->id(TagTokens::block_open);
      allow_only({&tag, 1}, words);
      return true;
    }
    case Phase::over:
      allow_only(tags_->stop_ids(), words);
      return true;
    case Phase::broken:
      break;
  }
  std::ranges::fill(words, 0u);
  return true;
}

// Reasoning and free text: all but the tags that have no place there, and their spelling.
void OutputConstraint::fill_free(std::span<uint32_t> words) const {
  std::ranges::fill(words, ~0u);
  tags_->forbid_spelled(place_.begun, words);
  if (place_.phase == Phase::reasoning) {
    if (shape_.calls_required || shape_.content)
      for (const TokenId id : tags_->stop_ids()) forbid(id, words);
    if (!shape_.calls) forbid(tags_->id(TagTokens::block_open), words);
    return;
  }
  forbid(tags_->id(TagTokens::think_open), words);
  forbid(tags_->id(TagTokens::think_close), words);
  forbid(tags_->block_close(), words);  // grammars of calls mean it, nothing is open here
  if (!shape_.calls) forbid(tags_->id(TagTokens::block_open), words);
}

void OutputConstraint::accept(TokenId token) {
  const TokenId open = tags_->id(TagTokens::block_open);
  const bool stops = std::ranges::count(tags_->stop_ids(), token) > 0;
  switch (place_.phase) {
    case Phase::reasoning:
      if (token == tags_->id(TagTokens::think_close)) return begin_answer(true);
      if (token == open && shape_.calls) return enter_calls();
      return TagTokens::advance(place_.begun, tags_->bytes(token));
    case Phase::free:
      if (token == open && shape_.calls) return enter_calls();
      return TagTokens::advance(place_.begun, tags_->bytes(token));
    case Phase::opening:
      if (place_.newlines_due && std::ranges::count(tags_->newlines(), token) > 0) {
        place_.newlines_due = false;
        return;
      }
      if (token == open && shape_.calls) return enter_calls();
      place_.phase = Phase::content;
      return match(token);
    case Phase::content:
      return match(token);
    case Phase::calls:
      if (!matcher_->accept(token))
        place_.phase = Phase::broken;
      else if (matcher_->complete())
        place_.phase =
            shape_.calls_required || shape_.content || shape_.one_block ? Phase::over : Phase::free;
      place_.begun = {};
      return;
    case Phase::newline:
      place_.phase = token == tags_->newline() ? Phase::tag : Phase::broken;
      return;
    case Phase::tag:
      if (token == open) return enter_calls();
      place_.phase = Phase::broken;
      return;
    case Phase::over:
      if (!stops) place_.phase = Phase::broken;
      return;
    case Phase::broken:
      return;
  }
}

void OutputConstraint::match(TokenId token) {
  TagTokens::advance(place_.begun, tags_->bytes(token));
  if (!matcher_->accept(token)) place_.phase = Phase::broken;
}

// A trial that enters a grammar makes a matcher of its own for it.
void OutputConstraint::begin_trial() {
  own_place_ = place_;
  own_matcher_ = matcher_;
  if (matcher_) matcher_->begin_trial();
}

void OutputConstraint::end_trial() {
  place_ = own_place_;
  matcher_ = std::move(own_matcher_);
  if (matcher_) matcher_->end_trial();
}

bool OutputConstraint::complete() const {
  switch (place_.phase) {
    case Phase::reasoning:
      return !shape_.calls_required && !shape_.content;
    case Phase::free:
    case Phase::over:
      return true;
    case Phase::opening:
    case Phase::content:
      return matcher_->complete();
    default:
      return false;
  }
}

}  // namespace m2::text
