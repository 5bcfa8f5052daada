#include "server/turn_store.h"

#include <utility>

namespace m2::server {
namespace {

size_t size_of(const Turn& turn) {
  constexpr size_t kOverhead = 512;  // of the containers
  size_t bytes = kOverhead + turn.opening.size() + turn.end_text.size() +
                 turn.tokens.size() * sizeof(text::TokenId) + turn.message.reasoning.size() +
                 turn.message.content.size();
  for (const auto& call : turn.message.tool_calls)
    bytes += kOverhead + 2 * call.id.size() + call.name.size() + call.arguments.size();
  return bytes;
}

}  // namespace

TurnStore::TurnStore(size_t max_turns, size_t max_bytes)
    : max_turns_(max_turns), max_bytes_(max_bytes) {}

void TurnStore::put(Turn turn) {
  const size_t bytes = size_of(turn);
  if (turn.message.tool_calls.empty() || bytes > max_bytes_ || max_turns_ == 0) return;
  auto kept = std::make_shared<const Turn>(std::move(turn));
  std::lock_guard lock(mutex_);
  entries_.push_front({kept, bytes});
  bytes_ += bytes;
  for (const auto& call : kept->message.tool_calls) by_call_[call.id] = entries_.begin();
  while (entries_.size() > max_turns_ || bytes_ > max_bytes_) forget_last();
}

std::shared_ptr<const Turn> TurnStore::find(const std::string& call_id, std::string_view tenant) {
  std::lock_guard lock(mutex_);
  const auto found = by_call_.find(call_id);
  if (found == by_call_.end() || found->second->turn->tenant != tenant) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->turn;
}

void TurnStore::forget_last() {
  const auto last = std::prev(entries_.end());
  for (const auto& call : last->turn->message.tool_calls) {
    const auto found = by_call_.find(call.id);
    if (found != by_call_.end() && found->second == last) by_call_.erase(found);
  }
  bytes_ -= last->bytes;
  entries_.erase(last);
}

size_t TurnStore::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

size_t TurnStore::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace m2::server
