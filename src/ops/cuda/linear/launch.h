#pragma once

#include "ops/cuda/kernels.h"
#include "ops/cuda/linear/plan.h"

namespace m2::ops::cuda {

// One of the matrices that share an input. Scales are null unless the weights are f8_e4m3.
struct LinearPart {
  const void* weight;
  const float* scale;
  int64_t scale_stride;  // scales a row of blocks
  int64_t weight_stride;
  int first_row, first_column;
  int rows;
  int out_begin;   // column of `out` where its rows go
  int tile_begin;  // 16-row tiles of the parts before it
};

struct LinearArgs {
  static constexpr int kMaxParts = 4;
  Matrix x, out;
  DType weight_dtype;
  int parts;
  int tiles;  // of all parts
  LinearPart part[kMaxParts];
  // tiles: quantised x [T, K] and the scales of every 128 columns
  uint8_t* x_f8;
  float* x_scales;
  bool quantised;      // they are there already
  bool powers;         // else their scales become powers of two
  bool paired_stores;  // two neighbouring bf16 of the output may be stored at once
};

// Forms that are taken for up to 64 tokens alone know no owners.
void launch_linear(void* stream, const LinearPlan& plan, const LinearArgs& args,
                   const RowOwners& owners);

}  // namespace m2::ops::cuda
