#include "server/response_store.h"

#include <utility>

namespace m2::server {
namespace {

// Bytes of a JSON value's text, near enough for a bound: without building that text.
size_t size_of(const Json& value) {
  constexpr size_t kNode = 48;
  if (value.is_string()) return kNode + value.get_ref<const std::string&>().size();
  size_t bytes = kNode;
  if (value.is_structured())
    for (const auto& [key, item] : value.items()) bytes += key.size() + size_of(item);
  return bytes;
}

size_t size_of(const StoredResponse& response) {
  constexpr size_t kOverhead = 512;
  size_t bytes = kOverhead + response.json.size();
  if (response.events) bytes += response.events->bytes();
  if (!response.conversation) return bytes;
  for (const api::ChatMessage& message : *response.conversation) {
    bytes += kOverhead + size_of(message.content) + size_of(message.extra) +
             message.reasoning.value_or("").size();
    for (const api::ChatToolCall& call : message.tool_calls)
      bytes += kOverhead + call.name.size() + size_of(call.arguments);
  }
  return bytes;
}

}  // namespace

ResponseStore::ResponseStore(size_t max_responses, size_t max_bytes)
    : max_responses_(max_responses), max_bytes_(max_bytes) {}

void ResponseStore::put(const std::string& id, StoredResponse response) {
  const size_t bytes = size_of(response);
  std::lock_guard lock(mutex_);
  put_locked(id, std::move(response), bytes);
}

bool ResponseStore::update(const std::string& id, StoredResponse response) {
  const size_t bytes = size_of(response);
  std::lock_guard lock(mutex_);
  if (!find_locked(id)) return false;
  put_locked(id, std::move(response), bytes);
  return true;
}

bool ResponseStore::update_running(const std::string& id, StoredResponse response) {
  const size_t bytes = size_of(response);
  std::lock_guard lock(mutex_);
  const Entry* entry = find_locked(id);
  if (!entry || !entry->response.running) return false;
  put_locked(id, std::move(response), bytes);
  return true;
}

ResponseStore::Entry* ResponseStore::find_locked(const std::string& id) {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &*found->second;
}

void ResponseStore::put_locked(const std::string& id, StoredResponse response, size_t bytes) {
  erase_locked(id);
  if (bytes > max_bytes_) return;
  entries_.push_front({id, std::move(response), bytes});
  by_id_[id] = entries_.begin();
  bytes_ += bytes;
  shrink();
}

std::optional<StoredResponse> ResponseStore::find(const std::string& id, std::string_view tenant) {
  std::lock_guard lock(mutex_);
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || found->second->response.tenant != tenant) return std::nullopt;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->response;
}

std::optional<StoredResponse> ResponseStore::erase(const std::string& id, std::string_view tenant) {
  std::lock_guard lock(mutex_);
  Entry* entry = find_locked(id);
  if (!entry || entry->response.tenant != tenant) return std::nullopt;
  std::optional<StoredResponse> out = std::move(entry->response);
  erase_locked(id);
  return out;
}

void ResponseStore::erase_locked(const std::string& id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  bytes_ -= found->second->bytes;
  entries_.erase(found->second);
  by_id_.erase(found);
}

// Running ones are few: the server bounds how many requests are under way.
void ResponseStore::shrink() {
  auto entry = entries_.end();
  while (entry != entries_.begin() && (entries_.size() > max_responses_ || bytes_ > max_bytes_)) {
    --entry;
    if (entry->response.running) continue;
    const std::string id = entry->id;
    ++entry;
    erase_locked(id);
  }
}

size_t ResponseStore::size() const {
  std::lock_guard lock(mutex_);
  return entries_.size();
}

size_t ResponseStore::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace m2::server
