#pragma once

#include <string>
#include <vector>

#include "app/options.h"

namespace m2::app::bench {

// `m2 bench WHAT ...`: measures servers, the engine and its parts. Returns the exit status.
int run(const std::vector<std::string>& words);

// Its commands, for completion and the manual page.
std::vector<const Command*> commands();

}  // namespace m2::app::bench
