#pragma once

#include <functional>
#include <string>
#include <vector>

#include "app/eval/item.h"
#include "app/http_client.h"
#include "base/json.h"

namespace m2::app::eval {

// What became of one item.
struct Outcome {
  bool right = false;
  bool ended = true;              // every answer ended by itself, not at the length limit
  std::string error;              // of the server or the way to it; such an item is not right
  std::string content;            // of the last answer
  Json calls = Json::array();     // all that were made, as the server gave them
  int64_t valid_calls = 0;        // of them: those that fit their tool's schema
  int64_t completion_tokens = 0;  // of all answers
};

struct SetOutcome {
  std::string name;
  std::vector<Outcome> outcomes;  // in the order of the items
  double seconds = 0;             // wall clock

  int64_t right() const;
  int64_t ended() const;
  int64_t failed() const;
  int64_t calls() const;
  int64_t valid_calls() const;
  int64_t completion_tokens() const;
};

struct RunOptions {
  Json parameters = Json::object();  // of every request: model, temperature, max_tokens, ...
  int64_t concurrency = 16;          // items under way
};

// Asks every item of `set` on several threads; tool calls that are right get the item's results,
// and the conversation goes on. `on_done` is called after each item, from one thread at a time.
SetOutcome run_set(const HttpClient& client, const ItemSet& set, const RunOptions& options,
                   const std::function<void()>& on_done);

}  // namespace m2::app::eval
