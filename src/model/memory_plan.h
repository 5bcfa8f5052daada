#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"
#include "model/forward.h"

namespace m2::model {

// Bytes of K and V of one token over all layers of one rank.
int64_t kv_bytes_per_token(const ModelConfig& config, int64_t kv_heads, DType dtype);

// What the flags ask of the memory.
struct MemoryRequest {
  int64_t max_model_len = 0;  // tokens of one sequence
  int64_t max_num_seqs = 0;
  int64_t max_num_batched_tokens = 0;
  int64_t drafted_rows = 0;      // of a step, beside max_num_seqs: each as a sequence of one token
  DType kv_dtype = DType::bf16;  // --kv-cache-dtype; or f8_e4m3
  int64_t kv_cache_bytes = 0;    // --kv-cache-memory-bytes; 0: choose
  int64_t num_blocks = 0;        // --num-gpu-blocks-override; 0: choose
  double memory_utilization = 0.9;  // share of the memory available at start that may be used
  int64_t available_bytes = 0;      // memory available at start, weights not yet taken; 0: unknown
  // Most bytes of KV unless asked for: the host has other uses for its memory, a GPU has none.
  int64_t most_kv_bytes = int64_t{4} << 30;
  int64_t padded_rows = 0;     // of the largest recorded graph
  int64_t most_logprobs = 20;  // top logprobs of a row
  parallel::Topology topology;
  ExchangeKind exchange = ExchangeKind::all_gather;
};

struct MemoryPlan {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t scratch_bytes = 0;
  int64_t exchange_bytes = 0;
  int64_t num_blocks = 0;
  DType kv_dtype = DType::bf16;
  StepLimits limits;
};

// Divides the memory: weights as they are, scratch for the largest step, the rest for KV blocks,
// but no more than max_num_seqs sequences of max_model_len can use and, unless asked for, no more
// than most_kv_bytes or one longest sequence, whichever is larger. An error if what was asked for
// does not fit into free memory, or if not even one sequence of max_model_len fits; that names the
// length that would.
Result<MemoryPlan> plan_memory(const ModelConfig& config, const Weights& weights,
                               const MemoryRequest& request, Device device);

// MemAvailable of /proc/meminfo, or of the cgroup where that is less. Bytes.
int64_t available_host_memory();

}  // namespace m2::model
