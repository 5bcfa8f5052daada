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
#include "server/event_log.h"

namespace m2::server {

// A response as it stands, and what goes on from it.
struct StoredResponse {
  std::string tenant;  // whose it is: of HttpRequest
  std::string json;    // the response object
  bool running = false;
  bool background = false;
  // The whole conversation, the answer included, without instructions; null while it runs.
  std::shared_ptr<const std::vector<api::ChatMessage>> conversation;
  std::function<void()> cancel;      // ends a running one; may be called from any thread
  std::shared_ptr<EventLog> events;  // of one in the background; null for others
};

// Keeps responses under their ids, which are random and long. Bounded:
// what was longest unused is forgotten first, but a running response only once it has ended.
// Thread-safe.
class ResponseStore {
 public:
  // `max_bytes` counts texts.
  ResponseStore(size_t max_responses, size_t max_bytes);

  // Keeps or replaces; one too large for the store is forgotten.
  void put(const std::string& id, StoredResponse response);
  // Replaces; false, and nothing happens, if the id is no longer kept.
  bool update(const std::string& id, StoredResponse response);
  // Replaces one that runs; false if none of this id does.
  bool update_running(const std::string& id, StoredResponse response);
  // The tenant's response of this id.
  std::optional<StoredResponse> find(const std::string& id, std::string_view tenant = {});
  // Takes out the tenant's response of this id.
  std::optional<StoredResponse> erase(const std::string& id, std::string_view tenant = {});

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
  Entry* find_locked(const std::string& id);
  void erase_locked(const std::string& id);
  void shrink();

  const size_t max_responses_, max_bytes_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::unordered_map<std::string, Entries::iterator> by_id_;
  size_t bytes_ = 0;
};

}  // namespace m2::server
