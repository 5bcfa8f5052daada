#pragma once

#include <string>
#include <vector>

namespace m2::app {

// `m2 inspect WHAT MODEL ...`: looks at prompts, outputs and checkpoints without starting a server.
// Reads standard input, prints JSON or a table. Returns the exit status.
int inspect(const std::vector<std::string>& words);

}  // namespace m2::app
