#pragma once

#include "app/options.h"

namespace m2::app::bench {

// `m2 bench latency`: one batch of equal requests, again and again. `m2 bench throughput`: many
// requests at once. Both load the model into this process and serve it to themselves alone.
const Command& latency_command();
Result<void> run_latency(const Values& values);

const Command& throughput_command();
Result<void> run_throughput(const Values& values);

}  // namespace m2::app::bench
