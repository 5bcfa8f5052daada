#include "model/memory_plan.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "model/step_arrays.h"
#include "ops/sample.h"
#include "tensor/exec.h"
#include "tensor/stream.h"

namespace m2::model {
namespace {

// Logits are made and sampled this many rows at a time, so that their memory stays small and in
// cache while the head's weights are read once for as many rows.
constexpr int64_t kLogitRows = 32;
// Where they stay on the device, one slice for all of a large decoding batch.
constexpr int64_t kDeviceLogitRows = 256;

int64_t blocks_of(int64_t tokens) {
  return (tokens + kBlockSize - 1) / kBlockSize;
}

double gib(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value;
  return file >> value ? value : std::numeric_limits<int64_t>::max();
}

// A cache of a size that was asked for must fit what memory there is, whatever share of it is meant
// to be used.
Result<void> check_asked_cache(const MemoryPlan& plan, const MemoryRequest& request,
                               Device device) {
  const bool is_asked = request.num_blocks > 0 || request.kv_cache_bytes > 0;
  if (!is_asked || request.available_bytes == 0) return {};
  const int64_t free = host_addressable(device) ? request.available_bytes - plan.weight_bytes
                                                : device_memory(device).free;
  const int64_t rest = free - plan.scratch_bytes - plan.exchange_bytes;
  if (plan.kv_bytes <= rest) return {};
  return fail(
      Code::resource_exhausted,
      "The KV cache that was asked for, {:.2f} GiB, does not fit: beside weights and "
      "activations {:.2f} GiB of memory are free. Ask for less, or for none and it is chosen.",
      gib(plan.kv_bytes), gib(std::max<int64_t>(rest, 0)));
}

}  // namespace

int64_t kv_bytes_per_token(const ModelConfig& config, int64_t kv_heads, DType dtype) {
  return 2 * config.num_layers * kv_heads * config.head_dim * size_of(dtype);
}

Result<MemoryPlan> plan_memory(const ModelConfig& config, const Weights& weights,
                               const MemoryRequest& request, Device device) {
  MemoryPlan plan;
  plan.kv_dtype = request.kv_dtype;
  const int64_t sequences = request.max_num_seqs + request.drafted_rows;
  const int64_t logit_rows =
      ops::can_sample(device) ? std::min(kDeviceLogitRows, sequences) : kLogitRows;
  plan.limits = {request.max_num_batched_tokens,
                 sequences,
                 std::min(logit_rows, request.max_num_batched_tokens),
                 blocks_of(request.max_model_len),
                 request.padded_rows,
                 request.most_logprobs,
                 request.topology.data_size};
  plan.weight_bytes = weights.buffer.bytes();
  Arena dry;
  place_scratch(dry, config, weights, plan.limits, device);
  place_step_arrays(dry, plan.limits, config.vocab_size, device);
  plan.scratch_bytes = dry.bytes();
  if (request.topology.data_size > 1)
    plan.exchange_bytes = Exchange::bytes(request.topology, request.exchange, config,
                                          request.max_num_batched_tokens, device);

  const int64_t kv_heads = weights.layers[0].qkv[1].weight.size(0) / config.head_dim;
  const int64_t block_bytes = kv_bytes_per_token(config, kv_heads, request.kv_dtype) * kBlockSize;
  const int64_t longest = blocks_of(request.max_model_len);
  if (request.num_blocks > 0) {
    plan.num_blocks = request.num_blocks;
  } else if (request.kv_cache_bytes > 0) {
    plan.num_blocks = request.kv_cache_bytes / block_bytes;
  } else {
    const auto usable = static_cast<int64_t>(static_cast<double>(request.available_bytes) *
                                             request.memory_utilization) -
                        plan.weight_bytes - plan.scratch_bytes - plan.exchange_bytes;
    const int64_t most = std::max(request.most_kv_bytes / block_bytes, longest);
    plan.num_blocks = std::min(
        {std::max<int64_t>(usable, 0) / block_bytes, most, longest * request.max_num_seqs});
  }
  plan.kv_bytes = plan.num_blocks * block_bytes;
  if (plan.num_blocks <= 0)
    return fail(Code::resource_exhausted,
                "No available memory for the cache blocks. Try increasing "
                "`gpu_memory_utilization` when initializing the engine.");
  M2_TRY_VOID(check_asked_cache(plan, request, device));
  if (plan.num_blocks < longest)
    return fail(
        Code::resource_exhausted,
        "To serve at least one request with the models's max seq len ({}), ({:.2f} GiB KV cache is "
        "needed, which is larger than the available KV cache memory ({:.2f} GiB). Based on the "
        "available memory, the estimated maximum model length is {}. Try increasing "
        "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.",
        request.max_model_len, gib(longest * block_bytes), gib(plan.kv_bytes),
        plan.num_blocks * kBlockSize);
  return plan;
}

int64_t available_host_memory() {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  int64_t kib;
  while (info >> key >> kib) {
    std::getline(info, unit);
    if (key == "MemAvailable:") available = kib * 1024;
  }
  const int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit != std::numeric_limits<int64_t>::max() && used < limit)
    available = std::min(available, limit - used);
  return available;
}

}  // namespace m2::model
