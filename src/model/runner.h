#pragma once

#include <memory>
#include <vector>

#include "model/memory_plan.h"
#include "model/step_model.h"

namespace m2::model {

struct RunnerOptions {
  int64_t id_limit = 0;  // ids from here on are never sampled; 0: the vocabulary's size
  // Decoding steps of up to so many sequences are padded to the next of these sizes, ascending, and
  // replayed from a recording. Empty: no graphs. Ignored where nothing can be recorded. The last
  // is the plan's padded_rows.
  std::vector<int64_t> graph_sizes;
  // e8m0: powers of two alone scale FP8. The weights are requantised when the runner is made, and
  // where products take FP8 activations (GPUs) their scales are rounded up too.
  ScaleFormat scales = ScaleFormat::f32;
};

// Where a rank stands among the others, and its groups. The groups outlive the runner.
struct RankPlace {
  parallel::Groups groups;
  parallel::Topology topology{};
  ExchangeKind exchange = ExchangeKind::all_gather;
};

// The real StepModel: one rank's weights, its KV storage and scratch, and the forward. Records its
// graphs before it returns, and says so in the log. `weights` and `plan` belong together
// (plan_memory). `exec.pool` and `exec.stream` outlive the runner. The thread that runs steps
// calls use_device() first. All ranks of an engine run the same steps; the sink is called on the
// first of them alone.
std::unique_ptr<StepModel> make_runner(const Exec& exec, const RankPlace& place, ModelConfig config,
                                       Weights weights, const MemoryPlan& plan,
                                       int64_t max_model_len, const RunnerOptions& options = {});

}  // namespace m2::model
