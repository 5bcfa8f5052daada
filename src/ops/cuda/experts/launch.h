#pragma once

#include "ops/cuda/experts/plan.h"
#include "ops/cuda/kernels.h"

namespace m2::ops::cuda {

// experts() of ops/experts.h for tokens that fit one batch of the plan. Scales are null unless the
// weights are f8_e4m3.
struct ExpertsArgs {
  Matrix x, out;
  int32_t* ids;        // [T, top]
  float* weights;      // [T, top]
  RouteChoice choice;  // few, one token: ids and weights are chosen here, and written
  int top;

  const void* w13;  // [E, 2 I, H]
  const void* w2;   // [E, H, I]
  DType weight_dtype;
  int experts, inner, hidden;
  int first_expert, first_inner;
  int scale_row;
  const float* w1_scale;  // [E, inner_blocks, hidden_blocks]
  const float* w3_scale;
  const float* w2_scale;  // [E, hidden_blocks, inner_blocks]
  int inner_blocks, hidden_blocks;

  int32_t* offsets;
  int32_t* active;
  int32_t* groups;
  int32_t* order;
  int32_t* position;  // tiles: of each pair in `order`, -1 for experts elsewhere; or null
  void* inner_values;
  float* results;
  int group_pairs;  // most pairs of a group; 0: all of an expert (tiles)
  int32_t*
      next_tile;     // flow: of the first half, taken beyond each block's first; zero between calls
  int32_t* done;     // flow: tiles of the first half computed, for each group; zeros between calls
  uint32_t* posted;  // few: ExpertsPlan::posted
  // The tokens quantised [T, hidden] with scales of every 128 columns, or null.
  const uint8_t* token_f8;
  const float* token_scales;
  // tiles: quantised tokens [pairs, hidden] (or, gathers, [tokens, hidden] as they come) and inner
  // values [pairs, inner] in the order of `order`, with scales of every 128 and every inner_stretch
  // columns; `results` is bf16 then.
  uint8_t* x_f8;
  float* x_scales;
  uint8_t* inner_f8;
  float* inner_scales;
  int inner_stretch;  // columns of inner that share a scale: 64 or 128
  bool wide_stores;   // eight neighbouring bf16 of the output may be stored at once
  bool powers;        // scales of what is quantised here become powers of two
  bool gathers;       // ExpertsPlan::gathers
  bool leave;         // flow: the results stay as they are, unsummed
  NormAfter after;    // flow, tiles: follows the sum of the results, which `out` then does not get
};

// Groups of the flow form that `done` counts, at most.
constexpr int counted_groups(int experts, int pairs, int group_pairs) {
  return (experts < pairs ? experts : pairs) + pairs / group_pairs + 1;
}

// Whether `after` can be part of experts() of these columns.
bool experts_norm_fits(const NormAfter& after, int hidden);

// Whether experts() of such a plan can take a RouteChoice.
bool experts_choose(const ExpertsPlan& plan, int64_t tokens);

void launch_experts(void* stream, const ExpertsPlan& plan, const ExpertsArgs& args,
                    const RowOwners& owners);

}  // namespace m2::ops::cuda
