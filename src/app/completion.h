#pragma once

#include <span>
#include <string>
#include <string_view>

#include "app/options.h"

// What shells and readers of manuals get from the tables of options.

namespace m2::app {

// The completion script of a shell: "bash", "zsh" or "fish"; anything else is an error.
Result<std::string> completion_script(std::string_view shell,
                                      std::span<const Command* const> commands);

// The manual page m2(1), in the man macros of roff.
std::string man_page(std::span<const Command* const> commands, std::string_view version);

}  // namespace m2::app
