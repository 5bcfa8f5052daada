#include "text/tokenizer.h"
#include "text/unicode.h"

namespace m2::text {

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string Detokenizer::add(TokenId id) {
  if (skip_special_ && tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->bytes(id);
  const size_t kept = unfinished_tail(pending_);
  std::string text;
  append_replacing_invalid({pending_.data(), pending_.size() - kept}, text);
  pending_.erase(0, pending_.size() - kept);
  return text;
}

std::string Detokenizer::finish() {
  std::string text;
  append_replacing_invalid(pending_, text);
  pending_.clear();
  return text;
}

}  // namespace m2::text
