#include "ops/route.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/ops_cpu.h"
#include "ops/cpu/product.h"
#include "ops/cpu/row.h"

namespace m2::ops::cpu {
namespace {

// Logits of the tokens worked on at a time, on the caller's stack.
constexpr int64_t kLogits = 4 * kMaxRoutedExperts;
constexpr int64_t kUnitRows = 16;

// logits[t, e] = x[t] . gate[e], experts spread over threads.
void gate_logits(const Exec& exec, const Tensor& x, const Tensor& gate, float* logits) {
  const int64_t experts = gate.size(0);
  const std::byte* inputs[kMaxProductTokens];
  for (int64_t t = 0; t < x.size(0); ++t) inputs[t] = row_of(x, t);
  exec.pool->for_each((experts + kUnitRows - 1) / kUnitRows, [&](int64_t unit) {
    Product work{};
    work.weight = row_of(gate, unit * kUnitRows);
    work.weight_dtype = DType::f32;
    work.rows = std::min(kUnitRows, experts - unit * kUnitRows);
    work.columns = gate.size(1);
    work.x = inputs;
    work.x_dtype = x.dtype();
    work.tokens = x.size(0);
    work.out = logits + unit * kUnitRows;
    work.out_stride = experts;
    product(work);
  });
}

// Ascending ids of the `top` largest sigmoid(logit) + bias, and their normalised sigmoids.
// `scores` turns from logits into sigmoids.
void choose(float* scores, const float* bias, int64_t experts, int64_t top, int32_t* ids,
            float* weights) {
  float keys[kMaxRoutedExperts];
  for (int64_t e = 0; e < experts; ++e) {
    scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    keys[e] = scores[e] + bias[e];
    if (std::isnan(keys[e])) keys[e] = -INFINITY;  // still a choice when nothing else is left
  }
  const auto better = [&keys](int32_t a, int32_t b) {
    return keys[a] > keys[b] || (keys[a] == keys[b] && a < b);
  };
  // The best so far stand in ids, best first.
  int64_t held = 0;
  for (int32_t e = 0; e < static_cast<int32_t>(experts); ++e) {
    if (held == top && !better(e, ids[top - 1])) continue;
    int64_t at = held < top ? held++ : top - 1;
    for (; at > 0 && better(e, ids[at - 1]); --at) ids[at] = ids[at - 1];
    ids[at] = e;
  }
  std::sort(ids, ids + top);
  float sum = 0;
  for (int64_t i = 0; i < top; ++i) sum += scores[ids[i]];
  if (sum <= 0) sum = 1;
  for (int64_t i = 0; i < top; ++i) weights[i] = scores[ids[i]] / sum;
}

}  // namespace

void route(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor slots, Tensor ids,
           Tensor weights) {
  alignas(64) float logits[kLogits];
  const int64_t experts = gate.size(0);
  const int64_t top = ids.size(1);
  const int64_t step = std::min(kMaxProductTokens, kLogits / experts);
  for (int64_t begin = 0; begin < x.size(0); begin += step) {
    const int64_t tokens = std::min(step, x.size(0) - begin);
    gate_logits(exec, x.rows(begin, tokens), gate, logits);
    const int64_t kCost = 64;  // a sigmoid costs about as much as moving this many bytes
    for_rows(exec, tokens, experts * kCost, [&](int64_t t) {
      choose(logits + t * experts, bias.as<float>(), experts, top,
             ids.as<int32_t>() + (begin + t) * top, weights.as<float>() + (begin + t) * top);
    });
  }
  for (int64_t t = 0; !slots.empty() && t < x.size(0); ++t) {
    if (slots.as<int32_t>()[t] >= 0) continue;
    std::fill_n(ids.as<int32_t>() + t * top, top, -1);
    std::fill_n(weights.as<float>() + t * top, top, 0.0f);
  }
}

}  // namespace m2::ops::cpu
