#pragma once

#include <cstdint>
#include <string>

#include "tensor/dtype.h"

// How experts() runs on a GPU: a pure function of shapes, printable and tested without one.
namespace m2::ops::cuda {

enum class ExpertsForm {
  any,     // one warp a row of each pair's expert: correct everywhere, fast nowhere
  stream,  // few tokens: each expert's weights streamed once for its tokens
  ring,    // decode on Hopper: the same sums, weights kept flowing into shared memory
  tiles,   // prefill on Hopper: FP8 wgmma, tokens grouped by expert
  flow,    // decode on Hopper: the same bytes as tiles, weights kept flowing into shared memory
};

constexpr int kMostExperts = 1024;
constexpr int kFlowPairs = 128 * 32;  // a step of the flow form has no more

// Tokens that the flow form takes without lists, and of each so many choices.
constexpr int kFewTokens = 16, kFewChoices = 8, kFewPairs = kFewTokens * kFewChoices;

struct ExpertsShape {
  int64_t tokens = 0, top = 0;
  int64_t experts = 0, inner = 0, hidden = 0;  // E, I, H of this rank
  DType x = DType::bf16, weight = DType::f8_e4m3;
  bool aligned = true;       // rows of x and of the weights begin at multiples of 16 bytes
  bool whole_chunks = true;  // the inner slice begins at a multiple of 64 columns
  bool whole_blocks = true;  // it begins and ends at multiples of 128
  int compute_major = 9;
  bool alone = true;  // no other stream uses the device
};

// A pair is one token with one of its experts: pair = token * top + place. Lists and results lie in
// the scratch at these byte offsets.
struct ExpertsPlan {
  ExpertsForm form = ExpertsForm::any;
  int token_tiles = 1;      // stream: tiles of 8 tokens a block takes together
  int64_t batch = 0;        // tokens a pass; longer steps take several passes
  int64_t offsets = 0;      // i32 [E + 1]: where each expert's pairs begin in `order`
  int64_t active = 0;       // i32 [1 + E]: how many experts have pairs, then which
  int64_t groups = 0;       // i32 [4 + 4 G]: how many groups of pairs of one expert, then each
                            // one's expert, begin in `order` and count (ring, flow); for tiles
                            // of each expert with pairs, and the tile_counts() of those before
  int64_t order = 0;        // i32 [pairs]: pairs, expert after expert
  int64_t position = 0;     // tiles: i32 [pairs], where each stands in `order`
  int64_t inner = 0;        // [pairs, I]: silu(gate) * up; f32 (any) or bf16
  int64_t results = 0;      // f32 [pairs, H]
  int64_t group_pairs = 8;  // most pairs of a group, an instruction's columns; tiles: 0, all of an
                            // expert are one
  bool gathers = false;  // tiles: the first half reads tokens where they are, not in the order of
                         // `order`; x_f8 and x_scales are those of tokens then
  int inner_stretch = 128;  // flow, tiles: columns of inner that are quantised with one scale
  int64_t next_tile = 0;    // flow: i32, zero between calls
  int64_t done = 0;         // flow: i32 [groups], zeros between calls
  bool few = false;         // flow: no lists; at most group_pairs tokens, kFewChoices times as
                            // many pairs
  int64_t posted = 0;       // few: u32 [4], the first of which counts calls, and [kFewPairs, I]
                            // words of inner values (PostedInner), zeros before the first call
  bool fused = true;        // flow: both halves in one launch, whose blocks all run at once
  int64_t x_f8 = 0, x_scales = 0, inner_f8 = 0, inner_scales = 0;  // tiles; results are bf16 then
  int64_t scratch_bytes = 0;
};

ExpertsPlan plan_experts(const ExpertsShape& shape);
// Enough for that many tokens and for any fewer.
int64_t experts_scratch_bytes(ExpertsShape shape);
std::string describe(const ExpertsPlan& plan);

}  // namespace m2::ops::cuda
