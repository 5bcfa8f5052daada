#pragma once

#include <span>
#include <string>
#include <vector>

#include "app/options.h"

namespace m2::app {

// `m2 inspect WHAT MODEL ...`: looks at prompts, outputs and checkpoints without starting a server.
// Reads standard input, prints JSON or a table. Returns the exit status.
int inspect(const std::vector<std::string>& words);

// Its commands, for completion and the manual page.
std::span<const Command> inspect_commands();

}  // namespace m2::app
