#include "ops/cuda/attention/plan.h"

namespace m2::ops::cuda {
namespace {

int splits_of(int64_t max_context) {
  const int pages = static_cast<int>((max_context + kPage - 1) / kPage);
  const int each = pages_per_split(pages);
  return pages == 0 ? 1 : (pages + each - 1) / each;
}

// Shorter contexts may be cut into more parts than the longest one, because parts are rounded up.
int most_splits(int64_t max_context) {
  const int at_longest = splits_of(max_context);
  return max_context >= kPage * 16 * kMaxSplits ? kMaxSplits : at_longest;
}

}  // namespace

int64_t attention_workspace_bytes(int64_t sequences, int64_t max_context, int q_heads,
                                  int head_dim) {
  return sequences * q_heads * most_splits(max_context) * (head_dim + 2) * 4;
}

AttentionPlan plan_attention(const AttentionShape& shape) {
  AttentionPlan plan;
  plan.matrix_units = shape.compute_major >= 8 && shape.q == DType::bf16 && shape.head_dim == 128 &&
                      shape.block_size == kPage && shape.aligned &&
                      shape.q_heads <= 8 * shape.kv_heads;
  if (!plan.matrix_units) return plan;
  // A step with as many tokens as sequences may hold longer and empty ones only if somebody built
  // it so; the scheduler never plans an empty sequence.
  plan.prefill = shape.tokens > shape.sequences;
  plan.tiles = plan.prefill && shape.compute_major == 9;
  // Elsewhere prompts over FP8 have no kernel of their own.
  if (plan.prefill && !plan.tiles && shape.cache != DType::bf16) return {};
  plan.decode = true;
  plan.splits = most_splits(shape.max_context);
  if (shape.workspace_bytes <
      attention_workspace_bytes(shape.sequences, shape.max_context, shape.q_heads, shape.head_dim))
    plan.splits = 1;
  return plan;
}

std::string describe(const AttentionPlan& plan) {
  if (!plan.matrix_units) return "any";
  std::string text;
  if (plan.decode) text = "decode in up to " + std::to_string(plan.splits) + " parts";
  if (plan.prefill) text += plan.tiles ? ", prefill in tiles" : ", prefill";
  return text;
}

}  // namespace m2::ops::cuda
