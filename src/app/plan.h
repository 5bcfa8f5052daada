#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/options.h"
#include "base/result.h"
#include "model/config.h"
#include "parallel/topology.h"

namespace m2::app {

// One kind of GPU and how many of them.
struct Gpus {
  int64_t count = 1;
  double bytes = 0;      // of memory, each
  double bandwidth = 0;  // bytes per second, each; 0: not known
};

// "4x96GiB", "8x144G" (decimal), "8xh200". The bandwidth is the named GPU's, or that of the one
// known with so much memory.
Result<Gpus> parse_gpus(const std::string& text);

struct PlanFormats {
  bool fp8_kv = false;        // else BF16
  bool int4_experts = false;  // groups of 128 with FP16 scales; else as the checkpoint
};

// What a model needs and gives on some GPUs, by arithmetic on its config alone. Bytes.
struct PlanRow {
  parallel::Topology shape;
  PlanFormats formats;
  double weights = 0;           // of the fullest rank
  double all_weights = 0;       // of the model, once
  double reserved = 0;          // of a rank: context, graphs, activations
  double activations = 0;       // of them, the largest step's
  double kv_per_token = 0;      // of a rank
  int64_t kv_tokens = 0;        // of all engines; 0: the weights do not fit
  double sequences = 0;         // of the longest context, at once
  int64_t longest_context = 0;  // that fits at least once, at most the model's
};

struct PlanRequest {
  double memory_utilization = 0.9;
  int64_t max_model_len = 0;
  int64_t step_tokens = 8192;
};

// Precondition: check_topology() passed; as many GPUs as ranks.
PlanRow plan_row(const model::ModelConfig& config, const parallel::Topology& shape,
                 const Gpus& gpus, const PlanFormats& formats, const PlanRequest& request);

// The least time of a decoding step of `batch` sequences over all engines, each with `context`
// tokens before it: bytes that one rank reads, experts hit spread evenly, over its bandwidth.
// Seconds.
double decode_floor(const model::ModelConfig& config, const parallel::Topology& shape,
                    const Gpus& gpus, const PlanFormats& formats, double batch, double context);

// `m2 plan MODEL`: its command, and what it prints.
const Command& plan_command();
Result<std::string> plan_text(const Values& values);

}  // namespace m2::app
