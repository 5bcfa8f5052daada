#pragma once

#include <cstdint>
#include <string>

#include "tensor/dtype.h"

// How paged_attention() runs on a GPU: a pure function of shapes, printable and tested without one.
namespace m2::ops::cuda {

struct AttentionShape {
  int64_t tokens = 0, sequences = 0;
  int64_t max_context = 0;  // block_tables' columns times the block size
  int q_heads = 0, kv_heads = 0, head_dim = 0, block_size = 0;
  DType q = DType::bf16, cache = DType::bf16;
  bool aligned = true;  // q's rows and the cache begin at multiples of 16 bytes
  int compute_major = 9;
  int64_t workspace_bytes = 0;
  bool alone = true;  // on the GPU
};

struct AttentionPlan {
  bool matrix_units = false;   // otherwise one block a token and head, any shape and dtype
  bool decode = false;         // run the kernel for sequences of one token in this step
  bool ring = false;           // the decode kernel with bulk copies
  bool lasting = false;        // the one whose blocks go through many parts
  bool prefill = false;        // run the kernel for sequences of several
  bool tiles = false;          // which is the one with wgmma
  bool onward = false;         // else a block a part, or, with this, those of fewer go on to others
  bool by_part = false;        // first parts of all sequences first
  int blocks = 1;              // of a sequence and KV head
  int splits = 1;              // most parts a decoded token's context is cut into
  bool join = false;           // whoever leaves the last part joins them, not a second kernel
  bool joins_at_once = false;  // else that has a block for each head
  // Tiles of 128 keys for which there is room in the workspace, behind decode's parts, where long
  // prompts' contexts over FP8 are widened beforehand; 0: none is.
  int64_t widened_tiles = 0;
  int64_t places_at = 0, widened_at = 0;  // where in the workspace
  bool widens_all = false;                // every prompt of the step
  // Prompts' softmax in parts of part_keys() keys, of which a context has at most 2^part_levels; or
  // in one, for want of a workspace, where that is negative. Sums of parts begin at parts_at.
  int part_levels = 0;
  int64_t parts_at = 0;
  bool shares_parts = false;  // several blocks may share a context, where that is sooner
};

// A decoded token's context is cut by its own length and the rank's KV heads alone, so that its
// result does not depend on the batch: into parts of at least some pages, few enough for one block
// each of two a multiprocessor.
constexpr int kPage = 16;
// Bytes of sums of a part: of 128 queries of a q head 128 numbers, the largest logit and a total,
// the latter two in all lanes of a row.
constexpr int kSumBytes = (128 + 8) * 128 * 4;
// Blocks that keep sums of parts, one a multiprocessor, and the most sums that are shared.
constexpr int kPartBlocks = 132, kMostRuns = 640;
constexpr int kMostRunLevels = 7;  // a context's shared sums are fewer than 2^7
constexpr int kMostSplits = 256;  // by one KV head
// Sequences times KV heads of a step whose parts can be counted.
constexpr int kMostJoins = 8192;
#ifdef __CUDACC__
#define M2_BOTH __host__ __device__
#else
#define M2_BOTH
#endif
M2_BOTH constexpr int most_splits(int kv_heads) {
  return kv_heads >= 8 ? kMostSplits / 8 : kMostSplits / kv_heads;
}
// Keys of a part of a prompt's context, a power of two: few where few heads leave few tiles of
// queries to share out, and else more, since parts' ends cost 2 % of a long prompt by 4096.
M2_BOTH constexpr int part_keys(int kv_heads) {
  return kv_heads <= 2 ? 4096 : 8192;
}
M2_BOTH constexpr int least_pages(int kv_heads) {
  return kv_heads >= 8 ? 16 : 8;
}
M2_BOTH constexpr int pages_per_split(int pages, int kv_heads) {
  const int even = (pages + most_splits(kv_heads) - 1) / most_splits(kv_heads);
  const int rounded = (even + 3) / 4 * 4, least = least_pages(kv_heads);
  return rounded < least ? least : rounded;
}

#undef M2_BOTH

AttentionPlan plan_attention(const AttentionShape& shape);
// Workspace (Exec) with which decode may split: sums, maxima and totals of every part. With less,
// each context is read by one block a KV head, which is right but slow for few sequences.
int64_t attention_workspace_bytes(int64_t sequences, int64_t max_context, int q_heads, int kv_heads,
                                  int head_dim);
// What prompts on Hopper need beside it, whatever the batch.
int64_t prompt_workspace_bytes(int64_t max_context, int kv_heads);
std::string describe(const AttentionPlan& plan);

}  // namespace m2::ops::cuda
