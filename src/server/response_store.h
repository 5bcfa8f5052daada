#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "api/openai_chat.h"

namespace m2::server {

// A response as it stands, and what goes on from it.
struct StoredResponse {
  std::string json;  // the response object
  bool running = false;
  bool background = false;
  // The whole conversation, the answer included, without instructions; null while it runs.
  std::shared_ptr<const std::vector<api::ChatMessage>> conversation;
  std::function<void()> cancel;  // ends a running one; may be called from any thread
};

// Keeps responses under their ids, which are random and long: who has one may read it. Bounded:
// what was longest unused is forgotten first, but a running response only once it has ended.
// Thread-safe.
class ResponseStore {
 public:
  // `max_bytes` counts texts.
  ResponseStore(size_t max_responses, size_t max_bytes);

  // Keeps or replaces; one too large for the store is forgotten.
  void put(const std::string& id, StoredResponse response);
  // Replaces; nothing happens if the id is no longer kept.
  void update(const std::string& id, StoredResponse response);
  std::optional<StoredResponse> find(const std::string& id);
  // False if there is none.
  bool erase(const std::string& id);

  size_t size() const;
  size_t bytes() const;

 private:
  struct Entry {
    std::string id;
    StoredResponse response;
    size_t bytes;
  };
  using Entries = std::list<Entry>;  // latest used first

  void put_locked(const std::string& id, StoredResponse response, size_t bytes);
  void erase_locked(const std::string& id);
  void shrink();

  const size_t max_responses_, max_bytes_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::unordered_map<std::string, Entries::iterator> by_id_;
  size_t bytes_ = 0;
};

}  // namespace m2::server
