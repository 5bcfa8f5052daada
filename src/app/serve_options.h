#pragma once

#include <span>

#include "app/options.h"

namespace m2::app {

// Every option of `m2 serve` (contract.md 5.1), in the order of --help. Options that the family's
// launch scripts carry but that mean nothing here are in the table too: they are accepted, and
// their help says why nothing follows.
std::span<const Option> serve_options();

}  // namespace m2::app
