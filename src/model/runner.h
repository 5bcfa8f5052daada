#pragma once

#include <memory>

#include "model/memory_plan.h"
#include "model/step_model.h"

namespace m2::model {

// The real StepModel: one rank's weights, its KV storage and scratch, and the forward.
// `weights` and `plan` belong together (plan_memory). `exec.pool` and `comm` outlive the runner.
std::unique_ptr<StepModel> make_runner(const Exec& exec, parallel::Comm& comm, ModelConfig config,
                                       Weights weights, const MemoryPlan& plan,
                                       int64_t max_model_len);

}  // namespace m2::model
