#pragma once

#include "app/options.h"

namespace m2::app::bench {

// `m2 bench sim`: its command, for parsing and help.
const Command& sim_command();

// Runs the real engine, tokenizer, parsers and HTTP server over a model whose steps take the time
// that the roofline gives real GPUs, and prints what everything around the model costs.
Result<void> run_sim(const Values& values);

}  // namespace m2::app::bench
