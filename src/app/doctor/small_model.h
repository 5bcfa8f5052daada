#pragma once

#include <vector>

#include "app/doctor/lab.h"
#include "base/result.h"
#include "model/config.h"
#include "model/weights.h"

namespace m2::app::doctor {

using Rows = std::vector<std::vector<float>>;

// Feeds the prompt as one step and then, one a step, the tokens that follow it, to the real runner;
// the logits of all of them.
Result<Rows> run_tokens(const Machine& machine, const model::ModelConfig& config,
                        model::Weights weights, std::span<const int32_t> prompt,
                        std::span<const int32_t> following);

// |a - b| / |b| of the middle row, and of the worst. NaN is the worst of all.
struct Distances {
  double middle, worst;
};
Distances distances(const Rows& a, const Rows& b);

// What products cost in precision here: exact up to rounding, with BF16 activations, or with FP8.
double tolerance_of(Device device);

// A small model of random weights, with heads, blocks and grouping of the released model's kind,
// here and on the CPU: every operation of a step, end to end.
Result<Distances> compare_with_cpu(const Machine& machine, ThreadPool& pool);

}  // namespace m2::app::doctor
