#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/options.h"
#include "tensor/exec.h"

// What the flags of `m2 serve` mean for the device that runs the model.

namespace m2::app {

// --device: auto (a GPU if there is a usable one, else the CPU), cpu, cuda or cuda:N. Asking for a
// GPU that cannot be used fails and says what is missing.
Result<Device> choose_device(const Values& values);

// Defaults of --max-num-seqs and --max-num-batched-tokens: 256 and 512 on the CPU; 1024 and 8192 on
// GPUs of 70 GiB and more but the A100, 256 and 2048 on others.
struct StepDefaults {
  int64_t sequences;
  int64_t tokens;
};
StepDefaults step_defaults(Device device);

// --kv-cache-dtype: bf16 for auto and bfloat16, f8_e4m3 for fp8 and fp8_e4m3; all else is refused.
Result<DType> read_kv_dtype(const Values& values);

// What is recorded as CUDA graphs, of --compilation-config {cudagraph_mode,
// cudagraph_capture_sizes, max_cudagraph_capture_size}, -O and --enforce-eager (contract.md 5.1).
struct GraphChoice {
  // Sizes of decoding steps to record whole. Ascending; the last is the first that holds
  // max_num_seqs, or the largest allowed. Empty: none.
  std::vector<int64_t> sizes;
  // For the log: what the mode means here, where that is less than its name says.
  std::string note;
};

// FULL, FULL_DECODE_ONLY and FULL_AND_PIECEWISE record decoding steps whole, attention and sampling
// included. Steps with prompts are launched kernel by kernel in every mode: pieces between
// attentions, as vLLM records them, would save host time that is hidden behind the step before, and
// lose the kernels' overlap at two borders a layer (bench/results/notes/steps.md). So PIECEWISE
// records nothing.
// Errors: values of --compilation-config and its flags that are none, or sizes that are no integers
// from 1 on.
Result<GraphChoice> choose_graphs(const Values& values, int64_t max_num_seqs,
                                  int64_t max_num_batched_tokens);

// choose_graphs()'s errors, which do not depend on the device: what is wrong is wrong on the CPU
// too.
Result<void> check_graphs(const Values& values);

}  // namespace m2::app
