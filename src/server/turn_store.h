#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/message.h"
#include "text/tokenizer.h"

namespace m2::server {

// What the model wrote in one turn that ended in tool calls: as sampled, and as read.
struct Turn {
  std::string tenant;                 // whose it is: of HttpRequest
  std::string opening;                // the end of the prompt's text that it went on from
  std::vector<text::TokenId> tokens;  // sampled; the last one ended the turn
  std::string end_text;               // of that last token
  text::AssistantMessage message;
};

// Remembers turns by the ids of their tool calls, so that the next request of a tool loop can have
// back what its client dropped (reasoning) or cannot know (the very tokens). The ids are random and
// long: who has one has seen the turn. Bounded: the turns longest unused are forgotten first.
// Thread-safe.
class TurnStore {
 public:
  // `max_bytes` counts texts and tokens.
  TurnStore(size_t max_turns, size_t max_bytes);

  // Keeps a turn with at least one call; one too large for the store is not kept.
  void put(Turn turn);

  // The tenant's turn one of whose calls has this id, or null.
  std::shared_ptr<const Turn> find(const std::string& call_id, std::string_view tenant = {});

  size_t size() const;
  size_t bytes() const;

 private:
  struct Entry {
    std::shared_ptr<const Turn> turn;
    size_t bytes;
  };
  using Entries = std::list<Entry>;  // latest used first

  void forget_last();

  const size_t max_turns_, max_bytes_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::unordered_map<std::string, Entries::iterator> by_call_;
  size_t bytes_ = 0;
};

// The turns that one tenant's requests may find.
struct TenantTurns {
  TurnStore* store = nullptr;  // null: none
  std::string_view tenant = {};
};

}  // namespace m2::server
