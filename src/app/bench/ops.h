#pragma once

#include "app/options.h"

namespace m2::app::bench {

// `m2 bench ops`: every operation at MiniMax-M2's shapes, as a share of what the device reads and
// multiplies in the same run.
const Command& ops_command();
Result<void> run_ops(const Values& values);

}  // namespace m2::app::bench
