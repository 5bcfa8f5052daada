#pragma once

#include <cstdint>
#include <string>

#include "tensor/dtype.h"

// How linear() runs on a GPU: a pure function of shapes, printable and tested without one.
namespace m2::ops::cuda {

enum class LinearForm {
  any,     // one warp a row, any dtype and alignment: correct everywhere, fast nowhere
  stream,  // few tokens: weights streamed through mma, 16 rows a block
  ring,    // decode on Hopper: the same sums, weights kept flowing into shared memory
  tiles,   // prefill on Hopper: FP8 wgmma on tiles in shared memory
};

struct LinearShape {
  int64_t tokens = 0, rows = 0, columns = 0;  // T, N of all matrices, K
  DType x = DType::bf16, weight = DType::f8_e4m3;
  bool aligned = true;  // all rows of x and the weights begin at multiples of 16 bytes
  bool whole_chunks = true;  // every slice begins at a multiple of 64 columns
  bool rows_follow = true;   // no gaps between the rows of a weight
  int compute_major = 9;
  int multiprocessors = 132;
};

struct LinearPlan {
  LinearForm form = LinearForm::any;
  int token_tiles = 1;  // stream: tiles of 8 tokens a block takes together
  int tile_rows = 16;   // ring: rows of a tile, 16 or 8, whichever spreads more evenly
};

LinearPlan plan_linear(const LinearShape& shape);
std::string describe(const LinearPlan& plan);

}  // namespace m2::ops::cuda
