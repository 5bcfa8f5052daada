#include "ops/cuda/attention/plan.h"

#include <algorithm>

namespace m2::ops::cuda {
namespace {

// Of few contexts, and short ones, each part has a block's rings to itself.
constexpr int64_t kRingSequences = 2;
// A block for each part, which the GPU shares out as blocks end, and a kernel beside that joins:
// faster than blocks that last, whose parts are shared out beforehand, but of many contexts over
// FP8 and eight KV heads, where a part's end takes as long as its pages (H200).
constexpr int64_t kFewSequences = 24;
constexpr bool suits_blocks(const AttentionShape& shape) {
  return shape.cache == DType::bf16 || shape.kv_heads < 8 || shape.sequences <= kFewSequences;
}

// Whether blocks go on, in grids that have no more of them for a context than one of some thousand
// tokens needs. Over bf16 and few KV heads that loses of few sequences, most of all of long ones.
constexpr bool goes_onward(const AttentionShape& shape) {
  return shape.cache != DType::bf16 || shape.kv_heads >= 8 || shape.sequences > 16;
}

// Whether first parts of all contexts come first. Of many over bf16 and eight KV heads that loses.
constexpr bool goes_by_part(const AttentionShape& shape, bool onward) {
  if (onward)
    return shape.cache != DType::bf16 || shape.kv_heads < 8 || shape.sequences <= kFewSequences;
  return shape.kv_heads == 1;
}

// Blocks of a sequence and KV head: those of a context of some thousand tokens, or what a GPU takes
// at once. More would begin in front of other sequences' parts, or keep the next kernel waiting,
// only to find that there is no such part.
int blocks_of(const AttentionShape& shape, const AttentionPlan& plan) {
  if (!plan.onward) return plan.splits;
  constexpr int64_t kAtOnce = 512;
  const int64_t heads = std::max<int64_t>(1, shape.sequences * shape.kv_heads);
  return std::min(plan.splits, std::max(16, static_cast<int>((kAtOnce + heads - 1) / heads)));
}

// Heads up to which each has a block that joins its parts: of more, who waits for a place among
// them loses more than a look at all parts at once gains.
constexpr int64_t kHeadsAtOnce = 1152;

// Shorter contexts may be cut into more parts than the longest one, because parts are rounded up.
int splits_of(int64_t max_context, int kv_heads) {
  const int most = most_splits(kv_heads), least = least_pages(kv_heads);
  if (max_context >= int64_t{1} * kPage * least * most) return most;
  const int pages = static_cast<int>((max_context + kPage - 1) / kPage);
  return std::max(1, (pages + least - 1) / least);
}

constexpr int64_t kBorder = 1024;
constexpr int64_t up(int64_t bytes) {
  return (bytes + kBorder - 1) / kBorder * kBorder;
}

int part_levels_of(int64_t max_context, int kv_heads) {
  int levels = 0;
  while (int64_t{part_keys(kv_heads)} << levels < max_context) ++levels;
  return levels;
}

// Room for sums of parts, behind decode's: from `at` on. Where it ends.
int64_t place_parts(const AttentionShape& shape, int64_t at, AttentionPlan& plan) {
  if (!plan.tiles) return at;
  plan.part_levels = part_levels_of(shape.max_context, shape.kv_heads);
  if (plan.part_levels == 0) return at;
  const int64_t end = at + prompt_workspace_bytes(shape.max_context, shape.kv_heads);
  if (shape.workspace_bytes < end) {
    plan.part_levels = -1;
    return at;
  }
  plan.parts_at = at;
  // Where there are many tiles of queries anyway, the GPU is not asked.
  constexpr int kRounds = 4;
  const int64_t tiles = (shape.tokens - shape.sequences) / 128;
  plan.shares_parts =
      tiles * shape.q_heads < int64_t{kRounds} * kPartBlocks && plan.part_levels < kMostRunLevels;
  return up(end);
}

// Room for widened contexts, from `at` on.
void place_widened(const AttentionShape& shape, int64_t at, AttentionPlan& plan) {
  if (!plan.tiles || shape.cache == DType::bf16) return;
  constexpr int64_t kKeys = 128;
  plan.places_at = at;
  plan.widened_at = plan.places_at + up(4 * shape.sequences);
  const int64_t tile_bytes = 2 * kKeys * shape.kv_heads * shape.head_dim * 2;
  const int64_t room = (shape.workspace_bytes - plan.widened_at) / tile_bytes;
  const int64_t most = shape.sequences * ((shape.max_context + kKeys - 1) / kKeys);
  const bool alone = shape.sequences == 1;
  plan.widens_all = alone && room >= most;
  if (!alone || plan.widens_all) plan.widened_tiles = std::clamp<int64_t>(room, 0, most);
}

}  // namespace

int64_t attention_workspace_bytes(int64_t sequences, int64_t max_context, int q_heads, int kv_heads,
                                  int head_dim) {
  return sequences * q_heads * splits_of(max_context, kv_heads) * (head_dim + 2) * 4;
}

int64_t prompt_workspace_bytes(int64_t max_context, int kv_heads) {
  const int levels = part_levels_of(max_context, kv_heads);
  if (levels == 0) return 0;
  return kBorder + int64_t{kSumBytes} * (kPartBlocks * levels + kMostRuns);
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
  plan.ring = shape.compute_major >= 9 && shape.sequences <= kRingSequences;
  plan.splits = splits_of(shape.max_context, shape.kv_heads);
  const int64_t decode = attention_workspace_bytes(shape.sequences, shape.max_context,
                                                   shape.q_heads, shape.kv_heads, shape.head_dim);
  if (shape.workspace_bytes < decode) plan.splits = 1;
  plan.join = plan.splits > 1 && shape.alone && shape.sequences * shape.kv_heads <= kMostJoins;
  plan.lasting = !plan.ring && !suits_blocks(shape);
  const bool blocks = !plan.ring && !plan.lasting;
  plan.onward = blocks && goes_onward(shape);
  plan.by_part = blocks && goes_by_part(shape, plan.onward);
  plan.blocks = blocks_of(shape, plan);
  // A second kernel, which stands ready beside the first, joins parts sooner than whoever leaves
  // the last of a head.
  if (blocks) plan.join = false;
  plan.joins_at_once = shape.sequences * shape.q_heads <= kHeadsAtOnce;
  const int64_t behind_decode = plan.splits > 1 ? up(decode) : 0;
  place_widened(shape, place_parts(shape, behind_decode, plan), plan);
  return plan;
}

std::string describe(const AttentionPlan& plan) {
  if (!plan.matrix_units) return "any";
  std::string text;
  if (plan.decode) text = "decode in up to " + std::to_string(plan.splits) + " parts";
  if (plan.join) text += " that join themselves";
  if (plan.prefill) text += plan.tiles ? ", prefill in tiles" : ", prefill";
  if (plan.part_levels > 0)
    text += ", keys in up to " + std::to_string(1 << plan.part_levels) + " parts" +
            (plan.shares_parts ? " that blocks may share" : "");
  if (plan.widened_tiles > 0)
    text += ", up to " + std::to_string(plan.widened_tiles) + " of keys widened before";
  return text;
}

}  // namespace m2::ops::cuda
