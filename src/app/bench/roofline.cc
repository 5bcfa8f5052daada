#include "app/bench/roofline.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <random>
#include <vector>

namespace m2::app::bench {
namespace {

// The model (model.md 1).
constexpr double kLayers = 62, kHidden = 3072, kHeads = 48, kKvHeads = 8, kHeadDim = 128;
constexpr int kExperts = 256, kTop = 8;
constexpr double kInner = 1536, kVocab = 200064;
constexpr double kAttention = 2 * kHidden * kHeads * kHeadDim + 2 * kHidden * kKvHeads * kHeadDim;
constexpr double kExpert = 3 * kHidden * kInner;
constexpr double kRouter = kExperts * kHidden;
constexpr double kHead = kVocab * kHidden;
constexpr double kActive = kLayers * (kAttention + kTop * kExpert + kRouter) + kHead;
constexpr double kRouterBytes = 4, kHeadBytes = 2;
constexpr double kCollective = 4e-6;

// Datasheet rates (dense), then what is seen in practice (performance.md 3.2). Bytes and FLOP a
// second.
struct Gpu {
  const char* name;
  double bandwidth, fp8, bf16;
  double reached_bandwidth, reached_fp8, reached_bf16, reached_attention;
  double memory;
};
constexpr Gpu kGpus[] = {
    {"h200", 4.80e12, 1979e12, 989e12, 4.30e12, 1500e12, 790e12, 620e12, 143771.0 * (1 << 20)},
    {"h100", 3.35e12, 1979e12, 989e12, 3.05e12, 1500e12, 760e12, 620e12, 80e9},
    {"h20-3e", 4.80e12, 296e12, 148e12, 4.30e12, 270e12, 140e12, 135e12, 141e9},
    {"h20", 4.00e12, 296e12, 148e12, 3.60e12, 270e12, 140e12, 135e12, 96e9},
};

const Gpu* gpu_named(std::string_view name) {
  const auto found = std::ranges::find(kGpus, name, &Gpu::name);
  return found == std::end(kGpus) ? nullptr : found;
}

// FP8 has an FP32 scale a 128x128 block, int4 an FP16 one a group of 128 (or 32).
double weight_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::bf16:
      return 2;
    case WeightFormat::fp8:
      return 1.0 + 4.0 / 16384;
    case WeightFormat::int4:
      return 0.5 + 2.0 / 128;
    case WeightFormat::int4g32:
      return 0.5 + 2.0 / 32;
  }
  return 0;
}

// Builds with int4 experts keep attention in FP8.
WeightFormat attention_format(WeightFormat format) {
  return format == WeightFormat::bf16 ? WeightFormat::bf16 : WeightFormat::fp8;
}

double kv_bytes_per_token(KvFormat kv) {
  return 2 * kKvHeads * kHeadDim * kLayers * (kv == KvFormat::fp8 ? 1 : 2);
}

// Different experts that `tokens` tokens hit in one layer, if they choose independently.
double experts_hit(double tokens) {
  return kExperts * (1 - std::pow(1 - static_cast<double>(kTop) / kExperts, tokens));
}

double draw_fullest(int batch, int64_t gpus) {
  constexpr int kTrials = 120;
  std::mt19937 random(1);
  double total = 0;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<bool> hit(kExperts);
    for (int token = 0; token < batch; ++token) {
      int chosen[kTop];
      for (int k = 0; k < kTop;) {
        const int expert = static_cast<int>(random() % kExperts);
        if (std::find(chosen, chosen + k, expert) != chosen + k) continue;
        chosen[k++] = expert;
        hit[static_cast<size_t>(expert)] = true;
      }
    }
    int64_t most = 0;
    const int64_t share = kExperts / gpus;
    for (int64_t gpu = 0; gpu < gpus; ++gpu) {
      const auto begin = hit.begin() + gpu * share;
      most = std::max<int64_t>(most, std::count(begin, begin + share, true));
    }
    total += static_cast<double>(most);
  }
  return total / kTrials;
}

// Experts hit on the fullest of the GPUs, each of which holds 256 / gpus of them.
double fullest(double batch, int64_t gpus) {
  constexpr double kAllHit = 512;  // from here on every GPU reads all it holds
  if (batch >= kAllHit) return static_cast<double>(kExperts / gpus);
  static std::mutex mutex;
  static std::map<std::pair<int, int64_t>, double> known;
  std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace({static_cast<int>(batch), gpus});
  if (is_new) entry->second = draw_fullest(static_cast<int>(batch), gpus);
  return entry->second;
}

template <class T, size_t n>
Result<T> named(std::string_view name, const char* what,
                const std::pair<const char*, T> (&table)[n]) {
  std::string names;
  for (const auto& [known, value] : table) {
    if (name == known) return value;
    names += names.empty() ? known : std::string(", ") + known;
  }
  return fail(Code::invalid_argument, "unknown {} '{}' (chose from {})", what, name, names);
}

}  // namespace

Result<GpuLayout> layout_named(std::string_view name) {
  static constexpr std::pair<const char*, GpuLayout> kNames[] = {
      {"tp", GpuLayout::tp}, {"tpep", GpuLayout::tpep}, {"dpep", GpuLayout::dpep}};
  return named(name, "layout", kNames);
}

Result<WeightFormat> weights_named(std::string_view name) {
  static constexpr std::pair<const char*, WeightFormat> kNames[] = {
      {"bf16", WeightFormat::bf16},
      {"fp8", WeightFormat::fp8},
      {"int4", WeightFormat::int4},
      {"int4g32", WeightFormat::int4g32}};
  return named(name, "weight format", kNames);
}

Result<KvFormat> kv_named(std::string_view name) {
  static constexpr std::pair<const char*, KvFormat> kNames[] = {{"bf16", KvFormat::bf16},
                                                                {"fp8", KvFormat::fp8}};
  return named(name, "KV format", kNames);
}

Result<void> check_case(const RooflineCase& at) {
  if (!gpu_named(at.gpu))
    return fail(Code::invalid_argument, "unknown GPU '{}' (chose from h200, h100, h20-3e, h20)",
                at.gpu);
  if (at.gpus != 1 && at.gpus != 2 && at.gpus != 4 && at.gpus != 8)
    return fail(Code::invalid_argument, "{} GPUs: 1, 2, 4 or 8", at.gpus);
  return {};
}

double kv_capacity_tokens(const RooflineCase& at) {
  constexpr double kKept = 3e9;
  const double weights =
      kLayers * (kExperts * kExpert * weight_bytes(at.weights) +
                 kAttention * weight_bytes(attention_format(at.weights)) + kRouter * kRouterBytes) +
      2 * kHead * kHeadBytes;
  const double memory = static_cast<double>(at.gpus) * (gpu_named(at.gpu)->memory - kKept);
  return std::max(memory - weights, 0.0) / kv_bytes_per_token(at.kv);
}

DecodeCost decode_cost(const RooflineCase& at, double batch, double context) {
  const Gpu& gpu = *gpu_named(at.gpu);
  const auto gpus = static_cast<double>(at.gpus);
  const double attention = kLayers * kAttention * weight_bytes(attention_format(at.weights));
  const double expert = kLayers * kExpert * weight_bytes(at.weights);
  const double head = kHead * kHeadBytes, router = kLayers * kRouter * kRouterBytes;
  const double kv = (context + 1) * kv_bytes_per_token(at.kv);

  DecodeCost out{};
  out.experts_hit = experts_hit(batch);
  double rest = (attention + head) / gpus + router + batch * kv / gpus;
  double collectives = at.gpus > 1 ? 3 * kLayers : 0;  // attention, experts, QK-norm sums
  if (at.layout == GpuLayout::dpep) {
    rest = attention + head + router + std::ceil(batch / gpus) * kv;
    collectives = 2 * kLayers;  // dispatch, combine
  }
  out.bytes = rest + expert * out.experts_hit / gpus;
  const double worst =
      at.layout == GpuLayout::tp ? out.bytes : rest + expert * fullest(batch, at.gpus);
  const double matmuls = 2 * kActive * batch / gpus;
  const double scores = 4 * kHeads * kHeadDim * context * kLayers * batch / gpus;
  out.flops = matmuls + scores;
  const double compute =
      matmuls / (at.weights == WeightFormat::bf16 ? gpu.bf16 : gpu.fp8) + scores / gpu.bf16;
  out.floor_seconds = std::max(out.bytes / gpu.bandwidth, compute);
  out.reachable_seconds = worst / gpu.reached_bandwidth;
  out.sync_seconds = collectives * kCollective;
  return out;
}

PrefillCost prefill_cost(const RooflineCase& at, std::span<const PromptPiece> pieces) {
  const Gpu& gpu = *gpu_named(at.gpu);
  const auto gpus = static_cast<double>(at.gpus);
  const bool bf16 = at.weights == WeightFormat::bf16;
  PrefillCost out{};
  double tokens = 0, pairs = 0;
  for (const PromptPiece& piece : pieces) {
    tokens += piece.tokens;
    pairs += piece.tokens * piece.past + piece.tokens * (piece.tokens + 1) / 2;
  }
  out.matmul_flops =
      2 * (kActive - kHead) * tokens + 2 * kHead * static_cast<double>(pieces.size());
  out.attention_flops = 4 * kHeads * kHeadDim * kLayers * pairs;
  const double bytes = kLayers *
                       (kAttention * weight_bytes(attention_format(at.weights)) +
                        kExpert * weight_bytes(at.weights) * experts_hit(tokens)) /
                       gpus;
  out.weight_seconds = bytes / gpu.bandwidth;
  const double floor =
      out.matmul_flops / gpus / (bf16 ? gpu.bf16 : gpu.fp8) + out.attention_flops / gpus / gpu.bf16;
  const double reached = out.matmul_flops / gpus / (bf16 ? gpu.reached_bf16 : gpu.reached_fp8) +
                         out.attention_flops / gpus / gpu.reached_attention;
  out.floor_seconds = std::max(floor, out.weight_seconds);
  out.reachable_seconds = std::max(reached, bytes / gpu.reached_bandwidth);
  return out;
}

}  // namespace m2::app::bench
