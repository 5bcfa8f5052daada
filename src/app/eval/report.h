#pragma once

#include <string>
#include <vector>

#include "app/eval/run.h"

namespace m2::app::eval {

// One line a set and one for all: items, right ones with the 95 % interval, answers that ended by
// themselves, tool calls that fit their schema, tokens a second.
std::string table(const std::vector<SetOutcome>& sets);

// The accuracies of two servers side by side and their difference in points, then the items that
// one got right and the other not, or that they answered with different texts or calls.
std::string comparison(const std::vector<ItemSet>& items, const std::string& name_a,
                       const std::vector<SetOutcome>& a, const std::string& name_b,
                       const std::vector<SetOutcome>& b);

// One JSON line an item: set, id, right, content, calls, error.
std::string answer_lines(const std::vector<ItemSet>& items, const std::vector<SetOutcome>& sets);

}  // namespace m2::app::eval
