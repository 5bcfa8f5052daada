#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

// The least time a step of MiniMax-M2 can take on given GPUs: every byte once, every operation
// once, perfect overlap (performance.md 3; the arithmetic is roofline.py's).

namespace m2::app::bench {

enum class GpuLayout : uint8_t {
  tp,    // every layer split over the GPUs
  tpep,  // the same, experts whole
  dpep,  // attention data-parallel, experts whole
};
enum class WeightFormat : uint8_t { bf16, fp8, int4, int4g32 };
enum class KvFormat : uint8_t { bf16, fp8 };

// The names of the three above; errors list them.
Result<GpuLayout> layout_named(std::string_view name);
Result<WeightFormat> weights_named(std::string_view name);
Result<KvFormat> kv_named(std::string_view name);

struct RooflineCase {
  std::string gpu = "h200";  // h200, h100, h20-3e, h20
  int64_t gpus = 8;
  GpuLayout layout = GpuLayout::tp;
  WeightFormat weights = WeightFormat::fp8;
  KvFormat kv = KvFormat::bf16;
};

// Fails on an unknown GPU, or a number of GPUs other than 1, 2, 4, 8.
Result<void> check_case(const RooflineCase& at);

// Tokens whose K and V fit beside the weights, with 3 GB of each GPU kept for other things.
double kv_capacity_tokens(const RooflineCase& at);

struct DecodeCost {
  double experts_hit;        // of a layer, expected
  double bytes;              // read by one GPU, experts spread evenly
  double flops;              // of one GPU
  double floor_seconds;      // at the datasheet's rates
  double reachable_seconds;  // bytes of the fullest GPU at the bandwidth that is seen in practice
  double sync_seconds;       // collectives of 4 us each, not in the two above
};
// One step of `batch` sequences (of all GPUs together), each with `context` tokens before it.
DecodeCost decode_cost(const RooflineCase& at, double batch, double context);

struct PrefillCost {
  double matmul_flops;     // of all GPUs
  double attention_flops;  // of all GPUs
  double weight_seconds;   // to read every expert hit once
  double floor_seconds;
  double reachable_seconds;
};
// `tokens` of one prompt, computed in one pass, that follow `past` of it computed before.
struct PromptPiece {
  double tokens;
  double past;
};
// One pass of pieces of different prompts: they share the reading of the weights.
PrefillCost prefill_cost(const RooflineCase& at, std::span<const PromptPiece> pieces);

}  // namespace m2::app::bench
