#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

// The questions of `m2 eval` and their right answers.

namespace m2::app::eval {

// How an answer's text is compared with the right one.
enum class Match : uint8_t {
  exact,     // the same text, but for white space at the ends
  contains,  // the right text is somewhere in it, in any case
  number,    // the number in \boxed{}, else the last number, has the same value
  choice,    // the letter in \boxed{}, else the one after "answer", else the last one that stands
             // alone
  json,      // both are the same JSON value
};

// Calls the model must make, all in one answer and in this order, and what the tools then answer.
struct Step {
  struct Call {
    std::string name;
    Json arguments;
  };
  std::vector<Call> calls;
  std::vector<std::string> results;  // one for each call
};

struct Item {
  std::string id;
  Json messages;  // as /v1/chat/completions takes them
  Json tools;     // null: none
  std::vector<Step> steps;
  std::vector<std::string> answers;  // any of them is right
  Match match = Match::exact;
};

struct ItemSet {
  std::string name;
  std::vector<Item> items;
};

// A file of JSON lines. The question of a line is `messages` or `input` (a list of messages, or a
// text), or the text `question`, `problem` or `prompt`; the right answer is `answer`, `ideal`,
// `expected` or `target` (a text, a number, or a list of texts of which any is right). `match`
// names how they are compared; without it a letter is a choice, a number a number, and any other
// text must be contained. `tools`, `steps` and `id` are optional. An error names file and line.
Result<ItemSet> read_item_set(const std::filesystem::path& path);

// One line of such a file; `number` names it if it has no id.
Result<Item> read_item(const Json& line, int64_t number);

}  // namespace m2::app::eval
